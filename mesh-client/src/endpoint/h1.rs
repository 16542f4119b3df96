//! HTTP/1.1: a pool of connections to one endpoint, behind the same face as one HTTP/2 connection.
//!
//! A call takes an idle connection or dials one; it goes back when the response has been read. One connection is kept
//! warm: when the last one closes another is dialled, so that an endpoint that died is seen before a call meets it.
//! hyper parses; this file does NOT.
//!
//! ```text
//!   Open ── last connection closed ──► dial ── connected ──► Open
//!     │ retired, a dial failed           │ refused, or closed again before it was used
//!     ▼                                  ▼
//!   Draining ── last response read ──► closed
//! ```

use super::{
    Connection, ConnectionEvent, Gate, RecvFailure, SendFailure, Transport, Upload,
    connect::{DialOptions, happy_eyeballs},
    upload::Part,
};
use crate::task::Tasks;
use bytes::Bytes;
use http::{HeaderValue, Request, Uri, Version, header, request, response, uri::PathAndQuery};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::Notify,
    time::{Instant, timeout},
};

/// A connection that closed unused before this much time is not replaced at once: the server does not want us.
const SHORT_LIVED: Duration = Duration::from_secs(1);

type Sender = SendRequest<ErasedBody>;

/// The calling side of an endpoint's connections.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    peer: SocketAddr,
    connect_timeout: Duration,
    /// Connections belong to the runtime of the mesh, not to that of the call that dialled them.
    tasks: Tasks,
    idle: Mutex<Vec<Sender>>,
    /// Connections that are not closed.
    open: AtomicUsize,
    retired: AtomicBool,
    /// Why a dial failed, or why the endpoint is given up.
    lost: Mutex<Option<String>>,
    changed: Notify,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("h1::Pool").field("peer", &self.0.peer).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === The pool's life ===

/// Runs the pool that `io` begins, until it is retired or the endpoint is lost.
pub(super) async fn run(
    io: TcpStream,
    peer: SocketAddr,
    gate: Arc<Gate>,
    options: &DialOptions,
    tasks: Tasks,
    connection: impl FnOnce(Transport) -> Connection,
    report: impl Fn(ConnectionEvent) -> bool,
) {
    let shared = Arc::new(Shared {
        peer,
        connect_timeout: options.connect_timeout,
        tasks,
        idle: Mutex::default(),
        open: AtomicUsize::new(0),
        retired: AtomicBool::new(false),
        lost: Mutex::default(),
        changed: Notify::new(),
    });
    match shared.handshake(io).await {
        Ok(sender) => lock(&shared.idle).push(sender),
        Err(error) => {
            report(ConnectionEvent::Failed(error));
            return;
        }
    }
    let connection = Arc::new(connection(Transport::H1(Pool(Arc::clone(&shared)))));
    if !report(ConnectionEvent::Ready(Arc::clone(&connection))) {
        connection.retire();
    }
    drop(connection);
    let reason = shared.keep_warm().await;
    gate.close();
    report(ConnectionEvent::Closed(reason));
    shared.retired.store(true, Ordering::Release);
    lock(&shared.idle).clear();
    while shared.open.load(Ordering::Acquire) > 0 {
        shared.changed.notified().await;
    }
}

impl Shared {
    /// Returns when, and why, the endpoint takes no more calls.
    async fn keep_warm(self: &Arc<Self>) -> String {
        loop {
            let started = Instant::now();
            while self.open.load(Ordering::Acquire) > 0 {
                self.changed.notified().await;
                if self.retired.load(Ordering::Acquire) {
                    return "retired".to_owned();
                }
                if let Some(reason) = lock(&self.lost).take() {
                    return reason;
                }
            }
            if started.elapsed() < SHORT_LIVED && !lock(&self.idle).is_empty() {
                // What is left in the pool is a dead connection that no call ever took.
                return "closed by the server before it was used".to_owned();
            }
            lock(&self.idle).clear();
            match self.dial().await {
                Ok(sender) => lock(&self.idle).push(sender),
                Err(reason) => return reason,
            }
        }
    }

    async fn dial(self: &Arc<Self>) -> Result<Sender, String> {
        let shared = Arc::clone(self);
        let dial = async move {
            let connected = timeout(shared.connect_timeout, happy_eyeballs(vec![shared.peer])).await;
            let (io, _) =
                connected.map_err(|_elapsed| format!("no connection within {:?}", shared.connect_timeout))??;
            shared.handshake(io).await
        };
        self.tasks.spawn(dial).await.map_err(|error| error.to_string())?
    }

    async fn handshake(self: &Arc<Self>, io: TcpStream) -> Result<Sender, String> {
        let (sender, driver) = http1::handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
        self.open.fetch_add(1, Ordering::AcqRel);
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            // Its error reaches the call that is on the connection; an idle one has nobody to tell.
            let _ = driver.await;
            shared.open.fetch_sub(1, Ordering::AcqRel);
            shared.changed.notify_one();
        });
        Ok(sender)
    }

    fn give_back(&self, sender: Sender) {
        if !self.retired.load(Ordering::Acquire) && !sender.is_closed() {
            lock(&self.idle).push(sender);
        }
    }
}

// === Calls ===

impl Pool {
    pub(super) fn retire(&self) {
        self.0.retired.store(true, Ordering::Release);
        self.0.changed.notify_one();
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
        let mut sender = self.ready_sender().await?;
        let size = upload.as_ref().map(Upload::size_hint).unwrap_or_default();
        let empty = upload.as_ref().is_none_or(Upload::is_empty);
        // hyper takes the body; an attempt that was not sent needs it back.
        let lent = Arc::new(Mutex::new(upload.take()));
        let body = ErasedBody(Box::pin(LentBody { upload: Arc::clone(&lent), size, over: empty }));
        let sent = sender.try_send_request(request(head, body)?).await;
        let response = sent.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            *upload = lock(&lent).take();
            let reason = error.into_error().to_string();
            if unsent { SendFailure::Unsent(reason) } else { SendFailure::Io(reason) }
        })?;
        let (parts, body) = response.into_parts();
        let body = RecvBody { body, lease: Some(Lease { sender, pool: Arc::clone(&self.0) }), ended: false };
        Ok((parts, body))
    }

    async fn ready_sender(&self) -> Result<Sender, SendFailure> {
        let idle = {
            let mut idle = lock(&self.0.idle);
            idle.retain(|sender| !sender.is_closed());
            // The newest: the others may then grow old and be closed by the server.
            idle.iter().rposition(SendRequest::is_ready).map(|position| idle.swap_remove(position))
        };
        match idle {
            Some(sender) => Ok(sender),
            None => self.0.dial().await.map_err(|reason| {
                *lock(&self.0.lost) = Some(reason.clone());
                self.0.changed.notify_one();
                SendFailure::Unsent(reason)
            }),
        }
    }
}

/// The request in HTTP/1.1's form: origin-form target, and the authority as `host`.
fn request(head: &request::Parts, body: ErasedBody) -> Result<Request<ErasedBody>, SendFailure> {
    let invalid = |error: String| SendFailure::Invalid(error);
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = head.headers.clone();
    if let Some(authority) = head.uri.authority() {
        let host = HeaderValue::try_from(authority.as_str()).map_err(|error| invalid(error.to_string()))?;
        request.headers_mut().insert(header::HOST, host);
    }
    let target = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(target);
    Ok(request)
}

/// The request body as hyper takes it: one type for every caller's, because a pooled connection serves them all.
struct ErasedBody(Pin<Box<dyn Body<Data = Bytes, Error = BodyFailed> + Send>>);

/// The caller's body failed; its text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BodyFailed(String);

impl Body for ErasedBody {
    type Data = Bytes;
    type Error = BodyFailed;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailed>>> {
        self.0.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// An upload on loan to hyper.
struct LentBody<B> {
    upload: Arc<Mutex<Option<Upload<B>>>>,
    size: SizeHint,
    over: bool,
}

impl<B> Body for LentBody<B>
where
    B: Body + Unpin,
    B::Error: fmt::Display,
{
    type Data = Bytes;
    type Error = BodyFailed;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailed>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let part = match lock(&self.upload).as_mut() {
            Some(upload) => ready!(upload.poll_part(cx)),
            None => Ok(Part::End),
        };
        let (frame, over) = match part {
            Ok(Part::Data { bytes, last }) => (Some(Ok(Frame::data(bytes))), last),
            Ok(Part::Trailers(trailers)) => (Some(Ok(Frame::trailers(trailers))), true),
            Ok(Part::End) => (None, true),
            Err(error) => (Some(Err(BodyFailed(error))), true),
        };
        self.over = over;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

// === RecvBody ===

/// A response body with the connection that it is read from.
pub(crate) struct RecvBody {
    body: Incoming,
    lease: Option<Lease>,
    ended: bool,
}

struct Lease {
    sender: Sender,
    pool: Arc<Shared>,
}

impl fmt::Debug for RecvBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("h1::RecvBody").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl RecvBody {
    pub(super) fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RecvFailure>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.ended = true;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| RecvFailure::Io(error.to_string()))))
    }
}

impl Drop for RecvBody {
    fn drop(&mut self) {
        // A response that was not read to its end takes its connection along: hyper closes it with the body.
        if let Some(Lease { sender, pool }) = self.lease.take()
            && self.is_end_stream()
        {
            pool.give_back(sender);
        }
    }
}
