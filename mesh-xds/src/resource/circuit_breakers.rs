//! How much of a cluster may be in use at once (A32, and Envoy's `CircuitBreakers`).
//!
//! Unset is not unlimited: who enforces a limit knows its default. Nothing is counted here.

/// `circuit_breakers`: the first of its thresholds with priority DEFAULT.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CircuitBreakers {
    /// Connections, open or being dialled. An endpoint that has none may always have one.
    pub max_connections: Option<u32>,
    /// Calls in flight (A32).
    pub max_requests: Option<u32>,
    /// Calls that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Retries in flight. A `retry_budget` takes its place.
    pub max_retries: Option<u32>,
    /// Retries in flight, as a share of the calls.
    pub retry_budget: Option<RetryBudget>,
}

/// `retry_budget`: how many calls in flight may be retries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Of the calls in flight and those that wait, in percent; 0 to 100.
    pub percent: f64,
    /// So many in any case.
    pub min_concurrency: u32,
}

/// Envoy's: a fifth of the calls, and always three.
impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20.0, min_concurrency: 3 }
    }
}
