//! Which priorities retries have asked for: said by calls, heard by the worker.
//!
//! It is a number, so that any number of retries that ask for the same cost nothing, and nothing is lost while a worker
//! starts again. It does NOT know which priorities are connected.

use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// All priorities down to the lowest that was asked for: retries come to a priority by way of those above it.
#[derive(Debug, Default)]
pub(super) struct Asked {
    count: AtomicUsize,
    bell: Notify,
}

impl Asked {
    /// This priority is to be connected.
    pub(super) fn ask(&self, priority: usize) {
        self.used(Some(priority));
        self.bell.notify_one();
    }

    /// This priority has served a retry: the worker hears of it at its next turn.
    pub(super) fn used(&self, priority: Option<usize>) {
        if let Some(priority) = priority {
            self.count.fetch_max(priority + 1, Ordering::Relaxed);
        }
    }

    /// How many of the highest priorities were asked for since this was called last.
    pub(super) fn take(&self) -> usize {
        self.count.swap(0, Ordering::Relaxed)
    }

    /// Until somebody asks.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }
}
