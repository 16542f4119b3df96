//! Our xDS client follows an istiod 1.14 that is played back from recordings.
//!
//! The old shape of real resources must be accepted, assembled as meant, and survive this istiod's manners: full pushes,
//! break-before-make removals, a host that goes and returns. It calls nobody but hosts where nobody is; see `istiod.rs` for the replay.

use crate::{
    istiod::Istiod,
    rig::{bootstrap, until, within},
};
use bytes::Bytes;
use http_body_util::Empty;
use mesh_client::{ChannelState, Mesh};
use mesh_xds::{
    Bootstrap, Snapshot, Target, TargetName, TargetWatch, XdsClient,
    resource::{ClusterSpecifier, Kind, RouteAction},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

const TARGET: &str = "echo.demo.svc.cluster.local:7070";
const PLAIN: &str = "outbound|7070||echo.demo.svc.cluster.local";
const V1: &str = "outbound|7070|v1|echo.demo.svc.cluster.local";
const V2: &str = "outbound|7070|v2|echo.demo.svc.cluster.local";

fn follow(istiod: &Istiod) -> TargetWatch {
    let node = "sidecar~127.0.0.9~client-1.demo~demo.svc.cluster.local";
    let bootstrap = Bootstrap::parse(&bootstrap(node, istiod.address).to_string()).expect("well-formed");
    XdsClient::connect(bootstrap).watch(TargetName::new(TARGET, TARGET))
}

/// Waits for a snapshot of which `what` holds.
async fn snapshot(watch: &mut TargetWatch, what: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let wanted = async {
        loop {
            if let Target::Ready(snapshot) = watch.current()
                && what(&snapshot)
            {
                return snapshot;
            }
            watch.changed().await.expect("the client runs");
        }
    };
    within("the snapshot", wanted).await
}

/// The endpoints of every cluster that is routed to.
fn endpoints(snapshot: &Snapshot) -> BTreeMap<String, BTreeSet<String>> {
    let clusters = snapshot.clusters.values().map(|cluster| {
        let resolved = cluster.state.as_ref().expect("usable");
        let localities = resolved.first.endpoints.priorities.iter().flatten();
        let addresses = localities.flat_map(|locality| &locality.endpoints).map(|endpoint| endpoint.addresses.first);
        (cluster.name.to_string(), addresses.map(|address| address.to_string()).collect())
    });
    clusters.collect()
}

/// The split of the target's last route, which is the one without conditions.
fn split(snapshot: &Snapshot) -> Vec<(String, u32)> {
    let virtual_host = snapshot.virtual_host.as_ref().expect("the target's");
    let RouteAction::Forward(forward) = &virtual_host.routes.last().expect("a route").action else {
        panic!("not forwarded: {virtual_host:?}");
    };
    match &forward.cluster {
        ClusterSpecifier::Cluster(name) => vec![(name.to_string(), 100)],
        ClusterSpecifier::Weighted(clusters) => {
            clusters.iter().map(|cluster| (cluster.name.to_string(), cluster.weight)).collect()
        }
    }
}

fn named(split: &[(&str, u32)]) -> Vec<(String, u32)> {
    split.iter().map(|&(name, weight)| (name.to_owned(), weight)).collect()
}

fn at(hosts: &[&str]) -> BTreeSet<String> {
    hosts.iter().map(|host| format!("{host}:17070")).collect()
}

#[tokio::test]
async fn a_plain_service_has_its_two_localities() {
    let istiod = Istiod::replay("01-plain").await;
    let mut watch = follow(&istiod);
    let snapshot = snapshot(&mut watch, |_| true).await;
    assert_eq!(split(&snapshot), named(&[(PLAIN, 100)]));
    assert_eq!(endpoints(&snapshot), BTreeMap::from([(PLAIN.to_owned(), at(&["127.0.0.2", "127.0.0.3"]))]));
    let heard = istiod.acked(&Kind::ALL).await;
    assert_eq!(heard.nacks, Vec::<String>::new());
}

#[tokio::test]
async fn header_matches_without_a_specifier_are_not_refused() {
    let istiod = Istiod::replay("03-header-match").await;
    let mut watch = follow(&istiod);
    let snapshot = snapshot(&mut watch, |_| true).await;
    let virtual_host = snapshot.virtual_host.as_ref().expect("the target's");
    let names: BTreeSet<_> = virtual_host.routes.iter().map(|route| route.name.as_str()).collect();
    assert!(names.is_superset(&BTreeSet::from(["exact", "prefix", "regex", "present", "absent"])), "{names:?}");
    assert!(snapshot.clusters.keys().any(|name| name.to_string() == V2));
    let heard = istiod.acked(&Kind::ALL).await;
    assert_eq!(heard.nacks, Vec::<String>::new());
}

#[tokio::test]
async fn a_ring_hash_service_is_not_refused() {
    let istiod = Istiod::replay("18-hash-header").await;
    let mut watch = follow(&istiod);
    let snapshot = snapshot(&mut watch, |_| true).await;
    assert_eq!(endpoints(&snapshot).len(), 1);
    let heard = istiod.acked(&Kind::ALL).await;
    assert_eq!(heard.nacks, Vec::<String>::new());
}

#[tokio::test]
async fn a_service_that_is_split_merged_deleted_and_back_is_followed() {
    let istiod = Istiod::replay("50-config-update").await;
    assert_eq!(istiod.configurations(), 7);
    let mut watch = follow(&istiod);
    let both = at(&["127.0.0.2", "127.0.0.3"]);
    let plain = BTreeMap::from([(PLAIN.to_owned(), both.clone())]);
    let subsets = BTreeMap::from([(V1.to_owned(), at(&["127.0.0.2"])), (V2.to_owned(), at(&["127.0.0.3"]))]);
    let is_split =
        |weights: [u32; 2]| move |snapshot: &Snapshot| split(snapshot) == named(&[(V1, weights[0]), (V2, weights[1])]);
    let is_plain = |snapshot: &Snapshot| split(snapshot) == named(&[(PLAIN, 100)]);
    assert_eq!(endpoints(&*snapshot(&mut watch, is_plain).await), plain);
    istiod.acked(&Kind::ALL).await;

    istiod.advance(); // The canary appears.
    assert_eq!(endpoints(&*snapshot(&mut watch, is_split([90, 10])).await), subsets);
    istiod.acked(&Kind::ALL).await;
    istiod.advance(); // The weights change.
    assert_eq!(endpoints(&*snapshot(&mut watch, is_split([50, 50])).await), subsets);
    istiod.acked(&Kind::ALL).await;
    istiod.advance(); // Another service appears; ours is as it was.
    istiod.acked(&Kind::ALL).await;
    assert_eq!(endpoints(&*snapshot(&mut watch, is_split([50, 50])).await), subsets);

    istiod.advance(); // Back to plain: the subsets go before the routes stop using them (fact 2).
    assert_eq!(endpoints(&*snapshot(&mut watch, is_plain).await), plain);
    istiod.acked(&Kind::ALL).await;

    istiod.advance(); // The service is deleted: A88 keeps serving what was good.
    istiod.acked(&[Kind::Listener]).await;
    assert!(matches!(watch.current(), Target::Ready(_)), "kept");
    istiod.advance(); // It is back.
    istiod.acked(&[Kind::Listener]).await;
    snapshot(&mut watch, |snapshot| snapshot.virtual_host.is_some() && is_plain(snapshot)).await;

    let heard = istiod.heard();
    assert_eq!(heard.nacks, Vec::<String>::new());
    assert_eq!(heard.wildcards, Vec::<Kind>::new(), "an empty LDS list is a wildcard to this istiod");
}

#[tokio::test]
async fn an_agent_that_closes_all_but_the_newest_stream_sees_one() {
    let istiod = Istiod::replay("60-workload-entries-change").await;
    let node = "sidecar~127.0.0.9~client-1.demo~demo.svc.cluster.local";
    let bootstrap = Bootstrap::parse(&bootstrap(node, istiod.address).to_string()).expect("well-formed");
    // Two meshes, as two libraries of one process would make them.
    let (mesh, second) = (Mesh::builder(bootstrap.clone()).build(), Mesh::builder(bootstrap).build());
    let channels = [
        mesh.channel(&format!("xds:///{TARGET}")).expect("a target"),
        mesh.channel("xds:///other.demo.svc.cluster.local:7070").expect("a target"),
        second.channel(&format!("xds:///{TARGET}")).expect("a target"),
    ];
    for channel in &channels {
        until("a configuration", || channel.state() == ChannelState::Ready).await;
    }
    // Nobody listens where the recorded endpoints are; the client of many hosts has to ask for its host all the same.
    let get = http::Request::get(format!("http://{TARGET}/")).body(Empty::<Bytes>::new()).expect("a request");
    within("an answer of ours", second.http_client().request(get)).await.expect("a response of ours");
    istiod.acked(&Kind::ALL).await;
    istiod.advance();
    let heard = istiod.acked(&Kind::ALL).await;
    assert_eq!(heard.nacks, Vec::<String>::new());
    assert_eq!(istiod.streams(), 1);
}
