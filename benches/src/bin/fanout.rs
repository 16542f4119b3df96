//! How long one changed resource takes to reach 1,000 delta clients of our control plane.
//!
//! ```text
//! cargo run --release -p benches --bin fanout [clients [clusters [changes]]]
//! ```
//!
//! Every client has a TCP connection and a delta stream of its own, follows all clusters by wildcard and subscribes to the
//! endpoints of each by name. A change gives one cluster other endpoints. Times are taken from `ControlPlane::set` on,
//! which includes the encoding, to the client that hears of it last, and to the last ACK. Clients and control plane share
//! the machine and this process, with a runtime each; the clients are generated code, not this project's. It does NOT
//! measure what a client makes of it.

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use mesh_xds::{
    control_plane::{
        ControlPlane, Event, EventReceiver, Missed, Resources, Verdict,
        resources::{cluster_eds, endpoints},
    },
    resource::Kind,
};
use std::{
    error::Error,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
    time::{Instant, timeout},
};
use tonic::{Streaming, codegen::tokio_stream::wrappers::ReceiverStream, transport::Endpoint};

type BoxError = Box<dyn Error + Send + Sync>;

const CDS: &str = Kind::Cluster.type_url();
const EDS: &str = Kind::Endpoints.type_url();

/// The longest wait for all clients.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many clients come at a time: a backlog of connections that nobody accepts yet is the kernel's affair.
const ARRIVALS: usize = 100;

/// Endpoints of each cluster.
const ENDPOINTS: u8 = 10;

fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().map_or(Ok(default), |argument| argument.parse::<usize>());
    let (clients, clusters, changes) = (number(1_000)?, number(100)?, number(30)?);
    let server = runtime("control-plane")?;
    let client = runtime("clients")?;
    server.block_on(measure(&client, clients, clusters, changes))
}

fn runtime(name: &str) -> Result<Runtime, BoxError> {
    Ok(Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()?)
}

async fn measure(client: &Runtime, clients: usize, clusters: usize, changes: usize) -> Result<(), BoxError> {
    let control_plane = ControlPlane::new();
    control_plane.set(world(clusters, 0))?;
    let serving = control_plane.listen((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = serving.local_addr()?;
    // One word of each client and change at most; full never matters, since readers are faster. Ends with the clients.
    let (heard, mut hears) = mpsc::channel(clients);

    let begin = Instant::now();
    for first in (0..clients).step_by(ARRIVALS) {
        let group = first..clients.min(first + ARRIVALS);
        for id in group.clone() {
            client.spawn(follow(id, address, clusters, heard.clone()));
        }
        for _ in group {
            hear(&mut hears).await?;
        }
    }
    let start = begin.elapsed();

    let (mut set, mut reached, mut acked) = (Vec::new(), Vec::new(), Vec::new());
    for change in 1..=changes {
        let resources = world(clusters, change);
        let events = control_plane.events();
        let begin = Instant::now();
        control_plane.set(resources)?;
        set.push(begin.elapsed());
        let acks = tokio::spawn(count_acks(events, clients));
        for _ in 0..clients {
            hear(&mut hears).await?;
        }
        reached.push(begin.elapsed());
        timeout(PATIENCE, acks).await???;
        acked.push(begin.elapsed());
    }
    println!("{clients} delta clients, {clusters} clusters of {ENDPOINTS} endpoints; {changes} changes of one of them");
    println!("all connected and told everything: {:.0} ms", milliseconds(start));
    println!("milliseconds from set() on, median (worst):");
    println!("  set() returned        {}", summary(set));
    println!("  the last client told  {}", summary(reached));
    println!("  the last ACK          {}", summary(acked));
    Ok(())
}

/// All clusters and their endpoints; each change moves one of them to the next port.
fn world(clusters: usize, change: usize) -> Resources {
    (0..clusters).fold(Resources::default(), |all, n| {
        let port = 80 + (1..=change).filter(|change| change % clusters == n).count() as u16;
        let addresses: Vec<_> = (0..ENDPOINTS).map(|host| ([10, 0, 0, host], port).into()).collect();
        let name = name(n);
        all.with(cluster_eds(&name)).with(endpoints(&name, &addresses))
    })
}

fn name(n: usize) -> String {
    format!("outbound|8080||service-{n}.prod.svc.cluster.local")
}

/// One client: says that it has everything, and then each time that it was told of a change.
async fn follow(
    id: usize,
    address: SocketAddr,
    clusters: usize,
    heard: mpsc::Sender<Result<(), String>>,
) -> Result<(), BoxError> {
    let said = async {
        let mut stream = Stream::open(address).await?;
        stream.subscribe(id, CDS, vec!["*".to_owned()]).await?;
        stream.subscribe(id, EDS, (0..clusters).map(name).collect()).await?;
        let mut missing = 2 * clusters;
        while missing > 0 {
            missing = missing.saturating_sub(stream.next().await?.resources.len());
        }
        heard.send(Ok(())).await?;
        loop {
            let response = stream.next().await?;
            if response.resources.len() != 1 || response.type_url != EDS {
                return Err("told of more than the change".into());
            }
            heard.send(Ok(())).await?;
        }
    };
    let ended: Result<(), BoxError> = said.await;
    if let Err(error) = ended {
        // Nobody may be there to hear it: the bench is over.
        let _ = heard.send(Err(error.to_string())).await;
    }
    Ok(())
}

struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    async fn open(address: SocketAddr) -> Result<Self, BoxError> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
        // A request per response, and two to begin with: it is never full.
        let (requests, outgoing) = mpsc::channel(8);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn subscribe(&self, id: usize, type_url: &str, names: Vec<String>) -> Result<(), BoxError> {
        let request = DeltaDiscoveryRequest {
            node: Some(Node { id: format!("client-{id}"), ..Default::default() }),
            type_url: type_url.to_owned(),
            resource_names_subscribe: names,
            ..Default::default()
        };
        Ok(self.requests.send(request).await?)
    }

    /// The next response, with its ACK on the way.
    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, BoxError> {
        let response = self.responses.message().await?.ok_or("the stream ended")?;
        let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
        self.requests.send(DeltaDiscoveryRequest { type_url, response_nonce, ..Default::default() }).await?;
        Ok(response)
    }
}

async fn hear(hears: &mut mpsc::Receiver<Result<(), String>>) -> Result<(), BoxError> {
    Ok(timeout(PATIENCE, hears.recv()).await?.ok_or("the clients are gone")??)
}

async fn count_acks(mut events: EventReceiver, clients: usize) -> Result<(), Missed> {
    for _ in 0..clients {
        let is_ack =
            |event: &Event| matches!(event, Event::Request { type_url, verdict: Verdict::Ack, .. } if type_url == EDS);
        events.wait_for(is_ack).await?;
    }
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn summary(mut durations: Vec<Duration>) -> String {
    durations.sort_unstable();
    match (durations.get(durations.len() / 2), durations.last()) {
        (Some(median), Some(worst)) => format!("{:.1} ({:.1})", milliseconds(*median), milliseconds(*worst)),
        _ => "-".to_owned(),
    }
}
