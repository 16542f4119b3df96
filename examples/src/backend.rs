//! An echo backend on a loopback port: gRPC (`echo.Echo`) and plain HTTP, which can go down in the two ways backends do.
//!
//! ```text
//! serving ──stop──► GOAWAY; calls in flight are finished, then the connections close ──start──► serving
//!    └──────kill──► SO_LINGER 0 and close: the peer reads ECONNRESET, calls in flight are cut ──start──► serving
//! ```
//! A small server to have something to call; it does NOT show how to write one.

use crate::proto::echo::{
    EchoReply, EchoRequest,
    echo_server::{Echo, EchoServer},
};
use http::{HeaderValue, Request, Response, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use socket2::SockRef;
use std::{convert::Infallible, io, net::SocketAddr, os::fd::AsFd, pin::pin, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};
use tonic::{Status, body::Body, service::Routes};
use tower_service::Service;

/// The response header in which plain HTTP learns who answered.
pub const BACKEND_HEADER: &str = "backend";

/// The response header in which plain HTTP learns how long the answer was worked on, in microseconds.
pub const WORKED_HEADER: &str = "worked";

/// A backend that says who it is. Dropping it is killing it.
#[derive(Debug)]
pub struct EchoBackend {
    name: &'static str,
    work: Duration,
    address: SocketAddr,
    /// `None` while it is down.
    life: Option<Life>,
}

#[derive(Debug)]
struct Life {
    orders: watch::Sender<Order>,
    ended: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Serve,
    Drain,
    Reset,
}

impl EchoBackend {
    /// A backend on a free port of 127.0.0.1 that takes its time, `work`, for each call.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(name: &'static str, work: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut backend = Self { name, work, address: listener.local_addr()?, life: None };
        backend.serve(listener);
        Ok(backend)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where it listens, or did.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Goes down gracefully; returns when the last call is answered and the last connection closed.
    pub async fn stop(&mut self) {
        self.end(Order::Drain).await;
    }

    /// Goes down as in a crash: every connection is reset.
    pub async fn kill(&mut self) {
        self.end(Order::Reset).await;
    }

    /// Comes back on the same port; nothing if it is there.
    ///
    /// # Errors
    /// When somebody else has the port.
    pub async fn start_again(&mut self) -> io::Result<()> {
        if self.life.is_none() {
            let listener = TcpListener::bind(self.address).await?;
            self.serve(listener);
        }
        Ok(())
    }

    fn serve(&mut self, listener: TcpListener) {
        // Latest wins. When the sender is dropped, the connections are reset.
        let (orders, receiver) = watch::channel(Order::Serve);
        let answerer = Answerer::new(self.name, self.work);
        self.life = Some(Life { orders, ended: tokio::spawn(accept(listener, answerer, receiver)) });
    }

    async fn end(&mut self, order: Order) {
        if let Some(Life { orders, ended }) = self.life.take() {
            orders.send_replace(order);
            // An error is a panic of the task, whose message is out already.
            let _ = ended.await;
        }
    }
}

// === Connections ===

/// Accepts until the order changes, then waits for the connections to end.
async fn accept(listener: TcpListener, answerer: Answerer, mut orders: watch::Receiver<Order>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased; // Nobody is let in after the order.
            () = over(&mut orders) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, answerer.clone(), orders.clone()))),
                // Out of descriptors, most likely: trying again at once would only spin.
                Err(_) => sleep(Duration::from_millis(50)).await,
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits for an order to end, or for the backend to be dropped.
async fn over(orders: &mut watch::Receiver<Order>) {
    let _ = orders.wait_for(|order| *order != Order::Serve).await;
}

async fn connection(stream: TcpStream, answerer: Answerer, mut orders: watch::Receiver<Order>) {
    // Without TCP_NODELAY a small answer could wait 40 ms for an acknowledgement. The second descriptor is for the
    // reset: hyper owns the first.
    let Ok(socket) = stream.set_nodelay(true).and_then(|()| stream.as_fd().try_clone_to_owned()) else { return };
    let service = service_fn(move |request| answerer.clone().answer(request));
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            order = orders.wait_for(|order| *order == Order::Reset || (*order == Order::Drain && !draining)) => {
                if order.is_ok_and(|order| *order == Order::Drain) {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                } else {
                    // Both descriptors close when this returns, and nothing is left to be sent.
                    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
                    return;
                }
            }
            _ = connection.as_mut() => return,
        }
    }
}

// === Answers ===

#[derive(Clone)]
struct Answerer {
    echo: EchoService,
    grpc: Routes,
}

#[derive(Clone)]
struct EchoService {
    name: &'static str,
    work: Duration,
}

impl Answerer {
    fn new(name: &'static str, work: Duration) -> Self {
        let echo = EchoService { name, work };
        Self { grpc: Routes::new(EchoServer::new(echo.clone())), echo }
    }

    async fn answer(mut self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        if content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
            return self.grpc.call(request.map(Body::new)).await;
        }
        let worked = self.echo.work().await;
        let mut response = Response::new(Body::new(request.into_body()));
        response.headers_mut().insert(BACKEND_HEADER, HeaderValue::from_static(self.echo.name));
        response.headers_mut().insert(WORKED_HEADER, HeaderValue::from(worked));
        Ok(response)
    }
}

impl EchoService {
    /// Works; says how long that really took, in microseconds.
    async fn work(&self) -> u64 {
        let began = Instant::now();
        sleep(self.work).await;
        u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

#[tonic::async_trait]
impl Echo for EchoService {
    async fn echo(&self, request: tonic::Request<EchoRequest>) -> Result<tonic::Response<EchoReply>, Status> {
        let worked = self.work().await;
        let text = request.into_inner().text;
        Ok(tonic::Response::new(EchoReply { text, backend: self.name.to_owned(), worked }))
    }
}
