//! The measuring: rounds in which every stack runs once, each in a fresh process, until enough of them are valid.
//!
//! A fresh process per stack and round, so that the luck of one memory layout is one sample and not the result; the
//! order rotates, so that no stack always follows the same one. A round is valid when plain and control, which are the
//! same stack, agree. This file does NOT do statistics.

use crate::{
    client::Setup,
    load::{Outcome, Phase},
    machine,
    options::Options,
    process::{BoxError, Child, Peers},
    stacks::Stack,
};
use std::{collections::HashMap, time::Duration};

/// What is measured, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Metric {
    Rate1,
    Rate16,
    Rate128,
    P50,
    P99,
    OpenP50,
    OpenP99,
    Cpu,
    Allocations,
    Bytes,
    Rss,
}

impl Metric {
    pub(crate) const ALL: [Self; 11] = [
        Self::Rate1,
        Self::Rate16,
        Self::Rate128,
        Self::P50,
        Self::P99,
        Self::OpenP50,
        Self::OpenP99,
        Self::Cpu,
        Self::Allocations,
        Self::Bytes,
        Self::Rss,
    ];
}

/// What one stack showed in one round.
pub(crate) type Sample = HashMap<Metric, f64>;

/// What all stacks showed in one round.
pub(crate) type Round = HashMap<&'static str, Sample>;

/// All that was measured.
#[derive(Default)]
pub(crate) struct Measured {
    pub(crate) rounds: Vec<Round>,
    pub(crate) discarded: usize,
    pub(crate) failures: Vec<String>,
}

/// Plain and control may differ by this much in a valid round.
const TOLERANCE: f64 = 0.03;

/// Measures until there are enough valid rounds, or until three times as many were tried: an invalid one is cut short.
pub(crate) fn measure(options: &Options) -> Result<Measured, BoxError> {
    let (client_core, backends_core) = cores()?;
    let mut backends = Child::start("backends-process")?;
    let peers: Peers = backends.ask(&backends_core, Duration::from_secs(10))?;

    let mut measured = Measured::default();
    for attempt in 0..options.rounds * 3 {
        if measured.rounds.len() == options.rounds || !measured.failures.is_empty() {
            break;
        }
        let mut stacks = options.stacks.clone();
        stacks.rotate_left(attempt % options.stacks.len());
        let mut round = Round::new();
        for stack in stacks {
            let setup = Setup { stack, peers: peers.clone(), runtime: options.runtime, core: client_core };
            match client(setup, options, &mut backends) {
                Ok(sample) => drop(round.insert(stack.name(), sample)),
                Err(failure) => measured.failures.push(format!("{}: {failure}", stack.name())),
            }
            if deviation(&round).is_some_and(|deviation| deviation > TOLERANCE) {
                // Nothing that follows can make this round valid.
                break;
            }
        }
        let deviation = deviation(&round);
        let valid = deviation.is_some_and(|deviation| deviation <= TOLERANCE) && round.len() == options.stacks.len();
        let verdict = if valid { "valid" } else { "discarded" };
        let shown = deviation.unwrap_or(f64::NAN) * 100.0;
        eprintln!("round {}: control off by {shown:.1} %, {verdict}", attempt + 1);
        if valid {
            measured.rounds.push(round);
        } else {
            measured.discarded += 1;
        }
    }
    Ok(measured)
}

/// The core of the clients and the core of the backends; none where there is only one.
pub(crate) fn cores() -> Result<(Option<usize>, Option<usize>), BoxError> {
    let cores = machine::cores()?;
    match cores.as_slice() {
        [first, .., last] => Ok((Some(*last), Some(*first))),
        _ => Ok((None, None)),
    }
}

/// How far control is from plain in what the issue binds: throughput and CPU per call at 16 callers.
fn deviation(round: &Round) -> Option<f64> {
    let (plain, control) = (round.get("plain")?, round.get("control")?);
    [Metric::Rate16, Metric::Cpu].iter().map(|metric| (control[metric] / plain[metric] - 1.0).abs()).reduce(f64::max)
}

fn client(setup: Setup, options: &Options, backends: &mut Child) -> Result<Sample, BoxError> {
    let stack = setup.stack;
    let mut client = Child::start("client-process")?;
    let millis = |share: f64| (options.seconds * share * 1e3) as u64;
    client.tell(&setup)?;
    let mut ask = |phase: Phase| -> Result<Outcome, BoxError> {
        let outcome: Outcome = client.ask(&phase, Duration::from_secs_f64(options.seconds * 2.0 + 20.0))?;
        match outcome.first_failure {
            Some(failure) => Err(format!("{} of {} calls failed: {failure}", outcome.failures, outcome.calls).into()),
            None => Ok(outcome),
        }
    };
    ask(Phase::Closed { callers: 16, millis: millis(0.25) })?;
    let _: Vec<u64> = backends.ask(&(), Duration::from_secs(10))?;
    let one = ask(Phase::Closed { callers: 1, millis: millis(0.5) })?;
    let sixteen = ask(Phase::Closed { callers: 16, millis: millis(1.0) })?;
    let many = ask(Phase::Closed { callers: 128, millis: millis(0.5) })?;
    let open = ask(Phase::Open { rate: options.rate, millis: millis(0.6) })?;
    let count = ask(Phase::Count { callers: 16, calls: 8_000 })?;
    let answered: Vec<u64> = backends.ask(&(), Duration::from_secs(10))?;
    balanced(stack, &answered)?;

    let rate = |outcome: &Outcome| outcome.calls as f64 / outcome.seconds;
    let calls = count.calls as f64;
    Ok(Sample::from([
        (Metric::Rate1, rate(&one)),
        (Metric::Rate16, rate(&sixteen)),
        (Metric::Rate128, rate(&many)),
        (Metric::P50, one.p50_micros),
        (Metric::P99, one.p99_micros),
        (Metric::OpenP50, open.p50_micros),
        (Metric::OpenP99, open.p99_micros),
        (Metric::Cpu, sixteen.cpu_micros / sixteen.calls as f64),
        (Metric::Allocations, count.allocations as f64 / calls),
        (Metric::Bytes, count.bytes as f64 / calls),
        (Metric::Rss, many.rss_kib),
    ]))
}

/// A stack that should balance and calls one backend only would look better than it is.
fn balanced(stack: Stack, answered: &[u64]) -> Result<(), BoxError> {
    let fair = answered.iter().sum::<u64>() / stack.backends() as u64;
    let busy = answered.iter().filter(|calls| **calls > fair / 2).count();
    if busy == stack.backends() { Ok(()) } else { Err(format!("not balanced: backends answered {answered:?}").into()) }
}
