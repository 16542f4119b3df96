//! One HTTP/2 connection to a control plane, which has proved to be one.
//!
//! A connection counts only once the server said its first word, so that a port that accepts and stays silent is a
//! connect error like any other. Dropping it ends all of its tasks. This file does NOT dial and does NOT speak ADS.

use super::jwt::TokenFile;
use hyper::{body::Incoming, client::conn::http2, rt::Executor};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    error::Error,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
    task::JoinSet,
};
use tonic::body::Body;
use tower_service::Service;

/// "xDS channel keepalive: 5 min interval, 20 s timeout" - grpc-go.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5 * 60), Duration::from_secs(20));
/// Room for a large response in flight; ADS has one stream, so the connection's window need not be larger.
const WINDOW: u32 = 4 * 1024 * 1024;

/// An HTTP/2 connection. Dropping it ends its tasks and closes the socket.
#[derive(Debug)]
pub(crate) struct Connection {
    send: http2::SendRequest<Body>,
    /// Each call carries all of them.
    call_credentials: Arc<[TokenFile]>,
    /// Ends with the connection.
    _tasks: Tasks,
}

impl Connection {
    /// Speaks HTTP/2 over `io`, and waits for the server's first word. `call_credentials` go with every call: it is the
    /// caller who sees to it that `io` keeps secrets.
    ///
    /// # Errors
    /// The cause, for people.
    pub(super) async fn handshake(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        call_credentials: Arc<[TokenFile]>,
    ) -> Result<Self, String> {
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
        let connection = Self { send, call_credentials, _tasks: tasks };
        match first_word.await {
            Ok(Ok(())) => Ok(connection),
            // Under TLS 1.3 a server refuses a client's certificate only after the client's half of the handshake is done.
            Ok(Err(cause)) => Err(cause),
            Err(_) => Err("the connection was closed before any HTTP/2 answer".to_owned()),
        }
    }
}

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    /// A [`tonic::Status`] where the credentials are at fault, which tonic hands on; else what hyper says.
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.send.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // A clone is the same connection; HTTP/2 has room for its call even when that waits for a token.
        let (mut send, credentials) = (self.send.clone(), Arc::clone(&self.call_credentials));
        Box::pin(async move {
            for token in &*credentials {
                request.headers_mut().append(http::header::AUTHORIZATION, token.authorization().await?);
            }
            Ok(send.send_request(request).await?)
        })
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

/// Tells when the peer sends its first byte, which in HTTP/2 belongs to its SETTINGS, or what it sends instead.
struct Answering<T> {
    io: T,
    answered: Option<oneshot::Sender<Result<(), String>>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Answering<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        let word = match &polled {
            Poll::Ready(Err(error)) => Some(Err(error.to_string())),
            _ if buf.filled().len() > before => Some(Ok(())),
            _ => None,
        };
        if let Some(word) = word
            && let Some(answered) = this.answered.take()
        {
            // Nobody waits any more when the dial timed out.
            let _ = answered.send(word);
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
