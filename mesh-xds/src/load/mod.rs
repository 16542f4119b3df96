//! Load reports (LRS): what the data plane counts, and the streams that tell the control plane (A27, A64, A85).
//!
//! ```text
//!  calls ── start, end, drop ──► LocalityLoad, DropLoad          atomics, shared by everybody who uses the cluster
//!                                        │ read
//!  configuration ── ClusterLoad ──► store::Books ──► stream.rs ──► StreamLoadStats, one for each server
//! ```
//!
//! A [`ClusterLoad`] is held for as long as a cluster is configured to report; while a server has any, it has a stream. It
//! does NOT know which calls there are, and it costs nothing where no cluster has an `lrs_server`.

mod metrics;
mod store;
mod stream;

pub use store::{CallLoad, DropLoad, LocalityLoad};

use crate::{
    Bootstrap, ResolvedCluster, ServerId,
    resource::{Discovery, LocalityId},
};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use store::{Books, Key};
use tokio::{runtime::Handle, sync::watch, time::Instant};

/// Where the clusters of one [`XdsClient`](crate::XdsClient) report their load. Cheap to clone.
///
/// By default there is no server, and nothing is reported.
#[derive(Clone, Debug, Default)]
pub struct LoadReports {
    servers: Arc<[Arc<Reporter>]>,
}

/// A cluster that reports its load. Dropping the last one of a server ends its stream, after a last report.
pub struct ClusterLoad {
    reporter: Arc<Reporter>,
    key: Key,
}

impl LoadReports {
    pub(crate) fn new(bootstrap: &Arc<Bootstrap>, runtime: &Handle) -> Self {
        let reporter = |(server, _)| Arc::new(Reporter::new(Arc::clone(bootstrap), server, runtime.clone()));
        Self { servers: bootstrap.servers().map(reporter).collect() }
    }

    /// Begins to report a cluster, if its resource asks for that. Handles for equal clusters count together.
    pub fn cluster(&self, resolved: &ResolvedCluster) -> Option<ClusterLoad> {
        let cluster = &resolved.cluster;
        let reporting = cluster.load_reporting.clone()?;
        // `lrs_server` is `self`: the server that the Cluster came from.
        let reporter = Arc::clone(self.servers.get(resolved.server?.index())?);
        let service = match &cluster.discovery {
            // As it stands in the resource: left out there, left out here.
            Discovery::Eds { service_name } if service_name != cluster.name.as_str() => {
                Some(service_name.as_str().into())
            }
            _ => None,
        };
        let key = Key { cluster: cluster.name.clone(), service, reporting };
        Some(ClusterLoad::new(reporter, key))
    }

    /// Sends what was counted so far, and returns when the transports have it. For shutdowns: put a timeout around it, as
    /// a server may be slow to take anything. A server that cannot be reached is not waited for.
    pub async fn flush(&self) {
        for reporter in self.servers.iter() {
            reporter.flush().await;
        }
    }
}

impl ClusterLoad {
    fn new(reporter: Arc<Reporter>, key: Key) -> Self {
        reporter.join(&key);
        Self { reporter, key }
    }

    /// The counters of a locality.
    pub fn locality(&self, locality: &LocalityId) -> LocalityLoad {
        self.reporter.books().locality(&self.key, locality)
    }

    /// The counter of a drop category.
    pub fn category(&self, category: &Arc<str>) -> DropLoad {
        self.reporter.books().category(&self.key, category)
    }

    /// The counter of drops without a category, those of a circuit breaker (A32): part of the total, and of nothing else.
    pub fn uncategorized(&self) -> DropLoad {
        self.category(&Arc::default())
    }
}

impl Drop for ClusterLoad {
    fn drop(&mut self) {
        self.reporter.leave(&self.key);
    }
}

impl fmt::Debug for ClusterLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterLoad").field("cluster", &self.key.cluster).finish_non_exhaustive()
    }
}

// === Reporter ===

/// One server's books, and its stream while there is something to report.
struct Reporter {
    bootstrap: Arc<Bootstrap>,
    /// Index into the bootstrap's list.
    server: ServerId,
    runtime: Handle,
    books: Mutex<Books>,
    state: watch::Sender<State>,
}

/// What the stream's task and those who wait for it tell each other.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Handles of clusters.
    handles: usize,
    /// There is a task.
    running: bool,
    /// How often a flush was asked for, and how far that has come.
    flush: u64,
    flushed: u64,
}

impl Reporter {
    fn new(bootstrap: Arc<Bootstrap>, server: ServerId, runtime: Handle) -> Self {
        Self { bootstrap, server, runtime, books: Mutex::default(), state: watch::Sender::new(State::default()) }
    }

    /// Held for a few steps of configuration or for a report, never across an await.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(self: &Arc<Self>, key: &Key) {
        let mut books = self.books();
        books.join(key, Instant::now());
        let mut idle = false;
        self.state.send_modify(|state| {
            state.handles += 1;
            idle = !std::mem::replace(&mut state.running, true);
        });
        if idle {
            // It ends by itself, with the last handle and its last report: nobody else could say when.
            self.runtime.spawn(stream::run(Arc::clone(self)));
        }
    }

    fn leave(&self, key: &Key) {
        let mut books = self.books();
        books.leave(key);
        self.state.send_modify(|state| state.handles -= 1);
    }

    /// For the task: whether it may end, since nothing is left to report. If so, the next handle starts another.
    fn close(&self) -> bool {
        // The same lock as in `join`: nobody joins a task that is about to end.
        let closed = self.books().close();
        if closed {
            self.state.send_modify(|state| state.running = false);
        }
        closed
    }

    async fn flush(&self) {
        let mut number = 0;
        self.state.send_if_modified(|state| {
            state.flush += u64::from(state.running);
            number = state.flush;
            state.running
        });
        // `self` keeps the sender.
        let _ = self.state.subscribe().wait_for(|state| !state.running || state.flushed >= number).await;
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").field("server", &self.server).finish_non_exhaustive()
    }
}
