//! What 10,000 endpoints cost: the first assignment, one endpoint changed, one removed, and memory; and one changed of
//! 10,000 virtual hosts.
//!
//! ```text
//! cargo run --release -p benches --bin scale [endpoints [changes]]
//! ```
//!
//! Two shapes: `spare`, where one endpoint serves and the others are its failover, never connected; and `live`, where
//! every endpoint has its connection. The control plane runs in this process on threads of its own, the endpoints in a
//! child process, so that neither shows in the client's CPU time, which is
//! that of its threads. Times are
//! taken from the push on: they include the control plane's encoding and the socket. It does NOT compare with peers.

mod endpoints;
mod machine;

use endpoints::{Endpoints, Shape};
use machine::{Cpu, rss_kib};
use mesh_client::{Bootstrap, EndpointState, Mesh, MeshChannel};
use mesh_xds::{
    control_plane::{
        ControlPlane, Serving,
        resources::{route_config, virtual_host},
    },
    resource::Kind,
};
use serde_json::json;
use std::{error::Error, net::Ipv4Addr, time::Duration};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, sleep, timeout},
};

type BoxError = Box<dyn Error + Send + Sync>;

/// The runtime that the client's connections and cluster workers run on.
const CLIENT: &str = "client";

/// The library's own thread: stream, decode, assembly.
const ADS: &str = "mesh-xds";

/// How many more clients are made to see what one holds in memory.
const MORE_CLIENTS: usize = 10;

fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("endpoints") {
        return endpoints::serve();
    }
    let count = first.map_or(Ok(10_000), |count| count.parse())?;
    let changes = arguments.next().map_or(Ok(30), |changes| changes.parse())?;
    println!("{count} endpoints, {changes} changes; milliseconds: median (worst)\n");
    println!(
        "| shape | first assignment applied | one changed: applied | its client CPU: ADS thread | cluster and connections | one reweighted: cluster | removed: applied after the ACK |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let control_plane = runtime("control-plane")?;
    let client = runtime(CLIENT)?;
    for shape in [Shape::Spare, Shape::Live] {
        let endpoints = Endpoints::start(shape, count)?;
        control_plane.block_on(async {
            let bench = Bench::start(endpoints, &client).await?;
            bench.run(changes).await
        })?;
    }
    let bytes = control_plane.block_on(memory(Endpoints::start(Shape::Spare, count)?, &client))?;
    println!("\nOne more client: {bytes:.0} bytes of memory per endpoint.");
    let (ads, channel) = control_plane.block_on(routes(Endpoints::start(Shape::Spare, 0)?, &client, count, changes))?;
    println!(
        "One of {count} virtual hosts changed, milliseconds: {ads} of client CPU on the ADS thread, {channel} for the channel."
    );
    Ok(())
}

fn runtime(name: &str) -> Result<Runtime, BoxError> {
    Ok(Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()?)
}

struct Bench {
    endpoints: Endpoints,
    control_plane: ControlPlane,
    _serving: Serving,
    mesh: Mesh,
    channel: MeshChannel,
}

impl Bench {
    /// A channel that is connected to a single endpoint.
    async fn start(endpoints: Endpoints, client: &Runtime) -> Result<Self, BoxError> {
        let control_plane = ControlPlane::new();
        control_plane.set_unchecked(endpoints.only_one());
        let serving = control_plane.listen((Ipv4Addr::LOCALHOST, 0)).await?;
        let mesh = mesh(&serving, "scale", client)?;
        let channel = mesh.channel("xds:///scale")?;
        channel.ready(Duration::from_secs(10)).await?;
        Ok(Self { endpoints, control_plane, _serving: serving, mesh, channel })
    }

    async fn run(mut self, changes: usize) -> Result<(), BoxError> {
        let first = self.push().await?;
        self.connected().await?;
        let (mut applied, mut ads, mut clusters, mut removed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..changes {
            self.endpoints.change_one();
            let before = (Cpu::of(ADS)?, Cpu::of(CLIENT)?);
            applied.push(self.push().await?);
            self.connected().await?;
            // What follows the change, as the close of the connection that is not needed any more, is part of it.
            sleep(Duration::from_millis(50)).await;
            ads.push(Cpu::of(ADS)?.since(before.0));
            clusters.push(Cpu::of(CLIENT)?.since(before.1));
        }
        // The same without a connection to make or to close.
        let mut still = Vec::new();
        for _ in 0..changes {
            self.endpoints.reweigh_one();
            let before = Cpu::of(CLIENT)?;
            self.push_and_time_from_ack().await?;
            sleep(Duration::from_millis(50)).await;
            still.push(Cpu::of(CLIENT)?.since(before));
        }
        for _ in 0..changes {
            self.endpoints.remove_one();
            removed.push(self.push_and_time_from_ack().await?);
        }
        println!(
            "| {} | {:.1} | {} | {} | {} | {} | {} |",
            self.endpoints.shape().name(),
            milliseconds(first),
            Summary(applied),
            Summary(ads),
            Summary(clusters),
            Summary(still),
            Summary(removed)
        );
        drop(self.channel);
        Ok(())
    }

    /// From the push until calls see it.
    async fn push(&self) -> Result<Duration, BoxError> {
        let begin = Instant::now();
        self.control_plane.set_unchecked(self.endpoints.resources());
        self.applied().await?;
        Ok(begin.elapsed())
    }

    /// From the ACK until calls see it.
    async fn push_and_time_from_ack(&self) -> Result<Duration, BoxError> {
        self.control_plane.set_unchecked(self.endpoints.resources());
        self.control_plane.wait_for_ack(Kind::Endpoints.type_url(), "scale").await;
        let begin = Instant::now();
        self.applied().await?;
        Ok(begin.elapsed())
    }

    /// Until the status shows the number of endpoints and the port that were pushed last.
    async fn applied(&self) -> Result<(), BoxError> {
        let applied = async {
            loop {
                let status = self.mesh.status();
                let of_cluster = status.channels.first().and_then(|channel| channel.clusters.first());
                let up_to_date = status.applied_version(Kind::Endpoints, "scale").is_some();
                if up_to_date && of_cluster.is_some_and(|cluster| self.endpoints.are(&cluster.endpoints)) {
                    return;
                }
                sleep(Duration::from_micros(200)).await;
            }
        };
        Ok(timeout(Duration::from_secs(60), applied).await?)
    }

    /// Until as many endpoints are READY as the shape has.
    async fn connected(&self) -> Result<(), BoxError> {
        let connected = async {
            loop {
                let status = self.mesh.status();
                let endpoints = status.channels.iter().flat_map(|channel| &channel.clusters).flat_map(|c| &c.endpoints);
                let ready = endpoints.filter(|endpoint| endpoint.state == EndpointState::Ready).count();
                if ready >= self.endpoints.expected_connections() {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        Ok(timeout(Duration::from_secs(120), connected).await?)
    }
}

/// What one more client with all endpoints, none of them connected but one, holds; its share in the control plane
/// included.
async fn memory(endpoints: Endpoints, client: &Runtime) -> Result<f64, BoxError> {
    let bench = Bench::start(endpoints, client).await?;
    bench.push().await?;
    let mut more = Vec::new();
    let before = rss_kib()?;
    for n in 0..MORE_CLIENTS {
        // Another node: nothing is shared with the others.
        let mesh = mesh(&bench._serving, &format!("scale-{n}"), client)?;
        let channel = mesh.channel("xds:///scale")?;
        channel.ready(Duration::from_secs(10)).await?;
        more.push((mesh, channel));
    }
    let kib = rss_kib()? - before;
    Ok(kib * 1024.0 / (MORE_CLIENTS * bench.endpoints.count()) as f64)
}

/// What one changed virtual host costs; the one that serves the channel is another.
async fn routes(
    endpoints: Endpoints,
    client: &Runtime,
    count: usize,
    changes: usize,
) -> Result<(Summary, Summary), BoxError> {
    let bench = Bench::start(endpoints, client).await?;
    let serve = |changed: String| {
        let host = |n: usize| {
            let cluster = if n == count / 2 { changed.clone() } else { format!("cluster-{n}") };
            virtual_host(&format!("service-{n}.prod.svc.cluster.local:8080"), &cluster)
        };
        let mut hosts: Vec<_> = (0..count).map(host).collect();
        hosts.push(virtual_host("scale", "scale"));
        bench.control_plane.set_unchecked(bench.endpoints.only_one().with(route_config("scale", hosts)));
    };
    let (mut ads, mut channel) = (Vec::new(), Vec::new());
    serve("first".to_owned());
    bench.control_plane.wait_for_ack(Kind::RouteConfig.type_url(), "scale").await;
    for change in 0..changes {
        let before = (Cpu::of(ADS)?, Cpu::of(CLIENT)?);
        serve(format!("changed-{change}"));
        bench.control_plane.wait_for_ack(Kind::RouteConfig.type_url(), "scale").await;
        sleep(Duration::from_millis(50)).await;
        ads.push(Cpu::of(ADS)?.since(before.0));
        channel.push(Cpu::of(CLIENT)?.since(before.1));
    }
    Ok((Summary(ads), Summary(channel)))
}

fn mesh(serving: &Serving, node: &str, client: &Runtime) -> Result<Mesh, BoxError> {
    let bootstrap = json!({
        "xds_servers": [{"server_uri": serving.local_addr()?.to_string(), "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": node},
    });
    Ok(Mesh::builder(Bootstrap::parse(&bootstrap.to_string())?).runtime(client.handle().clone()).build())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Median and worst of some durations.
struct Summary(Vec<Duration>);

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let (Some(median), Some(worst)) = (sorted.get(sorted.len() / 2), sorted.last()) else {
            return f.write_str("-");
        };
        write!(f, "{:.2} ({:.2})", milliseconds(*median), milliseconds(*worst))
    }
}
