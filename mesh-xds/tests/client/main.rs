//! `XdsClient` against the embedded control plane, over real HTTP/2; the clock is paused where time matters.
#![cfg(feature = "control-plane")]

mod connections;
mod dns;
mod errors;
mod hostile;
mod load;

use mesh_xds::{
    Bootstrap, InProcess, ServerAddress, Snapshot, StreamState, Target, TargetName, TargetWatch, XdsClient,
    control_plane::{ControlPlane, Event, Resources, Verdict, resources as xds},
    resource::Kind,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout},
};

const LDS: &str = Kind::Listener.type_url();
const RDS: &str = Kind::RouteConfig.type_url();
const CDS: &str = Kind::Cluster.type_url();
const EDS: &str = Kind::Endpoints.type_url();
const NODE: &str = "node-1";

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

/// Listener `web`, routes `routes`, everything to `cluster` with one endpoint.
fn web(cluster: &str, endpoint: u8) -> Resources {
    Resources::default()
        .with(xds::listener("web", "routes"))
        .with(xds::route_config("routes", vec![xds::virtual_host("*", cluster)]))
        .with(xds::cluster_eds(cluster))
        .with(xds::endpoints(cluster, &[address(endpoint)]))
}

fn bootstrap(server: impl Into<ServerAddress>) -> Bootstrap {
    Bootstrap::builder().node_id(NODE).server(server).build().expect("one server")
}

/// A client on the test's own runtime, so that its clock is the test's.
fn client(server: impl Into<ServerAddress>) -> XdsClient {
    client_of(bootstrap(server))
}

fn client_of(bootstrap: Bootstrap) -> XdsClient {
    XdsClient::connect_on(&Handle::current(), bootstrap)
}

fn target(listener: &str) -> TargetName {
    TargetName::new(listener, "web.example:80")
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(600), future).await.expect("does not hang")
}

/// The next snapshot for which `wanted` holds.
async fn snapshot(watch: &mut TargetWatch, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    soon(async {
        let mut now = watch.current();
        loop {
            if let Target::Ready(snapshot) = &now
                && wanted(snapshot)
            {
                return Arc::clone(snapshot);
            }
            now = watch.changed().await.expect("the client lives");
        }
    })
    .await
}

async fn failure(watch: &mut TargetWatch) -> String {
    soon(async {
        let mut now = watch.current();
        loop {
            if let Target::Failed(text) = &now {
                return text.to_string();
            }
            now = watch.changed().await.expect("the client lives");
        }
    })
    .await
}

/// Endpoints of a cluster, or its error.
fn cluster(snapshot: &Snapshot, name: &str) -> Result<Vec<SocketAddr>, String> {
    let config = snapshot.clusters.get(name).unwrap_or_else(|| panic!("no cluster {name}"));
    match &config.state {
        Ok(leaves) => Ok(leaves.first.endpoints.endpoints().map(|endpoint| endpoint.addresses.first).collect()),
        Err(error) => Err(error.to_string()),
    }
}

fn serves(name: &'static str, endpoint: u8) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| {
        snapshot.clusters.contains_key(name) && cluster(snapshot, name).is_ok_and(|all| all == [address(endpoint)])
    }
}

/// Lets everything that is runnable run until nothing is: the paused clock moves only then.
async fn idle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_is_followed_from_listener_to_endpoints() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    assert!(matches!(watch.current(), Target::Pending { .. }));
    let first = snapshot(&mut watch, serves("a", 1)).await;
    assert_eq!(&*first.listener_name, "web");
    control_plane.set_unchecked(web("a", 2));
    let second = snapshot(&mut watch, serves("a", 2)).await;
    assert!(Arc::ptr_eq(&first.routes, &second.routes) && Arc::ptr_eq(&first.http, &second.http));
    assert!(second.generation > first.generation);
    soon(control_plane.wait_for_ack(EDS, "a")).await;
    let status = client.status();
    assert_eq!(status.node_id, NODE);
    assert_eq!(status.servers[0].state, StreamState::Connected);
    assert!(status.resource(Kind::Endpoints, "a").expect("subscribed").version.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_missing_cluster_fails_alone_after_fifteen_seconds() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(
        web("a", 1).with(xds::route_config("routes", vec![xds::virtual_host_weighted("*", &[("a", 1), ("gone", 1)])])),
    );
    let client = client(control_plane.in_process());
    let began = Instant::now();
    let mut watch = client.watch(target("web"));
    let found = snapshot(&mut watch, |_| true).await;
    assert_eq!(began.elapsed().as_secs(), 15);
    assert_eq!(cluster(&found, "a"), Ok(vec![address(1)]));
    let error = cluster(&found, "gone").expect_err("does not exist");
    assert!(error.contains("\"gone\"") && error.contains("does not exist") && error.contains(NODE), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_listener_fails_the_target_after_fifteen_seconds_on_a_stream() {
    let control_plane = ControlPlane::new();
    control_plane.silent(true);
    let client = client(control_plane.in_process());
    let began = Instant::now();
    let mut watch = client.watch(target("web"));
    let error = failure(&mut watch).await;
    assert_eq!(began.elapsed().as_secs(), 15);
    assert!(error.contains("Listener \"web\"") && error.contains(NODE), "{error}");
}

#[tokio::test(start_paused = true)]
async fn old_routes_serve_until_every_new_cluster_is_complete() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    control_plane.withhold(EDS, ["b"]);
    control_plane.set_unchecked(web("b", 2).with(xds::cluster_eds("a")).with(xds::endpoints("a", &[address(3)])));
    // The served cluster is still kept up to date.
    let during = snapshot(&mut watch, serves("a", 3)).await;
    assert!(!during.clusters.contains_key("b"));
    soon(control_plane.wait_for_subscription(EDS, "b")).await;
    assert!(watch.is_behind(), "the new routes are ACKed and not served");
    control_plane.release(EDS);
    let after = snapshot(&mut watch, serves("b", 2)).await;
    assert!(!watch.is_behind());
    assert!(!after.clusters.contains_key("a"));
    soon(control_plane.wait_for_unsubscription(EDS, "a")).await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_endpoint_touches_only_its_cluster() {
    let control_plane = ControlPlane::new();
    let both = |endpoint| {
        web("a", endpoint)
            .with(xds::route_config("routes", vec![xds::virtual_host_weighted("*", &[("a", 1), ("b", 1)])]))
            .with(xds::cluster_eds("b"))
            .with(xds::endpoints("b", &[address(9)]))
    };
    control_plane.set_unchecked(both(1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let before = snapshot(&mut watch, serves("a", 1)).await;
    control_plane.set_unchecked(both(2));
    let after = snapshot(&mut watch, serves("a", 2)).await;
    assert!(Arc::ptr_eq(&before.clusters["b"], &after.clusters["b"]));
    assert!(!Arc::ptr_eq(&before.clusters["a"], &after.clusters["a"]));
    let (before, after) = (before.virtual_host.as_ref(), after.virtual_host.as_ref());
    assert!(Arc::ptr_eq(before.expect("matches"), after.expect("matches")));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_leaves_and_returns_is_fetched_afresh() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    control_plane.set_unchecked(web("b", 2));
    snapshot(&mut watch, serves("b", 2)).await;
    soon(control_plane.wait_for_unsubscription(CDS, "a")).await;
    control_plane.set_unchecked(web("a", 3));
    let returned = snapshot(&mut watch, |snapshot| snapshot.clusters.contains_key("a")).await;
    assert_eq!(cluster(&returned, "a"), Ok(vec![address(3)]), "not even once the old endpoint");
}

#[tokio::test(start_paused = true)]
async fn an_outage_disturbs_nothing_and_the_stream_resumes_with_its_versions() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let before = snapshot(&mut watch, serves("a", 1)).await;
    soon(control_plane.wait_for_ack(EDS, "a")).await;
    control_plane.refuse(true);
    control_plane.cut_streams();
    let noted = snapshot(&mut watch, |snapshot| {
        snapshot.clusters["a"].state.as_ref().is_ok_and(|leaves| leaves.first.note.is_some())
    })
    .await;
    assert_eq!(cluster(&noted, "a"), Ok(vec![address(1)]));
    assert!(Arc::ptr_eq(&before.routes, &noted.routes));
    assert!(matches!(client.status().servers[0].state, StreamState::Unreachable { .. }));

    // A target that is new in the outage is told why it fails, and recovers by itself.
    let mut late = client.watch(target("other"));
    let error = failure(&mut late).await;
    assert!(error.contains("cannot be reached") && error.contains(NODE), "{error}");

    let mut events = control_plane.events();
    control_plane.set_unchecked(web("a", 1).with(xds::listener("other", "routes")));
    control_plane.refuse(false);
    snapshot(&mut late, serves("a", 1)).await;
    let is_eds = |event: &Event| matches!(event, Event::Request { type_url, .. } if type_url == EDS);
    let Event::Request { version, nonce, verdict, .. } = soon(events.wait_for(is_eds)).await.expect("an event") else {
        unreachable!("only requests were waited for")
    };
    assert!(!version.is_empty() && nonce.is_empty() && verdict == Verdict::Request);
    let clear = snapshot(&mut watch, |snapshot| {
        snapshot.clusters["a"].state.as_ref().is_ok_and(|leaves| leaves.first.note.is_none())
    })
    .await;
    assert_eq!(cluster(&clear, "a"), Ok(vec![address(1)]));
}

#[tokio::test(start_paused = true)]
async fn streams_that_answered_are_resumed_at_once() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    for round in 2..7 {
        soon(control_plane.wait_for_ack(EDS, "a")).await;
        let cut = Instant::now();
        control_plane.cut_streams();
        control_plane.set_unchecked(web("a", round));
        let resumed = snapshot(&mut watch, serves("a", round)).await;
        assert!(cut.elapsed() < Duration::from_millis(200), "{:?}", cut.elapsed());
        let note = &resumed.clusters["a"].state.as_ref().expect("resolved").first.note;
        assert_eq!(*note, None, "a stream that ended after a response is no error");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_listener_stays_on_the_wire_until_another_replaces_it() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1).with(xds::listener("other", "routes")));
    let client = client(control_plane.in_process());
    let mut events = control_plane.events();
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    drop(watch);
    soon(control_plane.wait_for_unsubscription(RDS, "routes")).await;
    // Its clusters are gone, and it is there at once when it is wanted again.
    let mut again = client.watch(target("web"));
    snapshot(&mut again, serves("a", 1)).await;
    drop(again);
    let mut other = client.watch(target("other"));
    snapshot(&mut other, serves("a", 1)).await;
    soon(control_plane.wait_for_unsubscription(LDS, "web")).await;
    while let Ok(event) = timeout(Duration::from_secs(60), events.recv()).await {
        if let Ok(Event::Request { type_url, names, .. }) = event {
            assert!(!names.is_empty() || (type_url != LDS && type_url != CDS), "an empty list is a wildcard to istiod");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_matching_virtual_host_there_is_a_snapshot_that_says_so() {
    let control_plane = ControlPlane::new();
    control_plane
        .set_unchecked(web("a", 1).with(xds::route_config("routes", vec![xds::virtual_host("another.example", "a")])));
    let client = client(control_plane.in_process());
    let found = snapshot(&mut client.watch(target("web")), |_| true).await;
    assert!(found.virtual_host.is_none() && found.clusters.is_empty());
}
