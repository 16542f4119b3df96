//! A closed loop of calls: so many callers, each of whom makes its next call when it has the answer to the last one.
//!
//! No more calls are in flight than there are callers, which is what budgets are counted against. It does NOT keep a rate.

use crate::{
    features::{Answer, Call},
    rig::within,
};
use mesh_client::MeshChannel;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{sync::watch, task::JoinSet};

/// Callers at work.
pub(crate) struct Crowd {
    callers: JoinSet<Outcome>,
    /// How many calls may still be begun.
    left: Arc<AtomicU64>,
    /// How many have their answer.
    answers: watch::Sender<u64>,
}

/// What became of their calls.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    /// One of the failures of each text.
    pub(crate) failures: BTreeMap<String, u64>,
}

impl Crowd {
    /// `callers` that make the calls `next` says, until they are told to stop.
    pub(crate) fn start(channel: &MeshChannel, callers: usize, next: fn() -> Call) -> Self {
        Self::with_calls(channel, callers, u64::MAX, next)
    }

    /// `callers` that make `calls` calls in all.
    pub(crate) async fn make(channel: &MeshChannel, callers: usize, calls: u64, next: fn() -> Call) -> Outcome {
        Self::with_calls(channel, callers, calls, next).ended().await
    }

    fn with_calls(channel: &MeshChannel, callers: usize, calls: u64, next: fn() -> Call) -> Self {
        let (left, answers) = (Arc::new(AtomicU64::new(calls)), watch::Sender::default());
        let caller = |_| call_on(channel.clone(), next, Arc::clone(&left), answers.clone());
        Self { callers: (0..callers).map(caller).collect(), left, answers }
    }

    /// Waits until `count` more calls have their answer.
    pub(crate) async fn goes_on(&self, count: u64) {
        let goal = *self.answers.borrow() + count;
        within("answers", self.answers.subscribe().wait_for(|answers| *answers >= goal))
            .await
            .expect("the sender is ours");
    }

    /// No caller begins another call.
    pub(crate) fn stops(&self) {
        self.left.store(0, Ordering::Relaxed);
    }

    /// Waits for the answers that are still to come.
    pub(crate) async fn ended(mut self) -> Outcome {
        let mut all = Outcome::default();
        while let Some(of_one) = within("the end of a caller", self.callers.join_next()).await {
            all.add(of_one.expect("no panic"));
        }
        all
    }
}

async fn call_on(
    channel: MeshChannel,
    next: fn() -> Call,
    left: Arc<AtomicU64>,
    answers: watch::Sender<u64>,
) -> Outcome {
    let mut outcome = Outcome::default();
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        outcome.count(next().on(&channel).await);
        answers.send_modify(|answers| *answers += 1);
    }
    outcome
}

impl Outcome {
    /// How many calls were made.
    pub(crate) fn calls(&self) -> u64 {
        self.answered + self.failed
    }

    fn count(&mut self, answer: Answer) {
        match answer {
            Ok(_) => self.answered += 1,
            Err(failure) => {
                self.failed += 1;
                *self.failures.entry(failure).or_default() += 1;
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
    }
}
