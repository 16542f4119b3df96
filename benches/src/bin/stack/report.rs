//! The report: Markdown tables of absolute medians and of per-round ratios with their intervals.
//!
//! Ratios are taken within a round and only then summarised, so that what disturbs a whole round cancels out. This
//! file does NOT measure.

use crate::{
    machine,
    options::Options,
    rounds::{Measured, Metric, Round},
    stacks::Stack,
    statistics::median,
};

/// Prints everything.
pub(crate) fn print(options: &Options, measured: &Measured) {
    println!("{}\n", machine::description());
    println!(
        "{} valid rounds, {} discarded; {:?} runtime, open loop at {} calls/s, 100-byte payload, h2c over loopback.\n",
        measured.rounds.len(),
        measured.discarded,
        options.runtime,
        options.rate
    );
    println!("Medians:\n");
    table(options, measured, |stack, metric| {
        let values = measured.rounds.iter().filter_map(|round| Some(round.get(stack.name())?[&metric]));
        median(values.collect()).map(|median| absolute(metric, median.value))
    });
    ratios(options, measured, Stack::Plain);
    // Three connections batch less than one: stacks with three backends are compared with each other as well.
    for against in [Stack::Balance3, Stack::TonicXds3] {
        if options.stacks.contains(&against) {
            ratios(options, measured, against);
        }
    }
    if options.stacks.contains(&Stack::Mesh1) && options.stacks.contains(&Stack::Mesh1Armed) {
        println!(
            "What is armed costs {} CPU µs and {} allocations a call more.\n",
            more(measured, Metric::Cpu),
            more(measured, Metric::Allocations)
        );
    }
    for failure in &measured.failures {
        println!("FAILED: {failure}");
    }
    if measured.rounds.len() < options.rounds {
        println!("NOT ENOUGH valid rounds: the machine is too noisy.");
    }
}

fn ratios(options: &Options, measured: &Measured, against: Stack) {
    println!("Relative to {}, median of the per-round ratios with its interval (about 95 %):\n", against.name());
    table(options, measured, |stack, metric| {
        // Nothing is to be learnt from 1.00, nor from one backend relative to three.
        if stack == against || (stack.backends() != against.backends() && against != Stack::Plain) {
            return None;
        }
        let ratios = measured
            .rounds
            .iter()
            .filter_map(|round| Some(round.get(stack.name())?[&metric] / round.get(against.name())?[&metric]));
        median(ratios.collect()).map(|median| median.to_string())
    });
}

/// Median of the per-round differences between what is armed and what is not.
fn more(measured: &Measured, metric: Metric) -> String {
    let of = |round: &Round, stack: Stack| Some(round.get(stack.name())?[&metric]);
    let differences =
        measured.rounds.iter().filter_map(|round| Some(of(round, Stack::Mesh1Armed)? - of(round, Stack::Mesh1)?));
    median(differences.collect()).map(|median| median.to_string()).unwrap_or_default()
}

/// A line per stack, a column per metric; stacks without a value are left out.
fn table(options: &Options, measured: &Measured, cell: impl Fn(Stack, Metric) -> Option<String>) {
    if measured.rounds.is_empty() {
        return;
    }
    println!("| stack | {} |", Metric::ALL.map(title).join(" | "));
    println!("| --- |{}", " --- |".repeat(Metric::ALL.len()));
    for stack in &options.stacks {
        let cells: Option<Vec<_>> = Metric::ALL.iter().map(|metric| cell(*stack, *metric)).collect();
        if let Some(cells) = cells {
            println!("| {} | {} |", stack.name(), cells.join(" | "));
        }
    }
    println!();
}

fn title(metric: Metric) -> &'static str {
    match metric {
        Metric::Rate1 => "calls/s at 1",
        Metric::Rate16 => "at 16",
        Metric::Rate128 => "at 128",
        Metric::P50 => "p50 µs at 1",
        Metric::P99 => "p99",
        Metric::OpenP50 => "open loop p50 µs",
        Metric::OpenP99 => "p99",
        Metric::Cpu => "client CPU µs/call at 16",
        Metric::Allocations => "allocations/call",
        Metric::Bytes => "bytes/call",
        Metric::Rss => "RSS MiB",
    }
}

fn absolute(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Rss => format!("{:.1}", value / 1024.0),
        Metric::Cpu | Metric::Allocations => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}
