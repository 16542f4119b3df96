//! Client stacks side by side: what a unary gRPC call costs on tonic, on its peers and on the floors below them.
//!
//! This process only orchestrates. Each client stack runs in a child process on one core, the backends in another on
//! another core. Run it with `cargo run --release -p benches --bin stack`; `--help` lists the options. It does NOT
//! compare servers and never leaves the loopback interface.

mod backends;
mod client;
mod echo;
mod load;
mod machine;
mod options;
mod pair;
mod process;
mod report;
mod rounds;
mod stacks;
mod statistics;

use crate::{
    client::Setup,
    load::{Outcome, Phase},
    options::Options,
    process::{BoxError, Child},
    stacks::Stack,
};
use benches::alloc::Counting;
use std::{process::ExitCode, time::Duration};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == "--help").is_some() {
        println!("{}", options::USAGE);
        return ExitCode::SUCCESS;
    }
    let role =
        arguments.next_if(|first| ["client", "pair", "client-process", "backends-process"].contains(&first.as_str()));
    let result = match role.as_deref() {
        Some("client-process") => client::main().map(|()| ExitCode::SUCCESS),
        Some("backends-process") => backends::main().map(|()| ExitCode::SUCCESS),
        Some("pair") => {
            Options::parse(arguments).and_then(|options| pair::compare(&options)).map(|()| ExitCode::SUCCESS)
        }
        Some(_) => Options::parse(arguments).and_then(|options| alone(&options)),
        None => Options::parse(arguments).and_then(compare),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

/// All stacks, side by side.
fn compare(mut options: Options) -> Result<ExitCode, BoxError> {
    options.stacks.retain(|stack| ![Stack::Plain, Stack::Control].contains(stack));
    options.stacks.splice(0..0, [Stack::Plain, Stack::Control]);
    let measured = rounds::measure(&options)?;
    report::print(&options, &measured);
    let complete = measured.rounds.len() == options.rounds && measured.failures.is_empty();
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One stack in this very process, so that a profiler sees nothing else.
fn alone(options: &Options) -> Result<ExitCode, BoxError> {
    let (core, backends_core) = rounds::cores()?;
    let mut backends = Child::start("backends-process")?;
    let peers = backends.ask(&backends_core, Duration::from_secs(10))?;
    let setup = Setup { stack: options.stacks[0], peers, runtime: options.runtime, core };
    let phases = [
        Phase::Closed { callers: options.callers, millis: (options.seconds * 1e3) as u64 },
        Phase::Count { callers: options.callers, calls: 8_000 },
    ];
    client::run(&setup, &phases, print)?;
    Ok(ExitCode::SUCCESS)
}

fn print(phase: Phase, outcome: &Outcome) -> Result<(), BoxError> {
    let calls = outcome.calls as f64;
    match phase {
        Phase::Count { .. } => println!(
            "{:.2} allocations and {:.0} bytes per call; RSS {:.1} MiB",
            outcome.allocations as f64 / calls,
            outcome.bytes as f64 / calls,
            outcome.rss_kib / 1024.0
        ),
        _ => println!(
            "{:.0} calls/s, {:.2} CPU µs per call, p50 {:.0} µs, p99 {:.0} µs (latency with one caller only)",
            calls / outcome.seconds,
            outcome.cpu_micros / calls,
            outcome.p50_micros,
            outcome.p99_micros
        ),
    }
    match &outcome.first_failure {
        Some(failure) => Err(format!("{} calls failed: {failure}", outcome.failures).into()),
        None => Ok(()),
    }
}
