//! Circuit breaking (A32): how much of a cluster may be in use at once.
//!
//! ```text
//!  Breaker ──► limits of one configuration
//!     └──────► Counters ◄── Permit, Waiting, RetryPermit     held by calls, given back when dropped
//!                 ▲    ◄── ConnectionPermit                  held by connections, from the dial on
//!                 │
//!  registry.rs ───┘  one per {cluster, EDS service name} and process
//! ```
//!
//! The counts outlive configurations: a lower limit refuses calls until enough of those in flight have ended. All of it
//! is atomics, and no call allocates for it. Who is refused, and what a refused call is told, is NOT known here.

mod layer;
mod registry;

pub use layer::{CircuitBreaker, CircuitBreakerBody, CircuitBreakerFuture, CircuitBreakerLayer};
pub(crate) use registry::{counters, in_use};

use mesh_xds::resource::CircuitBreakers;
use std::{
    ops::Add,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

/// "default 1024 always enforced" - A32
const MAX_REQUESTS: u32 = 1024;

/// gRPC has no such limit: "If not specified, the default is 1024" (Envoy).
#[cfg(feature = "http1")]
const MAX_CONNECTIONS: u32 = 1024;

/// What is in use of one cluster, by all of the process.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    connections: AtomicU32,
    requests: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
}

/// What is in use now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InUse {
    /// Connections, open or being dialled.
    pub(crate) connections: u32,
    /// Calls in flight.
    pub(crate) requests: u32,
    /// Calls that wait for a connection.
    pub(crate) pending: u32,
    /// Retries in flight.
    pub(crate) retries: u32,
}

impl Counters {
    pub(crate) fn in_use(&self) -> InUse {
        let now = |count: &AtomicU32| count.load(Ordering::Relaxed);
        InUse {
            connections: now(&self.connections),
            requests: now(&self.requests),
            pending: now(&self.pending),
            retries: now(&self.retries),
        }
    }

    /// One more connection, whatever the limit: of an endpoint that has none.
    pub(crate) fn first_connection(self: &Arc<Self>) -> ConnectionPermit {
        self.connections.fetch_add(1, Ordering::Relaxed);
        ConnectionPermit(Arc::clone(self))
    }
}

impl Add for InUse {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            requests: self.requests + other.requests,
            pending: self.pending + other.pending,
            retries: self.retries + other.retries,
        }
    }
}

/// The limits of one configuration, on counters that may have others elsewhere.
#[derive(Debug)]
pub(crate) struct Breaker {
    counters: Arc<Counters>,
    limits: CircuitBreakers,
}

/// As many as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) max: u32,
}

/// One connection, open or being dialled.
#[derive(Debug)]
pub(crate) struct ConnectionPermit(Arc<Counters>);

/// One call in flight.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Counters>);

/// One call that waits for a connection.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<Counters>);

/// One retry in flight.
#[derive(Debug)]
pub(crate) struct RetryPermit(Arc<Counters>);

impl Breaker {
    pub(crate) fn new(counters: Arc<Counters>, limits: CircuitBreakers) -> Self {
        Self { counters, limits }
    }

    /// What is counted, by this configuration and by others.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// One more connection of an endpoint that has some, unless that is too many.
    #[cfg(feature = "http1")]
    pub(crate) fn connection(&self) -> Option<ConnectionPermit> {
        let max = self.limits.max_connections.unwrap_or(MAX_CONNECTIONS);
        below(max, &self.counters.connections).then(|| ConnectionPermit(Arc::clone(&self.counters)))
    }

    fn max_requests(&self) -> u32 {
        self.limits.max_requests.unwrap_or(MAX_REQUESTS)
    }

    /// "in-flight ≥ max → UNAVAILABLE" - A32
    pub(crate) fn check(&self) -> Result<(), Full> {
        let max = self.max_requests();
        if self.counters.requests.load(Ordering::Relaxed) < max { Ok(()) } else { Err(Full { max }) }
    }

    /// One more call, unless that is too many.
    pub(crate) fn enter(&self) -> Result<Permit, Full> {
        let max = self.max_requests();
        if below(max, &self.counters.requests) { Ok(Permit(Arc::clone(&self.counters))) } else { Err(Full { max }) }
    }

    /// One more call that waits, unless that is too many; `otherwise` is the limit where the cluster says nothing.
    pub(crate) fn wait(&self, otherwise: u32) -> Result<Waiting, Full> {
        let max = self.limits.max_pending_requests.unwrap_or(otherwise);
        if below(max, &self.counters.pending) { Ok(Waiting(Arc::clone(&self.counters))) } else { Err(Full { max }) }
    }

    /// One more retry, unless that is too many; `otherwise` is the limit where the cluster says nothing.
    pub(crate) fn retry(&self, otherwise: Option<u32>) -> Option<RetryPermit> {
        let budget = self.limits.retry_budget.map(|budget| {
            let InUse { requests, pending, .. } = self.counters.in_use();
            let calls = f64::from(requests) + f64::from(pending);
            // "the retry budget will override any configured retry circuit breaker" (Envoy). Cut off, as there.
            ((budget.percent / 100.0 * calls) as u32).max(budget.min_concurrency)
        });
        let max = budget.or(self.limits.max_retries).or(otherwise).unwrap_or(u32::MAX);
        below(max, &self.counters.retries).then(|| RetryPermit(Arc::clone(&self.counters)))
    }
}

/// Counts one more, if that is no more than `max`.
fn below(max: u32, count: &AtomicU32) -> bool {
    // Never above the limit, not even for a moment: another call would be refused for nothing.
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < max).then_some(count + 1)).is_ok()
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{Breaker, Counters, Full, InUse};
    use mesh_xds::resource::{CircuitBreakers, RetryBudget};
    use std::sync::Arc;

    fn breaker(counters: &Arc<Counters>, limits: CircuitBreakers) -> Breaker {
        Breaker::new(Arc::clone(counters), limits)
    }

    fn requests(max: u32) -> CircuitBreakers {
        CircuitBreakers { max_requests: Some(max), ..CircuitBreakers::default() }
    }

    #[test]
    fn a_lower_limit_refuses_until_enough_have_ended() {
        let counters = Arc::default();
        let mut permits: Vec<_> = (0..105).map(|_| breaker(&counters, requests(200)).enter().expect("room")).collect();
        let lowered = breaker(&counters, requests(100));
        for _ in 0..6 {
            assert_eq!(lowered.enter().expect_err("more than 99 in flight"), Full { max: 100 });
            permits.pop();
        }
        assert!(lowered.enter().is_ok(), "99 in flight");
        drop(permits);
        assert_eq!(counters.in_use(), InUse::default());
    }

    #[test]
    fn the_default_is_1024_and_zero_is_nothing() {
        let counters = Arc::default();
        assert_eq!(breaker(&counters, requests(0)).check(), Err(Full { max: 0 }));
        let breaker = breaker(&counters, CircuitBreakers::default());
        let _permits: Vec<_> = (0..1024).map(|_| breaker.enter().expect("room")).collect();
        assert_eq!(breaker.enter().expect_err("1024 in flight"), Full { max: 1024 });
    }

    #[test]
    fn threads_never_pass_more_than_the_limit_and_give_all_of_it_back() {
        let counters = Arc::default();
        let breaker = breaker(&counters, requests(3));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let permit = breaker.enter();
                        assert!(breaker.counters.in_use().requests <= 3);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(counters.in_use(), InUse::default());
    }

    #[test]
    fn retries_are_limited_by_number_or_by_what_is_usual() {
        let counters = Arc::default();
        let limited = breaker(&counters, CircuitBreakers { max_retries: Some(2), ..CircuitBreakers::default() });
        let two = [limited.retry(None).expect("the first"), limited.retry(None).expect("the second")];
        assert!(limited.retry(None).is_none(), "a third");
        let usual = breaker(&counters, CircuitBreakers::default());
        assert!(usual.retry(Some(2)).is_none() && usual.retry(Some(3)).is_some() && usual.retry(None).is_some());
        drop(two);
        assert_eq!(counters.in_use(), InUse::default());
    }

    #[test]
    fn calls_wait_as_the_cluster_says_or_else_as_is_usual() {
        let counters = Arc::default();
        let usual = breaker(&counters, CircuitBreakers::default());
        let waiting = [usual.wait(2).expect("room"), usual.wait(2).expect("room")];
        assert_eq!(usual.wait(2).expect_err("two wait"), Full { max: 2 });
        let limits = CircuitBreakers { max_pending_requests: Some(3), ..CircuitBreakers::default() };
        assert!(breaker(&counters, limits).wait(2).is_ok());
        drop(waiting);
        assert_eq!(counters.in_use(), InUse::default());
    }

    #[cfg(feature = "http1")]
    #[test]
    fn an_endpoint_has_its_first_connection_whatever_the_limit_and_others_count_it() {
        let counters = Arc::default();
        let limited = breaker(&counters, CircuitBreakers { max_connections: Some(2), ..CircuitBreakers::default() });
        let more = limited.connection().expect("room");
        let firsts = [counters.first_connection(), counters.first_connection()];
        assert_eq!(counters.in_use().connections, 3);
        drop(more);
        assert!(limited.connection().is_none(), "two are the limit");
        let usual = breaker(&counters, CircuitBreakers::default());
        let usual: Vec<_> = (0..1022).map(|_| usual.connection().expect("1024 at most")).collect();
        assert!(breaker(&counters, CircuitBreakers::default()).connection().is_none());
        drop((firsts, usual));
        assert_eq!(counters.in_use(), InUse::default());
    }

    #[test]
    fn a_budget_is_a_share_of_the_calls_and_so_many_in_any_case() {
        let budget = Some(RetryBudget { percent: 20.0, min_concurrency: 1 });
        let limits = CircuitBreakers { retry_budget: budget, max_retries: Some(0), ..CircuitBreakers::default() };
        let counters = Arc::default();
        let breaker = breaker(&counters, limits);
        let _first = breaker.retry(None).expect("one in any case");
        assert!(breaker.retry(None).is_none(), "20 % of nothing");
        let _calls: Vec<_> = (0..9).map(|_| breaker.enter().expect("room")).collect();
        assert!(breaker.retry(None).is_none(), "1.8 of 9");
        let _waiting = breaker.wait(1).expect("room");
        assert!(breaker.retry(None).is_some(), "2 of 9 and one that waits");
    }
}
