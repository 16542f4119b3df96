//! Fallback to another control plane (A71), as psm-interop's `fallback_test` has it, and what a shared stream adds.
//!
//! The primary's service leads to backend `a`, the secondary's to `b`, so that an answer tells whose word counts. It
//! does NOT test how long a server is waited for.

use crate::{
    mesh::{Plane, ready_in, service, unary},
    rig::{addresses, backends, until},
};
use interop_tests::backend::Backend;
use mesh_client::{Mesh, MeshChannel};
use mesh_xds::{
    Bootstrap, StreamState,
    control_plane::{
        Resources,
        resources::{route_config, virtual_host},
    },
    resource::Kind,
};
use tonic::Code;

/// Two control planes and a mesh that prefers the first.
struct World {
    primary: Plane,
    secondary: Plane,
    mesh: Mesh,
}

impl World {
    async fn start(primary: Resources, secondary: Resources) -> Self {
        let (primary, secondary) = (Plane::start(primary).await, Plane::start(secondary).await);
        let bootstrap = Bootstrap::builder().node_id("fallback").server(primary.server()).server(secondary.server());
        let mesh = Mesh::builder(bootstrap.build().expect("two servers")).build();
        Self { primary, secondary, mesh }
    }

    /// `echo` at `a` and at `b`.
    async fn of(a: &Backend, b: &Backend) -> Self {
        Self::start(service("echo", &addresses([a])), service("echo", &addresses([b]))).await
    }

    fn channel(&self, name: &str) -> MeshChannel {
        self.mesh.channel(&format!("xds:///{name}")).expect("a valid target")
    }

    /// Until a dial of the primary has failed.
    async fn primary_is_away(&self) {
        let is_away = || matches!(self.mesh.status().xds.servers[0].state, StreamState::Unreachable { .. });
        until("the outage is noticed", is_away).await;
    }

    async fn secondary_is_left(&self) {
        let plane = self.secondary.control_plane();
        plane.wait_for_streams(0).await;
        assert_eq!(self.mesh.status().xds.servers[1].state, StreamState::Idle);
    }
}

/// Calls, one after the other, until `backend` answers; none may fail.
async fn is_answered_by(channel: &MeshChannel, backend: &str) {
    let calls = async { while unary(channel).await.expect("no call fails") != backend {} };
    crate::rig::within(backend, calls).await;
}

#[tokio::test]
async fn the_secondary_serves_while_the_primary_is_away_and_the_primary_once_it_is_back() {
    let [a, b] = backends(["a", "b"]).await;
    let mut world = World::of(&a, &b).await;
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
    let [a, b] = backends(["a", "b"]).await;
    let mut world = World::of(&a, &b).await;
    let clusters = Kind::Cluster.type_url();
    world.primary.control_plane().hold(clusters);
    let channel = world.channel("echo");
    let call = tokio::spawn({
        let channel = channel.clone();
        async move { unary(&channel).await }
    });
    world.primary.control_plane().wait_for_subscription(clusters, "echo-cluster").await;
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
    let mut world = World::of(&a, &b).await;
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
