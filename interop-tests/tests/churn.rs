//! Configuration changes leave nothing behind: no task, no descriptor, no heap, no cluster, no subscription.
//!
//! Random configurations follow each other under load, from a seed that is printed; then the first one is back, and so
//! must be what it costs. Alone in its process, since it counts what a process has. `MESH_SOAK` multiplies the changes,
//! `CHURN_SEED` repeats a run. It does NOT judge which configuration is right, only that no call fails meanwhile.

use fastrand::Rng;
use interop_tests::{
    backend::Backend,
    proto::testing::{SimpleRequest, test_service_client::TestServiceClient},
};
use mesh_client::{EndpointState, Mesh, MeshChannel};
use mesh_xds::{
    Bootstrap, ServerAddress,
    control_plane::{
        ControlPlane, Resources,
        proto::envoy::{
            config::{
                cluster::v3::{LoadBalancingPolicy, cluster::LbPolicy, load_balancing_policy::Policy},
                core::v3::TypedExtensionConfig,
                endpoint::v3::ClusterLoadAssignment,
                route::v3::VirtualHost,
            },
            extensions::load_balancing_policies::pick_first::v3::PickFirst,
        },
        resources::{
            cluster_eds, endpoint, endpoints, listener, pack, route_config, virtual_host, virtual_host_weighted,
        },
    },
    resource::Kind,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::{
    alloc::System,
    env, fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{self, Instant},
};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Changes in one measured run, unless `MESH_SOAK` says otherwise: 40 times that is the full size.
const CHANGES: u32 = 250;

/// Bytes of the heap that hash tables, buffers and pools may have grown by, however many changes there were. A leak of
/// one connection, cluster or table per change is far above it.
const GROWN: usize = 192 * 1024;

/// At least; more than five short streams within 10 s are dialled again on the curve.
const BETWEEN_CUTS: Duration = Duration::from_secs(3);

/// The longest wait for any event.
const PATIENCE: Duration = Duration::from_secs(60);

const NAMES: [&str; 6] = ["c0", "c1", "c2", "c3", "c4", "c5"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_configurations_under_load_leave_nothing_behind() {
    let seed = env::var("CHURN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let factor = env::var("MESH_SOAK").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1.0);
    let changes = (f64::from(CHANGES) * factor).max(1.0) as u32;
    println!("CHURN_SEED={seed}, {changes} changes");

    let mut rig = Rig::start(Rng::with_seed(seed)).await;
    // Whatever a process has once and for all comes with the first changes.
    rig.churn(changes / 4).await;
    let before = rig.settled().await;
    rig.churn(changes).await;
    let mut after = rig.settled().await;
    let end = Instant::now() + PATIENCE;
    while !after.fits(&before) && Instant::now() < end {
        tokio::task::yield_now().await;
        after = rig.footprint();
    }
    println!("before {before:?}\nafter  {after:?}, {} calls", rig.calls.load(Ordering::Relaxed));
    assert!(after.fits(&before), "something was left behind: {after:?}, before {before:?}");
}

/// What the process has while the first configuration is in use.
#[derive(Debug, PartialEq, Eq)]
struct Footprint {
    tasks: usize,
    descriptors: usize,
    clusters: usize,
    resources: usize,
    /// Bytes.
    heap: usize,
}

impl Footprint {
    fn fits(&self, before: &Self) -> bool {
        self.tasks <= before.tasks
            && self.descriptors <= before.descriptors
            && (self.clusters, self.resources) == (before.clusters, before.resources)
            && self.heap < before.heap + GROWN
    }
}

struct Rig {
    dice: Rng,
    backends: Vec<Backend>,
    control_plane: ControlPlane,
    mesh: Mesh,
    channel: MeshChannel,
    calls: Arc<AtomicU64>,
    _serving: mesh_xds::control_plane::Serving,
}

impl Rig {
    async fn start(dice: Rng) -> Self {
        let mut backends = Vec::new();
        for number in 0..5 {
            backends.push(Backend::start(&format!("b{number}")).await.expect("a free port"));
        }
        let control_plane = ControlPlane::new();
        let serving = control_plane.listen("127.0.0.1:0").await.expect("a free port");
        let server = ServerAddress::Sockets(vec![serving.local_addr().expect("TCP")]);
        let mesh =
            Mesh::builder(Bootstrap::builder().node_id("churn").server(server).build().expect("a server")).build();
        let channel = mesh.channel("xds:///echo").expect("a valid target");
        Self { dice, backends, control_plane, mesh, channel, calls: Arc::default(), _serving: serving }
    }

    // === Changes ===

    /// So many random configurations under load; no call fails.
    async fn churn(&mut self, changes: u32) {
        self.control_plane.set_unchecked(self.first());
        let stop = Arc::new(AtomicBool::new(false));
        let mut callers = JoinSet::new();
        for _ in 0..4 {
            callers.spawn(call(self.channel.clone(), Arc::clone(&self.calls), Arc::clone(&stop)));
        }
        let mut last_cut = Instant::now();
        for _ in 0..changes {
            let next = self.random();
            self.control_plane.set_unchecked(next);
            match self.dice.u32(..20) {
                // A change that nobody waits for: the next one overtakes it.
                0..5 => tokio::task::yield_now().await,
                // Not so often that the client takes the control plane for one that answers and closes.
                5 if last_cut.elapsed() > BETWEEN_CUTS => {
                    self.control_plane.cut_streams();
                    last_cut = Instant::now();
                }
                6 => self.another_channel().await,
                _ => self.applied("routes").await,
            }
        }
        stop.store(true, Ordering::Relaxed);
        while let Some(caller) = callers.join_next().await {
            caller.expect("no call failed");
        }
    }

    /// A channel that comes, calls once and goes.
    async fn another_channel(&self) {
        let channel = self.mesh.channel("xds:///echo").expect("a valid target");
        TestServiceClient::new(channel).unary_call(SimpleRequest::default()).await.expect("a reply");
    }

    fn first(&self) -> Resources {
        let addresses: Vec<_> = self.backends.iter().map(Backend::address).collect();
        service(virtual_host("*", "c0")).with(cluster_eds("c0")).with(endpoints("c0", &addresses))
    }

    /// One cluster or several, each with some of the backends in some localities and priorities.
    fn random(&mut self) -> Resources {
        let count = self.dice.usize(1..4);
        let clusters: Vec<_> = self.dice.choose_multiple(NAMES, count);
        let weighted: Vec<_> = clusters.iter().map(|name| (*name, self.dice.u32(1..100))).collect();
        let mut resources = service(virtual_host_weighted("*", &weighted));
        for name in clusters {
            let mut cluster = cluster_eds(name);
            match self.dice.u32(..3) {
                0 => {}
                1 => cluster.lb_policy = LbPolicy::Random.into(),
                _ => cluster.load_balancing_policy = Some(pick_first()),
            }
            let assignment = self.assignment(name);
            resources = resources.with(cluster).with(assignment);
        }
        resources
    }

    fn assignment(&mut self, cluster: &str) -> ClusterLoadAssignment {
        let count = self.dice.usize(1..=self.backends.len());
        let mut all: Vec<_> = self.backends.iter().map(Backend::address).collect();
        self.dice.shuffle(&mut all);
        let mut assignment = endpoints(cluster, &all[..count]);
        // Some are somewhere else: another locality, or another priority.
        let away = self.dice.usize(..count);
        if away > 0 {
            let mut elsewhere = assignment.endpoints[0].clone();
            elsewhere.lb_endpoints = assignment.endpoints[0].lb_endpoints.split_off(count - away);
            elsewhere.locality.get_or_insert_default().zone = "elsewhere".to_owned();
            elsewhere.priority = self.dice.u32(..2);
            assignment.endpoints.push(elsewhere);
        }
        if self.dice.u32(..4) == 0 {
            // Nobody listens at port 1; the others have to do.
            assignment.endpoints[0].lb_endpoints.push(endpoint(SocketAddr::from(([127, 0, 0, 1], 1))));
        }
        assignment
    }

    // === Observation ===

    async fn applied(&self, routes: &str) {
        within("the ACK", self.control_plane.wait_for_ack(Kind::RouteConfig.type_url(), routes)).await;
        let applied = || self.mesh.status().applied_version(Kind::RouteConfig, routes).is_some();
        within("the change", until(applied)).await;
    }

    /// The first configuration again; what it needs once all else has ended.
    async fn settled(&self) -> Footprint {
        self.control_plane.set_unchecked(self.first());
        self.applied("routes").await;
        let ready = || {
            let clusters = self.mesh.status().channels.remove(0).clusters;
            let mut endpoints = clusters.iter().flat_map(|cluster| &cluster.endpoints);
            clusters.len() == 1 && endpoints.all(|endpoint| endpoint.state == EndpointState::Ready)
        };
        within("the first configuration", until(ready)).await;
        for backend in &self.backends {
            backend.wait_for(|now| now.open_connections == 1).await.expect("one connection");
        }
        let mut footprint = self.footprint();
        let mut calm = 0;
        within("calm", async {
            // Tasks that have nothing left to do need a turn to end.
            while calm < 1_000 {
                tokio::task::yield_now().await;
                let now = self.footprint();
                calm = if now == footprint { calm + 1 } else { 0 };
                footprint = now;
            }
        })
        .await;
        footprint
    }

    fn footprint(&self) -> Footprint {
        let status = self.mesh.status();
        let (clusters, resources) = (status.channels[0].clusters.len(), status.xds.resources.len());
        drop(status);
        let (tasks, descriptors) = (Handle::current().metrics().num_alive_tasks(), descriptors());
        let stats = HEAP.stats();
        Footprint { tasks, descriptors, clusters, resources, heap: stats.bytes_allocated - stats.bytes_deallocated }
    }
}

fn service(host: VirtualHost) -> Resources {
    Resources::default().with(listener("echo", "routes")).with(route_config("routes", vec![host]))
}

fn pick_first() -> LoadBalancingPolicy {
    let typed = pack(PickFirst { shuffle_address_list: true });
    let config = TypedExtensionConfig { name: "pick_first".to_owned(), typed_config: Some(typed) };
    LoadBalancingPolicy { policies: vec![Policy { typed_extension_config: Some(config) }] }
}

/// A hundred calls a second until it is told to stop.
async fn call(channel: MeshChannel, calls: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let mut client = TestServiceClient::new(channel);
    let mut ticks = time::interval(Duration::from_millis(10));
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        client.unary_call(SimpleRequest::default()).await.expect("a reply");
        calls.fetch_add(1, Ordering::Relaxed);
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default()
}

async fn within<T>(event: &str, future: impl Future<Output = T>) -> T {
    time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{event}: not within {PATIENCE:?}"))
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}
