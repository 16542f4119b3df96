//! The command line.
//!
//! It does NOT act on it.

use crate::{process::BoxError, stacks::Stack};
use serde::{Deserialize, Serialize};

/// How to use the program.
pub(crate) const USAGE: &str = "\
usage: stack [FILTER..] [OPTIONS]         compare the stacks whose names contain a FILTER (default: all)
       stack client --stack NAME [OPTIONS] run one stack alone, for a profiler; the backends are another process
       stack pair --stacks A,B [OPTIONS]   what a call of B costs more than one of A, finely interleaved

  --stacks A,B     exact names instead of filters; plain and control always run
  --rounds N       valid rounds (default 9)
  --seconds S      length of the phase with 16 callers (default 1.2); the other phases scale with it
  --rate N         calls/s of the open loop (default 5000)
  --runtime KIND   multi (one worker, default) or current
  --callers N      `stack client`: callers (default 16)
  --than PROGRAM   `stack pair`: B is of another build of this program
  --quick          few short rounds: a look, not a measurement";

/// Which tokio runtime a client uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Runtime {
    /// `multi_thread` with one worker.
    Multi,
    /// `current_thread`.
    Current,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) stacks: Vec<Stack>,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) rate: u64,
    pub(crate) runtime: Runtime,
    pub(crate) callers: usize,
    pub(crate) than: Option<String>,
}

impl Options {
    /// Parses the arguments after the program's name and role.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, BoxError> {
        let mut options = Self {
            stacks: Vec::new(),
            rounds: 9,
            seconds: 1.2,
            rate: 5_000,
            runtime: Runtime::Multi,
            callers: 16,
            than: None,
        };
        let mut filters = Vec::new();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value\n\n{USAGE}"));
            match argument.as_str() {
                "--stack" | "--stacks" => {
                    for name in value()?.split(',') {
                        options.stacks.push(stack(name)?);
                    }
                }
                "--rounds" => options.rounds = value()?.parse()?,
                "--seconds" => options.seconds = value()?.parse()?,
                "--rate" => options.rate = value()?.parse()?,
                "--callers" => options.callers = value()?.parse()?,
                "--than" => options.than = Some(value()?),
                "--runtime" => options.runtime = runtime(&value()?)?,
                "--quick" => (options.rounds, options.seconds) = (3, 0.5),
                option if option.starts_with('-') => return Err(USAGE.into()),
                filter => filters.push(filter.to_owned()),
            }
        }
        if options.stacks.is_empty() {
            let chosen = |stack: &Stack| filters.is_empty() || filters.iter().any(|f| stack.name().contains(f));
            options.stacks = Stack::ALL.into_iter().filter(chosen).collect();
        }
        let usable = options.rounds > 0 && options.seconds > 0.0 && options.rate > 0 && options.callers > 0;
        if usable && !options.stacks.is_empty() { Ok(options) } else { Err(USAGE.into()) }
    }
}

fn stack(name: &str) -> Result<Stack, BoxError> {
    let names: Vec<_> = Stack::ALL.iter().map(|stack| stack.name()).collect();
    let found = Stack::ALL.into_iter().find(|stack| stack.name() == name);
    found.ok_or_else(|| format!("no stack {name}; there are {}", names.join(", ")).into())
}

fn runtime(name: &str) -> Result<Runtime, BoxError> {
    match name {
        "multi" => Ok(Runtime::Multi),
        "current" => Ok(Runtime::Current),
        _ => Err(USAGE.into()),
    }
}
