//! `XdsClient` against the embedded control plane, over real HTTP/2; the clock is paused where time matters.
#![cfg(feature = "control-plane")]

use mesh_xds::{
    Bootstrap, InProcess, ServerAddress, Snapshot, StreamState, Target, TargetName, TargetWatch, XdsClient,
    control_plane::{ControlPlane, Event, Resources, Verdict, resources as xds},
    resource::{ClusterName, Kind},
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
    XdsClient::connect_on(&Handle::current(), bootstrap(server))
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
        Ok(resolved) => Ok(resolved.endpoints.endpoints().map(|endpoint| endpoint.addresses.first).collect()),
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
    control_plane.set(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    assert!(matches!(watch.current(), Target::Pending { .. }));
    let first = snapshot(&mut watch, serves("a", 1)).await;
    assert_eq!(&*first.listener_name, "web");
    control_plane.set(web("a", 2));
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
async fn a_nack_names_the_field_and_good_siblings_take_effect() {
    let control_plane = ControlPlane::new();
    let split = xds::virtual_host_weighted("*", &[("good", 1), ("bad", 1)]);
    let mut bad = xds::cluster_eds("bad");
    bad.lb_policy = 77;
    let base = || {
        Resources::default()
            .with(xds::listener("web", "routes"))
            .with(xds::route_config("routes", vec![split.clone()]))
            .with(xds::cluster_eds("good"))
            .with(xds::endpoints("good", &[address(1)]))
            .with(xds::endpoints("bad", &[address(9)]))
    };
    control_plane.set(base().with(bad));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let first = snapshot(&mut watch, serves("good", 1)).await;
    let error = cluster(&first, "bad").expect_err("NACKed with nothing cached");
    assert!(error.contains("\"bad\"") && error.contains("lb_policy") && error.contains(NODE), "{error}");
    let nack = soon(control_plane.wait_for_nack(CDS)).await;
    assert!(nack.contains("Cluster \"bad\": lb_policy") && !nack.contains("good"), "{nack}");

    control_plane.set(base().with(xds::cluster_eds("bad")));
    snapshot(&mut watch, serves("bad", 9)).await;
    soon(control_plane.wait_for_ack(CDS, "bad")).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_cluster_fails_alone_after_fifteen_seconds() {
    let control_plane = ControlPlane::new();
    control_plane.set(
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
    control_plane.set(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    control_plane.withhold(EDS, ["b"]);
    control_plane.set(web("b", 2).with(xds::cluster_eds("a")).with(xds::endpoints("a", &[address(3)])));
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
    control_plane.set(both(1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let before = snapshot(&mut watch, serves("a", 1)).await;
    control_plane.set(both(2));
    let after = snapshot(&mut watch, serves("a", 2)).await;
    assert!(Arc::ptr_eq(&before.clusters["b"], &after.clusters["b"]));
    assert!(!Arc::ptr_eq(&before.clusters["a"], &after.clusters["a"]));
    let (before, after) = (before.virtual_host.as_ref(), after.virtual_host.as_ref());
    assert!(Arc::ptr_eq(before.expect("matches"), after.expect("matches")));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_cluster_serves_on_and_says_so() {
    let control_plane = ControlPlane::new();
    control_plane.set(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    // As istiod does for a deleted subset: CDS forgets it, EDS answers with all endpoints of the service.
    let mut without = web("a", 1).with(xds::endpoints("a", &[address(1), address(2)]));
    without.remove(CDS, "a");
    control_plane.set(without);
    let noted = snapshot(&mut watch, |snapshot| {
        snapshot.clusters["a"].state.as_ref().is_ok_and(|resolved| resolved.note.is_some())
    })
    .await;
    assert_eq!(cluster(&noted, "a"), Ok(vec![address(1)]));
    soon(control_plane.wait_for_ack(EDS, "a")).await;
    idle().await;
    let Target::Ready(now) = watch.current() else { panic!("serves on") };
    assert_eq!(cluster(&now, "a"), Ok(vec![address(1)]), "a deleted cluster gets no new endpoints");
    control_plane.set(web("a", 1).with(xds::endpoints("a", &[address(1), address(2)])));
    snapshot(&mut watch, |snapshot| cluster(snapshot, "a") == Ok(vec![address(1), address(2)])).await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_leaves_and_returns_is_fetched_afresh() {
    let control_plane = ControlPlane::new();
    control_plane.set(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    control_plane.set(web("b", 2));
    snapshot(&mut watch, serves("b", 2)).await;
    soon(control_plane.wait_for_unsubscription(CDS, "a")).await;
    control_plane.set(web("a", 3));
    let returned = snapshot(&mut watch, |snapshot| snapshot.clusters.contains_key("a")).await;
    assert_eq!(cluster(&returned, "a"), Ok(vec![address(3)]), "not even once the old endpoint");
}

#[tokio::test(start_paused = true)]
async fn an_outage_disturbs_nothing_and_the_stream_resumes_with_its_versions() {
    let control_plane = ControlPlane::new();
    control_plane.set(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let before = snapshot(&mut watch, serves("a", 1)).await;
    soon(control_plane.wait_for_ack(EDS, "a")).await;
    control_plane.refuse(true);
    control_plane.cut_streams();
    let noted = snapshot(&mut watch, |snapshot| {
        snapshot.clusters["a"].state.as_ref().is_ok_and(|resolved| resolved.note.is_some())
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
    control_plane.set(web("a", 1).with(xds::listener("other", "routes")));
    control_plane.refuse(false);
    snapshot(&mut late, serves("a", 1)).await;
    let is_eds = |event: &Event| matches!(event, Event::Request { type_url, .. } if type_url == EDS);
    let Event::Request { version, nonce, verdict, .. } = soon(events.wait_for(is_eds)).await.expect("an event") else {
        unreachable!("only requests were waited for")
    };
    assert!(!version.is_empty() && nonce.is_empty() && verdict == Verdict::Request);
    let clear = snapshot(&mut watch, |snapshot| {
        snapshot.clusters["a"].state.as_ref().is_ok_and(|resolved| resolved.note.is_none())
    })
    .await;
    assert_eq!(cluster(&clear, "a"), Ok(vec![address(1)]));
}

#[tokio::test(start_paused = true)]
async fn streams_that_answered_are_resumed_at_once() {
    let control_plane = ControlPlane::new();
    control_plane.set(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    for round in 2..7 {
        soon(control_plane.wait_for_ack(EDS, "a")).await;
        let cut = Instant::now();
        control_plane.cut_streams();
        control_plane.set(web("a", round));
        let resumed = snapshot(&mut watch, serves("a", round)).await;
        assert!(cut.elapsed() < Duration::from_millis(200), "{:?}", cut.elapsed());
        let note = &resumed.clusters["a"].state.as_ref().expect("resolved").note;
        assert_eq!(*note, None, "a stream that ended after a response is no error");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_listener_stays_on_the_wire_until_another_replaces_it() {
    let control_plane = ControlPlane::new();
    control_plane.set(web("a", 1).with(xds::listener("other", "routes")));
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
    control_plane.set(web("a", 1).with(xds::route_config("routes", vec![xds::virtual_host("another.example", "a")])));
    let client = client(control_plane.in_process());
    let found = snapshot(&mut client.watch(target("web")), |_| true).await;
    assert!(found.virtual_host.is_none() && found.clusters.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refusing_control_plane_is_dialled_on_the_curve() {
    let control_plane = ControlPlane::new();
    control_plane.refuse(true);
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let began = Instant::now();
    failure(&mut watch).await;
    assert_eq!(began.elapsed().as_secs(), 0);
    control_plane.set(web("a", 1));
    // 1.0 s and 1.6 s +- 20 % later come the second and the third attempt.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    control_plane.refuse(false);
    snapshot(&mut watch, serves("a", 1)).await;
    let took = began.elapsed().as_secs_f64();
    assert!((2.28..2.93).contains(&took), "{took}");
}

// === Real sockets and threads ===

#[tokio::test]
async fn a_port_that_accepts_and_never_answers_is_a_connect_error() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let server = ServerAddress::Sockets(vec![silent.local_addr().expect("bound")]);
    let bootstrap = bootstrap(server.clone()).with_connect_timeout(Duration::from_millis(50));
    let client = XdsClient::connect_on(&Handle::current(), bootstrap);
    let error = failure(&mut client.watch(target("web"))).await;
    for part in [server.to_string().as_str(), "no HTTP/2 answer", "Listener \"web\"", NODE] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(client.status().resource(Kind::Listener, "web").map(|web| &web.error), Some(&None));
}

#[tokio::test]
async fn every_address_is_tried() {
    let control_plane = ControlPlane::new();
    control_plane.set(web("a", 1));
    let serving = control_plane.listen("127.0.0.1:0").await.expect("a free port");
    let good = serving.local_addr().expect("TCP");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a free port");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let sockets = vec![closed, silent.local_addr().expect("bound"), good];
    let client = client(ServerAddress::Sockets(sockets));
    snapshot(&mut client.watch(target("web")), serves("a", 1)).await;
}

#[test]
fn equal_bootstraps_share_one_stream_that_outlives_the_runtime_of_its_maker() {
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    let servers = runtime();
    let control_plane = ControlPlane::new();
    control_plane.set(web("a", 1));
    let serving = servers.block_on(control_plane.listen("127.0.0.1:0")).expect("a free port");
    let uri = format!("dns:///localhost:{}", serving.local_addr().expect("TCP").port());
    let connect = || XdsClient::connect(bootstrap(ServerAddress::parse(&uri).expect("a name")));

    let maker = runtime();
    let (first, mut watch) = maker.block_on(async {
        let client = connect();
        let mut watch = client.watch(target("web"));
        snapshot(&mut watch, serves("a", 1)).await;
        (client, watch)
    });
    drop(maker);
    runtime().block_on(async {
        let second = connect();
        let mut same = second.watch(target("web"));
        snapshot(&mut same, serves("a", 1)).await;
        control_plane.set(web("a", 2));
        snapshot(&mut watch, serves("a", 2)).await;
        snapshot(&mut same, serves("a", 2)).await;
        assert_eq!((control_plane.open_streams(), control_plane.streams_opened()), (1, 1));
    });
    drop((first, watch));
    runtime().block_on(soon(control_plane.wait_for_streams(0)));
}

#[tokio::test]
async fn a_thousand_clients_leave_no_task_and_no_stream() {
    let control_plane = ControlPlane::new();
    control_plane.set(web("a", 1));
    let door = control_plane.in_process();
    let tasks = || Handle::current().metrics().num_alive_tasks();
    idle().await;
    let before = tasks();
    for round in 0..1000 {
        let client = client(door.clone());
        let mut watch = client.watch(target("web"));
        // Some end in the middle of things.
        if round % 10 == 0 {
            snapshot(&mut watch, serves("a", 1)).await;
        } else if round % 3 == 0 {
            tokio::task::yield_now().await;
        }
    }
    soon(control_plane.wait_for_streams(0)).await;
    soon(async {
        while tasks() > before {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn dynamic_kinds_that_are_not_there_yet_fail_their_cluster_only() {
    let control_plane = ControlPlane::new();
    let routes = xds::virtual_host_weighted("*", &[("a", 1), ("dns", 1)]);
    let mut dns = xds::cluster_static("dns", &[address(7)]);
    dns.load_assignment = Some(xds::endpoints("dns", &[address(7)]));
    dns.cluster_discovery_type =
        Some(envoy_types::pb::envoy::config::cluster::v3::cluster::ClusterDiscoveryType::Type(
            envoy_types::pb::envoy::config::cluster::v3::cluster::DiscoveryType::LogicalDns.into(),
        ));
    control_plane.set(web("a", 1).with(xds::route_config("routes", vec![routes])).with(dns));
    let client = client(control_plane.in_process());
    let found = snapshot(&mut client.watch(target("web")), |_| true).await;
    assert_eq!(cluster(&found, "a"), Ok(vec![address(1)]));
    let error = cluster(&found, "dns").expect_err("not supported");
    assert!(error.contains("LOGICAL_DNS") && error.contains("\"dns\"") && error.contains(NODE), "{error}");
    assert_eq!(found.clusters[&ClusterName::new("dns")].name.as_str(), "dns");
}

// === Connections that go silent ===

/// A door to the control plane whose bytes stop when told to, as behind a proxy that hangs.
fn freezable(control_plane: &ControlPlane) -> (InProcess, watch::Sender<bool>) {
    let behind = control_plane.in_process();
    let (door, mut dials) = InProcess::new("freezable");
    let (frozen, is_frozen) = watch::channel(false);
    tokio::spawn(async move {
        while let Some(mut outside) = dials.recv().await {
            let (mut inside, mut is_frozen) = (behind.dial().expect("open"), is_frozen.clone());
            tokio::spawn(async move {
                let freezing = async { is_frozen.wait_for(|frozen| *frozen).await.is_ok() };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut outside, &mut inside) => {}
                    _ = freezing => {
                        // Both ends stay open and nothing passes.
                        std::future::pending::<()>().await;
                    }
                }
            });
        }
    });
    (door, frozen)
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_goes_silent_is_replaced_after_the_keepalive() {
    let control_plane = ControlPlane::new();
    control_plane.set(web("a", 1));
    let (door, frozen) = freezable(&control_plane);
    let client = client(door);
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    soon(control_plane.wait_for_ack(EDS, "a")).await;
    frozen.send_replace(true);
    idle().await;
    frozen.send_replace(false);
    let began = Instant::now();
    control_plane.set(web("a", 2));
    timeout(Duration::from_secs(1000), snapshot(&mut watch, serves("a", 2))).await.expect("a new connection");
    // "xDS channel keepalive: 5 min interval, 20 s timeout".
    assert!(began.elapsed() <= Duration::from_secs(5 * 60 + 20 + 1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_a_connect_error_after_twenty_seconds_and_no_missing_resource() {
    let control_plane = ControlPlane::new();
    control_plane.set(web("a", 1));
    let (door, frozen) = freezable(&control_plane);
    frozen.send_replace(true);
    let client = client(door);
    let began = Instant::now();
    let mut watch = client.watch(target("web"));
    let error = failure(&mut watch).await;
    assert_eq!(began.elapsed().as_secs(), 20);
    assert!(error.contains("no HTTP/2 answer") && !error.contains("does not exist"), "{error}");
    frozen.send_replace(false);
    snapshot(&mut watch, serves("a", 1)).await;
    assert_eq!(began.elapsed().as_secs(), 21, "one backoff after recovery");
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_and_its_bootstrap_may_appear_late() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, socket) = (dir.path().join("bootstrap.json"), dir.path().join("XDS"));
    let reading = tokio::spawn(Bootstrap::from_file(path.clone(), Duration::from_secs(60)));
    tokio::task::yield_now().await;
    let json = format!(
        r#"{{"xds_servers":[{{"server_uri":"unix://{}","channel_creds":[{{"type":"insecure"}}]}}],"node":{{"id":"n"}}}}"#,
        socket.display()
    );
    std::fs::write(&path, json).expect("writable");
    let control_plane = ControlPlane::new();
    control_plane.set(web("a", 1));
    let _serving = control_plane.serve_unix(&socket).await.expect("a free path");
    let bootstrap = soon(reading).await.expect("no panic").expect("it appeared");
    let client = XdsClient::connect_on(&Handle::current(), bootstrap);
    snapshot(&mut client.watch(target("web")), serves("a", 1)).await;
}
