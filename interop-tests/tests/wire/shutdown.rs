//! `Mesh::shutdown`, and what `ready()`, `state()` and `status()` say on the way up and down.
//!
//! How many tasks and descriptors are left is NOT counted here; `process` does.

use crate::{
    mesh::{applied, mesh, ready, service, unary},
    rig::{backends, within},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use interop_tests::{
    backend::Backend,
    proto::testing::{SimpleRequest, SimpleResponse, test_service_client::TestServiceClient},
    raw::RawServer,
};
use mesh_client::{Cause, ChannelState, MeshChannel, MeshError, TargetError, testing::TestMesh};
use mesh_xds::{
    ResourceState,
    control_plane::{Resources, proto::envoy::config::cluster::v3::Cluster, resources::cluster_eds},
    resource::Kind,
};
use std::time::Duration;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Response, Status};

const LONG: Duration = Duration::from_secs(60);

/// A call that the backend answers after a while, or never. Returns once it has arrived there.
async fn in_flight(
    channel: &MeshChannel,
    backend: &Backend,
    behavior: &'static str,
) -> JoinHandle<Result<Response<SimpleResponse>, Status>> {
    let before = backend.counters().calls;
    let mut client = TestServiceClient::new(channel.clone());
    let call = tokio::spawn(async move {
        let mut request = Request::new(SimpleRequest::default());
        request.metadata_mut().insert("rpc-behavior", behavior.parse().expect("ASCII"));
        client.unary_call(request).await
    });
    backend.wait_for(|counters| counters.calls > before).await.expect("the call has arrived");
    call
}

fn assert_shut_down(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("shutting down"), "{status}");
}

// === shutdown ===

#[tokio::test]
async fn calls_in_flight_finish_and_new_ones_fail() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo:80", &[a.address()]));
    let channel = ready(&mesh, "echo:80").await;
    let http = mesh.mesh().http_client();
    let get = || http::Request::get("http://echo/").body(Full::<Bytes>::default()).expect("valid");
    let page = http.request(get()).await.expect("a response");
    page.into_body().collect().await.expect("complete");
    let call = in_flight(&channel, &a, "sleep-1").await;
    let shutdown = tokio::spawn({
        let mesh = mesh.mesh().clone();
        async move { mesh.shutdown(LONG).await }
    });
    while channel.state() != ChannelState::ShutDown {
        tokio::task::yield_now().await;
    }
    assert_shut_down(&unary(&channel).await.expect_err("shut down"));
    let refused = http.request(get()).await.expect("a response of ours");
    assert_eq!(refused.status(), http::StatusCode::SERVICE_UNAVAILABLE);
    let error = refused.extensions().get::<MeshError>().expect("the cause");
    assert_eq!(error.cause(), &Cause::ShuttingDown);
    assert_eq!(mesh.mesh().channel("xds:///echo:80").map(drop), Err(TargetError::ShuttingDown));
    // A host that was never called before has no channel to say so.
    let stranger = http::Request::get("http://stranger/").body(Full::<Bytes>::default()).expect("valid");
    assert_eq!(http.request(stranger).await.expect("ours").status(), http::StatusCode::SERVICE_UNAVAILABLE);

    within("the reply", call).await.expect("no panic").expect("it was in flight");
    assert!(within("the end", shutdown).await.expect("no panic"), "everything had finished");
    a.wait_for(|counters| counters.open_connections == 0).await.expect("no connection is left");
    assert_eq!(a.counters().cancelled, 0);
}

#[tokio::test]
async fn what_has_not_finished_by_the_deadline_is_cut() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo", &[a.address()]));
    let channel = ready(&mesh, "echo").await;
    let call = in_flight(&channel, &a, "keep-open").await;
    let finished = within("the end", mesh.mesh().shutdown(Duration::from_millis(50))).await;
    assert!(!finished, "a call that never ends did not finish");
    let status = within("the failure", call).await.expect("no panic").expect_err("cut");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("echo-cluster"), "{status}");
    a.wait_for(|counters| counters.open_connections == 0).await.expect("no connection is left");
    assert!(mesh.mesh().shutdown(LONG).await, "again, there is nothing left");
}

#[tokio::test]
async fn http_1_calls_that_have_not_finished_by_the_deadline_are_cut() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("echo:80", &[a.address()]));
    let http = mesh.mesh().http_client();
    let request = http::Request::get("http://echo/").header("rpc-behavior", "keep-open");
    let request = request.body(Full::<Bytes>::default()).expect("valid");
    let call = tokio::spawn(async move { http.request(request).await });
    a.wait_for(|counters| counters.calls == 1).await.expect("the call has arrived");
    assert!(!within("the end", mesh.mesh().shutdown(Duration::from_millis(50))).await);
    let cut = within("the failure", call).await.expect("no panic").expect("a response of ours");
    assert_eq!(cut.status(), http::StatusCode::SERVICE_UNAVAILABLE);
    a.wait_for(|counters| counters.open_connections == 0).await.expect("no connection is left");
}

#[tokio::test]
async fn calls_that_wait_are_told_at_once() {
    let mute = RawServer::start().await.expect("a free port");
    let mesh = mesh(service("echo", &[mute.address()]));
    let connecting = mesh.mesh().channel("xds:///echo").expect("a valid target");
    let pending = mesh.mesh().channel("xds:///nobody").expect("a valid target");
    let calls = [connecting.clone(), pending.clone()].map(|channel| tokio::spawn(async move { unary(&channel).await }));
    let _socket = mute.accept().await.expect("the first call makes it connect");
    assert!(within("the end", mesh.mesh().shutdown(LONG)).await, "nothing is in flight");
    for call in calls {
        assert_shut_down(&within("the failure", call).await.expect("no panic").expect_err("shut down"));
    }
    assert!(connecting.ready(Duration::from_millis(10)).await.is_err_and(|not| not.missing.contains("shutting down")));
}

// === ready, state ===

async fn missing(channel: &MeshChannel, what: &str) {
    // Other things may be missing for a moment; this one stays.
    let found = async {
        loop {
            let not = channel.ready(Duration::from_millis(20)).await.expect_err("something is missing");
            if not.missing.contains(what) {
                return;
            }
        }
    };
    within(what, found).await;
}

#[tokio::test]
async fn ready_names_what_is_missing_step_by_step() {
    let [a] = backends(["a"]).await;
    let mute = RawServer::start().await.expect("a free port");
    let mesh = mesh(service("echo", &[mute.address()]));
    let control_plane = mesh.control_plane();
    for kind in Kind::ALL {
        control_plane.hold(kind.type_url());
    }
    let channel = mesh.mesh().channel("xds:///echo").expect("a valid target");
    let steps = [
        (Kind::Listener, "waiting for Listener \"echo\""),
        (Kind::RouteConfig, "waiting for RouteConfiguration \"echo-routes\""),
        (Kind::Cluster, "waiting for Cluster \"echo-cluster\""),
        (Kind::Endpoints, "waiting for ClusterLoadAssignment \"echo-cluster\""),
    ];
    for (kind, what) in steps {
        missing(&channel, what).await;
        assert!(matches!(channel.state(), ChannelState::Pending(missing) if missing.contains(what)));
        control_plane.release(kind.type_url());
    }
    missing(&channel, "no endpoint is ready in cluster \"echo-cluster\"").await;
    assert_eq!(channel.state(), ChannelState::Ready);
    control_plane.set_unchecked(service("echo", &[a.address()]));
    assert_eq!(channel.ready(LONG).await, Ok(vec![]));
}

// === status ===

fn version(mesh: &TestMesh, kind: Kind, name: &str) -> (Option<String>, ResourceState) {
    let status = mesh.mesh().status();
    let resource = status.xds.resource(kind, name).expect("subscribed");
    (resource.version.clone(), resource.state.clone())
}

#[tokio::test]
async fn status_shows_versions_and_a_refused_update_beside_the_value_in_use() {
    let [a] = backends(["a"]).await;
    let good = service("echo", &[a.address()]);
    let mesh = mesh(good.clone());
    let channel = ready(&mesh, "echo").await;
    for (kind, name) in Kind::ALL.into_iter().zip(["echo", "echo-routes", "echo-cluster", "echo-cluster"]) {
        let (version, state) = version(&mesh, kind, name);
        assert_eq!((version.is_some(), state), (true, ResourceState::Acked), "{kind} {name}");
        assert_eq!(mesh.mesh().status().applied_version(kind, name).map(str::to_owned), version);
    }
    let (before, _) = version(&mesh, Kind::Cluster, "echo-cluster");

    // 77 is no lb_policy.
    let bad = Cluster { lb_policy: 77, ..cluster_eds("echo-cluster") };
    mesh.control_plane().set_unchecked(good.clone().with(bad));
    within("the NACK", mesh.control_plane().wait_for_nack(Kind::Cluster.type_url())).await;
    let (version_in_use, state) = version(&mesh, Kind::Cluster, "echo-cluster");
    assert_eq!(version_in_use, before);
    assert!(matches!(&state, ResourceState::Nacked { error } if error.contains("lb_policy")), "{state:?}");
    assert_eq!(unary(&channel).await.expect("the good cluster stays"), "a");

    mesh.control_plane()
        .set_unchecked(good.with(Cluster { alt_stat_name: "changed".to_owned(), ..cluster_eds("echo-cluster") }));
    applied(&mesh, Kind::Cluster, "echo-cluster").await;
    let (after, state) = version(&mesh, Kind::Cluster, "echo-cluster");
    assert!(after != before && state == ResourceState::Acked, "{after:?} {state:?}");
    assert_eq!(mesh.mesh().status().xds.servers.len(), 1);
}

/// The window that must not exist: a version that counts as applied while a call still goes the old way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_goes_the_old_way_once_the_new_version_counts_as_applied() {
    let [a, b] = backends(["a", "b"]).await;
    let to = |backend: &Backend| -> Resources { service("echo", &[backend.address()]) };
    let mesh = mesh(to(&a));
    let channel = ready(&mesh, "echo").await;
    let mut last = version(&mesh, Kind::Endpoints, "echo-cluster").0;
    for round in 0..100 {
        let backend = if round % 2 == 0 { &b } else { &a };
        mesh.control_plane().set_unchecked(to(backend));
        let newer = async {
            loop {
                let status = mesh.mesh().status();
                let applied = status.applied_version(Kind::Endpoints, "echo-cluster").map(str::to_owned);
                if applied.is_some() && applied != last {
                    return applied;
                }
                tokio::task::yield_now().await;
            }
        };
        last = within("the new version", newer).await;
        assert_eq!(unary(&channel).await.expect("a reply"), backend.hostname(), "round {round}");
    }
}
