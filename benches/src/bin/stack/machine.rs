//! What the operating system knows: cores, CPU time, resident memory, and a description of the machine.
//!
//! It does NOT interpret any of it.

use crate::process::BoxError;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::resource::{UsageWho, getrusage},
    unistd::Pid,
};
use std::fs::read_to_string;

/// The cores this process may run on.
pub(crate) fn cores() -> Result<Vec<usize>, BoxError> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect())
}

/// Keeps this thread, and those it will start, on one core.
pub(crate) fn pin(core: Option<usize>) -> Result<(), BoxError> {
    let Some(core) = core else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// User and system time of this process so far, in µs.
pub(crate) fn cpu_micros() -> Result<f64, BoxError> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

/// Resident memory of this process in KiB.
pub(crate) fn rss_kib() -> Result<f64, BoxError> {
    let status = read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// One line on the machine, one on the versions that are compared.
pub(crate) fn description() -> String {
    let cpu = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown");
    let cores = cores().map_or(0, |cores| cores.len());
    let versions: Vec<_> = ["tonic", "tonic-xds", "hyper", "h2", "tokio"].iter().map(|name| version(name)).collect();
    format!(
        "Machine: {}, {cores} cores, Linux {}, load {load}.\n\nVersions: {}.",
        model.trim_start_matches(['\t', ' ', ':']),
        kernel.trim(),
        versions.join(", ")
    )
}

/// The version of a dependency in the lock file that this program was built with.
fn version(name: &str) -> String {
    let mut lines = include_str!("../../../../Cargo.lock").lines();
    let _ = lines.find(|line| *line == format!("name = \"{name}\""));
    let version = lines.next().and_then(|line| line.strip_prefix("version = ")).unwrap_or("?");
    format!("{name} {}", version.trim_matches('"'))
}
