//! The connections of one endpoint: dialled, kept warm, lent to calls and taken back.
//!
//! One connection is kept warm: when the last one closes another is dialled, so that an endpoint that died is seen before a
//! call meets it. What goes over a connection is NOT known here.
//!
//! ```text
//!   Open ── last connection closed ──► dial ── connected ──► Open
//!     │ retired, a dial failed           │ refused, or closed again before it was used
//!     ▼                                  ▼
//!   Draining ── last response read ──► closed
//! ```

use super::{
    super::{
        Connection, ConnectionEvent, Gate, Transport,
        connect::{DialOptions, happy_eyeballs},
    },
    Pool,
    message::ErasedBody,
};
use crate::task::Tasks;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
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

/// The connections of one endpoint.
pub(super) struct Shared {
    pub(super) peer: SocketAddr,
    pub(super) gate: Arc<Gate>,
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
    pub(super) dialling: RwLock<()>,
    pub(super) retired: AtomicBool,
    /// Why a dial failed, or why the endpoint is given up.
    pub(super) lost: Mutex<Option<String>>,
    pub(super) changed: Notify,
}

/// A connection in the pool.
struct Idle {
    connection: Pooled,
    since: Instant,
}

/// A connection in the pool, or lent to a call. Dropping it closes it, whatever happens on it.
pub(super) struct Pooled {
    pub(super) sender: SendRequest<ErasedBody>,
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === The pool's life ===

/// Runs the pool that `io` begins, until it is retired or the endpoint is lost.
pub(in super::super) async fn run(
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
    let connection = Arc::new(connection(Transport::H1(Pool::new(Arc::clone(&shared)))));
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

    pub(super) async fn dial(self: &Arc<Self>) -> Result<Pooled, String> {
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
    pub(super) fn newest(&self) -> Option<Pooled> {
        let newest = lock(&self.idle).pop_back()?;
        self.used.store(true, Ordering::Release);
        Some(newest.connection)
    }

    pub(super) fn give_back(&self, connection: Pooled) {
        let since = Instant::now();
        let mut idle = lock(&self.idle);
        idle.retain(|idle| since - idle.since < IDLE && !idle.connection.sender.is_closed());
        // Under the lock, or else the pool may be emptied between the question and the answer.
        if !self.retired.load(Ordering::Acquire) {
            idle.push_back(Idle { connection, since });
        }
    }
}
