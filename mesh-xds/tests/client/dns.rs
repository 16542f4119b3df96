//! Clusters by DNS, with a resolver that follows a script and a clock that the tests move.

use super::{address, client_of, idle, snapshot, soon, target};
use mesh_xds::{
    Bootstrap, Lookup, Resolve, Resolved, Snapshot, XdsClient,
    control_plane::{ControlPlane, Resources, resources as xds},
    resource::Discovery,
};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, advance};

type Answers = BTreeMap<String, Result<Vec<SocketAddr>, String>>;

/// Answers as it was last told to; a host that it was told nothing of is looked up for ever.
#[derive(Clone, Debug)]
struct Script {
    begin: Instant,
    answers: Arc<Mutex<Answers>>,
    /// When it was asked, in seconds.
    asked: Arc<Mutex<Vec<u64>>>,
}

impl Script {
    fn new() -> Self {
        Self { begin: Instant::now(), answers: Arc::default(), asked: Arc::default() }
    }

    fn set(&self, host: &str, answer: Result<&[u8], &str>) {
        let addresses = |list: &[u8]| list.iter().map(|last| address(*last)).collect();
        let answer = answer.map(addresses).map_err(str::to_owned);
        self.answers.lock().expect("no panic").insert(host.to_owned(), answer);
    }

    fn asked(&self) -> Vec<u64> {
        self.asked.lock().expect("no panic").clone()
    }
}

impl Resolve for Script {
    fn resolve(&self, host: &str, port: u16) -> Lookup {
        assert_eq!(port, 80);
        self.asked.lock().expect("no panic").push(self.begin.elapsed().as_secs());
        match self.answers.lock().expect("no panic").get(host).cloned() {
            Some(answer) => Box::pin(async move { answer.map(Resolved::from).map_err(io::Error::other) }),
            None => Box::pin(std::future::pending()),
        }
    }
}

/// `web` leads to cluster `a` of this type, which names `db.example`.
fn resources(kind: &str) -> Resources {
    let cluster = Resources::from_yaml(&format!(
        "resources: [{{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, {kind}, load_assignment: {{
         cluster_name: a, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{
         address: db.example, port_value: 80}}}}}}}}]}}]}}}}]"
    ));
    let routes = xds::route_config("routes", vec![xds::virtual_host("*", "a")]);
    cluster.expect("a cluster").with(xds::listener("web", "routes")).with(routes)
}

/// A client that follows them with this resolver.
fn start(kind: &str, script: &Script) -> (XdsClient, ControlPlane) {
    let control_plane = ControlPlane::new();
    control_plane.set(resources(kind)).expect("consistent");
    let bootstrap = Bootstrap::builder().node_id("n").server(control_plane.in_process()).build().expect("one server");
    (client_of(bootstrap.with_resolver(script.clone())), control_plane)
}

/// Every address of every endpoint.
fn addresses(snapshot: &Snapshot) -> Vec<SocketAddr> {
    let leaves = snapshot.clusters["a"].state.as_ref().expect("resolved");
    leaves.first.endpoints.endpoints().flat_map(|endpoint| endpoint.addresses.iter().collect::<Vec<_>>()).collect()
}

fn has(list: &'static [u8]) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| addresses(snapshot) == list.iter().map(|last| address(*last)).collect::<Vec<_>>()
}

async fn seconds(seconds: u64) {
    for _ in 0..seconds {
        advance(Duration::from_secs(1)).await;
        idle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_logical_name_is_looked_up_again_when_its_endpoint_failed_but_no_sooner_than_after_30_s() {
    let script = Script::new();
    script.set("db.example", Ok(&[2, 1]));
    let (client, _control_plane) = start("type: LOGICAL_DNS", &script);
    let mut watch = client.watch(target("web"));
    let first = snapshot(&mut watch, has(&[2, 1])).await;
    let leaves = first.clusters["a"].state.as_ref().expect("resolved");
    assert_eq!(leaves.first.endpoints.endpoints().count(), 1, "one endpoint with two addresses");
    let Discovery::LogicalDns { name, .. } = &leaves.first.cluster.discovery else { panic!("another kind") };
    script.set("db.example", Ok(&[3]));
    seconds(100).await;
    assert_eq!(script.asked(), [0], "without a cause nobody looks");
    client.name_failures().report(name);
    snapshot(&mut watch, has(&[3])).await;
    seconds(7).await;
    client.name_failures().report(name);
    client.name_failures().report(name);
    seconds(100).await;
    let asked = script.asked();
    assert_eq!((asked.len(), asked[2] - asked[1]), (3, 30));
}

#[tokio::test(start_paused = true)]
async fn a_strict_name_is_looked_up_every_5_s_unless_the_cluster_says_otherwise() {
    for (kind, interval) in [
        ("type: STRICT_DNS", 5),
        ("type: STRICT_DNS, dns_refresh_rate: 3s", 3),
        ("type: LOGICAL_DNS, dns_refresh_rate: 7s", 7),
    ] {
        let script = Script::new();
        script.set("db.example", Ok(&[1, 2]));
        let (client, _control_plane) = start(kind, &script);
        let mut watch = client.watch(target("web"));
        snapshot(&mut watch, has(&[1, 2])).await;
        script.set("db.example", Ok(&[1, 3]));
        snapshot(&mut watch, has(&[1, 3])).await;
        seconds(3 * interval).await;
        let asked = script.asked();
        assert!(asked.len() > 3 && asked.windows(2).all(|two| two[1] - two[0] == interval), "{kind}: {asked:?}");
        drop(watch);
        seconds(1).await;
        let asked = script.asked().len();
        seconds(60).await;
        assert_eq!(script.asked().len(), asked, "nobody wants to know any more");
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_fails_after_an_answer_keeps_it_and_is_tried_ever_more_rarely() {
    let script = Script::new();
    script.set("db.example", Ok(&[1]));
    let kind = "type: STRICT_DNS, dns_failure_refresh_rate: {base_interval: 2s, max_interval: 9s}";
    let (client, _control_plane) = start(kind, &script);
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, has(&[1])).await;
    script.set("db.example", Err("the server is on fire"));
    let noted = snapshot(&mut watch, |snapshot| {
        snapshot.clusters["a"].state.as_ref().is_ok_and(|leaves| leaves.first.note.is_some())
    });
    let noted = noted.await;
    assert!(has(&[1])(&noted));
    let note = noted.clusters["a"].state.as_ref().ok().and_then(|leaves| leaves.first.note.clone());
    for part in ["\"a\"", "db.example:80", "the server is on fire", "\"n\""] {
        assert!(note.as_ref().is_some_and(|note| note.contains(part)), "{part} in {note:?}");
    }
    seconds(100).await;
    let asked = script.asked();
    let pauses: Vec<_> = asked.windows(2).map(|two| two[1] - two[0]).collect();
    assert!((1..=3).contains(&pauses[1]), "{pauses:?}");
    assert!(pauses.iter().skip(5).all(|pause| (7..=11).contains(pause)), "{pauses:?}");
    script.set("db.example", Ok(&[2]));
    snapshot(&mut watch, has(&[2])).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_answers_for_is_a_cluster_without_endpoints_after_10_s() {
    let script = Script::new();
    let (client, _control_plane) = start("type: LOGICAL_DNS", &script);
    let mut watch = client.watch(target("web"));
    let empty = soon(snapshot(&mut watch, |_| true)).await;
    let leaf = &empty.clusters["a"].state.as_ref().expect("an empty one").first;
    assert!(leaf.endpoints.priorities.is_empty());
    assert!(leaf.note.as_ref().is_some_and(|note| note.contains("no answer within 10s")), "{:?}", leaf.note);
    script.set("db.example", Ok(&[1]));
    snapshot(&mut watch, has(&[1])).await;
}

#[tokio::test(start_paused = true)]
async fn an_ip_address_needs_no_resolver() {
    let script = Script::new();
    let control_plane = ControlPlane::new();
    let text = resources("type: STRICT_DNS");
    let mut cluster: mesh_xds::control_plane::proto::envoy::config::cluster::v3::Cluster =
        text.message("a").expect("a cluster");
    cluster.load_assignment = Some(xds::endpoints("a", &[address(9)]));
    control_plane.set(text.with(cluster)).expect("consistent");
    let bootstrap = Bootstrap::builder().server(control_plane.in_process()).build().expect("one server");
    let client = client_of(bootstrap.with_resolver(script.clone()));
    snapshot(&mut client.watch(target("web")), has(&[9])).await;
    assert_eq!(script.asked(), [0; 0]);
}
