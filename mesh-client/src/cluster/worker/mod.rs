//! The task behind a cluster: endpoints in, pickers out.
//!
//! One turn: take everything that has arrived (configuration, connection events, timers), let the priority machine
//! choose, start dials, publish at most one picker. It owns every endpoint's state; nobody else writes it.
//!
//! ```text
//!   Idle ─ priority active ─► Queued ─ dial slot free ─► Dialling ─ proven ─► Ready ─ GOAWAY, lost ─► Queued
//!                               ▲                           │ failed
//!                               └───────── backoff ─────────┘
//! ```
//!
//! An endpoint whose address stays keeps its connection, whatever priority or locality it moves to (A56). It does
//! NOT see calls.

mod publication;

use super::{
    Backends, ClusterOptions, Update,
    asked::Asked,
    backend::DialId,
    backoff,
    load::Loads,
    outliers::Outliers,
    roster::{Child, Id, Roster},
};
use crate::{
    balance::{Admission, Offer, Others, Picker, priority::Priorities},
    breaker::{self, Breaker},
    endpoint::{ConnectionEvent, Dial, DialOptions, Protocol},
    outlier::Change,
    task::{OnAbort, supervised},
    wakeups::Wakeups,
};
use arc_swap::ArcSwap;
use mesh_xds::{
    ClusterConfig, Leaves, Limiter, ResolvedCluster,
    load::DropLoad,
    resource::{ClusterName, Discovery},
};
use publication::Published;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// Dials in flight at once, per cluster: ten thousand endpoints must not become ten thousand SYNs.
const MAX_DIALS: usize = 256;

/// A connection that was READY for less than this is not dialled again at once: a server that accepts and closes
/// must not make a hot loop.
const SHORT_LIVED: Duration = Duration::from_secs(1);

/// Starts the worker of a cluster for one protocol.
pub(super) fn spawn(
    name: ClusterName,
    protocol: Protocol,
    updates: watch::Receiver<Update>,
    options: &ClusterOptions,
) -> Arc<Backends> {
    let backends = Arc::new(Backends {
        cluster: name.clone(),
        max_pending: options.max_pending,
        // Limits hold from the first call on, before the worker had its first turn.
        offer: ArcSwap::from_pointee(Offer {
            admission: first_admission(&updates),
            picker: Picker::Wait,
            others: Others::default(),
        }),
        wakeups: Arc::new(Wakeups::default()),
        asked: Asked::default(),
        applied: watch::Sender::new(None),
        roster: ArcSwap::default(),
    });
    let (shared, options, tasks) = (Arc::clone(&backends), options.clone(), options.tasks.clone());
    let work = supervised("cluster worker", move || {
        let mut updates = updates.clone();
        let config = Arc::clone(&updates.borrow_and_update().config);
        Worker::new(Arc::clone(&shared), protocol, options.clone(), config).run(updates)
    });
    let shared = Arc::clone(&backends);
    // Also where the runtime has ended before, so that there never is a worker.
    let aborted = OnAbort::new(move || shared.publish(orphaned(), None, Others::default()));
    tasks.spawn(async move {
        work.await;
        aborted.disarm();
    });
    backends
}

fn admission(leaf: &ResolvedCluster, refused: Option<DropLoad>) -> Arc<Admission> {
    let breaker = Breaker::new(breaker::counters(leaf), leaf.cluster.circuit_breakers);
    Arc::new(Admission::new(breaker, refused))
}

/// Of the leaf that is likely to be chosen.
fn first_admission(updates: &watch::Receiver<Update>) -> Option<Arc<Admission>> {
    let config = &updates.borrow().config;
    config.state.as_ref().ok().map(|leaves| admission(&leaves.first, None))
}

/// Of a worker whose runtime was shut down under it. Nobody else will connect: calls must not wait for ever.
fn orphaned() -> Picker {
    Picker::Fail("the runtime that the mesh ran on has ended".into())
}

/// An event of a connection.
struct News {
    backend: Id,
    dial: DialId,
    event: ConnectionEvent,
}

/// The speaking end of one dial. Its task cannot end in silence, not even by a panic.
struct Reporter {
    backend: Id,
    dial: DialId,
    news: mpsc::UnboundedSender<News>,
}

impl Reporter {
    fn report(&self, event: ConnectionEvent) -> bool {
        self.news.send(News { backend: self.backend, dial: self.dial, event }).is_ok()
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        // No news if it has said so itself, or was told to end.
        self.report(ConnectionEvent::Closed("its task has ended".to_owned()));
    }
}

struct Worker {
    shared: Arc<Backends>,
    protocol: Protocol,
    options: ClusterOptions,
    config: Arc<ClusterConfig>,
    /// How endpoints of each leaf are dialled.
    leaves: Vec<(ClusterName, Arc<DialOptions>)>,
    loads: Loads,
    outliers: Outliers,
    /// The circuit breaker of each leaf.
    admissions: Vec<Arc<Admission>>,
    roster: Roster,
    priorities: Priorities<Child>,
    /// Waiting for a dial slot, oldest first. Ids of endpoints that are gone are skipped.
    queue: VecDeque<Id>,
    dials: usize,
    last_dial: DialId,
    backoffs: BinaryHeap<Reverse<(Instant, Id)>>,
    last_failure: Option<String>,
    states: Limiter,
    published: Option<Published>,
    /// What calls are told when this worker is no more.
    last_word: Option<Picker>,
    // Unbounded: a connection sends at most three events in its life, so the number of dials bounds it.
    events: mpsc::UnboundedReceiver<News>,
    reporter: mpsc::UnboundedSender<News>,
}

impl Worker {
    fn new(shared: Arc<Backends>, protocol: Protocol, options: ClusterOptions, config: Arc<ClusterConfig>) -> Self {
        let (reporter, events) = mpsc::unbounded_channel();
        Self {
            shared,
            protocol,
            options,
            config,
            leaves: Vec::new(),
            loads: Loads::default(),
            outliers: Outliers::default(),
            admissions: Vec::new(),
            roster: Roster::default(),
            priorities: Priorities::default(),
            queue: VecDeque::new(),
            dials: 0,
            last_dial: 0,
            backoffs: BinaryHeap::new(),
            last_failure: None,
            states: Limiter::default(),
            published: None,
            last_word: None,
            events,
            reporter,
        }
    }

    async fn run(mut self, mut updates: watch::Receiver<Update>) {
        self.configure(Arc::clone(&self.config));
        let alarm = self.outliers.alarm();
        loop {
            self.turn();
            let deadline = self.deadline();
            tokio::select! {
                // Configuration first: a removed endpoint's news is no news.
                biased;
                changed = updates.changed() => match changed {
                    Ok(()) => {
                        let config = Arc::clone(&updates.borrow_and_update().config);
                        self.configure(config);
                    }
                    // The last table that named the cluster is gone.
                    Err(_) => break,
                },
                event = self.events.recv() => {
                    if let Some(news) = event {
                        self.event(news);
                    }
                }
                () = alarm.notified() => {
                    let changes = self.outliers.alarmed(&self.roster, Instant::now());
                    self.eject(changes);
                }
                () = self.shared.asked.rung() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
        // Callers that still wait are routed again; dropping the roster retires its connections.
        self.last_word = Some(Picker::Removed);
    }

    /// When something has to happen without an event.
    fn deadline(&self) -> Option<Instant> {
        let backoff = self.backoffs.peek().map(|Reverse((due, _))| *due);
        [backoff, self.priorities.next_deadline(), self.outliers.next_sweep()].into_iter().flatten().min()
    }

    /// Everything that follows from what has arrived: timers, priorities, dials, and one picker at most.
    fn turn(&mut self) {
        while let Ok(news) = self.events.try_recv() {
            self.event(news);
        }
        let now = Instant::now();
        while let Some(Reverse((due, id))) = self.backoffs.peek().copied()
            && due <= now
        {
            self.backoffs.pop();
            if self.roster.backoff_over(id, due) {
                self.queue.push_back(id);
            }
        }
        for priority in 0..self.shared.asked.take().min(self.roster.priorities()) {
            if let Some(child) = self.roster.child(priority) {
                self.priorities.ask(&child, now);
            }
        }
        self.priorities.timer(now);
        let changes = self.outliers.sweep(&self.roster, now);
        self.eject(changes);
        self.follow(now);
        self.start_dials();
        self.publish();
    }

    // === Configuration ===

    fn configure(&mut self, config: Arc<ClusterConfig>) {
        self.config = config;
        let leaves: Vec<_> = self.config.state.iter().flat_map(Leaves::iter).collect();
        let options = |leaf: &&Arc<ResolvedCluster>| match leaf.cluster.connect_timeout {
            Some(connect_timeout) => Arc::new(DialOptions { connect_timeout, ..(*self.options.dial).clone() }),
            None => Arc::clone(&self.options.dial),
        };
        self.leaves = leaves.iter().map(|leaf| (leaf.cluster.name.clone(), options(leaf))).collect();
        // The new ones come before the old ones go: a stream does not end for an update.
        self.loads = Loads::of(&leaves, &self.options.loads);
        let admission = |(index, leaf): (usize, &&Arc<ResolvedCluster>)| admission(leaf, self.loads.refused(index));
        self.admissions = leaves.iter().enumerate().map(admission).collect();
        self.dials -= self.roster.update(leaves);
        let (now, count) = (Instant::now(), self.roster.priorities());
        let returned = self.outliers.configure(&self.roster, self.options.outlier_detection.as_ref(), now);
        self.eject(returned);
        for priority in 0..count {
            if self.roster.is_active(priority) {
                self.queue.extend(self.roster.activate(priority));
            }
        }
        let reports = self.roster.children().enumerate().map(|(priority, child)| (child, self.roster.state(priority)));
        self.priorities.update(self.roster.children(), reports, now);
        self.follow(now);
        self.dials -= self.roster.deactivate_strays();
        self.list_endpoints();
    }

    // === Events ===

    fn event(&mut self, News { backend: id, dial, event }: News) {
        let now = Instant::now();
        let Some(backend) = self.roster.get_mut(id) else { return stale(event) };
        let (address, priority) = (backend.endpoint.addresses.first, backend.priority);
        let dialled = backend.is_dialled_by(dial);
        if (dialled || backend.is_connected_by(dial))
            && let Some(suppressed) = self.states.permit(now)
        {
            let (cluster, endpoint) = (&self.shared.cluster, address);
            match &event {
                ConnectionEvent::Ready(_) => tracing::info!(%cluster, %endpoint, suppressed, "endpoint ready"),
                ConnectionEvent::Failed(reason) => {
                    tracing::info!(%cluster, %endpoint, %reason, suppressed, "endpoint failed");
                }
                ConnectionEvent::Closed(reason) => {
                    tracing::info!(%cluster, %endpoint, %reason, suppressed, "endpoint connection closed");
                }
            }
        }
        let lost = !matches!(event, ConnectionEvent::Ready(_));
        match (event, dialled, backend.is_connected_by(dial)) {
            (ConnectionEvent::Ready(connection), true, _) => {
                self.dials -= 1;
                backend.ready(connection, now);
            }
            (ConnectionEvent::Failed(reason) | ConnectionEvent::Closed(reason), true, _) => {
                self.dials -= 1;
                let due = backend.failed(now, |failures| backoff(failures, fastrand::f64()));
                self.backoffs.push(Reverse((due, id)));
                self.last_failure = Some(reason);
            }
            (ConnectionEvent::Closed(reason), _, true) => {
                let pause = || backoff(1, fastrand::f64());
                match backend.closed(now, SHORT_LIVED, pause) {
                    Some(due) => self.backoffs.push(Reverse((due, id))),
                    None => self.queue.push_back(id),
                }
                self.last_failure = Some(format!("{address}: {reason}"));
                if self.roster.readdress(id) {
                    self.outliers.renewed(id, &self.roster);
                    self.list_endpoints();
                }
            }
            // Of a dial that was stopped, or a connection that was retired: counted off when that was done.
            (event, _, _) => return stale(event),
        }
        if lost && let Some(Discovery::LogicalDns { name, .. }) = self.roster.discovery(priority) {
            // "when all addresses have failed: request re-resolution" (A61), and when the connection is lost.
            self.options.name_failures.report(name);
        }
        self.roster.changed(id);
        self.report(priority, now);
        self.follow(now);
    }

    // === Outliers ===

    /// Takes endpoints from the pickers, or gives them back. Their connections stay.
    fn eject(&mut self, changes: Vec<(Id, Change)>) {
        let now = Instant::now();
        for (id, change) in changes {
            let Some(backend) = self.roster.get_mut(id) else { continue };
            backend.set_ejected(change == Change::Ejected);
            let (priority, endpoint) = (backend.priority, backend.endpoint.addresses.first);
            if let Some(suppressed) = self.states.permit(now) {
                let cluster = &self.shared.cluster;
                match change {
                    Change::Ejected => tracing::info!(%cluster, %endpoint, suppressed, "endpoint ejected"),
                    Change::Returned => tracing::info!(%cluster, %endpoint, suppressed, "endpoint returned"),
                }
            }
            self.roster.changed(id);
            self.report(priority, now);
        }
    }

    // === Priorities ===

    /// Starts and stops priorities as the machine says; one that cannot work reports so, which may start the next.
    fn follow(&mut self, now: Instant) {
        for priority in 0..self.roster.priorities() {
            let wanted = self.roster.child(priority).is_some_and(|child| self.priorities.is_active(&child));
            match (wanted, self.roster.is_active(priority)) {
                (true, false) => {
                    self.queue.extend(self.roster.activate(priority));
                    self.report(priority, now);
                }
                (false, true) => self.dials -= self.roster.deactivate(priority),
                (true, true) | (false, false) => {}
            }
        }
    }

    fn report(&mut self, priority: usize, now: Instant) {
        if let Some(child) = self.roster.child(priority) {
            self.priorities.report(&child, self.roster.state(priority), now);
        }
    }

    fn start_dials(&mut self) {
        while self.dials < MAX_DIALS
            && let Some(id) = self.queue.pop_front()
        {
            let Some((endpoint, leaf)) = self.roster.queued(id) else { continue };
            let (cluster, options) = self.leaves[leaf].clone();
            self.dials += 1;
            let dial = Dial {
                endpoint,
                cluster,
                node: Arc::clone(&self.options.node),
                protocol: self.protocol,
                options,
                counters: Arc::clone(self.admissions[leaf].breaker.counters()),
                #[cfg(feature = "http1")]
                tasks: self.options.tasks.clone(),
                wakeups: Arc::clone(&self.shared.wakeups),
            };
            self.last_dial += 1;
            let reporter = Reporter { backend: id, dial: self.last_dial, news: self.reporter.clone() };
            let task = self.options.tasks.spawn(dial.run(move |event| reporter.report(event)));
            self.roster.dialling(id, self.last_dial, task.abort_handle());
        }
    }
}

/// Nobody waits for this connection any more.
fn stale(event: ConnectionEvent) {
    if let ConnectionEvent::Ready(connection) = event {
        connection.retire();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let last_word = match self.last_word.take() {
            Some(last_word) => last_word,
            // It starts again in a moment: calls wait for that.
            None if std::thread::panicking() => Picker::Wait,
            None => orphaned(),
        };
        self.shared.publish(last_word, None, Others::default());
    }
}

#[cfg(test)]
mod tests;
