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
    place::{Place, Places},
};
use crate::{
    breaker::{ConnectionPermit, Counters},
    task::Tasks,
};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::oneshot,
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
    gate: Arc<Gate>,
    connect_timeout: Duration,
    max_header_size: u32,
    /// Connections belong to the runtime of the mesh, not to that of the call that dialled them.
    tasks: Tasks,
    /// Oldest first. Empty for ever once `retired` is set.
    idle: Mutex<VecDeque<Idle>>,
    /// Of connections that are not closed.
    pub(super) places: Arc<Places>,
    /// A call took a connection since the pool dialled last.
    used: AtomicBool,
    pub(super) retired: AtomicBool,
    /// Why a dial failed, or why the endpoint is given up.
    lost: Mutex<Option<String>>,
}

/// A connection in the pool.
struct Idle {
    connection: Box<Pooled>,
    since: Instant,
}

/// A connection in the pool, or lent to a call, which carries it about in a box. Dropping it closes it, whatever happens on it.
pub(super) struct Pooled {
    pub(super) sender: SendRequest<ErasedBody>,
    driver: AbortHandle,
    pub(super) place: Arc<Place>,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A connection as its driver's task has it.
struct Open {
    pool: Arc<Shared>,
    _place: Arc<Place>,
}

impl Drop for Open {
    fn drop(&mut self) {
        // It must not keep its place for as long as nobody happens to look for an idle connection.
        lock(&self.pool.idle).retain(|idle| !idle.connection.sender.is_closed());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === The pool's life ===

/// The connection that a pool begins with, and those who count it.
pub(in super::super) struct First {
    pub(in super::super) io: TcpStream,
    pub(in super::super) peer: SocketAddr,
    pub(in super::super) permit: ConnectionPermit,
    pub(in super::super) counters: Arc<Counters>,
}

/// Runs the pool that `first` begins, until it is retired or the endpoint is lost.
pub(in super::super) async fn run(
    first: First,
    gate: Arc<Gate>,
    options: &DialOptions,
    tasks: Tasks,
    connection: impl FnOnce(Transport) -> Connection,
    report: impl Fn(ConnectionEvent) -> bool,
) {
    let First { io, peer, permit, counters } = first;
    let (places, place) = Places::of_first(permit, counters, Arc::clone(&gate.wakeups));
    let shared = Arc::new(Shared {
        peer,
        gate: Arc::clone(&gate),
        connect_timeout: options.connect_timeout,
        max_header_size: options.max_header_list_size,
        tasks,
        idle: Mutex::default(),
        places,
        used: AtomicBool::new(false),
        retired: AtomicBool::new(false),
        lost: Mutex::default(),
    });
    match shared.handshake(io, place).await {
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
    while !shared.places.is_empty() {
        shared.places.changed.notified().await;
    }
}

impl Shared {
    /// Returns when, and why, the endpoint takes no more calls.
    async fn keep_warm(self: &Arc<Self>) -> String {
        loop {
            let started = Instant::now();
            let place = loop {
                if self.retired.load(Ordering::Acquire) {
                    return "retired".to_owned();
                }
                if let Some(reason) = lock(&self.lost).take() {
                    return reason;
                }
                if let Some(place) = self.places.for_pool() {
                    break place;
                }
                self.places.changed.notified().await;
            };
            if !self.used.swap(false, Ordering::AcqRel) && started.elapsed() < SHORT_LIVED {
                return "closed by the server before it was used".to_owned();
            }
            match self.connect(place).await {
                Ok(connection) => self.give_back(connection),
                Err(reason) => return reason,
            }
            self.places.warmed();
        }
    }

    /// Dials for a call. If that is gone before, the connection is the next one's.
    pub(super) async fn dial(self: &Arc<Self>, place: Arc<Place>) -> Result<Box<Pooled>, String> {
        // For one value; its receiver is the call.
        let (dialled, call) = oneshot::channel();
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let connected = shared.connect(place).await;
            if let Err(reason) = &connected {
                // The next pick comes before the pool's next turn.
                shared.gate.close();
                *lock(&shared.lost) = Some(reason.clone());
                shared.places.changed.notify_one();
            }
            if let Err(Ok(connection)) = dialled.send(connected) {
                shared.give_back(connection);
            }
        });
        call.await.unwrap_or_else(|_| Err("the task that dialled has ended".to_owned()))
    }

    async fn connect(self: &Arc<Self>, place: Arc<Place>) -> Result<Box<Pooled>, String> {
        let connected = timeout(self.connect_timeout, happy_eyeballs(vec![self.peer])).await;
        let (io, _) = connected.map_err(|_elapsed| format!("no connection within {:?}", self.connect_timeout))??;
        self.handshake(io, place).await
    }

    async fn handshake(self: &Arc<Self>, io: TcpStream, place: Arc<Place>) -> Result<Box<Pooled>, String> {
        let mut builder = http1::Builder::new();
        builder.max_header_size(usize::try_from(self.max_header_size).unwrap_or(usize::MAX));
        let (sender, driver) = builder.handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
        let open = Open { pool: Arc::clone(self), _place: Arc::clone(&place) };
        let driver = self.tasks.spawn(async move {
            let _open = open;
            // Its error reaches the call that is on the connection; an idle one has nobody to tell.
            let _ = driver.await;
        });
        Ok(Box::new(Pooled { sender, driver: driver.abort_handle(), place }))
    }

    /// A call takes a connection, or makes one.
    pub(super) fn used(&self) {
        self.used.store(true, Ordering::Release);
    }

    /// The idle connection that was used last: the others may then grow old.
    pub(super) fn newest(&self) -> Option<Box<Pooled>> {
        let newest = lock(&self.idle).pop_back();
        newest.map(|newest| newest.connection)
    }

    /// Takes an idle connection, for the next call.
    pub(super) fn give_back(&self, connection: Box<Pooled>) {
        let since = Instant::now();
        let mut idle = lock(&self.idle);
        idle.retain(|idle| since - idle.since < IDLE);
        // Under the lock, or else the pool may be emptied, or the connection may close, between the question and the answer.
        if !self.retired.load(Ordering::Acquire) && !connection.sender.is_closed() {
            idle.push_back(Idle { connection, since });
        }
        drop(idle);
        self.gate.wakeups.one();
    }
}
