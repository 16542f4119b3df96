//! What the operating system knows of this process: CPU time by thread, resident memory.
//!
//! It does NOT interpret any of it.

use crate::BoxError;
use std::{fs, time::Duration};

/// CPU time spent so far.
#[derive(Clone, Copy)]
pub(crate) struct Cpu(Duration);

impl Cpu {
    /// By all threads of this name.
    pub(crate) fn of(thread: &str) -> Result<Self, BoxError> {
        let mut spent = Duration::ZERO;
        for task in fs::read_dir("/proc/self/task")? {
            let task = task?.path();
            let name = fs::read_to_string(task.join("comm"))?;
            if name.trim() == thread {
                spent += on_cpu(&fs::read_to_string(task.join("schedstat"))?)?;
            }
        }
        Ok(Self(spent))
    }

    pub(crate) fn since(self, before: Self) -> Duration {
        self.0.saturating_sub(before.0)
    }
}

/// The first number of `schedstat`: nanoseconds on a CPU.
fn on_cpu(schedstat: &str) -> Result<Duration, BoxError> {
    let nanos = schedstat.split(' ').next().ok_or("schedstat is empty")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// Resident memory of this process in KiB.
pub(crate) fn rss_kib() -> Result<f64, BoxError> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
