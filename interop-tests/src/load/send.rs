//! The open loop: RPCs are started on schedule, whatever is still in flight.
//!
//! A closed loop would hide a slow mesh by sending less. It does NOT wait for answers.

use super::{
    call::{self, Channel},
    plan::{Payloads, Plan},
    statistics::Statistics,
};
use crate::admin::CallCounts;
use std::{
    future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{self, MissedTickBehavior},
};

/// A channel with its own counts, for channelz.
#[derive(Clone, Debug)]
pub struct Counted<C> {
    channel: C,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    started: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl<C> Counted<C> {
    /// A channel without calls yet.
    pub fn new(channel: C) -> Self {
        Self { channel, counts: Arc::default() }
    }

    /// The channel inside.
    pub fn channel(&self) -> &C {
        &self.channel
    }

    /// Its calls so far.
    pub fn calls(&self) -> CallCounts {
        // Relaxed: independent counters for display.
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CallCounts {
            started: count(&self.counts.started),
            succeeded: count(&self.counts.succeeded),
            failed: count(&self.counts.failed),
        }
    }
}

/// Sends for ever: per second and channel, `qps` RPCs of each type of the plan. The channels are used in turn.
pub async fn send<C: Channel>(
    channels: Vec<Counted<C>>,
    qps: u32,
    payloads: Payloads,
    plan: watch::Receiver<Arc<Plan>>,
    statistics: Arc<Statistics>,
) {
    let ticks_per_second = u64::from(qps) * channels.len() as u64;
    if ticks_per_second == 0 {
        return future::pending().await;
    }
    let period = Duration::from_nanos((1_000_000_000 / ticks_per_second).max(1));
    let mut ticks = time::interval(period);
    // A late tick is made up for: the rate is a promise to the harness.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for channel in channels.iter().cycle() {
        ticks.tick().await;
        let plan = plan.borrow().clone();
        for &rpc in &plan.types {
            let (channel, plan, statistics) = (channel.clone(), plan.clone(), statistics.clone());
            channel.counts.started.fetch_add(1, Ordering::Relaxed);
            // Counted before the task runs: `started` means on schedule.
            let started = statistics.started(rpc);
            tokio::spawn(async move {
                let result = call::call(channel.channel.clone(), rpc, &plan, payloads).await;
                let counter = if result.is_ok() { &channel.counts.succeeded } else { &channel.counts.failed };
                counter.fetch_add(1, Ordering::Relaxed);
                statistics.finished(started, result);
            });
        }
    }
}
