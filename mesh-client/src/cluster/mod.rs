//! A cluster that runs: the handle that routes hold, and the worker behind it.
//!
//! ```text
//!  apply ── update(ClusterConfig) ──► worker ── publishes ──► Arc<Picker> ◄── pick() ── calls
//!                                       ▲ │ dials
//!                          events ──────┘ ▼
//!                                    connections
//! ```
//!
//! A worker starts at the first call (or `ready`): a cluster that nobody uses costs no task and no connection. It
//! ends when the last table that names the cluster is gone; calls that still wait for it are then routed again.
//! An aggregate runs the endpoints of its leaves itself, as one list of priorities; a cluster that is used directly as
//! well has "two connection sets" (A37), since what an aggregate needs of it is another question than what its own
//! calls need. This room does NOT know routes.

mod asked;
mod backend;
mod load;
mod outliers;
mod roster;
mod wanted;
mod worker;

use crate::{
    balance::{Admission, Offer, Others, Picked, Picker, Tried},
    breaker::{self, Full, InUse, RetryPermit, Waiting},
    chunks::Chunks,
    endpoint::{DialOptions, Endpoint, EndpointState, Protocol, Slot},
    error::{Cause, ReplyForm},
    task::Tasks,
    wakeups::Wakeups,
};
use arc_swap::ArcSwap;
use asked::Asked;
#[cfg(feature = "http1")]
use mesh_xds::resource::HttpProtocol;
use mesh_xds::{
    ClusterConfig, Leaves, NameFailures,
    load::LoadReports,
    resource::{ClusterName, OutlierDetection},
};
use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{sync::watch, task::yield_now};

/// What all clusters of one channel share.
#[derive(Clone, Debug)]
pub(crate) struct ClusterOptions {
    pub(crate) dial: Arc<DialOptions>,
    /// `max_pending_requests`: how many calls may wait for a connection at once.
    pub(crate) max_pending: u32,
    /// For clusters that do not say.
    pub(crate) outlier_detection: Option<Arc<OutlierDetection>>,
    /// Where workers and connections run.
    pub(crate) tasks: Tasks,
    /// Where clusters report their load.
    pub(crate) loads: LoadReports,
    /// Told of endpoints that fail, of clusters whose endpoints are looked up by DNS.
    pub(crate) name_failures: NameFailures,
    /// The xDS node that calls, for error texts.
    pub(crate) node: Arc<str>,
}

/// A configuration of a cluster, with the number of the snapshot that it came with.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(crate) generation: u64,
    pub(crate) config: Arc<ClusterConfig>,
}

/// A cluster as routes hold it. Dropping the last one ends its workers.
pub(crate) struct Cluster {
    name: ClusterName,
    options: ClusterOptions,
    /// Latest wins; the workers hold the receivers.
    config: watch::Sender<Update>,
    http2: OnceLock<Arc<Backends>>,
    #[cfg(feature = "http1")]
    http1: OnceLock<Arc<Backends>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Cluster {
    pub(crate) fn new(update: Update, options: ClusterOptions) -> Self {
        Self {
            name: update.config.name.clone(),
            options,
            config: watch::Sender::new(update),
            http2: OnceLock::new(),
            #[cfg(feature = "http1")]
            http1: OnceLock::new(),
        }
    }

    pub(crate) fn name(&self) -> &ClusterName {
        &self.name
    }

    /// The configuration that was given last.
    pub(crate) fn config(&self) -> Arc<ClusterConfig> {
        Arc::clone(&self.config.borrow().config)
    }

    /// Takes a newer configuration; an older one (from a channel that lags) or an equal one is no work.
    pub(crate) fn update(&self, update: Update) {
        self.config.send_if_modified(|current| {
            let newer = update.generation > current.generation;
            let changed = newer && !Arc::ptr_eq(&update.config, &current.config);
            if newer {
                *current = update;
            }
            changed
        });
    }

    /// Waits until every running worker has published what [`update`](Self::update) was given, or something newer.
    pub(crate) async fn applied(&self) {
        for backends in self.running() {
            // The newest is asked for each time: another channel may give a newer one meanwhile, and then the worker
            // need never have seen ours.
            let newest = |applied: &Arc<ClusterConfig>| Arc::ptr_eq(applied, &self.config.borrow().config);
            // `backends` keeps the sender.
            let _ = backends.applied.subscribe().wait_for(|applied| applied.as_ref().is_some_and(newest)).await;
        }
    }

    /// The running part for a protocol; started here if this is its first use.
    pub(crate) fn backends(&self, protocol: Protocol) -> &Arc<Backends> {
        let cell = match protocol {
            Protocol::Http2 => &self.http2,
            #[cfg(feature = "http1")]
            Protocol::Http1 => &self.http1,
        };
        cell.get_or_init(|| worker::spawn(self.name.clone(), protocol, self.config.subscribe(), &self.options))
    }

    /// Connections, calls and retries, of the whole process.
    pub(crate) fn in_use(&self) -> InUse {
        let config = &self.config.borrow().config;
        config.state.iter().flat_map(Leaves::iter).fold(InUse::default(), |sum, leaf| sum + breaker::in_use(leaf))
    }

    /// What the cluster says of its HTTP version, for requests that are not gRPC.
    #[cfg(feature = "http1")]
    pub(crate) fn http_protocol(&self) -> HttpProtocol {
        match &self.config.borrow().config.state {
            // An aggregate's connections speak what its first leaf says.
            Ok(leaves) => leaves.first.cluster.http_protocol,
            Err(_) => HttpProtocol::Unspecified,
        }
    }

    /// The parts that run already.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Arc<Backends>> {
        let http2 = self.http2.get();
        #[cfg(feature = "http1")]
        let http2 = http2.into_iter().chain(self.http1.get());
        http2.into_iter()
    }
}

// === Backends ===

/// What calls and the worker share: the worker writes, calls read.
pub(crate) struct Backends {
    cluster: ClusterName,
    max_pending: u32,
    offer: ArcSwap<Offer>,
    wakeups: Arc<Wakeups>,
    asked: Asked,
    /// The configuration that the published picker reflects.
    applied: watch::Sender<Option<Arc<ClusterConfig>>>,
    /// Every endpoint by priority; replaced when the configuration changes.
    roster: ArcSwap<Vec<Chunks<Arc<Endpoint>>>>,
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backends").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// An endpoint in `status()`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointReport {
    /// Its first address.
    pub address: SocketAddr,
    /// Its priority; 0 is the highest.
    pub priority: usize,
    /// What its connection does.
    pub state: EndpointState,
    /// Whether it gets no calls for a while, for how those before have ended (A50).
    pub ejected: bool,
    /// Calls that were given to it, ever.
    pub attempts: u64,
}

/// Why no slot was given.
#[derive(Debug)]
pub(crate) enum NoPick {
    /// The call fails.
    Failed(Cause),
    /// The cluster is gone: the call is routed again.
    Removed,
}

impl Backends {
    /// Whose endpoints these are.
    pub(crate) fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// As [`pick`](Self::pick) where there is nothing to wait for: nearly always. `None` if there is.
    pub(crate) fn pick_at_once(&self, waits_for_ready: bool, tried: &Tried) -> Option<Result<Slot, NoPick>> {
        if self.wakeups.waiting() > 0 {
            return None;
        }
        let picked = self.try_pick(waits_for_ready, tried)?;
        Some(picked.and_then(|slot| if slot.dials() { Ok(slot.waiting(self.wait_permit()?)) } else { Ok(slot) }))
    }

    /// A stream of a READY connection, if possible of an endpoint and a priority that were not tried; waits while connections
    /// are being made, and while all are taken.
    pub(crate) async fn pick(&self, waits_for_ready: bool, tried: &Tried) -> Result<Slot, NoPick> {
        if self.wakeups.waiting() > 0 {
            // Whoever waited for the stream that has just become free was woken, but has not run yet. Callers that call
            // again at once would overtake them for ever. Only a courtesy: it holds nobody up who could have a stream.
            yield_now().await;
        }
        let (slot, waiting) = match self.try_pick(waits_for_ready, tried) {
            Some(picked) => (picked?, None),
            None => {
                let waiting = self.wait_permit()?;
                let ready = || self.try_pick(waits_for_ready, tried);
                let picked = match tried.avoids_priorities() {
                    false => self.wakeups.wait_unless(ready).await,
                    // It must not swallow the wake-up for a stream that another waiter could have.
                    true => self.wakeups.wait_choosily(ready).await,
                };
                if picked.is_err() {
                    // It may have been woken for a stream, which is free for the next.
                    self.wakeups.one();
                }
                (picked?, waiting)
            }
        };
        if !slot.dials() {
            return Ok(slot);
        }
        // It goes on to wait, until its connection is made.
        let waiting = match waiting {
            Some(waiting) => Some(waiting),
            None => self.wait_permit()?,
        };
        Ok(slot.waiting(waiting))
    }

    /// `None` when the call has to wait.
    pub(crate) fn try_pick(&self, waits_for_ready: bool, tried: &Tried) -> Option<Result<Slot, NoPick>> {
        match self.offer.load().pick(tried, &mut |below| fastrand::u32(..below.max(1))) {
            Picked::Slot(slot) => {
                if tried.avoids_priorities() {
                    self.asked.used(slot.endpoint().priority());
                }
                Some(Ok(slot))
            }
            Picked::Wait => None,
            Picked::Ask(priority) => {
                self.asked.ask(priority);
                None
            }
            Picked::Fail(_) if waits_for_ready => None,
            Picked::Fail(reason) => Some(Err(NoPick::Failed(Cause::Cluster { cluster: self.cluster.clone(), reason }))),
            Picked::Removed => Some(Err(NoPick::Removed)),
            Picked::Dropped(category) => {
                Some(Err(NoPick::Failed(Cause::Dropped { cluster: self.cluster.clone(), category })))
            }
            Picked::CircuitOpen(Full { max }) => {
                Some(Err(NoPick::Failed(Cause::CircuitOpen { cluster: self.cluster.clone(), max })))
            }
        }
    }

    /// The right to one retry, for as long as its attempt lasts; `None` if it must not be made.
    pub(crate) fn retry_permit(&self, form: ReplyForm) -> Option<RetryPermit> {
        // gRPC has no limit of its own (A44); for other HTTP it is 3 (Envoy).
        let otherwise = (form == ReplyForm::Http).then_some(3);
        // An offer without a breaker is one that no attempt came from.
        self.offer.load().admission.as_ref()?.breaker.retry(otherwise)
    }

    /// The right to wait, as the cluster's circuit breaker says, or else the channel.
    fn wait_permit(&self) -> Result<Option<Waiting>, NoPick> {
        let full = |max| NoPick::Failed(Cause::TooManyPending { cluster: self.cluster.clone(), max });
        match &self.offer.load().admission {
            Some(admission) => admission.breaker.wait(self.max_pending).map(Some).map_err(|Full { max }| full(max)),
            None if self.wakeups.waiting() >= self.max_pending as usize => Err(full(self.max_pending)),
            None => Ok(None),
        }
    }

    /// Waits until an endpoint is READY (`Ok`) or the cluster is known to fail (`Err` with the reason).
    pub(crate) async fn settled(&self) -> Result<(), Arc<str>> {
        self.wakeups
            .wait_unless(|| match &self.offer.load().picker {
                Picker::Ready(_) => Some(Ok(())),
                Picker::Fail(reason) => Some(Err(Arc::clone(reason))),
                Picker::Removed => Some(Err("removed".into())),
                Picker::Wait => None,
            })
            .await
    }

    /// What a call that waits for a pick waits for.
    pub(crate) fn missing(&self, tried: &Tried) -> Arc<str> {
        let reason = match &self.offer.load().picker {
            Picker::Fail(reason) => Arc::clone(reason),
            Picker::Ready(_) if tried.avoids_priorities() => "no other priority is ready for a retry".into(),
            Picker::Ready(_) => "no stream or connection is free".into(),
            Picker::Wait | Picker::Removed => "no endpoint is ready".into(),
        };
        format!("cluster {:?}: {reason}", self.cluster.as_str()).into()
    }

    /// Without a breaker, that of before stays: for retries of calls that it let through.
    fn publish(&self, picker: Picker, admission: Option<Arc<Admission>>, others: Others) {
        let admission = admission.or_else(|| self.offer.load().admission.clone());
        self.offer.store(Arc::new(Offer { admission, picker, others }));
        self.wakeups.all();
    }

    /// The endpoints, as they are now.
    pub(crate) fn report(&self) -> Vec<EndpointReport> {
        let report = |priority, endpoint: &Arc<Endpoint>| EndpointReport {
            address: endpoint.addresses.first,
            priority,
            state: endpoint.state(),
            ejected: endpoint.is_ejected(),
            attempts: endpoint.attempts(),
        };
        let roster = self.roster.load();
        let of_priority = |(priority, endpoints): (usize, &Chunks<_>)| {
            endpoints.iter().map(|endpoint| report(priority, endpoint)).collect::<Vec<_>>()
        };
        roster.iter().enumerate().flat_map(of_priority).collect()
    }
}

/// The connection backoff of gRPC: 1 s, ×1.6 for each failure, at most 120 s, ±20 %.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let seconds = 1.6_f64.powi(i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX)).min(120.0);
    Duration::from_secs_f64(seconds * (0.8 + 0.4 * jitter))
}

#[cfg(test)]
mod tests {
    use super::{Backends, Cluster, ClusterOptions, NoPick, Update, backoff};
    use crate::{balance::Tried, endpoint::Protocol, error::Cause, task::Tasks};
    use mesh_xds::{ClusterConfig, ClusterError, NameFailures, load::LoadReports, resource::ClusterName};
    use std::{sync::Arc, time::Duration};
    use tokio::{runtime::Handle, task::JoinHandle, time::timeout};

    /// A configuration that fails calls with this reason.
    fn update(generation: u64, reason: &str) -> Update {
        let state = Err(ClusterError(reason.into()));
        Update { generation, config: Arc::new(ClusterConfig { name: ClusterName::new("c"), server: None, state }) }
    }

    fn cluster(first: Update) -> (Cluster, Arc<Backends>) {
        let tasks = Tasks::new(Handle::current());
        let cluster = Cluster::new(
            first,
            ClusterOptions {
                dial: Arc::default(),
                max_pending: 2,
                outlier_detection: None,
                tasks,
                loads: LoadReports::default(),
                name_failures: NameFailures::default(),
                node: "n".into(),
            },
        );
        let backends = Arc::clone(cluster.backends(Protocol::Http2));
        (cluster, backends)
    }

    async fn reason(backends: &Backends) -> String {
        match backends.pick(false, &Tried::default()).await {
            Err(NoPick::Failed(Cause::Cluster { reason, .. })) => reason.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn waiting_call(backends: &Arc<Backends>) -> JoinHandle<Result<(), NoPick>> {
        let backends = Arc::clone(backends);
        tokio::spawn(async move { backends.pick(true, &Tried::default()).await.map(drop) })
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_applied_is_what_calls_see() {
        let (cluster, backends) = cluster(update(1, "first"));
        cluster.applied().await;
        assert_eq!(reason(&backends).await, "first");
        cluster.update(update(2, "second"));
        cluster.applied().await;
        assert_eq!(reason(&backends).await, "second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_lags_does_not_turn_a_cluster_back() {
        let (cluster, backends) = cluster(update(2, "newer"));
        cluster.update(update(1, "older"));
        cluster.applied().await;
        assert_eq!(reason(&backends).await, "newer");
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_that_another_overtakes_counts_as_applied() {
        let (cluster, _backends) = cluster(update(1, "first"));
        cluster.update(update(2, "never seen by the worker"));
        let overtake = async { cluster.update(update(3, "third")) };
        let applied = timeout(Duration::from_secs(60), cluster.applied());
        tokio::join!(biased; applied, overtake).0.expect("no wait for what never comes");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_wait_are_routed_again_when_the_cluster_is_gone() {
        let (cluster, backends) = cluster(update(1, "unusable"));
        cluster.applied().await;
        let call = waiting_call(&backends);
        tokio::task::yield_now().await;
        drop(cluster);
        assert!(matches!(call.await.expect("no panic"), Err(NoPick::Removed)));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_calls_wait_than_are_allowed() {
        let (_cluster, backends) = cluster(update(1, "unusable"));
        let calls = [waiting_call(&backends), waiting_call(&backends)];
        tokio::task::yield_now().await;
        let refused = backends.pick(true, &Tried::default()).await;
        assert!(matches!(refused, Err(NoPick::Failed(Cause::TooManyPending { max: 2, .. }))), "{refused:?}");
        // One that is given up makes room.
        calls[0].abort();
        while backends.wakeups.waiting() > 1 {
            tokio::task::yield_now().await;
        }
        let third = waiting_call(&backends);
        tokio::task::yield_now().await;
        assert!(!third.is_finished());
    }

    #[test]
    fn backoff_grows_by_1_6_to_120_seconds_with_20_percent_jitter() {
        let seconds = |failures| backoff(failures, 0.5).as_secs_f64();
        assert!((seconds(1) - 1.0).abs() < 1e-9);
        assert!((seconds(2) - 1.6).abs() < 1e-9);
        assert!((seconds(3) - 2.56).abs() < 1e-9);
        assert!((seconds(100) - 120.0).abs() < 1e-9);
        assert!((backoff(1, 0.0).as_secs_f64() - 0.8).abs() < 1e-9);
        assert!((backoff(1, 1.0).as_secs_f64() - 1.2).abs() < 1e-9);
    }
}
