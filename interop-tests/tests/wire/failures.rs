//! What callers are told when something is missing or broken: UNAVAILABLE, the cause, the resource and the node, soon;
//! and that it heals by itself.
//!
//! Timers are shortened by the bootstrap, so that the real ones are run through; no time is measured. Lost connections
//! to a control plane that has already told everything are NOT here: they take nothing away, which `process` shows.

use crate::{
    mesh::{service, unary},
    rig::{addresses, backends, free_port, within},
};
use interop_tests::{
    backend::Backend,
    proto::testing::{
        ResponseParameters, SimpleRequest, StreamingOutputCallRequest, test_service_client::TestServiceClient,
    },
    proxy::Proxy,
    raw::RawServer,
};
use mesh_client::{Bootstrap, Mesh, MeshChannel, WaitForReady};
use mesh_xds::{
    ServerAddress,
    control_plane::{
        ControlPlane, Resources,
        resources::{endpoints, route, route_config, virtual_host, virtual_host_with},
    },
    resource::Kind,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Status};

const NODE: &str = "failures-node";

/// Instead of 15 s and 20 s.
const SOON: Duration = Duration::from_millis(300);

/// A mesh that loses patience soon.
fn mesh(server: impl Into<ServerAddress>) -> Mesh {
    let bootstrap = Bootstrap::builder().node_id(NODE).server(server).build().expect("a server");
    Mesh::builder(bootstrap.with_resource_timeout(SOON).with_connect_timeout(SOON)).build()
}

fn at(address: SocketAddr) -> ServerAddress {
    ServerAddress::Sockets(vec![address])
}

/// A channel to "echo", whose endpoints are given up soon, too.
fn echo(mesh: &Mesh) -> MeshChannel {
    mesh.channel_builder("xds:///echo").connect_timeout(SOON).build().expect("a valid target")
}

fn without(mut resources: Resources, kind: Kind, name: &str) -> Resources {
    assert!(resources.remove(kind.type_url(), name), "{name} was there");
    resources
}

/// What every failure must be: UNAVAILABLE, from this node.
fn assert_unavailable(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(status.message().matches(NODE).count(), 1, "the node, once, in {status}");
}

/// Calls until the failure names all of `parts`. On a slow machine another resource may seem to be missing first.
async fn fails(channel: &MeshChannel, parts: &[&str]) {
    let mut last = String::new();
    let failing = async {
        loop {
            let status = unary(channel).await.expect_err("something is missing");
            assert_unavailable(&status);
            if parts.iter().all(|part| status.message().contains(part)) {
                return;
            }
            last = status.message().to_owned();
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(30), failing).await.is_err() {
        panic!("no failure named {parts:?}; the last: {last}");
    }
}

/// Calls until one succeeds.
async fn recovers(channel: &MeshChannel, hostname: &str) {
    let calls = async {
        loop {
            match unary(channel).await {
                Ok(answer) => return answer,
                Err(status) => assert_unavailable(&status),
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(within("a reply", calls).await, hostname);
}

/// A call that waits for ready, with this much time.
async fn waiting(channel: &MeshChannel, time: Duration) -> Result<String, Status> {
    let mut request = Request::new(SimpleRequest::default());
    request.set_timeout(time);
    request.extensions_mut().insert(WaitForReady);
    let mut client = TestServiceClient::new(channel.clone());
    Ok(client.unary_call(request).await?.into_inner().hostname)
}

/// A call that waits for ready runs into its deadline, and then names what it waited for.
async fn runs_late(channel: &MeshChannel, parts: &[&str]) {
    let status = waiting(channel, SOON).await.expect_err("nothing arrives");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert_eq!(status.message().matches(NODE).count(), 1, "the node, once, in {status}");
    for part in parts {
        assert!(status.message().contains(part), "{part} in {status}");
    }
}

/// With `broken` calls fail and name `parts`, and so does one that waits for ready, at its deadline. One that has more
/// time succeeds, as all others do, once the control plane serves everything.
async fn breaks_and_heals(broken: impl FnOnce(Resources) -> Resources, parts: &[&str]) {
    let [a] = backends(["a"]).await;
    let whole = service("echo", &[a.address()]);
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(broken(whole.clone()));
    let mesh = mesh(control_plane.in_process());
    let channel = echo(&mesh);
    fails(&channel, parts).await;
    runs_late(&channel, parts).await;
    let patient = tokio::spawn({
        let channel = channel.clone();
        async move { waiting(&channel, Duration::from_secs(60)).await }
    });
    control_plane.set_unchecked(whole);
    assert_eq!(within("the patient call", patient).await.expect("no panic").expect("a reply"), "a");
    recovers(&channel, "a").await;
}

/// The same for a configuration that is complete and has no place for the call: waiting for ready means connections,
/// and there is no cluster to wait for.
async fn misroutes_and_heals(broken: impl FnOnce(Resources) -> Resources, parts: &[&str]) {
    let [a] = backends(["a"]).await;
    let whole = service("echo", &[a.address()]);
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(broken(whole.clone()));
    let mesh = mesh(control_plane.in_process());
    let channel = echo(&mesh);
    fails(&channel, parts).await;
    assert_unavailable(&waiting(&channel, Duration::from_secs(60)).await.expect_err("no place for it"));
    control_plane.set_unchecked(whole);
    recovers(&channel, "a").await;
}

// === What the control plane does not say ===

#[tokio::test]
async fn without_a_listener_calls_are_unavailable() {
    let broken = |whole| without(whole, Kind::Listener, "echo");
    breaks_and_heals(broken, &["Listener \"echo\"", "does not exist"]).await;
}

#[tokio::test]
async fn without_routes_calls_are_unavailable() {
    let broken = |whole| without(whole, Kind::RouteConfig, "echo-routes");
    breaks_and_heals(broken, &["RouteConfiguration \"echo-routes\"", "does not exist"]).await;
}

#[tokio::test]
async fn without_a_cluster_calls_are_unavailable() {
    let broken = |whole| without(whole, Kind::Cluster, "echo-cluster");
    breaks_and_heals(broken, &["Cluster \"echo-cluster\"", "does not exist"]).await;
}

#[tokio::test]
async fn without_an_assignment_calls_are_unavailable() {
    let broken = |whole| without(whole, Kind::Endpoints, "echo-cluster");
    breaks_and_heals(broken, &["ClusterLoadAssignment \"echo-cluster\"", "does not exist", "no endpoints"]).await;
}

#[tokio::test]
async fn with_an_empty_assignment_calls_are_unavailable() {
    let broken = |whole: Resources| whole.with(endpoints("echo-cluster", &[]));
    breaks_and_heals(broken, &["cluster \"echo-cluster\"", "no endpoints"]).await;
}

#[tokio::test]
async fn without_a_virtual_host_calls_are_unavailable() {
    let broken =
        |whole: Resources| whole.with(route_config("echo-routes", vec![virtual_host("other.test", "echo-cluster")]));
    misroutes_and_heals(broken, &["RouteConfiguration \"echo-routes\"", "no virtual host", "\"echo\""]).await;
}

#[tokio::test]
async fn without_a_route_calls_are_unavailable() {
    use mesh_xds::control_plane::proto::envoy::config::route::v3::route_action::ClusterSpecifier;
    let elsewhere = || route("/elsewhere", ClusterSpecifier::Cluster("echo-cluster".to_owned()));
    let broken =
        |whole: Resources| whole.with(route_config("echo-routes", vec![virtual_host_with("*", vec![elsewhere()])]));
    misroutes_and_heals(broken, &["virtual host \"*\"", "no route"]).await;
}

#[tokio::test]
async fn a_call_that_waits_for_its_first_configuration_says_for_what() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &[]));
    control_plane.hold(Kind::Cluster.type_url());
    let bootstrap = Bootstrap::builder().node_id(NODE).server(control_plane.in_process()).build().expect("a server");
    let mesh = Mesh::builder(bootstrap).build();
    let channel = mesh.channel_builder("xds:///echo").config_timeout(SOON).build().expect("a valid target");
    // The does-not-exist timer has its 15 s: it is the channel that does not wait.
    fails(&channel, &["no configuration after", "waiting for Cluster \"echo-cluster\""]).await;
}

// === The control plane cannot be reached ===

#[tokio::test]
async fn without_a_control_plane_calls_are_unavailable() {
    let [a] = backends(["a"]).await;
    let port = free_port();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mesh = mesh(at(address));
    let channel = echo(&mesh);
    fails(&channel, &["Listener \"echo\"", "cannot be reached", &address.to_string(), "refused"]).await;
    runs_late(&channel, &["Listener \"echo\"", "cannot be reached"]).await;

    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &[a.address()]));
    let _serving = control_plane.listen(address).await.expect("the port is still free");
    recovers(&channel, "a").await;
}

#[tokio::test]
async fn with_a_control_plane_that_drops_packets_calls_are_unavailable() {
    let [a] = backends(["a"]).await;
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &[a.address()]));
    let serving = control_plane.listen((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let proxy = Proxy::start(serving.local_addr().expect("bound")).await.expect("a free port");
    proxy.silence();
    let mesh = mesh(at(proxy.address()));
    let channel = echo(&mesh);
    fails(&channel, &["Listener \"echo\"", "cannot be reached", "no HTTP/2 answer within"]).await;
    proxy.resume();
    recovers(&channel, "a").await;
}

#[tokio::test]
async fn with_a_control_plane_that_never_answers_calls_are_unavailable() {
    let [a] = backends(["a"]).await;
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &[a.address()]));
    control_plane.silent(true);
    let mesh = mesh(control_plane.in_process());
    let channel = echo(&mesh);
    fails(&channel, &["Listener \"echo\"", "did not send it within"]).await;
    control_plane.silent(false);
    recovers(&channel, "a").await;
}

#[tokio::test]
async fn with_a_control_plane_that_refuses_streams_calls_are_unavailable() {
    let [a] = backends(["a"]).await;
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &[a.address()]));
    control_plane.refuse(true);
    let mesh = mesh(control_plane.in_process());
    let channel = echo(&mesh);
    fails(&channel, &["Listener \"echo\"", "cannot be reached", "refuses streams"]).await;
    control_plane.refuse(false);
    recovers(&channel, "a").await;
}

#[tokio::test]
async fn an_ads_stream_that_is_reset_half_way_fails_no_call() {
    let [a] = backends(["a"]).await;
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &[a.address()]));
    control_plane.hold(Kind::Cluster.type_url());
    let bootstrap = Bootstrap::builder().node_id(NODE).server(control_plane.in_process()).build().expect("a server");
    let mesh = Mesh::builder(bootstrap).build();
    let channel = echo(&mesh);
    let call = tokio::spawn({
        let channel = channel.clone();
        async move { unary(&channel).await }
    });
    let cluster = Kind::Cluster.type_url();
    within("a request for the cluster", control_plane.wait_for_subscription(cluster, "echo-cluster")).await;
    control_plane.cut_streams();
    control_plane.release(cluster);
    assert_eq!(within("the reply", call).await.expect("no panic").expect("a reply"), "a");
}

// === The endpoints cannot be reached ===

#[tokio::test]
async fn with_refused_endpoints_calls_are_unavailable() {
    let [mut a, mut b] = backends(["a", "b"]).await;
    a.stop().await;
    b.stop().await;
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &addresses([&a, &b])));
    let mesh = mesh(control_plane.in_process());
    let channel = echo(&mesh);
    fails(&channel, &["cluster \"echo-cluster\"", "no endpoint can be reached", "refused"]).await;
    runs_late(&channel, &["cluster \"echo-cluster\"", "no endpoint can be reached"]).await;
    b.revive().await.expect("its own port");
    recovers(&channel, "b").await;
}

#[tokio::test]
async fn with_an_endpoint_that_never_speaks_calls_are_unavailable() {
    let mute = RawServer::start().await.expect("a free port");
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &[mute.address()]));
    let mesh = mesh(control_plane.in_process());
    let channel = echo(&mesh);
    fails(&channel, &["cluster \"echo-cluster\"", "no endpoint can be reached", "SETTINGS"]).await;
    let [a] = backends(["a"]).await;
    control_plane.set_unchecked(service("echo", &[a.address()]));
    recovers(&channel, "a").await;
}

// === Connections that break under a call ===

/// A mesh and a channel that is connected to `backend`.
async fn connected(backend: &Backend) -> (ControlPlane, Mesh, MeshChannel) {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &[backend.address()]));
    let bootstrap = Bootstrap::builder().node_id(NODE).server(control_plane.in_process()).build().expect("a server");
    let mesh = Mesh::builder(bootstrap).build();
    let channel = echo(&mesh);
    recovers(&channel, backend.hostname()).await;
    (control_plane, mesh, channel)
}

fn assert_lost(status: &Status, backend: &Backend) {
    assert_unavailable(status);
    let endpoint = backend.address().to_string();
    for part in ["cluster \"echo-cluster\"", endpoint.as_str()] {
        assert!(status.message().contains(part), "{part} in {status}");
    }
}

#[tokio::test]
async fn a_connection_that_is_reset_before_the_response_makes_its_calls_unavailable() {
    let [mut a] = backends(["a"]).await;
    let (_control_plane, _mesh, channel) = connected(&a).await;
    let before = a.counters().calls;
    let call = tokio::spawn(async move {
        let mut request = Request::new(SimpleRequest::default());
        request.metadata_mut().insert("rpc-behavior", "keep-open".parse().expect("ASCII"));
        TestServiceClient::new(channel).unary_call(request).await
    });
    a.wait_for(|counters| counters.calls > before).await.expect("the call has arrived");
    a.kill().await;
    let status = within("the failure", call).await.expect("no panic").expect_err("cut");
    assert_lost(&status, &a);
}

#[tokio::test]
async fn a_connection_that_is_reset_within_a_stream_makes_it_unavailable() {
    let [mut a] = backends(["a"]).await;
    let (_control_plane, _mesh, channel) = connected(&a).await;
    // Unbounded: one message. Held to the end, so that the upload stays open.
    let (upload, messages) = mpsc::unbounded_channel();
    let size = ResponseParameters { size: 10, ..ResponseParameters::default() };
    let first = StreamingOutputCallRequest { response_parameters: vec![size], ..StreamingOutputCallRequest::default() };
    upload.send(first).expect("the receiver is here");
    let call = TestServiceClient::new(channel.clone()).full_duplex_call(UnboundedReceiverStream::new(messages)).await;
    let mut replies = call.expect("response headers").into_inner();
    within("the first reply", replies.message()).await.expect("a good stream").expect("a reply");
    a.kill().await;
    let status = within("the failure", replies.message()).await.expect_err("cut");
    assert_lost(&status, &a);
    a.revive().await.expect("its own port");
    recovers(&channel, "a").await;
}
