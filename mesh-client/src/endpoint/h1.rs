//! HTTP/1.1: a pool of connections to one endpoint, behind the same face as one HTTP/2 connection.
//!
//! A call takes an idle connection or dials one; it goes back when the request was written and the response has been read,
//! and is closed otherwise. One connection is kept warm: when the last one closes another is dialled, so that an endpoint
//! that died is seen before a call meets it. hyper parses; this file does NOT.
//!
//! ```text
//!   Open ── last connection closed ──► dial ── connected ──► Open
//!     │ retired, a dial failed           │ refused, or closed again before it was used
//!     ▼                                  ▼
//!   Draining ── last response read ──► closed
//! ```

use super::{
    Connection, ConnectionEvent, Gate, RecvFailure, SendFailure, Transport,
    connect::{DialOptions, happy_eyeballs},
};
use crate::{
    task::Tasks,
    upload::{BodyFailed, Upload, lend},
};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, Version, header, request, response, uri::PathAndQuery};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use std::{
    collections::VecDeque,
    error::Error as _,
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
    sync::{Notify, RwLock},
    task::AbortHandle,
    time::{Instant, timeout},
};

/// A connection that closed unused before this much time is not replaced at once: the server does not want us.
const SHORT_LIVED: Duration = Duration::from_secs(1);

/// A connection that nobody took for this long is closed. Servers close theirs after about as much, and a call that meets
/// such a close fails if it was written already.
const IDLE: Duration = Duration::from_secs(90);

/// The calling side of an endpoint's connections.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    peer: SocketAddr,
    gate: Arc<Gate>,
    connect_timeout: Duration,
    max_header_size: u32,
    /// Connections belong to the runtime of the mesh, not to that of the call that dialled them.
    tasks: Tasks,
    /// Oldest first. Empty for ever once `retired` is set.
    idle: Mutex<VecDeque<Idle>>,
    /// Connections that are not closed.
    open: AtomicUsize,
    /// A call took a connection since the pool dialled last.
    used: AtomicBool,
    /// Held for reading by calls that dial, for writing while the pool does: never both, which would be one too many.
    dialling: RwLock<()>,
    retired: AtomicBool,
    /// Why a dial failed, or why the endpoint is given up.
    lost: Mutex<Option<String>>,
    changed: Notify,
}

/// A connection in the pool.
struct Idle {
    connection: Pooled,
    since: Instant,
}

/// A connection in the pool, or lent to a call. Dropping it closes it, whatever happens on it.
struct Pooled {
    sender: SendRequest<ErasedBody>,
    driver: AbortHandle,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Counts a connection as open; lives in its driver's task.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
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
        gate: Arc::clone(&gate),
        connect_timeout: options.connect_timeout,
        max_header_size: options.max_header_list_size,
        tasks,
        idle: Mutex::default(),
        open: AtomicUsize::new(0),
        used: AtomicBool::new(false),
        dialling: RwLock::new(()),
        retired: AtomicBool::new(false),
        lost: Mutex::default(),
        changed: Notify::new(),
    });
    match shared.handshake(io).await {
        Ok(connection) => shared.give_back(connection),
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
            let _dialling = loop {
                if self.retired.load(Ordering::Acquire) {
                    return "retired".to_owned();
                }
                if let Some(reason) = lock(&self.lost).take() {
                    return reason;
                }
                if self.open.load(Ordering::Acquire) == 0
                    && let Ok(dialling) = self.dialling.try_write()
                {
                    break dialling;
                }
                self.changed.notified().await;
            };
            if !self.used.swap(false, Ordering::AcqRel) && started.elapsed() < SHORT_LIVED {
                return "closed by the server before it was used".to_owned();
            }
            lock(&self.idle).clear();
            match self.dial().await {
                Ok(connection) => self.give_back(connection),
                Err(reason) => return reason,
            }
        }
    }

    async fn dial(self: &Arc<Self>) -> Result<Pooled, String> {
        let shared = Arc::clone(self);
        let dial = async move {
            let connected = timeout(shared.connect_timeout, happy_eyeballs(vec![shared.peer])).await;
            let (io, _) =
                connected.map_err(|_elapsed| format!("no connection within {:?}", shared.connect_timeout))??;
            let connection = shared.handshake(io).await;
            shared.changed.notify_one();
            connection
        };
        self.tasks.spawn(dial).await.map_err(|error| error.to_string())?
    }

    async fn handshake(self: &Arc<Self>, io: TcpStream) -> Result<Pooled, String> {
        let mut builder = http1::Builder::new();
        builder.max_header_size(usize::try_from(self.max_header_size).unwrap_or(usize::MAX));
        let (sender, driver) = builder.handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
        self.open.fetch_add(1, Ordering::AcqRel);
        let open = Open(Arc::clone(self));
        let driver = self.tasks.spawn(async move {
            let _open = open;
            // Its error reaches the call that is on the connection; an idle one has nobody to tell.
            let _ = driver.await;
        });
        Ok(Pooled { sender, driver: driver.abort_handle() })
    }

    /// The idle connection that was used last: the others may then grow old.
    fn newest(&self) -> Option<Pooled> {
        let newest = lock(&self.idle).pop_back()?;
        self.used.store(true, Ordering::Release);
        Some(newest.connection)
    }

    fn give_back(&self, connection: Pooled) {
        let since = Instant::now();
        let mut idle = lock(&self.idle);
        idle.retain(|idle| since - idle.since < IDLE && !idle.connection.sender.is_closed());
        // Under the lock, or else the pool may be emptied between the question and the answer.
        if !self.retired.load(Ordering::Acquire) {
            idle.push_back(Idle { connection, since });
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
        let request = request(head)?;
        let mut connection = self.ready_connection().await?;
        // hyper takes the body; the next attempt needs it back.
        let (loan, body) = lend(upload);
        let written = loan.written();
        let sent = connection.sender.try_send_request(request.map(|()| ErasedBody(Box::pin(body)))).await;
        let response = sent.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            let error = error.into_error();
            match error.to_string() {
                reason if unsent => SendFailure::Unsent(reason),
                reason if error.is_parse() => SendFailure::Unacceptable(reason),
                // hyper counts it as the user's fault when a connection's task is aborted, as a shutdown does.
                reason if error.source().is_some_and(|source| error.is_user() && !source.is::<BodyFailed>()) => {
                    SendFailure::Io(reason)
                }
                // The caller's body; its own words are the source.
                reason if error.is_user() => {
                    SendFailure::RequestBody(error.source().map_or(reason, ToString::to_string))
                }
                reason => SendFailure::Io(reason),
            }
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(SendFailure::Unacceptable("101 Switching Protocols, which nobody asked for".to_owned()));
        }
        loan.settle();
        let (parts, body) = response.into_parts();
        let lease = Lease { connection, written, pool: Arc::clone(&self.0) };
        Ok((parts, RecvBody { body, lease: Some(lease), ended: false }))
    }

    async fn ready_connection(&self) -> Result<Pooled, SendFailure> {
        if let Some(connection) = self.idle_connection().await {
            return Ok(connection);
        }
        let _dialling = self.0.dialling.read().await;
        // What the pool dialled, if it did.
        if let Some(connection) = self.idle_connection().await {
            return Ok(connection);
        }
        self.0.dial().await.map_err(|reason| {
            // The next pick comes before the pool's next turn.
            self.0.gate.close();
            *lock(&self.0.lost) = Some(reason.clone());
            self.0.changed.notify_one();
            SendFailure::Unsent(reason)
        })
    }

    async fn idle_connection(&self) -> Option<Pooled> {
        while let Some(mut connection) = self.0.newest() {
            // At once, or after one more turn of its driver: nothing is left to be written or read. An error if the
            // server has closed it meanwhile.
            if connection.sender.ready().await.is_ok() {
                return Some(connection);
            }
        }
        None
    }
}

/// The request in HTTP/1.1's form: origin-form target, and the authority as `host`.
fn request(head: &request::Parts) -> Result<Request<()>, SendFailure> {
    let invalid = |error: String| SendFailure::Invalid(error);
    let mut request = Request::new(());
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

// === RecvBody ===

/// A response body with the connection that it is read from.
pub(crate) struct RecvBody {
    body: Incoming,
    lease: Option<Lease>,
    ended: bool,
}

struct Lease {
    connection: Pooled,
    /// hyper has let go of the request body: all of it was written, or the server wants no more.
    written: Arc<AtomicBool>,
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
        // Only a connection on which nothing is left to do can be used again. An upload that goes on after its response
        // ends with it, as over HTTP/2.
        if let Some(Lease { connection, written, pool }) = self.lease.take()
            && self.is_end_stream()
            && written.load(Ordering::Acquire)
        {
            pool.give_back(connection);
        }
    }
}
