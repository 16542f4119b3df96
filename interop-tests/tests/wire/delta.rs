//! The incremental variant of ADS under the whole stack: what is asked, what is told, and what is not told twice.
//!
//! What calls see must be as in SotW; here it is shown that the wire is quieter. It does NOT test the control plane.

use crate::{
    mesh::{SocketMesh, service, unary},
    rig::{addresses, backends, until, within},
};
use mesh_client::{Mesh, MeshChannel};
use mesh_xds::{
    Bootstrap, XdsServer,
    control_plane::{
        ControlPlane, Dialect, Event, EventReceiver, Resources, Verdict,
        resources::{cluster_eds, endpoints},
    },
    resource::Kind,
};
use std::time::Duration;

/// What a client asks of one type in one request.
#[derive(Debug, PartialEq)]
struct Asked {
    names: Vec<String>,
    unsubscribed: Vec<String>,
    held: Vec<String>,
    verdict: Verdict,
}

/// The next request about this type that is no ACK.
async fn asked(events: &mut EventReceiver, kind: Kind) -> Asked {
    let is_it = |event: &Event| {
        matches!(event, Event::Request { type_url, verdict, .. }
            if type_url == kind.type_url() && *verdict != Verdict::Ack)
    };
    let event = within("a request", events.wait_for(is_it)).await.expect("nothing was missed");
    let Event::Request { names, unsubscribed, held, verdict, .. } = event else { unreachable!("waited for") };
    let held = held.into_iter().map(|(name, version)| {
        assert!(!version.is_empty(), "{name} is held in a version");
        name
    });
    Asked { names, unsubscribed, held: held.collect(), verdict }
}

/// A request that changes the subscription.
fn change(names: &[&str], unsubscribed: &[&str], held: &[&str]) -> Asked {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Asked { names: owned(names), unsubscribed: owned(unsubscribed), held: owned(held), verdict: Verdict::Request }
}

/// The names in the next response: those that come, and those that go.
async fn told(events: &mut EventReceiver) -> (Vec<String>, Vec<String>) {
    let is_it = |event: &Event| matches!(event, Event::Response { .. });
    let event = within("a response", events.wait_for(is_it)).await.expect("nothing was missed");
    let Event::Response { names, removed, .. } = event else { unreachable!("waited for") };
    (names, removed)
}

fn without(mut resources: Resources, kind: Kind, name: &str) -> Resources {
    assert!(resources.remove(kind.type_url(), name), "{name} was there");
    resources
}

async fn answers_only(channel: &MeshChannel, hostname: &str) {
    let moved = async { while unary(channel).await.expect("a reply") != hostname {} };
    within("the new endpoint", moved).await;
}

#[tokio::test]
async fn only_what_changed_is_sent_and_calls_follow() {
    let [a, b] = backends(["a", "b"]).await;
    let mesh = SocketMesh::start_in(Dialect::Delta, service("echo", &addresses([&a]))).await;
    let mut events = mesh.control_plane().events();
    let channel = mesh.ready("echo").await;
    let opened = within("a stream", events.wait_for(|event| matches!(event, Event::StreamOpened { .. }))).await;
    assert_eq!(opened, Ok(Event::StreamOpened { stream: 1, dialect: Dialect::Delta }));
    assert_eq!(unary(&channel).await.expect("a reply"), "a");
    mesh.applied(Kind::Endpoints, "echo-cluster").await;
    let versions = || {
        let status = mesh.mesh().status().xds;
        [Kind::Cluster, Kind::Endpoints].map(|kind| status.resource(kind, "echo-cluster")?.version.clone())
    };
    let before = versions();
    let mut events = mesh.control_plane().events();
    mesh.set(service("echo", &addresses([&b])));
    assert_eq!(told(&mut events).await, (vec!["echo-cluster".to_owned()], vec![]));
    mesh.applied(Kind::Endpoints, "echo-cluster").await;
    answers_only(&channel, "b").await;
    // Each resource has a version of its own.
    let after = versions();
    assert!(before[0].is_some() && before[0] == after[0] && before[1] != after[1], "{before:?} {after:?}");
}

#[tokio::test]
async fn names_are_subscribed_when_they_are_needed_and_unsubscribed_when_they_are_not() {
    let [a, b] = backends(["a", "b"]).await;
    let mut both = service("one", &addresses([&a]));
    both.extend(service("two", &addresses([&b])));
    let mesh = SocketMesh::start_in(Dialect::Delta, both).await;
    let mut events = mesh.control_plane().events();
    let one = mesh.ready("one").await;
    assert_eq!(asked(&mut events, Kind::Listener).await, change(&["one"], &[], &[]));
    for _ in 0..2 {
        let mut events = mesh.control_plane().events();
        let two = mesh.ready("two").await;
        assert_eq!(asked(&mut events, Kind::Listener).await, change(&["two"], &[], &[]));
        assert_eq!(asked(&mut events, Kind::RouteConfig).await, change(&["two-routes"], &[], &[]));
        assert_eq!(asked(&mut events, Kind::Cluster).await, change(&["two-cluster"], &[], &[]));
        assert_eq!(unary(&two).await.expect("a reply"), "b");
        let mut events = mesh.control_plane().events();
        drop(two);
        assert_eq!(asked(&mut events, Kind::Listener).await, change(&[], &["two"], &[]));
    }
    assert_eq!(unary(&one).await.expect("a reply"), "a");
}

#[tokio::test]
async fn what_was_removed_is_asked_for_again_and_its_return_is_told() {
    let [a, b] = backends(["a", "b"]).await;
    let all = service("echo", &addresses([&a]));
    let mesh = SocketMesh::start_in(Dialect::Delta, all.clone()).await;
    let channel = mesh.ready("echo").await;
    mesh.applied(Kind::Endpoints, "echo-cluster").await;
    for (kind, name) in [
        (Kind::Listener, "echo"),
        (Kind::RouteConfig, "echo-routes"),
        (Kind::Cluster, "echo-cluster"),
        (Kind::Endpoints, "echo-cluster"),
    ] {
        let mut events = mesh.control_plane().events();
        mesh.set(without(all.clone(), kind, name));
        assert_eq!(told(&mut events).await, (vec![], vec![name.to_owned()]));
        assert_eq!(asked(&mut events, kind).await, change(&[name], &[], &[]));
        // A deletion takes nothing away (A88).
        assert_eq!(unary(&channel).await.expect("a reply"), "a");
        mesh.set(all.clone());
        mesh.applied(kind, name).await;
        let is_back =
            || mesh.mesh().status().xds.resource(kind, name).is_some_and(|resource| resource.failure.is_none());
        until("the return", is_back).await;
    }
    mesh.set(service("echo", &addresses([&b])));
    answers_only(&channel, "b").await;
}

#[tokio::test]
async fn what_never_was_fails_at_once_however_long_the_timer() {
    let control_plane = ControlPlane::new();
    let serving = control_plane.listen("127.0.0.1:0").await.expect("a free port");
    let address = serving.local_addr().expect("bound").to_string();
    let server = XdsServer::new(mesh_xds::ServerAddress::parse(&address).expect("an address")).delta();
    let bootstrap = Bootstrap::builder().node_id("n").server(server).build().expect("a server");
    let mesh = Mesh::builder(bootstrap.with_resource_timeout(Duration::from_secs(3600))).build();
    let channel = mesh.channel("xds:///nobody").expect("a target");
    let failed = within("an answer", unary(&channel)).await.expect_err("no such listener");
    assert!(failed.message().contains("does not exist") && failed.message().contains("nobody"), "{failed}");
}

#[tokio::test]
async fn after_a_cut_nothing_that_is_held_is_sent_again() {
    let [a, b] = backends(["a", "b"]).await;
    let mesh = SocketMesh::start_in(Dialect::Delta, service("echo", &addresses([&a]))).await;
    let channel = mesh.ready("echo").await;
    mesh.applied(Kind::Endpoints, "echo-cluster").await;
    let mut events = mesh.control_plane().events();
    mesh.control_plane().cut_streams();
    assert_eq!(asked(&mut events, Kind::Listener).await, change(&["echo"], &[], &["echo"]));
    assert_eq!(asked(&mut events, Kind::RouteConfig).await, change(&["echo-routes"], &[], &["echo-routes"]));
    assert_eq!(asked(&mut events, Kind::Cluster).await, change(&["echo-cluster"], &[], &["echo-cluster"]));
    let resumed = asked(&mut events, Kind::Endpoints).await;
    assert_eq!(resumed, change(&["echo-cluster"], &[], &["echo-cluster"]));
    // The first response on the new stream is the first news.
    mesh.set(service("echo", &addresses([&b])));
    assert_eq!(told(&mut events).await, (vec!["echo-cluster".to_owned()], vec![]));
    answers_only(&channel, "b").await;
}

#[tokio::test]
async fn one_bad_resource_is_refused_by_name_and_comes_again_on_a_new_stream() {
    let [a, b] = backends(["a", "b"]).await;
    let good = service("echo", &addresses([&a]));
    let mesh = SocketMesh::start_in(Dialect::Delta, good.clone()).await;
    let channel = mesh.ready("echo").await;
    mesh.applied(Kind::Cluster, "echo-cluster").await;
    let mut bad = cluster_eds("echo-cluster");
    bad.lb_policy = 77;
    let mut events = mesh.control_plane().events();
    mesh.set(good.with(bad).with(endpoints("echo-cluster", &addresses([&b]))));
    let refused = asked(&mut events, Kind::Cluster).await;
    let Verdict::Nack { message } = &refused.verdict else { panic!("{refused:?}") };
    assert!(message.contains("echo-cluster") && message.contains("lb_policy"), "{message}");
    // Its sibling of another type took effect.
    answers_only(&channel, "b").await;
    mesh.control_plane().cut_streams();
    // Were the version before told as held, a server that went back to it would be silent, and the error would stay.
    assert_eq!(asked(&mut events, Kind::Cluster).await, change(&["echo-cluster"], &[], &[]));
    let refused = asked(&mut events, Kind::Cluster).await;
    assert!(matches!(refused.verdict, Verdict::Nack { .. }), "{refused:?}");
    assert_eq!(unary(&channel).await.expect("a reply"), "b");
}
