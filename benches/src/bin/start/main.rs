//! What it costs a client to start with 10,000 clusters and as many load assignments of 10 endpoints, and what one
//! assignment changed costs it afterwards.
//!
//! ```text
//! cargo run --release -p benches --bin start [clusters]
//! ```
//!
//! Printed for so many clusters and for twice as many, over SotW and over delta: the time from the watch to the last ACK
//! and to the complete snapshot, the longest poll of any of the client's tasks and of those of a channel that applies the
//! snapshot (in CPU time, which a busy machine does not lengthen, and by the clock), resident memory per resource, and the client's CPU time for one change. The control plane is a child process. It does NOT connect to endpoints.

mod plane;

#[path = "../scale/machine.rs"]
mod machine;

use machine::{Cpu, rss_kib};
use mesh_client::{ChannelState, Mesh, MeshChannel};
use mesh_xds::{
    Bootstrap, ResourceState, ServerAddress, Snapshot, Target, TargetName, TargetWatch, XdsClient, XdsServer,
};
use nix::time::{ClockId, clock_gettime};
use plane::Plane;
use std::{
    error::Error,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::{Builder, Handle},
    task::yield_now,
    time::{Instant, sleep, timeout},
};

type BoxError = Box<dyn Error + Send + Sync>;

/// The client's only thread.
const CLIENT: &str = "client";
/// The target's name; plane.rs serves it.
const TARGET: &str = "start";
const CHANGES: u32 = 30;
/// For the longest poll.
const STARTS: usize = 5;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["plane", count] => plane::serve(count.parse()?),
        // Each run has a process of its own, so that the memory it shows is its own.
        ["run", variant, address, count] => run(variant, address, count.parse()?),
        [] => compare(10_000),
        [count] => compare(count.parse()?),
        _ => Err("usage: start [clusters]".into()),
    }
}

fn compare(count: usize) -> Result<(), BoxError> {
    println!(
        "| ADS | clusters + assignments | to the last ACK | to the snapshot | longest poll: CPU (clock) | the channel's | memory per resource | one change: client CPU, median (worst) |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for variant in ["sotw", "delta"] {
        for count in [count, 2 * count] {
            let plane = Plane::start(count)?;
            let status = Command::new(std::env::current_exe()?)
                .args(["run", variant, &plane.address().to_string(), &count.to_string()])
                .status()?;
            if !status.success() {
                return Err(format!("{variant} with {count} clusters: {status}").into());
            }
        }
    }
    Ok(())
}

fn run(variant: &str, address: &str, count: usize) -> Result<(), BoxError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name(CLIENT.to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    let this = Builder::new_current_thread().enable_all().build()?;
    this.block_on(async {
        let before = rss_kib()?;
        let (ack, complete, client, mut watch) = start(&handle, variant, address, count).await?;
        let memory = (rss_kib()? - before) / (2 * count) as f64;
        let change = one_changed(&mut watch).await?;
        drop((client, watch));
        let poll = longest_poll(&handle, || start(&handle, variant, address, count)).await?;
        let of_channel = longest_poll(&handle, || start_channel(&handle, variant, address)).await?;
        println!(
            "| {variant} | {count} | {ack:.2?} | {complete:.2?} | {poll} | {of_channel} | {memory:.2} KiB | {change} |"
        );
        Ok(())
    })
}

fn bootstrap(variant: &str, address: &str) -> Result<Bootstrap, BoxError> {
    let server = XdsServer::new(ServerAddress::parse(address)?);
    let server = if variant == "delta" { server.delta() } else { server };
    Ok(Bootstrap::builder().node_id(CLIENT).server(server).build()?)
}

/// Starts a client and waits until it has everything.
async fn start(
    client: &Handle,
    variant: &str,
    address: &str,
    count: usize,
) -> Result<(Duration, Duration, XdsClient, TargetWatch), BoxError> {
    let client = XdsClient::connect_on(client, bootstrap(variant, address)?);
    let begin = Instant::now();
    let mut watch = client.watch(TargetName::new(TARGET, TARGET));
    let complete = timeout(Duration::from_secs(60), complete(&mut watch, count)).await??;
    let to_snapshot = begin.elapsed();
    // ACKs are sent in the turn that publishes.
    let is_acked = || client.status().resources.iter().all(|resource| resource.state == ResourceState::Acked);
    assert!(is_acked() && complete.clusters.len() == count);
    Ok((begin.elapsed(), to_snapshot, client, watch))
}

async fn complete(watch: &mut TargetWatch, count: usize) -> Result<Arc<Snapshot>, BoxError> {
    loop {
        match watch.changed().await? {
            Target::Ready(snapshot) if snapshot.clusters.len() == count => return Ok(snapshot),
            Target::Failed(why) => return Err(why.to_string().into()),
            Target::Ready(_) | Target::Pending { .. } => {}
        }
    }
}

/// The longest time for which a task that is always ready had to wait for its turn on the client's thread, while `work`
/// is done: no shorter than the longest poll of any other task there. That is repeated, since the clock also shows what
/// else the machine does; the median is printed.
async fn longest_poll<T>(handle: &Handle, work: impl AsyncFn() -> Result<T, BoxError>) -> Result<String, BoxError> {
    let (mut cpu, mut clock) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        // The end of the client before is no part of a start.
        quiet().await?;
        let stop = Arc::new(AtomicBool::new(false));
        let beat = handle.spawn(beat(Arc::clone(&stop)));
        let done = work().await?;
        stop.store(true, Ordering::Relaxed);
        let longest = beat.await?;
        cpu.push(longest.0);
        clock.push(longest.1);
        drop(done);
    }
    cpu.sort();
    clock.sort();
    Ok(format!("{:.2?} ({:.2?})", cpu[STARTS / 2], clock[STARTS / 2]))
}

/// Waits until the client's thread has nothing to do.
async fn quiet() -> Result<(), BoxError> {
    loop {
        let before = Cpu::of(CLIENT)?;
        sleep(Duration::from_millis(200)).await;
        if Cpu::of(CLIENT)?.since(before) < Duration::from_millis(1) {
            return Ok(());
        }
    }
}

/// Starts a channel, whose tasks are on the client's thread and whose xDS client has one of its own, and waits until it
/// would route calls.
async fn start_channel(handle: &Handle, variant: &str, address: &str) -> Result<(Mesh, MeshChannel), BoxError> {
    let mesh = Mesh::builder(bootstrap(variant, address)?).runtime(handle.clone()).build();
    let channel = mesh.channel(&format!("xds:///{TARGET}"))?;
    let ready = async {
        while !matches!(channel.state(), ChannelState::Ready) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), ready).await?;
    Ok((mesh, channel))
}

/// Returns the longest of its waits: by the CPU time of its thread, and by the clock.
async fn beat(stop: Arc<AtomicBool>) -> (Duration, Duration) {
    let (mut cpu, mut clock) = (Duration::ZERO, Duration::ZERO);
    let mut last = (thread_cpu(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        yield_now().await;
        let now = (thread_cpu(), Instant::now());
        cpu = cpu.max(now.0.saturating_sub(last.0));
        clock = clock.max(now.1 - last.1);
        last = now;
    }
    (cpu, clock)
}

fn thread_cpu() -> Duration {
    // It fails only where there is no such clock; this runs on Linux.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// The plane changes one assignment again and again by itself; what each costs the client's thread.
async fn one_changed(watch: &mut TargetWatch) -> Result<String, BoxError> {
    let mut spent = Vec::new();
    for _ in 0..CHANGES {
        // Quiet before the next one: the plane's pause is longer than this.
        let before = Cpu::of(CLIENT)?;
        match timeout(Duration::from_secs(10), watch.changed()).await?? {
            Target::Ready(_) => {}
            other => return Err(format!("{other:?}").into()),
        }
        // What the client does after it has published: the ACK.
        sleep(Duration::from_millis(20)).await;
        spent.push(Cpu::of(CLIENT)?.since(before));
    }
    spent.sort();
    Ok(format!("{:.2?} ({:.2?})", spent[spent.len() / 2], spent[spent.len() - 1]))
}
