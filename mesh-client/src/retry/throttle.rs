//! Retry throttling (A6): a server whose calls mostly fail gets no retries on top.
//!
//! xDS has no field for it: a channel's builder says it, as a service config would. It does NOT limit calls.

use crate::error::grpc_status;
use http::HeaderMap;
use std::sync::atomic::{AtomicU32, Ordering};

/// `retryThrottling` of a service config: of how many failures retries stop, and how many successes make up for one (A6).
///
/// ```
/// use mesh_client::retry::RetryThrottling;
///
/// // Ten tokens: retries stop while five or fewer are left. A success brings back a tenth of one.
/// let throttling = RetryThrottling::new(10.0, 0.1).expect("within A6's limits");
/// assert!(RetryThrottling::new(1000.5, 0.1).is_none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryThrottling {
    /// In thousandths, as are all counts here: "up to 3 decimal places".
    max_tokens: u32,
    token_ratio: u32,
}

impl RetryThrottling {
    /// `max_tokens` in `(0, 1000]`, `token_ratio` above 0; "decimal places beyond 3 are ignored". `None` for others.
    pub fn new(max_tokens: f64, token_ratio: f64) -> Option<Self> {
        let max_tokens = Some(max_tokens).filter(|tokens| *tokens > 0.0 && *tokens <= 1000.0)?;
        let token_ratio = Some(token_ratio).filter(|ratio| ratio.is_finite() && *ratio >= 0.001)?;
        Some(Self { max_tokens: (max_tokens * 1000.0) as u32, token_ratio: (token_ratio * 1000.0) as u32 })
    }
}

/// The tokens of one server name: a channel has one.
#[derive(Debug)]
pub(crate) struct Throttle {
    config: RetryThrottling,
    tokens: AtomicU32,
}

impl Throttle {
    pub(crate) fn new(config: RetryThrottling) -> Self {
        Self { config, tokens: AtomicU32::new(config.max_tokens) }
    }

    /// A failure that could be retried, or that the server asks not to. Returns whether a retry is allowed: "if
    /// token_count is less than or equal to the threshold [...] RPCs will not be retried".
    pub(crate) fn failed(&self) -> bool {
        let spent = |tokens: u32| Some(tokens.saturating_sub(1000));
        let before = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent);
        before.unwrap_or_else(|same| same).saturating_sub(1000) > self.config.max_tokens / 2
    }

    /// A call ended with these trailers, or with a head in their place.
    pub(crate) fn ended(&self, trailers: &HeaderMap) {
        if grpc_status(trailers).is_some_and(|status| status.as_bytes() == b"0") {
            self.succeeded();
        }
    }

    /// A call succeeded.
    pub(super) fn succeeded(&self) {
        if self.tokens.load(Ordering::Relaxed) < self.config.max_tokens {
            let earned = |tokens: u32| Some(tokens.saturating_add(self.config.token_ratio).min(self.config.max_tokens));
            let _ = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earned);
        }
    }
}
