//! HTTP/2 connections: one driver task each, and calls that talk to h2 directly.
//!
//! A call clones the send handle, enqueues its frames and waits for its own stream; no task and no queue stand
//! between. The driver owns the socket: it proves the connection (READY only after the server's SETTINGS, shown by
//! the PONG to our first PING), republishes the stream quota, notices GOAWAY, and pings if keepalive is on.
//!
//! ```text
//!   Proving ── PONG ──► Open ── GOAWAY, retired ──► Draining ── last stream ends ──► closed
//!      │ timeout, error   │ error, keepalive timeout
//!      ▼                  ▼
//!    failed             closed
//! ```

use super::{
    Connection, ConnectionEvent, Gate, RecvFailure, SendFailure, Transport,
    connect::{DialOptions, Keepalive, Tracked, Writes},
};
use crate::upload::{Part, Upload};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::{
    Ping, Reason, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{Request, request, response};
use http_body::{Body, Frame};
use std::{
    fmt, future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
    time::{Instant, Sleep, sleep_until, timeout_at},
};

/// What the first DATA frame may weigh to be enqueued without asking for flow-control capacity first: one frame.
const FIRST_FRAME: usize = 16 * 1024;

// === Sender ===

/// The calling side of a connection.
pub(super) struct Sender {
    send: SendRequest<Bytes>,
    writes: Arc<Writes>,
    retired: Arc<Retired>,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("h2::Sender")
    }
}

/// Tells the driver to let go of its own send handle, so that the connection closes once it is idle.
#[derive(Debug, Default)]
struct Retired {
    flag: AtomicBool,
    driver: AtomicWaker,
}

impl Sender {
    /// One that no driver and no peer belongs to.
    #[cfg(test)]
    pub(super) async fn unheard() -> Self {
        let (io, _peer) = tokio::io::duplex(1024);
        let (send, _) = h2::client::handshake(io).await.expect("the preface fits");
        Self { send, writes: Arc::default(), retired: Arc::default() }
    }

    pub(super) fn retire(&self) {
        self.retired.flag.store(true, Ordering::Release);
        self.retired.driver.wake();
    }

    /// Sends one attempt and waits for its response headers.
    pub(super) async fn send<B>(
        &self,
        head: &request::Parts,
        upload: &mut Option<Upload<B>>,
    ) -> Result<(response::Parts, RecvBody), SendFailure>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        // Read before anything is enqueued: if it has not moved when the connection breaks, nothing of us was written.
        let written = self.writes.count();
        let mut send = self.send.clone();
        let end = upload.as_ref().is_none_or(Upload::is_empty);
        let (response, stream) = match send.send_request(request(head), end) {
            Ok(pair) => pair,
            // The connection (GOAWAY, closed, ids used up) or the request itself may be at fault: ask.
            Err(error) => {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                return Err(match send.poll_ready(&mut cx) {
                    Poll::Ready(Err(_)) => SendFailure::Unsent(error.to_string()),
                    _ => SendFailure::Invalid(error.to_string()),
                });
            }
        };
        drop(send);
        let mut exchange = Exchange { response, stream: (!end).then_some(stream), chunk: None, started: false };
        let result = future::poll_fn(|cx| exchange.poll(cx, upload)).await;
        let response = result.map_err(|failure| match failure {
            SendFailure::Io(reason) if self.writes.count() == written => SendFailure::Unsent(reason),
            failure => failure,
        })?;
        // A body that is wholly sent stays with the call, which may send it again.
        let unfinished = exchange.stream.take().and_then(|stream| Some((stream, upload.take()?)));
        let pump = unfinished.map(|(stream, mut upload)| {
            // The response began before the upload was over. The caller may now only read, or only write: the rest
            // goes on by itself, until the response has ended or is given up.
            upload.commit();
            let mut exchange = Pump { stream, chunk: exchange.chunk.take(), upload };
            tokio::spawn(future::poll_fn(move |cx| exchange.poll(cx))).abort_handle()
        });
        let (parts, recv) = response.into_parts();
        Ok((parts, RecvBody { recv, pump, ended: false }))
    }
}

fn request(head: &request::Parts) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    request
}

// === Exchange ===

/// One attempt until its response headers: sends and listens at the same time.
struct Exchange {
    response: ResponseFuture,
    /// `None` once the upload is over, or the server wants no more of it.
    stream: Option<SendStream<Bytes>>,
    chunk: Option<Chunk>,
    started: bool,
}

/// DATA that waits for flow-control capacity.
struct Chunk {
    bytes: Bytes,
    last: bool,
}

impl Exchange {
    fn poll<B>(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Option<Upload<B>>,
    ) -> Poll<Result<http::Response<h2::RecvStream>, SendFailure>>
    where
        B: Body + Unpin,
        B::Error: fmt::Display,
    {
        if let (Some(stream), Some(upload)) = (&mut self.stream, upload) {
            match poll_upload(cx, stream, &mut self.chunk, upload, &mut self.started) {
                // Whatever ended it, the response future knows more: an early answer, or the reason of the reset.
                Poll::Ready(Ok(())) => self.stream = None,
                Poll::Ready(Err(error)) => {
                    stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(SendFailure::RequestBody(error)));
                }
                Poll::Pending => {}
            }
        }
        Pin::new(&mut self.response).poll(cx).map_err(|error| failure(&error))
    }
}

/// Sends what can be sent: `Ok` when the upload is over (or the server wants no more), `Err` when the body failed.
fn poll_upload<B>(
    cx: &mut Context<'_>,
    stream: &mut SendStream<Bytes>,
    chunk: &mut Option<Chunk>,
    upload: &mut Upload<B>,
    started: &mut bool,
) -> Poll<Result<(), String>>
where
    B: Body + Unpin,
    B::Error: fmt::Display,
{
    loop {
        if let Some(Chunk { bytes, last }) = chunk {
            if stream.capacity() == 0 {
                stream.reserve_capacity(bytes.len());
                match ready!(stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return Poll::Ready(Ok(())),
                }
            }
            let part = bytes.split_to(bytes.len().min(stream.capacity()));
            let (done, last) = (bytes.is_empty(), *last);
            if stream.send_data(part, done && last).is_err() {
                return Poll::Ready(Ok(()));
            }
            if done {
                *chunk = None;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            continue;
        }
        match ready!(upload.poll_part(cx)) {
            Ok(Part::Data { bytes, last }) if !std::mem::replace(started, true) && bytes.len() <= FIRST_FRAME => {
                // h2 holds one frame for us if the window is closed: bounded, and saves two locks in the common call.
                if stream.send_data(bytes, last).is_err() || last {
                    return Poll::Ready(Ok(()));
                }
            }
            Ok(Part::Data { bytes, last }) if bytes.is_empty() => {
                if last {
                    let _ = stream.send_data(bytes, true);
                    return Poll::Ready(Ok(()));
                }
            }
            Ok(Part::Data { bytes, last }) => *chunk = Some(Chunk { bytes, last }),
            // An error here means that the stream is closed, which the response tells.
            Ok(Part::Trailers(trailers)) => {
                let _ = stream.send_trailers(trailers);
                return Poll::Ready(Ok(()));
            }
            Ok(Part::End) => {
                let _ = stream.send_data(Bytes::new(), true);
                return Poll::Ready(Ok(()));
            }
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// The rest of an upload whose response has begun.
struct Pump<B> {
    stream: SendStream<Bytes>,
    chunk: Option<Chunk>,
    upload: Upload<B>,
}

impl<B> Pump<B>
where
    B: Body + Unpin,
    B::Error: fmt::Display,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match poll_upload(cx, &mut self.stream, &mut self.chunk, &mut self.upload, &mut true) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Ready(Err(_)) => {
                self.stream.send_reset(Reason::CANCEL);
                Poll::Ready(())
            }
            // "RST_STREAM(NO_ERROR) after a complete response" (RFC 9113, 8.1): the server wants no more.
            Poll::Pending => self.stream.poll_reset(cx).map(drop),
        }
    }
}

fn failure(error: &h2::Error) -> SendFailure {
    // First: what the server has done must not be repeated, whatever h2 calls the reason.
    if let Some(reason) = unacceptable(error) {
        return SendFailure::Unacceptable(reason);
    }
    match error.reason() {
        Some(Reason::REFUSED_STREAM) if error.is_reset() => SendFailure::Refused,
        Some(reason) if error.is_reset() => SendFailure::Reset(reason.into()),
        // Streams up to the last id go on after a GOAWAY; only those above it see this.
        Some(_) if error.is_go_away() && error.is_remote() => SendFailure::GoneAway,
        _ => SendFailure::Io(error.to_string()),
    }
}

/// What is wrong with the response, if it was h2 that reset the stream, on our behalf.
fn unacceptable(error: &h2::Error) -> Option<String> {
    match error.reason().filter(|_| error.is_library() && error.is_reset())? {
        // h2 does not tell the two apart.
        Reason::PROTOCOL_ERROR => Some("malformed, or headers above http2_max_header_list_size".to_owned()),
        reason => Some(format!("{reason:?}: {reason}")),
    }
}

// === RecvBody ===

/// A response body on its stream. Dropping it early resets the stream (CANCEL).
pub(crate) struct RecvBody {
    recv: h2::RecvStream,
    pump: Option<AbortHandle>,
    ended: bool,
}

impl fmt::Debug for RecvBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("h2::RecvBody").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl RecvBody {
    pub(super) fn is_end_stream(&self) -> bool {
        self.ended || self.recv.is_end_stream()
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RecvFailure>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let error = match ready!(self.recv.poll_data(cx)) {
            Some(Ok(bytes)) => {
                // Released as it is handed over: a slow reader slows its own stream down, and no other.
                let _ = self.recv.flow_control().release_capacity(bytes.len());
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Some(Err(error)) => error,
            None => match ready!(self.recv.poll_trailers(cx)) {
                Ok(trailers) => {
                    self.ended = true;
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Err(error) => error,
            },
        };
        self.ended = true;
        if let Some(reason) = unacceptable(&error) {
            return Poll::Ready(Some(Err(RecvFailure::Unacceptable(reason))));
        }
        Poll::Ready(match error.reason() {
            // Also NO_ERROR: after a complete response it is not seen here, and before its end the response is cut.
            Some(reason) if error.is_reset() => Some(Err(RecvFailure::Reset(reason.into()))),
            _ => Some(Err(RecvFailure::Io(error.to_string()))),
        })
    }
}

impl Drop for RecvBody {
    fn drop(&mut self) {
        // The call is over, whether the response has ended or was given up: what is left of the upload goes with it, as
        // in gRPC and in Envoy's router. It would hold a stream that nobody counts, for as long as its body likes.
        if let Some(pump) = self.pump.take() {
            pump.abort();
        }
    }
}

// === Driver ===

/// Proves a fresh socket, reports READY, and drives it until it is closed. Returns why it closed.
pub(super) async fn run<T>(
    io: Tracked<T>,
    gate: Arc<Gate>,
    deadline: Instant,
    options: &DialOptions,
    connection: impl FnOnce(Transport) -> Connection,
    report: impl Fn(ConnectionEvent) -> bool,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let writes = io.writes();
    let proven = timeout_at(deadline, prove(io, options)).await;
    let (send, mut driver) = match proven {
        Ok(Ok((send, h2, pings))) => {
            let retired = Arc::new(Retired::default());
            let driver = Driver {
                h2,
                own: Some(send.clone()),
                gate: Arc::clone(&gate),
                retired: Arc::clone(&retired),
                keepalive: options.keepalive.map(|config| Pings::new(config, pings)),
            };
            (Sender { send, writes, retired }, driver)
        }
        Ok(Err(error)) => {
            report(ConnectionEvent::Failed(error.to_string()));
            return;
        }
        Err(_elapsed) => {
            report(ConnectionEvent::Failed("no HTTP/2 SETTINGS within the connect timeout".to_owned()));
            return;
        }
    };
    gate.set_quota(driver.h2.max_concurrent_send_streams());
    let connection = Arc::new(connection(Transport::H2(send)));
    if !report(ConnectionEvent::Ready(Arc::clone(&connection))) {
        connection.retire();
    }
    drop(connection);
    let reason = future::poll_fn(|cx| driver.poll_open(cx)).await;
    gate.close();
    report(ConnectionEvent::Closed(reason));
    // Streams in flight finish; the handle that pickers held goes with the calls that hold it.
    driver.own = None;
    future::poll_fn(|cx| driver.poll_draining(cx)).await;
}

type Proven<T> = (SendRequest<Bytes>, h2::client::Connection<Tracked<T>, Bytes>, h2::PingPong);

/// HTTP/2 handshake, then a PING: its PONG can only come after the server's SETTINGS.
async fn prove<T>(io: Tracked<T>, options: &DialOptions) -> Result<Proven<T>, h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (send, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .max_frame_size(16 * 1024)
        .max_header_list_size(options.max_header_list_size)
        .max_send_buffer_size(1024 * 1024)
        // "Errors of ours" are frames of calls that were given up a while ago: after a storm of deadlines there are
        // thousands, and a limit would close the connection under the calls that go on.
        .max_local_error_reset_streams(None)
        .handshake(io)
        .await?;
    let closed = || h2::Error::from(Reason::CONNECT_ERROR);
    let mut pings = connection.ping_pong().ok_or_else(closed)?;
    pings.send_ping(Ping::opaque())?;
    future::poll_fn(|cx| {
        if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(Err(result.err().unwrap_or_else(closed)));
        }
        pings.poll_pong(cx).map_ok(drop)
    })
    .await?;
    Ok((send, connection, pings))
}

struct Driver<T> {
    h2: h2::client::Connection<Tracked<T>, Bytes>,
    /// Keeps an idle connection open, and tells of GOAWAY; given up when the connection retires.
    own: Option<SendRequest<Bytes>>,
    gate: Arc<Gate>,
    retired: Arc<Retired>,
    keepalive: Option<Pings>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    /// Ready, with the reason, when the connection takes no more calls.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        // It flushes at once. To yield first, so that more calls share a flush, costs 15 % less CPU per call and halves the
        // throughput of 16 callers on one connection: client and server then take turns (bench `stack`).
        if let Poll::Ready(result) = Pin::new(&mut self.h2).poll(cx) {
            return Poll::Ready(
                result.err().map_or_else(|| "closed by the server".to_owned(), |error| error.to_string()),
            );
        }
        self.gate.set_quota(self.h2.max_concurrent_send_streams());
        if let Some(own) = &mut self.own
            && let Poll::Ready(Err(error)) = own.poll_ready(cx)
        {
            return Poll::Ready(error.to_string());
        }
        self.retired.driver.register(cx.waker());
        if self.retired.flag.load(Ordering::Acquire) {
            return Poll::Ready("retired".to_owned());
        }
        self.poll_keepalive(cx)
    }

    /// Ready when the last stream is over and the socket is closed.
    fn poll_draining(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.h2).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // A peer that went silent must not pin its calls for ever, drained or not.
        self.poll_keepalive(cx).map(drop)
    }

    /// Ready, with the reason, when the peer has gone silent.
    fn poll_keepalive(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        let Some(pings) = &mut self.keepalive else { return Poll::Pending };
        let reason = ready!(pings.poll(cx, self.gate.active()));
        // For the streams in flight, which will only see that their connection was dropped.
        let _ = self.gate.lost.set(reason.clone());
        Poll::Ready(reason)
    }
}

/// Keepalive (A8): a PING after `interval`, the connection is dead if its PONG does not come within `timeout`.
struct Pings {
    config: Keepalive,
    pings: h2::PingPong,
    waiting_for_pong: bool,
    timer: Pin<Box<Sleep>>,
}

impl Pings {
    fn new(config: Keepalive, pings: h2::PingPong) -> Self {
        let timer = Box::pin(sleep_until(Instant::now() + config.interval));
        Self { config, pings, waiting_for_pong: false, timer }
    }

    fn poll(&mut self, cx: &mut Context<'_>, active: usize) -> Poll<String> {
        loop {
            if self.waiting_for_pong
                && let Poll::Ready(pong) = self.pings.poll_pong(cx)
            {
                if let Err(error) = pong {
                    return Poll::Ready(error.to_string());
                }
                self.waiting_for_pong = false;
                self.timer.as_mut().reset(Instant::now() + self.config.interval);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.waiting_for_pong {
                return Poll::Ready(format!("keepalive: no PONG within {:?}", self.config.timeout));
            }
            if active == 0 && !self.config.while_idle {
                self.timer.as_mut().reset(Instant::now() + self.config.interval);
                continue;
            }
            if let Err(error) = self.pings.send_ping(Ping::opaque()) {
                return Poll::Ready(error.to_string());
            }
            self.waiting_for_pong = true;
            self.timer.as_mut().reset(Instant::now() + self.config.timeout);
        }
    }
}
