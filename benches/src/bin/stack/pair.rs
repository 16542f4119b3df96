//! Two stacks, so finely interleaved that what disturbs one disturbs the other: for differences below 1 µs a call.
//!
//! Both run in processes of their own on one core and take turns of 50 ms. What two slices one after the other differ by
//! is one sample; the median of a pair of processes is one value, since their memory layouts are luck; several pairs give
//! the interval. The second one may be of another build of this program. This file does NOT know throughput or latency:
//! a process that has just woken shows neither.

use crate::{
    client::Setup,
    load::{Outcome, Phase},
    machine,
    options::Options,
    process::{BoxError, Child, Peers},
    rounds,
    stacks::Stack,
    statistics::median,
};
use std::{array, time::Duration};

/// Long enough for some thousand calls, short against what other guests of a host do.
const SLICE: Phase = Phase::Closed { callers: 16, millis: 50 };

/// How often each of the two has its turn.
const TURNS: usize = 60;

/// The same calls again, counted.
const COUNT: Phase = Phase::Count { callers: 16, calls: 8_000 };

/// CPU µs and allocations of a call.
#[derive(Clone, Copy)]
struct Cost {
    cpu: f64,
    allocations: f64,
}

/// Prints what a call of the second stack costs more than one of the first, and what each costs.
pub(crate) fn compare(options: &Options) -> Result<(), BoxError> {
    let &[first, second] = options.stacks.as_slice() else {
        return Err("`stack pair` needs --stacks A,B".into());
    };
    let (client_core, backends_core) = rounds::cores()?;
    let mut backends = Child::start("backends-process")?;
    let peers: Peers = backends.ask(&backends_core, Duration::from_secs(10))?;
    let mut pairs = Vec::new();
    for pair in 1..=options.rounds {
        let setup = |stack: Stack| Setup { stack, peers: peers.clone(), runtime: options.runtime, core: client_core };
        let mut clients =
            [Child::start("client-process")?, Child::start_of(options.than.as_deref(), "client-process")?];
        clients[0].tell(&setup(first))?;
        clients[1].tell(&setup(second))?;
        let measured = measure(&mut clients)?;
        eprintln!("pair {pair}: {:.2} and {:.2} µs, {:+.2}", measured.0[0].cpu, measured.0[1].cpu, measured.1);
        pairs.push(measured);
    }
    println!("{}\n", machine::description());
    println!(
        "{} pairs of processes, each {TURNS} turns of 50 ms, {:?} runtime, 16 callers.\n",
        pairs.len(),
        options.runtime
    );
    println!("| stack | client CPU µs/call | allocations/call |\n| --- | --- | --- |");
    for (index, stack) in [first, second].into_iter().enumerate() {
        let cpu = shown(pairs.iter().map(|pair| pair.0[index].cpu));
        let allocations = shown(pairs.iter().map(|pair| pair.0[index].allocations));
        println!("| {} | {cpu} | {allocations} |", stack.name());
    }
    let more = shown(pairs.iter().map(|pair| pair.1));
    let than = options.than.as_deref().map(|program| format!(" of {program}")).unwrap_or_default();
    println!("\n{}{than} costs {more} CPU µs a call more than {}.", second.name(), first.name());
    Ok(())
}

/// What a call costs with each of the two, and how much more with the second.
fn measure(clients: &mut [Child; 2]) -> Result<([Cost; 2], f64), BoxError> {
    let mut ask = |index: usize, phase: Phase| -> Result<Outcome, BoxError> {
        let outcome: Outcome = clients[index].ask(&phase, Duration::from_secs(20))?;
        match outcome.first_failure {
            Some(failure) => Err(format!("{} of {} calls failed: {failure}", outcome.failures, outcome.calls).into()),
            None => Ok(outcome),
        }
    };
    let mut slice = |index: usize| ask(index, SLICE).map(|outcome| outcome.cpu_micros / outcome.calls as f64);
    // Warm-up.
    for turn in 0..8 {
        slice(turn % 2)?;
    }
    let (mut costs, mut more) = ([Vec::new(), Vec::new()], Vec::new());
    for turn in 0..TURNS {
        // Neither always follows the other.
        let begins = turn % 2;
        let (one, other) = (slice(begins)?, slice(1 - begins)?);
        costs[begins].push(one);
        costs[1 - begins].push(other);
        more.push(if begins == 0 { other - one } else { one - other });
    }
    let counts = [ask(0, COUNT)?, ask(1, COUNT)?];
    let middle = |values: Vec<f64>| median(values).map_or(f64::NAN, |median| median.value);
    let mut cpu = costs.into_iter().map(middle);
    let costs = array::from_fn(|index| Cost {
        cpu: cpu.next().unwrap_or(f64::NAN),
        allocations: counts[index].allocations as f64 / counts[index].calls as f64,
    });
    Ok((costs, middle(more)))
}

fn shown(values: impl Iterator<Item = f64>) -> String {
    median(values.collect()).map(|median| median.to_string()).unwrap_or_default()
}
