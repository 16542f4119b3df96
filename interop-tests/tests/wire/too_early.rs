//! A control plane that says of something too early that it does not exist takes nothing away that works.
//!
//! A server that sends routes before the clusters in them, and removes in delta what it does not have, answers the
//! subscription of each of those clusters with "removed" first. SotW has no such word. Calls see no difference: what was
//! complete serves until the name is there, no longer needed, or still missing when its timer fires (A57, A74). What was
//! there and is deleted is the business of `data_errors`.

use crate::{
    load::Load,
    mesh::{Plane, SocketMesh, ready_in, unary},
    rig::{addresses, backends, until, within},
};
use interop_tests::proto::testing::{Empty, test_service_client::TestServiceClient};
use mesh_client::{Mesh, MeshChannel};
use mesh_xds::{
    Bootstrap,
    control_plane::{
        ControlPlane, Dialect, Event, EventReceiver, Resources,
        proto::envoy::config::cluster::v3::{Cluster, cluster::EdsClusterConfig},
        resources::{
            ads, cluster_eds, endpoints, listener, route, route_config, to_cluster, virtual_host, virtual_host_with,
        },
    },
    resource::Kind,
};
use std::{net::SocketAddr, time::Duration};
use tonic::{Code, Status};

/// One service, whose four resources have names of their own.
fn world(routes: &str, cluster: &str, assignment: &str, addresses: &[SocketAddr]) -> Resources {
    Resources::default()
        .with(listener("echo", routes))
        .with(route_config(routes, vec![virtual_host("*", cluster)]))
        .with(with_endpoints(cluster, assignment))
        .with(endpoints(assignment, addresses))
}

fn with_endpoints(name: &str, assignment: &str) -> Cluster {
    let config = EdsClusterConfig { eds_config: Some(ads()), service_name: assignment.to_owned() };
    Cluster { eds_cluster_config: Some(config), ..cluster_eds(name) }
}

/// Waits until the client has asked for a name that is not there, and in delta until it was told so and took it.
async fn missed(control_plane: &ControlPlane, events: &mut EventReceiver, dialect: Dialect, kind: Kind, name: &str) {
    let asks = |event: &Event| {
        matches!(event, Event::Request { type_url, names, .. }
            if type_url == kind.type_url() && names.iter().any(|asked| asked == name))
    };
    within(&format!("{kind} {name} is asked for"), events.wait_for(asks)).await.expect("nothing was missed");
    if dialect == Dialect::Delta {
        within("the removal is ACKed", control_plane.wait_for_ack(kind.type_url(), name)).await;
    }
}

async fn answers_only(channel: &MeshChannel, hostname: &str) {
    let moved = async { while unary(channel).await.expect("a reply") != hostname {} };
    within("the new endpoint", moved).await;
}

async fn what_serves_goes_on(dialect: Dialect) {
    let [a, b] = backends(["a", "b"]).await;
    let before = world("routes", "c", "e", &addresses([&a]));
    let mesh = SocketMesh::start_in(dialect, before.clone()).await;
    let channel = mesh.ready("echo").await;
    let load = Load::start(channel.clone(), 500);
    // The listener names routes, the routes a cluster, the cluster endpoints that the control plane does not have yet.
    let early = [
        (Kind::RouteConfig, before.clone().with(listener("echo", "new")), world("new", "c", "e", &addresses([&b]))),
        (
            Kind::Cluster,
            before.clone().with(route_config("routes", vec![virtual_host("*", "new")])),
            world("routes", "new", "e", &addresses([&b])),
        ),
        (
            Kind::Endpoints,
            before.clone().with(with_endpoints("c", "new")),
            world("routes", "c", "new", &addresses([&b])),
        ),
    ];
    for (kind, early, whole) in early {
        let mut events = mesh.control_plane().events();
        mesh.set(early.clone());
        missed(mesh.control_plane(), &mut events, dialect, kind, "new").await;
        load.goes_on(20).await;
        assert_eq!(unary(&channel).await.expect("a reply"), "a", "{kind}");

        // It is no longer needed: nothing has happened.
        mesh.set(before.clone());
        within("nobody asks for it", mesh.control_plane().wait_for_unsubscription(kind.type_url(), "new")).await;
        load.goes_on(20).await;

        // Once more, and then it comes.
        let mut events = mesh.control_plane().events();
        mesh.set(early);
        missed(mesh.control_plane(), &mut events, dialect, kind, "new").await;
        load.goes_on(20).await;
        mesh.set(whole);
        answers_only(&channel, "b").await;

        mesh.set(before.clone());
        answers_only(&channel, "a").await;
    }
    load.stop().await.were_all_answered();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_serves_goes_on_when_something_new_does_not_exist_yet() {
    what_serves_goes_on(Dialect::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_serves_goes_on_when_something_new_does_not_exist_yet_in_delta() {
    what_serves_goes_on(Dialect::Delta).await;
}

async fn empty_call(channel: &MeshChannel) -> Result<(), Status> {
    TestServiceClient::new(channel.clone()).empty_call(Empty::default()).await.map(drop)
}

/// "existing routes unaffected for 15 s, afterwards config applied and only that route UNAVAILABLE" - A74.
async fn what_still_does_not_exist_fails(dialect: Dialect) {
    let [a] = backends(["a"]).await;
    let before = world("routes", "c", "e", &addresses([&a]));
    let plane = Plane::start(before.clone()).await;
    let server = if dialect == Dialect::Delta { plane.server().delta() } else { plane.server() };
    let bootstrap = Bootstrap::builder().node_id("impatient").server(server).build().expect("a server");
    let mesh = Mesh::builder(bootstrap.with_resource_timeout(Duration::from_millis(200))).build();
    let channel = ready_in(&mesh, "echo").await;
    empty_call(&channel).await.expect("a reply");
    let to_nothing = route("/grpc.testing.TestService/EmptyCall", to_cluster("new"));
    let hosts = vec![virtual_host_with("*", vec![to_nothing, route("", to_cluster("c"))])];
    plane.control_plane().set_unchecked(before.with(route_config("routes", hosts)));
    let failed = async {
        loop {
            if let Err(status) = empty_call(&channel).await {
                return status;
            }
        }
    };
    let status = within("the new routes", failed).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("\"new\": does not exist"), "{}", status.message());
    assert_eq!(unary(&channel).await.expect("a reply"), "a", "only that route");
}

#[tokio::test]
async fn what_still_does_not_exist_when_its_timer_fires_fails_its_own_calls() {
    what_still_does_not_exist_fails(Dialect::Sotw).await;
}

#[tokio::test]
async fn what_still_does_not_exist_when_its_timer_fires_fails_its_own_calls_in_delta() {
    what_still_does_not_exist_fails(Dialect::Delta).await;
}

/// Who serves nothing yet has nothing to lose by the control plane's word.
#[tokio::test]
async fn a_new_channel_hears_in_delta_at_once_that_its_cluster_does_not_exist() {
    let [a] = backends(["a"]).await;
    let hosts = vec![virtual_host("*", "nowhere")];
    let world = world("routes", "c", "e", &addresses([&a])).with(route_config("routes", hosts));
    let plane = Plane::start(world).await;
    let bootstrap = Bootstrap::builder().node_id("new").server(plane.server().delta()).build().expect("a server");
    let mesh = Mesh::builder(bootstrap.with_resource_timeout(Duration::from_secs(3600))).build();
    let channel = mesh.channel("xds:///echo").expect("a valid target");
    let status = within("the error", unary(&channel)).await.expect_err("there is no such cluster");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("\"nowhere\": does not exist: the control plane says so"),
        "{}",
        status.message()
    );
    // And it is there as soon as the cluster is.
    plane.control_plane().set_unchecked(self::world("routes", "nowhere", "e", &addresses([&a])));
    until("the cluster", || mesh.status().applied_version(Kind::Cluster, "nowhere").is_some()).await;
    assert_eq!(unary(&channel).await.expect("a reply"), "a");
}
