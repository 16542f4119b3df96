//! Clusters whose endpoints are looked up by DNS, over the wire: LOGICAL_DNS as gRPC has it (A37), STRICT_DNS as Envoy
//! has it, and STATIC beside them.
//!
//! Names are looked up by a resolver that a test holds, so that no test depends on what the machine knows, and none waits
//! for the 30 s that others leave a name alone. When they are looked up again is tested with a paused clock in `mesh-xds`.

use crate::{
    mesh::unary,
    rig::{addresses, backends, free_port, within},
};
use interop_tests::backend::Backend;
use mesh_client::{Bootstrap, Mesh, MeshChannel};
use mesh_xds::{
    Lookup, Resolve, Resolved,
    control_plane::{
        ControlPlane, Resources,
        resources::{listener, route_config, virtual_host},
    },
};
use std::{
    collections::BTreeMap,
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinHandle;

/// Answers with what it was last told, ports included; what it was told nothing of does not exist.
#[derive(Clone, Debug, Default)]
struct Names {
    addresses: Arc<Mutex<BTreeMap<String, Vec<SocketAddr>>>>,
    lookups: Arc<AtomicUsize>,
    min_time_between: Duration,
}

impl Names {
    fn set(&self, host: &str, addresses: &[SocketAddr]) {
        self.addresses.lock().expect("no panic").insert(host.to_owned(), addresses.to_vec());
    }

    fn remove(&self, host: &str) {
        self.addresses.lock().expect("no panic").remove(host);
    }

    /// Waits for lookups that began from now on.
    async fn looked_up(&self, times: usize) {
        let wanted = self.lookups.load(Ordering::SeqCst) + times;
        within("lookups", async {
            while self.lookups.load(Ordering::SeqCst) < wanted {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

impl Resolve for Names {
    fn resolve(&self, host: &str, _port: u16) -> Lookup {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let found = self.addresses.lock().expect("no panic").get(host).cloned();
        Box::pin(async move { found.map(Resolved::from).ok_or_else(|| io::Error::other("no such host")) })
    }

    fn min_time_between(&self) -> Duration {
        self.min_time_between
    }
}

/// A mesh with a channel whose calls all go to cluster `a`.
struct World {
    names: Names,
    mesh: Mesh,
    channel: MeshChannel,
    control_plane: ControlPlane,
}

impl World {
    /// `clusters` is YAML, without types.
    fn start(clusters: &str, names: Names) -> Self {
        let control_plane = ControlPlane::new();
        control_plane.set_unchecked(resources(clusters));
        let bootstrap = Bootstrap::builder().node_id("n").server(control_plane.in_process()).build();
        let mesh = Mesh::builder(bootstrap.expect("a server")).resolver(names.clone()).build();
        let channel = mesh.channel("xds:///svc").expect("a valid target");
        Self { names, mesh, channel, control_plane }
    }

    /// Calls until `hostname` answers; none may fail.
    async fn turns_to(&self, hostname: &str) {
        within(hostname, async { while unary(&self.channel).await.expect("no call fails") != hostname {} }).await;
    }

    async fn fails(&self, parts: &[&str]) {
        let status = unary(&self.channel).await.expect_err("nothing to call");
        assert_eq!(status.code(), tonic::Code::Unavailable);
        for part in parts.iter().chain(&["\"a\"", "\"n\""]) {
            assert!(status.message().contains(part), "{part} in {status}");
        }
    }

    /// Who answers sixty calls.
    async fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..60 {
            *counts.entry(unary(&self.channel).await.expect("no call fails")).or_default() += 1;
        }
        counts
    }

    /// Calls without a pause until the task is told to stop; fails when one does.
    fn load(&self) -> Load {
        let (channel, stop) = (self.channel.clone(), Arc::new(AtomicUsize::new(0)));
        let told = Arc::clone(&stop);
        let calls = async move {
            let mut count = 0;
            while told.load(Ordering::Relaxed) == 0 {
                unary(&channel).await.expect("no call fails");
                count += 1;
            }
            count
        };
        Load { stop, calls: tokio::spawn(calls) }
    }
}

struct Load {
    stop: Arc<AtomicUsize>,
    calls: JoinHandle<usize>,
}

impl Load {
    async fn end(self) {
        self.stop.store(1, Ordering::Relaxed);
        assert!(within("the calls", self.calls).await.expect("no call failed") > 0);
    }
}

fn resources(clusters: &str) -> Resources {
    let yaml = clusters.replace("{name:", "{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name:");
    let routes = route_config("routes", vec![virtual_host("*", "a")]);
    let clusters = Resources::from_yaml(&format!("resources: [{yaml}]")).expect("clusters");
    clusters.with(listener("svc", "routes")).with(routes)
}

/// Cluster `name` of this type, with one endpoint of that host.
fn cluster(name: &str, fields: &str, host: &str) -> String {
    format!(
        "{{name: {name}, {fields}, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{
         address: {{socket_address: {{address: {host}, port_value: 80}}}}}}}}]}}]}}}}"
    )
}

const AGGREGATE: &str = "{name: a, cluster_type: { name: envoy.clusters.aggregate, typed_config: {
    '@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [b, c]}}}";

fn names(entries: &[(&str, &[SocketAddr])]) -> Names {
    let names = Names::default();
    for (host, addresses) in entries {
        names.set(host, addresses);
    }
    names
}

fn refusing() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

/// "DNS name resolving to two addresses, one refused -> all RPCs OK on the other, 1 connection" (A37).
#[tokio::test]
async fn one_endpoint_of_all_addresses() {
    let [b] = backends(["b"]).await;
    let [good] = addresses([&b]);
    let world = World::start(&cluster("a", "type: LOGICAL_DNS", "db"), names(&[("db", &[refusing(), good])]));
    assert_eq!(world.counts().await, BTreeMap::from([("b".to_owned(), 60)]));
    assert_eq!(b.counters().connections, 1);
    let status = world.mesh.status();
    assert_eq!(status.channels[0].clusters[0].endpoints.len(), 1);
}

#[tokio::test]
async fn both_families() {
    let Ok(b) = Backend::builder("b").address((Ipv6Addr::LOCALHOST, 0).into()).start().await else {
        // A machine without IPv6 has nothing to show.
        return;
    };
    let [v6] = addresses([&b]);
    let list: &[SocketAddr] = &[refusing(), v6];
    for (fields, works) in [
        ("type: LOGICAL_DNS", true),
        ("type: LOGICAL_DNS, dns_lookup_family: V6_ONLY", true),
        ("type: LOGICAL_DNS, dns_lookup_family: V4_ONLY", false),
        ("type: LOGICAL_DNS, dns_lookup_family: V4_PREFERRED", false),
        ("type: STRICT_DNS", true),
        ("type: STRICT_DNS, dns_lookup_family: V4_ONLY", false),
        ("type: STRICT_DNS, dns_lookup_family: ALL", true),
    ] {
        let world = World::start(&cluster("a", fields, "db"), names(&[("db", list)]));
        if works {
            world.turns_to("b").await;
        } else {
            world.fails(&["refused"]).await;
        }
    }
}

/// No call fails when the name stands for other addresses.
#[tokio::test]
async fn another_answer() {
    let [b, c] = backends(["b", "c"]).await;
    let [at_b, at_c] = addresses([&b, &c]);
    let fields = "type: LOGICAL_DNS, dns_refresh_rate: 0.05s";
    let world = World::start(&cluster("a", fields, "db"), names(&[("db", &[at_b])]));
    world.turns_to("b").await;
    let load = world.load();
    world.names.set("db", &[at_c]);
    world.turns_to("c").await;
    // Rotated answers leave the connection alone.
    for list in [[at_b, at_c], [at_c, at_b], [at_b, at_c]] {
        world.names.set("db", &list);
        world.names.looked_up(2).await;
    }
    world.turns_to("c").await;
    load.end().await;
    assert_eq!((b.counters().connections, c.counters().connections), (1, 1));
}

/// "When re-resolution is requested": an endpoint whose connection is lost, and whose dial fails, has its name looked up
/// again, and nothing else has it (A61, A74).
#[tokio::test]
async fn an_endpoint_that_fails() {
    let [mut b, c] = backends(["b", "c"]).await;
    let [at_b, at_c] = addresses([&b, &c]);
    let world = World::start(&cluster("a", "type: LOGICAL_DNS", "db"), names(&[("db", &[at_b])]));
    world.turns_to("b").await;
    world.names.set("db", &[at_c]);
    assert_eq!(world.counts().await, BTreeMap::from([("b".to_owned(), 60)]));
    assert_eq!(world.names.lookups.load(Ordering::SeqCst), 1);
    b.stop().await;
    within("c", async { while unary(&world.channel).await.ok().as_deref() != Some("c") {} }).await;
    assert_eq!(c.counters().connections, 1);
}

/// Without an answer there is no endpoint, and callers are told why; it heals by itself.
#[tokio::test]
async fn a_first_failure() {
    let [b] = backends(["b"]).await;
    let [at_b] = addresses([&b]);
    let world = World::start(&cluster("a", "type: LOGICAL_DNS", "db"), Names::default());
    world.fails(&["no endpoints", "DNS name \"db:80\" cannot be resolved: no such host"]).await;
    world.names.set("db", &[at_b]);
    // Its backoff is a second.
    within("b", async { while unary(&world.channel).await.is_err() {} }).await;
    world.turns_to("b").await;
}

#[tokio::test]
async fn a_failure_after_an_answer() {
    let [b] = backends(["b"]).await;
    let [at_b] = addresses([&b]);
    for kind in ["LOGICAL_DNS", "STRICT_DNS"] {
        let fields =
            format!("type: {kind}, dns_refresh_rate: 0.05s, dns_failure_refresh_rate: {{base_interval: 0.05s}}");
        let world = World::start(&cluster("a", &fields, "db"), names(&[("db", &[at_b])]));
        world.turns_to("b").await;
        let load = world.load();
        world.names.remove("db");
        world.names.looked_up(3).await;
        load.end().await;
        assert_eq!(world.counts().await.len(), 1);
    }
    assert_eq!(b.counters().connections, 2, "one for each mesh");
}

/// "agg[c1(EDS empty), c2(DNS)]" (A37), and the other way round: DNS errors fail over at once.
#[tokio::test]
async fn in_an_aggregate() {
    let [b, c] = backends(["b", "c"]).await;
    let [at_b, at_c] = addresses([&b, &c]);
    let fields = "type: LOGICAL_DNS, dns_failure_refresh_rate: {base_interval: 0.05s}";
    let clusters = [AGGREGATE, &cluster("b", fields, "db"), &cluster("c", fields, "spare")].join(", ");
    let world = World::start(&clusters, names(&[("spare", &[at_c])]));
    assert_eq!(unary(&world.channel).await.expect("at once"), "c");
    let load = world.load();
    world.names.set("db", &[at_b]);
    world.turns_to("b").await;
    world
        .control_plane
        .set_unchecked(resources(&[AGGREGATE, &cluster("c", fields, "spare")].join(", ").replace("[b, c]", "[c]")));
    world.turns_to("c").await;
    load.end().await;
    assert_eq!(c.counters().connections, 1, "the same all the time");
}

/// A change of the set touches the endpoints that changed.
#[tokio::test]
async fn strict_set() {
    let [b, c, d] = backends(["b", "c", "d"]).await;
    let [at_b, at_c, at_d] = addresses([&b, &c, &d]);
    let fields = "type: STRICT_DNS, dns_refresh_rate: 0.05s";
    let world = World::start(&cluster("a", fields, "db"), names(&[("db", &[at_b, at_c])]));
    world.turns_to("c").await;
    world.turns_to("b").await;
    let load = world.load();
    world.names.set("db", &[at_d, at_b]);
    world.turns_to("d").await;
    within("c's connection closes", c.wait_for(|counters| counters.open_connections == 0)).await.expect("it does");
    load.end().await;
    let keys: Vec<_> = world.counts().await.into_keys().collect();
    assert_eq!(keys, ["b", "d"]);
    let connections = [&b, &c, &d].map(|backend| backend.counters().connections);
    assert_eq!(connections, [1, 1, 1]);
}

/// Envoy's extension instead of a type: the same clusters, with fields of their own.
#[tokio::test]
async fn dns_cluster_extension() {
    let [b, c] = backends(["b", "c"]).await;
    let [at_b, at_c] = addresses([&b, &c]);
    let extension = |fields: &str| {
        let config = "'@type': type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster";
        let fields = format!("cluster_type: {{ name: envoy.clusters.dns, typed_config: {{{config}, {fields}}}}}");
        cluster("a", &fields, "db")
    };
    // One endpoint, which is called at the first address that works ...
    let single = extension("all_addresses_in_single_endpoint: true, dns_refresh_rate: 0.05s");
    let world = World::start(&single, names(&[("db", &[refusing(), at_b, at_c])]));
    assert_eq!(world.counts().await, BTreeMap::from([("b".to_owned(), 60)]));
    assert_eq!(world.mesh.status().channels[0].clusters[0].endpoints.len(), 1);
    // ... or one for each address, without a call that fails in between.
    let load = world.load();
    world.names.set("db", &[at_b, at_c]);
    world.names.looked_up(2).await;
    world.control_plane.set_unchecked(resources(&extension("dns_refresh_rate: 0.05s")));
    world.turns_to("c").await;
    world.turns_to("b").await;
    // It is looked up again, as often as its own field says.
    world.names.set("db", &[at_c]);
    within("c alone", async { while world.counts().await.len() > 1 {} }).await;
    world.turns_to("c").await;
    load.end().await;
    // Its family is one of its own enum.
    let world = World::start(&extension("dns_lookup_family: V6_ONLY"), names(&[("db", &[at_b])]));
    world.fails(&["no endpoints"]).await;
}

/// Localities, priorities and drops are those of the `load_assignment`, for STATIC and for STRICT_DNS.
#[tokio::test]
async fn assignment_in_the_cluster() {
    let [b, c] = backends(["b", "c"]).await;
    let [at_b, at_c] = addresses([&b, &c]);
    let assignment = |kind: &str, first: &str, first_port: u16, second: &str, second_port: u16, drops: u32| {
        format!(
            "{{name: a, type: {kind}, dns_refresh_rate: 0.05s, load_assignment: {{cluster_name: a, endpoints: [
             {{locality: {{region: r}}, lb_endpoints: [
             {{endpoint: {{address: {{socket_address: {{address: {first}, port_value: {first_port}}}}}}}}}]}},
             {{locality: {{region: r}}, priority: 1, lb_endpoints: [
             {{endpoint: {{address: {{socket_address: {{address: {second}, port_value: {second_port}}}}}}}}}]}}],
             policy: {{drop_overloads: [{{category: all, drop_percentage: {{numerator: {drops}}}}}]}}}}}}"
        )
    };
    let refuses = refusing();
    // STATIC: the first priority refuses, then every call is dropped, then the first one works.
    let yaml =
        |first: SocketAddr, drops| assignment("STATIC", "127.0.0.1", first.port(), "127.0.0.1", at_c.port(), drops);
    let world = World::start(&yaml(refuses, 0), Names::default());
    world.turns_to("c").await;
    world.control_plane.set_unchecked(resources(&yaml(refuses, 100)));
    within("drops", async { while unary(&world.channel).await.is_ok() {} }).await;
    world.fails(&["dropped", "\"all\""]).await;
    world.control_plane.set_unchecked(resources(&yaml(at_b, 0)));
    within("b", async { while unary(&world.channel).await.ok().as_deref() != Some("b") {} }).await;
    // STRICT_DNS: the same by name.
    let yaml = assignment("STRICT_DNS", "one", 80, "two", 80, 0);
    let world = World::start(&yaml, names(&[("one", &[refuses]), ("two", &[at_c])]));
    world.turns_to("c").await;
    let load = world.load();
    world.names.set("one", &[at_b]);
    world.turns_to("b").await;
    load.end().await;
}

/// What the system knows without a server: the resolver that is used when none is set.
#[tokio::test]
async fn system_resolver() {
    let [b] = backends(["b"]).await;
    let [at_b] = addresses([&b]);
    let yaml = cluster("a", "type: LOGICAL_DNS", "localhost")
        .replace("port_value: 80", &format!("port_value: {}", at_b.port()));
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(resources(&yaml));
    let bootstrap = Bootstrap::builder().server(control_plane.in_process()).build().expect("a server");
    let mesh = Mesh::builder(bootstrap).build();
    let channel = mesh.channel("xds:///svc").expect("a valid target");
    channel.ready(Duration::from_secs(30)).await.expect("localhost is known");
    assert_eq!(unary(&channel).await.expect("an answer"), "b");
}
