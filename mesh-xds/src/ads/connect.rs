//! From a server's address to an HTTP/2 connection that has proved to be one.
//!
//! Names are looked up at every dial and all addresses are tried, a next one every 250 ms (RFC 8305's way). A
//! connection counts only once the server said its first word, so that a port that accepts and stays silent is a
//! connect error like any other. This file does NOT retry and does NOT speak ADS.

use crate::bootstrap::{ServerAddress, TransportOptions};
use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::{body::Incoming, client::conn::http2, rt::Executor};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    sync::oneshot,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::body::Body;
use tower_service::Service;

/// "xDS channel keepalive: 5 min interval, 20 s timeout" - grpc-go.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5 * 60), Duration::from_secs(20));
/// "Happy Eyeballs step 250 ms" - A61.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// Room for a large response in flight; ADS has one stream, so the connection's window need not be larger.
const WINDOW: u32 = 4 * 1024 * 1024;

/// An HTTP/2 connection. Dropping it ends its tasks and closes the socket.
#[derive(Debug)]
pub(crate) struct Connection {
    send: http2::SendRequest<Body>,
    /// Ends with the connection.
    _tasks: Tasks,
}

/// Dials.
///
/// # Errors
/// The cause, for people.
pub(crate) async fn connect(address: &ServerAddress, options: &TransportOptions) -> Result<Connection, String> {
    let system = async |host: &str, port| Ok(lookup_host((host, port)).await?.collect());
    connect_with(address, options, system).await
}

async fn connect_with(
    address: &ServerAddress,
    options: &TransportOptions,
    lookup: impl AsyncFn(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> Result<Connection, String> {
    let dialled = timeout(options.connect_timeout, async {
        match address {
            ServerAddress::Name { host, port } => {
                let found = lookup(host, *port).await;
                first_of(found.map_err(|error| format!("name lookup failed: {error}"))?).await
            }
            ServerAddress::Sockets(sockets) => first_of(sockets.clone()).await,
            ServerAddress::Unix(path) => unix(path).await,
            ServerAddress::InProcess(server) => handshake(server.dial().map_err(|error| error.to_string())?).await,
        }
    });
    dialled.await.unwrap_or_else(|_| Err(format!("no HTTP/2 answer within {:?}", options.connect_timeout)))
}

#[cfg(unix)]
async fn unix(path: &std::path::Path) -> Result<Connection, String> {
    handshake(tokio::net::UnixStream::connect(path).await.map_err(|error| error.to_string())?).await
}

#[cfg(not(unix))]
async fn unix(_: &std::path::Path) -> Result<Connection, String> {
    Err("this platform has no Unix sockets".to_owned())
}

/// The first address that answers; the others are let go.
async fn first_of(sockets: Vec<SocketAddr>) -> Result<Connection, String> {
    let mut attempts = FuturesUnordered::new();
    let mut causes = Vec::new();
    let mut rest = sockets.into_iter().peekable();
    loop {
        attempts.extend(rest.next().map(tcp));
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(connection) => return Ok(connection),
                Err(cause) => causes.push(cause),
            },
            () = sleep(NEXT_ADDRESS), if rest.peek().is_some() => {}
            else => {}
        }
        if attempts.is_empty() && rest.peek().is_none() {
            let none = "the name has no address".to_owned();
            return Err(if causes.is_empty() { none } else { causes.join("; ") });
        }
    }
}

async fn tcp(socket: SocketAddr) -> Result<Connection, String> {
    let stream = TcpStream::connect(socket).await.map_err(|error| format!("{socket}: {error}"))?;
    stream.set_nodelay(true).map_err(|error| format!("{socket}: {error}"))?;
    handshake(stream).await.map_err(|cause| format!("{socket}: {cause}"))
}

async fn handshake(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Connection, String> {
    let (answered, first_word) = oneshot::channel();
    let tasks = Tasks::default();
    let connecting = http2::Builder::new(tasks.executor())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(TokioIo::new(Answering { io, answered: Some(answered) }));
    let (send, connection) = connecting.await.map_err(|error| error.to_string())?;
    tasks.executor().execute(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "ADS connection ended");
        }
    });
    let connection = Connection { send, _tasks: tasks };
    match first_word.await {
        Ok(()) => Ok(connection),
        Err(_) => Err("the connection was closed before any HTTP/2 answer".to_owned()),
    }
}

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.send.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.send.send_request(request))
    }
}

// === Tasks ===

/// What hyper spawns for one connection, ended together.
#[derive(Debug, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

#[derive(Clone, Debug)]
struct TasksExecutor(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn executor(&self) -> TasksExecutor {
        TasksExecutor(Arc::clone(&self.0))
    }
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for TasksExecutor {
    fn execute(&self, task: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(async move { drop(task.await) });
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        // The tasks hold executors, which hold the set: only this breaks the circle.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

// === Answering ===

/// Tells when the peer sends its first byte, which in HTTP/2 belongs to its SETTINGS.
struct Answering<T> {
    io: T,
    answered: Option<oneshot::Sender<()>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Answering<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if buf.filled().len() > before
            && let Some(answered) = this.answered.take()
        {
            // Nobody waits any more when the dial timed out.
            let _ = answered.send(());
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Answering<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, net::TcpListener};
    use tokio::io::AsyncWriteExt;

    /// A server that says the first word of HTTP/2, and its address.
    async fn server() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                // An empty SETTINGS frame.
                socket.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("just accepted");
                held.push(socket);
            }
        });
        address
    }

    #[tokio::test]
    async fn a_name_is_looked_up_at_every_dial_and_all_its_addresses_are_tried() {
        let refusing = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a free port");
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let silent = silent.local_addr().expect("bound");
        let answers = RefCell::new(vec![
            Ok(vec![refusing, silent, server().await]),
            Ok(vec![refusing]),
            Ok(vec![]),
            Err(io::Error::other("no such host")),
            Ok(vec![server().await]),
        ]);
        answers.borrow_mut().reverse();
        let lookup = async |host: &str, port| {
            assert_eq!((host, port), ("cp.example", 1));
            answers.borrow_mut().pop().expect("as many dials as answers")
        };
        let address = ServerAddress::parse("cp.example:1").expect("a name");
        let options = TransportOptions::default();
        let dial = || connect_with(&address, &options, lookup);
        assert!(dial().await.is_ok(), "the third address");
        let cause = dial().await.expect_err("the address of before is not tried");
        assert!(cause.contains(&refusing.to_string()), "{cause}");
        assert_eq!(dial().await.err().as_deref(), Some("the name has no address"));
        assert_eq!(dial().await.err().as_deref(), Some("name lookup failed: no such host"));
        assert!(dial().await.is_ok(), "the name points elsewhere now");
    }
}
