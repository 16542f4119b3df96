//! Two stacks, so finely interleaved that what disturbs one disturbs the other: for differences below 1 µs a call.
//!
//! Both run in processes of their own on one core and take turns of 50 ms. What two slices one after the other differ by
//! is one sample; the median of a pair of processes is one value, since their memory layouts are luck, and two pairs are one
//! round, each started the other way round. Several rounds give the interval. The second one may be of another build of this
//! program. This file does NOT know throughput or latency: a process that has just woken shows neither.

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
use std::{array, env, fs, path::Path, time::Duration};
use tempfile::{NamedTempFile, TempPath};

/// Long enough for some thousand calls, short against what other guests of a host do.
const SLICE: Phase = Phase::Closed { callers: 16, millis: 50 };

/// How often each of the two has its turn.
const TURNS: usize = 30;

/// The same calls again, counted.
const COUNT: Phase = Phase::Count { callers: 16, calls: 8_000 };

/// CPU µs and allocations of a call.
#[derive(Clone, Copy)]
struct Cost {
    cpu: f64,
    allocations: f64,
}

impl Cost {
    fn and(self, other: Self) -> Self {
        let both = |of: fn(&Self) -> f64| f64::midpoint(of(&self), of(&other));
        Self { cpu: both(|cost| cost.cpu), allocations: both(|cost| cost.allocations) }
    }
}

/// Prints what a call of the second stack costs more than one of the first, and what each costs.
pub(crate) fn compare(options: &Options) -> Result<(), BoxError> {
    let &[first, second] = options.stacks.as_slice() else {
        return Err("`stack pair` needs --stacks A,B".into());
    };
    let (client_core, backends_core) = rounds::cores()?;
    let mut backends = Child::start("backends-process")?;
    let peers: Peers = backends.ask(&backends_core, Duration::from_secs(10))?;
    let mut pairs: Vec<([Cost; 2], f64)> = Vec::new();
    // A program whose file others run, too, as the backends do this one's, can be 0.2 µs dearer than its own copy.
    let copy = if options.than.is_some() { Some(own_copy()?) } else { None };
    let own = copy.as_deref().and_then(Path::to_str);
    let start = |stack: Stack, program: Option<&str>| -> Result<Child, BoxError> {
        let mut client = Child::start_of(program, "client-process")?;
        let setup = Setup { stack, peers: peers.clone(), runtime: options.runtime, core: client_core };
        client.tell(&setup)?;
        Ok(client)
    };
    for round in 1..=options.rounds {
        let forth = measure(&mut [start(first, own)?, start(second, options.than.as_deref())?])?;
        let [two, one] = [start(second, options.than.as_deref())?, start(first, own)?];
        let back = measure(&mut [one, two])?;
        let costs = array::from_fn(|index| forth.0[index].and(back.0[index]));
        let more = f64::midpoint(forth.1, back.1);
        eprintln!("round {round}: {:.2} and {:.2} µs, {more:+.2}", costs[0].cpu, costs[1].cpu);
        pairs.push((costs, more));
    }
    println!("{}\n", machine::description());
    println!(
        "{} rounds of two pairs of processes, each {TURNS} turns of 50 ms, {:?} runtime, 16 callers.\n",
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

/// This program in a file that nobody else runs.
fn own_copy() -> Result<TempPath, BoxError> {
    let copy = NamedTempFile::new()?.into_temp_path();
    fs::copy(env::current_exe()?, &copy)?;
    Ok(copy)
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
