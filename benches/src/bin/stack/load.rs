//! The load that a client puts on its stack: closed loops of callers, or calls at a fixed rate.
//!
//! All stacks are driven by this code, through `Caller`. It does NOT compare.

use crate::{ALLOCATOR, machine, process::BoxError, statistics::percentile};
use nix::sys::prctl::set_timerslack;
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

/// One call of a stack: the payload goes out, comes back and is checked.
pub(crate) trait Caller: Clone + Send + Sync + 'static {
    /// Calls once; the error is for people.
    fn call(&mut self) -> impl Future<Output = Result<(), String>> + Send;
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Each of `callers` calls again as soon as its call returned. Latencies are kept for one caller only.
    Closed { callers: usize, millis: u64 },
    /// As `Closed`, for a fixed number of calls, with the allocator counting.
    Count { callers: usize, calls: u64 },
    /// Calls are due at a fixed rate, whether earlier ones returned or not; latency counts from when a call was due.
    Open { rate: u64, millis: u64 },
}

/// What came of a phase.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) cpu_micros: f64,
    pub(crate) allocations: u64,
    pub(crate) bytes: u64,
    pub(crate) rss_kib: f64,
    pub(crate) p50_micros: f64,
    pub(crate) p99_micros: f64,
}

/// What one caller did.
#[derive(Default)]
struct Tally {
    calls: u64,
    failures: u64,
    first_failure: Option<String>,
    nanos: Vec<u64>,
}

/// A caller gives up after this many failures: the run has failed anyway, and must end.
const MAX_FAILURES: u64 = 100;

/// Runs one phase.
pub(crate) async fn run(caller: &impl Caller, phase: Phase) -> Result<Outcome, BoxError> {
    if matches!(phase, Phase::Count { .. }) {
        ALLOCATOR.start();
    }
    let cpu = machine::cpu_micros()?;
    let start = Instant::now();
    let tally = match phase {
        Phase::Closed { callers, millis } => {
            closed(caller, callers, u64::MAX, Some(Duration::from_millis(millis))).await?
        }
        Phase::Count { callers, calls } => closed(caller, callers, calls / callers as u64, None).await?,
        Phase::Open { rate, millis } => open(caller, rate, rate * millis / 1000).await?,
    };
    let seconds = start.elapsed().as_secs_f64();
    let cpu_micros = machine::cpu_micros()? - cpu;
    let count = ALLOCATOR.stop();
    let mut nanos = tally.nanos;
    nanos.sort_unstable();
    Ok(Outcome {
        calls: tally.calls,
        failures: tally.failures,
        first_failure: tally.first_failure,
        seconds,
        cpu_micros,
        allocations: count.allocations,
        bytes: count.bytes,
        rss_kib: machine::rss_kib()?,
        p50_micros: percentile(&nanos, 0.50) / 1e3,
        p99_micros: percentile(&nanos, 0.99) / 1e3,
    })
}

async fn closed(caller: &impl Caller, callers: usize, each: u64, time: Option<Duration>) -> Result<Tally, BoxError> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (mut caller, stop) = (caller.clone(), stop.clone());
        tasks.spawn(async move {
            let mut tally = Tally::default();
            while tally.calls < each && tally.failures < MAX_FAILURES && !stop.load(Relaxed) {
                // Clock reads only where the latency is wanted, to disturb the CPU time less.
                let start = (callers == 1).then(Instant::now);
                let result = caller.call().await;
                tally.add(result, start);
            }
            tally
        });
    }
    if let Some(time) = time {
        tokio::time::sleep(time).await;
        stop.store(true, Relaxed);
    }
    Tally::collect(tasks).await
}

async fn open(caller: &impl Caller, rate: u64, calls: u64) -> Result<Tally, BoxError> {
    let interval = Duration::from_nanos(1_000_000_000 / rate);
    let mut tasks = JoinSet::new();
    let mut ticks = pacer(interval, calls);
    while let Some(due_at) = ticks.recv().await {
        let mut caller = caller.clone();
        tasks.spawn(async move {
            let mut tally = Tally::default();
            let result = caller.call().await;
            tally.add(result, Some(due_at));
            tally
        });
    }
    Tally::collect(tasks).await
}

/// Says when each call is due, as soon as it is. A thread, because tokio's timers have steps of a millisecond.
fn pacer(interval: Duration, calls: u64) -> mpsc::UnboundedReceiver<Instant> {
    // Unbounded, or a slow stack would slow down the rate that it is measured at; closed after the last call.
    let (tick, ticks) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        // The default slack of a sleep, 50 µs, is a large part of a call. Without the change only precision is lost.
        let _ = set_timerslack(1);
        let mut due_at = Instant::now();
        for _ in 0..calls {
            due_at += interval;
            std::thread::sleep(due_at.saturating_duration_since(Instant::now()));
            if tick.send(due_at).is_err() {
                break;
            }
        }
    });
    ticks
}

impl Tally {
    fn add(&mut self, result: Result<(), String>, since: Option<Instant>) {
        self.calls += 1;
        if let Some(since) = since {
            self.nanos.push(since.elapsed().as_nanos() as u64);
        }
        if let Err(failure) = result {
            self.failures += 1;
            self.first_failure.get_or_insert(failure);
        }
    }

    async fn collect(mut tasks: JoinSet<Self>) -> Result<Self, BoxError> {
        let mut sum = Self::default();
        while let Some(tally) = tasks.join_next().await {
            let tally = tally?;
            sum.calls += tally.calls;
            sum.failures += tally.failures;
            sum.first_failure = sum.first_failure.or(tally.first_failure);
            sum.nanos.extend(tally.nanos);
        }
        Ok(sum)
    }
}
