//! A test backend in this process: the PSM suite's TestService and an HTTP echo on a real socket.
//!
//! Wire tests, the interop server and foreign peers (grpcio, Envoy) all call the same one. It can be restarted
//! gracefully (GOAWAY), killed (connections are reset) and revived on the same port, and it counts what it saw. It does
//! NOT misbehave on the level of HTTP/2 frames.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use interop_tests::backend::Backend;
//! let mut backend = Backend::start("a").await?;
//! // ... a client calls backend.address() ...
//! assert_eq!(backend.counters().calls, 1);
//! backend.kill().await; // its connections are reset
//! backend.revive().await?; // the same port again
//! # Ok(())
//! # }
//! ```

mod answer;
mod behavior;
mod connection;
mod orca;
mod tally;
mod test_service;
#[cfg(test)]
mod tests;

pub use tally::{CallHead, Counters};

use crate::proto::testing::test_service_server::TestServiceServer;
use answer::Answerer;
use connection::{Http2Settings, Order, Orders};
use std::{io, net::SocketAddr, sync::Arc};
use tally::Tally;
use test_service::Service;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinHandle,
};
use tonic::service::Routes;

/// Connections the kernel queues before the accept loop takes them.
const BACKLOG: u32 = 1024;

/// A running (or stopped, or killed) backend. Dropping it resets its connections.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    settings: Http2Settings,
    answerer: Answerer,
    listening: Option<Listening>,
    /// Bound, and never listens: while the backend is away its port refuses, and is nobody else's.
    _port: TcpSocket,
}

/// One life of the backend, from listen to the end of its last connection. Dropping it is an order to reset: the tasks
/// see a closed channel.
#[derive(Debug)]
struct Listening {
    orders: watch::Sender<Orders>,
    task: JoinHandle<()>,
}

/// A backend to be. Everything has a default but the hostname.
#[derive(Debug)]
#[must_use = "a builder does nothing until `start`"]
pub struct BackendBuilder {
    hostname: Arc<str>,
    server_id: Arc<str>,
    address: SocketAddr,
    settings: Http2Settings,
    routes: Option<Routes>,
    tally: Arc<Tally>,
}

// === Backend ===

impl Backend {
    /// A backend called `hostname` on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// No socket could be had.
    pub async fn start(hostname: &str) -> io::Result<Self> {
        Self::builder(hostname).start().await
    }

    /// A backend called `hostname`, to be configured.
    pub fn builder(hostname: &str) -> BackendBuilder {
        BackendBuilder {
            hostname: hostname.into(),
            server_id: hostname.into(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            settings: Http2Settings::default(),
            routes: None,
            tally: Arc::default(),
        }
    }

    /// Where it listens, or did.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The name it answers with.
    pub fn hostname(&self) -> &str {
        &self.answerer.hostname
    }

    /// What it has seen since it was made.
    pub fn counters(&self) -> Counters {
        self.answerer.tally.counters()
    }

    /// The head of the newest call.
    pub fn last_call(&self) -> Option<CallHead> {
        self.answerer.tally.last_call()
    }

    /// Waits, 15 s at most, until `what` holds.
    ///
    /// # Errors
    /// It did not: the counters at the end of the wait.
    pub async fn wait_for(&self, what: impl FnMut(&Counters) -> bool + Send) -> Result<Counters, Counters> {
        self.answerer.tally.wait_for(what).await
    }

    /// Stops gracefully: the port is closed, GOAWAY is sent, and this returns when the last stream has ended.
    pub async fn stop(&mut self) {
        self.end(Order::Drain).await;
    }

    /// Stops at once: the port is closed and every connection reset.
    pub async fn kill(&mut self) {
        self.end(Order::Reset).await;
    }

    /// Listens again on the same address; nothing if it does already.
    ///
    /// # Errors
    /// The system refuses another socket.
    pub async fn revive(&mut self) -> io::Result<()> {
        if self.listening.is_none() {
            let listener = bind(self.address)?.listen(BACKLOG)?;
            self.listening = Some(self.listen(listener));
        }
        Ok(())
    }

    /// A graceful restart without a gap: GOAWAY on every connection, while the port takes new ones.
    pub fn restart(&self) {
        if let Some(listening) = &self.listening {
            listening.orders.send_modify(|orders| orders.generation += 1);
        }
    }

    async fn end(&mut self, order: Order) {
        if let Some(listening) = self.listening.take() {
            listening.give(order);
            listening.ended().await;
        }
    }

    fn listen(&self, listener: TcpListener) -> Listening {
        let (sender, orders) = watch::channel(Orders { order: Order::Serve, generation: 0 });
        let task = tokio::spawn(connection::listen(listener, self.settings, self.answerer.clone(), orders));
        Listening { orders: sender, task }
    }
}

impl Listening {
    fn give(&self, order: Order) {
        self.orders.send_modify(|orders| orders.order = order);
    }

    async fn ended(mut self) {
        // An error is a panic of the task, and the panic's own message is already out.
        let _ = (&mut self.task).await;
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // The port has two sockets, of which one listens; and on that of a revived backend connections may still linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

// === BackendBuilder ===

impl BackendBuilder {
    /// `SimpleResponse.server_id`; the hostname if not said.
    pub fn server_id(self, server_id: &str) -> Self {
        Self { server_id: server_id.into(), ..self }
    }

    /// Where to listen; a free port of 127.0.0.1 if not said.
    pub fn address(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    /// `SETTINGS_MAX_CONCURRENT_STREAMS`.
    pub fn max_concurrent_streams(mut self, streams: u32) -> Self {
        self.settings.max_concurrent_streams = Some(streams);
        self
    }

    /// The flow-control windows of each stream and of the connection, for what the client sends.
    pub fn windows(mut self, stream: u32, connection: u32) -> Self {
        self.settings.initial_stream_window = Some(stream);
        self.settings.initial_connection_window = Some(connection);
        self
    }

    /// `SETTINGS_MAX_HEADER_LIST_SIZE`.
    pub fn max_header_list_size(mut self, bytes: u32) -> Self {
        self.settings.max_header_list_size = Some(bytes);
        self
    }

    /// Serves these gRPC services instead of TestService alone.
    pub fn routes(self, routes: Routes) -> Self {
        Self { routes: Some(routes), ..self }
    }

    /// The TestService this backend would serve, to be combined with others for [`BackendBuilder::routes`].
    pub fn test_service(&self) -> Routes {
        Routes::new(TestServiceServer::new(self.service()))
    }

    /// What the backend will have seen, for a service that it serves itself.
    pub fn counting(&self) -> impl Fn() -> Counters + Send + Sync + 'static {
        let tally = self.tally.clone();
        move || tally.counters()
    }

    /// Starts to listen.
    ///
    /// # Errors
    /// The address can not be had.
    pub async fn start(self) -> io::Result<Backend> {
        let port = bind(self.address)?;
        let address = port.local_addr()?;
        let listener = bind(address)?.listen(BACKLOG)?;
        let routes = self.routes.clone().unwrap_or_else(|| self.test_service());
        let answerer = Answerer { hostname: self.hostname, routes, tally: self.tally };
        let mut backend = Backend { address, settings: self.settings, answerer, listening: None, _port: port };
        backend.listening = Some(backend.listen(listener));
        Ok(backend)
    }

    fn service(&self) -> Service {
        Service { hostname: self.hostname.clone(), server_id: self.server_id.clone() }
    }
}
