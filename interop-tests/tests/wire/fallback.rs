//! Fallback to another control plane (A71), as psm-interop's `fallback_test` has it, and what a shared stream adds.
//!
//! The primary's service leads to backend `a`, the secondary's to `b`, so that an answer tells whose word counts. However
//! the two are listed, and whichever variant of ADS they speak, the same must hold: see [`Shape`]. It does NOT test how
//! long a server is waited for.

use crate::{
    load_reports::{OFTEN, counts, reported},
    mesh::{Plane, ready_in, service, unary},
    rig::{addresses, backends, free_port, until, within},
};
use futures_util::future::join_all;
use interop_tests::backend::Backend;
use mesh_client::{Mesh, MeshChannel};
use mesh_xds::{
    Authority, Bootstrap, ServerAddress, StreamState, XdsServer,
    control_plane::{
        ReportedClusters, Resources,
        proto::envoy::config::{
            cluster::v3::{Cluster, cluster::EdsClusterConfig},
            endpoint::v3::ClusterStats,
        },
        resources::{cluster_eds, endpoints, listener, route_config, virtual_host},
    },
    resource::Kind,
};
use std::net::{Ipv4Addr, SocketAddr};
use tonic::Code;

/// How a mesh knows of the two.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// At the top level, in state of the world.
    Sotw,
    Delta,
    /// In an authority. At the top level is a server that is away, and of which nobody wants anything.
    Authority,
    /// With a third one between them, which is away.
    Three,
}

impl Shape {
    const ALL: [Self; 4] = [Self::Sotw, Self::Delta, Self::Authority, Self::Three];

    fn bootstrap(self, primary: XdsServer, secondary: XdsServer) -> Bootstrap {
        let builder = Bootstrap::builder().node_id("fallback");
        let away = || ServerAddress::Sockets(vec![(Ipv4Addr::LOCALHOST, free_port()).into()]);
        let builder = match self {
            Self::Sotw => builder.server(primary).server(secondary),
            Self::Delta => builder.server(primary.delta()).server(secondary.delta()),
            Self::Authority => {
                let far = Authority::default().server(primary).server(secondary);
                builder.server(away()).authority("far", far)
            }
            Self::Three => builder.server(primary).server(away()).server(secondary),
        };
        builder.build().expect("two servers")
    }

    /// What a resource is called there.
    fn name(self, kind: Kind, name: &str) -> String {
        let type_name = kind.type_url().trim_start_matches("type.googleapis.com/");
        if self == Self::Authority { format!("xdstp://far/{type_name}/{name}") } else { name.to_owned() }
    }

    fn target(self, name: &str) -> String {
        if self == Self::Authority { format!("xds://far/{name}") } else { format!("xds:///{name}") }
    }

    /// As [`service`], under the names that it has there.
    fn service(self, name: &str, address: SocketAddr) -> Resources {
        let of = |kind, suffix: &str| self.name(kind, &format!("{name}{suffix}"));
        let [routes, cluster] = [of(Kind::RouteConfig, "-routes"), of(Kind::Cluster, "-cluster")];
        let assignment = of(Kind::Endpoints, "-cluster");
        let by_name = cluster_eds(&cluster).eds_cluster_config;
        let by_name = by_name.map(|it| EdsClusterConfig { service_name: assignment.clone(), ..it });
        Resources::default()
            .with(listener(&of(Kind::Listener, ""), &routes))
            .with(route_config(&routes, vec![virtual_host("*", &cluster)]))
            .with(Cluster { eds_cluster_config: by_name, ..cluster_eds(&cluster) })
            .with(endpoints(&assignment, &[address]))
    }
}

/// Two control planes and a mesh that prefers the first.
struct World {
    shape: Shape,
    primary: Plane,
    secondary: Plane,
    mesh: Mesh,
}

impl World {
    async fn start(primary: Resources, secondary: Resources) -> Self {
        Self::start_in(Shape::Sotw, primary, secondary).await
    }

    async fn start_in(shape: Shape, primary: Resources, secondary: Resources) -> Self {
        let (primary, secondary) = (Plane::start(primary).await, Plane::start(secondary).await);
        let mesh = Mesh::builder(shape.bootstrap(primary.server(), secondary.server())).build();
        Self { shape, primary, secondary, mesh }
    }

    /// `echo` at `a` and at `b`.
    async fn of(shape: Shape, a: &Backend, b: &Backend) -> Self {
        Self::start_in(shape, shape.service("echo", a.address()), shape.service("echo", b.address())).await
    }

    fn channel(&self, name: &str) -> MeshChannel {
        self.mesh.channel(&self.shape.target(name)).expect("a valid target")
    }

    fn state_of(&self, plane: &Plane) -> StreamState {
        let (servers, wanted) = (self.mesh.status().xds.servers, plane.server().to_string());
        servers.into_iter().find(|it| it.server == wanted).expect("it is in the bootstrap").state
    }

    /// Until a dial of the primary has failed.
    async fn primary_is_away(&self) {
        let is_away = || matches!(self.state_of(&self.primary), StreamState::Unreachable { .. });
        until("the outage is noticed", is_away).await;
    }

    async fn secondary_is_left(&self) {
        let plane = self.secondary.control_plane();
        plane.wait_for_streams(0).await;
        assert_eq!(self.state_of(&self.secondary), StreamState::Idle);
    }
}

/// Calls, one after the other, until `backend` answers; none may fail.
async fn is_answered_by(channel: &MeshChannel, backend: &str) {
    let calls = async { while unary(channel).await.expect("no call fails") != backend {} };
    within(backend, calls).await;
}

#[tokio::test]
async fn the_secondary_serves_while_the_primary_is_away_and_the_primary_once_it_is_back() {
    join_all(Shape::ALL.map(primary_away)).await;
}

async fn primary_away(shape: Shape) {
    let [a, b] = backends(["a", "b"]).await;
    let mut world = World::of(shape, &a, &b).await;
    world.primary.stop();
    world.secondary.stop();
    let channel = world.channel("echo");
    // Only when the last server has failed, too, is it an error.
    let error = unary(&channel).await.expect_err("both are away");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("cannot be reached") && error.message().contains("fallback"), "{error}");

    world.secondary.start_again().await;
    until("the secondary", || world.secondary.control_plane().open_streams() == 1).await;
    channel.ready(std::time::Duration::from_secs(30)).await.expect("the secondary's");
    is_answered_by(&channel, "b").await;
    assert_eq!(a.counters().calls, 0);

    world.primary.start_again().await;
    is_answered_by(&channel, "a").await;
    world.secondary_is_left().await;

    // Everything is cached: the next outage sends nobody to the secondary.
    let before = world.secondary.control_plane().streams_opened();
    world.primary.stop();
    world.primary_is_away().await;
    for _ in 0..20 {
        assert_eq!(unary(&channel).await.expect("cached"), "a");
    }
    assert_eq!(world.secondary.control_plane().streams_opened(), before);
}

#[tokio::test]
async fn a_primary_that_dies_before_everything_is_there_is_replaced_as_a_whole() {
    join_all(Shape::ALL.map(primary_dies)).await;
}

async fn primary_dies(shape: Shape) {
    let [a, b] = backends(["a", "b"]).await;
    let mut world = World::of(shape, &a, &b).await;
    let clusters = Kind::Cluster.type_url();
    world.primary.control_plane().hold(clusters);
    let channel = world.channel("echo");
    let call = tokio::spawn({
        let channel = channel.clone();
        async move { unary(&channel).await }
    });
    world.primary.control_plane().wait_for_subscription(clusters, &shape.name(Kind::Cluster, "echo-cluster")).await;
    world.primary.stop();
    // Listener and routes of the primary are not mixed with clusters of the secondary: it answers for all.
    assert_eq!(call.await.expect("no panic").expect("it waited for the secondary"), "b");
    world.primary.control_plane().release(clusters);
    world.primary.start_again().await;
    is_answered_by(&channel, "a").await;
    world.secondary_is_left().await;
}

#[tokio::test]
async fn news_of_the_primary_that_stay_incomplete_are_replaced_by_what_the_secondary_has() {
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let mut world = World::of(Shape::Sotw, &a, &b).await;
    let channel = ready_in(&world.mesh, "echo").await;
    is_answered_by(&channel, "a").await;
    let clusters = Kind::Cluster.type_url();
    world.primary.control_plane().withhold(clusters, ["next-cluster"]);
    let next = service("next", &addresses([&c]));
    let mut resources = service("echo", &addresses([&a]));
    resources.extend(next);
    resources.insert(route_config("echo-routes", vec![virtual_host("*", "next-cluster")]));
    world.primary.control_plane().set_unchecked(resources);
    world.primary.control_plane().wait_for_subscription(clusters, "next-cluster").await;
    world.primary.stop();
    is_answered_by(&channel, "b").await;
    world.primary.control_plane().release(clusters);
    world.primary.start_again().await;
    is_answered_by(&channel, "c").await;
    world.secondary_is_left().await;
}

#[tokio::test]
async fn of_two_channels_only_the_one_that_misses_something_falls_back() {
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let both = |address| {
        let mut resources = service("echo", &[address]);
        resources.extend(service("shop", &[address]));
        resources
    };
    let mut world = World::start(both(a.address()), both(b.address())).await;
    let cached = ready_in(&world.mesh, "echo").await;
    is_answered_by(&cached, "a").await;
    world.primary.stop();
    world.primary_is_away().await;
    let new = world.channel("shop");
    is_answered_by(&new, "b").await;
    // One stream to the secondary, with what the new channel needs and nothing else.
    assert_eq!(world.secondary.control_plane().open_streams(), 1);
    let status = world.mesh.status();
    let secondary = &status.xds.servers[1].server;
    let asked = status.xds.resources.iter().filter(|resource| *resource.server == **secondary);
    let names: Vec<_> = asked.map(|resource| resource.name.as_str()).collect();
    assert_eq!(names, ["shop", "shop-routes", "shop-cluster", "shop-cluster"]);
    for _ in 0..20 {
        assert_eq!(unary(&cached).await.expect("cached"), "a");
    }
    // Each moves to what the primary says now.
    world.primary.control_plane().set_unchecked(both(c.address()));
    world.primary.start_again().await;
    is_answered_by(&cached, "c").await;
    is_answered_by(&new, "c").await;
    world.secondary_is_left().await;
}

/// "`lrs_server.self` expands to the server the CDS came from", which in an outage is another one.
#[tokio::test]
async fn load_is_reported_to_the_server_whose_cluster_is_called() {
    let [a, b] = backends(["a", "b"]).await;
    let reporting = |backend| reported("echo", &addresses([backend]), &[]);
    let mut world = World::start(reporting(&a), reporting(&b)).await;
    for plane in [&world.primary, &world.secondary] {
        plane.control_plane().request_load(OFTEN, ReportedClusters::All);
    }
    world.primary.stop();
    let channel = world.channel("echo");
    let has_some = |stats: &[ClusterStats]| counts(stats).1 > 0;
    is_answered_by(&channel, "b").await;
    let secondary = world.secondary.control_plane();
    within("a report", secondary.wait_for_load("fallback", "echo-cluster", has_some)).await;
    assert_eq!(world.primary.control_plane().load_streams_opened(), 0);
    world.primary.start_again().await;
    is_answered_by(&channel, "a").await;
    let primary = world.primary.control_plane();
    within("a report", primary.wait_for_load("fallback", "echo-cluster", has_some)).await;
    within("the end of its stream", secondary.wait_for_load_streams(0)).await;
}
