//! Names of several authorities (A47): who is asked for what, in which spelling, and over how many streams.
//!
//! It does NOT test fallback.

use crate::{
    load_reports::{OFTEN, counts, reporting},
    mesh::{Plane, service, unary},
    rig::{addresses, backends, within},
};
use mesh_client::{Mesh, TargetError};
use mesh_xds::{
    Authority, Bootstrap, BootstrapBuilder,
    control_plane::{
        Event, ReportedClusters, Resources,
        proto::envoy::config::{
            cluster::v3::{Cluster, cluster::EdsClusterConfig},
            endpoint::v3::ClusterStats,
        },
        resources::{cluster_eds, endpoints, listener, pack, route_config, virtual_host},
    },
    resource::Kind,
};
use tonic::Code;

const LISTENER: &str = "envoy.config.listener.v3.Listener";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";

fn mesh(bootstrap: BootstrapBuilder) -> Mesh {
    Mesh::builder(bootstrap.node_id("federation").build().expect("a valid bootstrap")).build()
}

#[tokio::test]
async fn a_template_makes_an_escaped_name_of_its_authority_and_any_order_of_parameters_answers_it() {
    let [a] = backends(["a"]).await;
    let plane = Plane::start(Resources::default()).await;
    let mut events = plane.control_plane().events();
    let template = format!("xdstp://auth/{LISTENER}/x/%s?p=1&k=2");
    let bootstrap = Bootstrap::builder().server(plane.server()).listener_template(template);
    let mesh = mesh(bootstrap.authority("auth", Authority::default()));
    let channel = mesh.channel_builder("xds:///h:80/z w").authority("h").build().expect("a valid target");
    let call = tokio::spawn(async move { unary(&channel).await });
    let asked = within("the request", async {
        loop {
            if let Ok(Event::Request { names, .. }) = events.recv().await {
                return names;
            }
        }
    });
    assert_eq!(asked.await, [format!("xdstp://auth/{LISTENER}/x/h:80/z%20w?k=2&p=1")]);
    // "`?a=1&b=2` and `?b=2&a=1` are the same resource", and of a key that comes twice the last value counts - A47.
    let mut world = service("echo", &addresses([&a]));
    assert!(world.remove(Kind::Listener.type_url(), "echo"));
    plane.control_plane().set_unchecked(world);
    let answer = listener(&format!("xdstp://auth/{LISTENER}/x/h:80/z%20w?k=1&p=1&k=2"), "echo-routes");
    plane.control_plane().send_raw(Kind::Listener.type_url(), "1", vec![pack(answer)]);
    assert_eq!(call.await.expect("no panic").expect("a reply"), "a");
}

#[tokio::test]
async fn a_target_of_an_unknown_authority_is_refused_and_nobody_is_asked() {
    let plane = Plane::start(Resources::default()).await;
    let mesh = mesh(Bootstrap::builder().server(plane.server()));
    let refused = mesh.channel("xds://nope/h").expect_err("the bootstrap does not have it");
    assert_eq!(refused, TargetError::Authority("xds://nope/h".to_owned()));
    assert_eq!(plane.control_plane().streams_opened(), 0);
}

#[tokio::test]
async fn authorities_with_equal_servers_share_one_stream() {
    let [a, b] = backends(["a", "b"]).await;
    let name = format!("xdstp://auth/{LISTENER}/echo");
    let mut resources = service("echo", &addresses([&a]));
    resources.extend(service("other", &addresses([&b])));
    resources.insert(listener(&name, "other-routes"));
    let plane = Plane::start(resources).await;
    let authority = Authority::default().server(plane.server());
    let mesh = mesh(Bootstrap::builder().server(plane.server()).authority("auth", authority));
    let plain = mesh.channel("xds:///echo").expect("a valid target");
    let federated = mesh.channel("xds://auth/echo").expect("a known authority");
    assert_eq!(unary(&plain).await.expect("a reply"), "a");
    assert_eq!(unary(&federated).await.expect("a reply"), "b");
    assert_eq!(plane.control_plane().streams_opened(), 1);
}

#[tokio::test]
async fn each_name_is_asked_for_at_the_servers_of_its_authority() {
    let [a] = backends(["a"]).await;
    let routes = format!("xdstp://partner/{ROUTES}/echo");
    // Ours has listener, cluster and endpoints; the partner's has the routes in between.
    let ours = Plane::start(
        Resources::default()
            .with(listener("echo", &routes))
            .with(cluster_eds("echo-cluster"))
            .with(endpoints("echo-cluster", &addresses([&a]))),
    )
    .await;
    let theirs =
        Plane::start(Resources::default().with(route_config(&routes, vec![virtual_host("*", "echo-cluster")]))).await;
    let partner = Authority::default().server(theirs.server());
    let mesh = mesh(Bootstrap::builder().server(ours.server()).authority("partner", partner));
    // As A47 writes targets without an authority.
    let channel = mesh.channel("xds:echo").expect("a valid target");
    assert_eq!(unary(&channel).await.expect("a reply"), "a");
    let status = mesh.status().xds;
    let of = |kind, name: &str| status.resource(kind, name).expect("subscribed").server.to_string();
    assert_eq!(of(Kind::RouteConfig, &routes), status.servers[1].server);
    assert_eq!(of(Kind::Cluster, "echo-cluster"), status.servers[0].server);
}

/// "`lrs_server.self` expands to the server the CDS came from" (A27, A47), which has the load, and nobody else.
#[tokio::test]
async fn load_is_reported_to_the_server_that_has_the_cluster() {
    let [a] = backends(["a"]).await;
    let [cluster, assignment] = [CLUSTER, ENDPOINTS].map(|kind| format!("xdstp://partner/{kind}/echo"));
    let ours = Plane::start(
        Resources::default()
            .with(listener("echo", "echo-routes"))
            .with(route_config("echo-routes", vec![virtual_host("*", &cluster)])),
    )
    .await;
    let named = EdsClusterConfig {
        service_name: assignment.clone(),
        ..reporting(&cluster, &[]).eds_cluster_config.expect("it is EDS")
    };
    let theirs = Plane::start(
        Resources::default()
            .with(Cluster { eds_cluster_config: Some(named), ..reporting(&cluster, &[]) })
            .with(endpoints(&assignment, &addresses([&a]))),
    )
    .await;
    for plane in [&ours, &theirs] {
        plane.control_plane().request_load(OFTEN, ReportedClusters::All);
    }
    let partner = Authority::default().server(theirs.server());
    let mesh = mesh(Bootstrap::builder().server(ours.server()).authority("partner", partner));
    let channel = mesh.channel("xds:///echo").expect("a valid target");
    assert_eq!(unary(&channel).await.expect("a reply"), "a");
    let enough = |stats: &[ClusterStats]| counts(stats) == (1, 1, 0, 0);
    within("the report", theirs.control_plane().wait_for_load("federation", &cluster, enough)).await;
    assert_eq!(ours.control_plane().load_streams_opened(), 0);
}

#[tokio::test]
async fn a_reference_to_an_unknown_authority_fails_what_refers_to_it() {
    let routes = format!("xdstp://nope/{ROUTES}/echo");
    let plane = Plane::start(Resources::default().with(listener("echo", &routes))).await;
    let mesh = mesh(Bootstrap::builder().server(plane.server()));
    let channel = mesh.channel("xds:///echo").expect("a valid target");
    let error = unary(&channel).await.expect_err("nobody has the routes");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("the bootstrap has no authority \"nope\""), "{error}");
}
