//! What stands before the endpoints of a cluster: its circuit breaker (A32), and who counts those that it refuses.
//!
//! The worker makes one for each leaf; pickers share it. It does NOT choose anything.

use crate::breaker::{Breaker, Full, Permit};
use mesh_xds::load::DropLoad;

/// A cluster's circuit breaker, with the counter of load reports, if the cluster reports any.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) breaker: Breaker,
    refused: Option<DropLoad>,
}

impl Admission {
    pub(crate) fn new(breaker: Breaker, refused: Option<DropLoad>) -> Self {
        Self { breaker, refused }
    }

    /// For a call that goes to an endpoint.
    pub(super) fn enter(&self) -> Result<Permit, Full> {
        self.breaker.enter().inspect_err(|_| self.count())
    }

    /// For a call that goes nowhere yet.
    pub(super) fn check(&self) -> Result<(), Full> {
        self.breaker.check().inspect_err(|_| self.count())
    }

    /// "counted in LRS total_dropped_requests without a category" - A32
    fn count(&self) {
        if let Some(refused) = &self.refused {
            refused.dropped();
        }
    }
}
