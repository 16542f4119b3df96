//! Aggregate clusters over the wire: one list of clusters, the first of which that works gets the calls (A37, A74, A75).
//!
//! All calls go to cluster `a`, which aggregates others. Priorities within one cluster are `balancing`'s.

use crate::{
    balancing::{in_turn, one_locality},
    features::{World, check, fails, features, from, grpc, only},
    mesh::unary,
    rig::{addresses, backends, within},
};
use futures_util::FutureExt;
use mesh_client::{Bootstrap, Mesh, MeshChannel};
use mesh_xds::control_plane::{
    ControlPlane, Resources,
    resources::{cluster_static, listener, route_config, virtual_host},
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// A cluster that aggregates these.
macro_rules! aggregate {
    ($clusters:literal) => {
        concat!(
            "{type: null, eds_cluster_config: null, cluster_type: {name: envoy.clusters.aggregate, typed_config: {
                '@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: ",
            $clusters,
            "}}}"
        )
    };
}

pub(crate) use aggregate;

/// Calls without a pause while `changes` are made; fails when one of them does.
async fn under_calls(
    world: &mut World,
    changes: impl AsyncFnOnce(&mut World) -> Result<(), String>,
) -> Result<(), String> {
    let (channel, done) = (world.channel.clone(), AtomicBool::new(false));
    let calls = async {
        while !done.load(Ordering::Relaxed) {
            grpc().on(&channel).await.map_err(|failure| format!("no call to fail: {failure}"))?;
        }
        Ok(())
    };
    let changes = changes(world).inspect(|_| done.store(true, Ordering::Relaxed));
    let (calls, changes) = tokio::join!(calls, changes);
    calls.and(changes)
}

features! {
    in_order {
        row: "aggregate clusters: the first one with endpoints, and no call fails as they come and go",
        source: "A37, `aggregate.v3.ClusterConfig.clusters`",
        config: concat!("{clusters: {a: ", aggregate!("[b, c]"), "}, endpoints: {b: {endpoints: []}}}"),
        strip: [("/clusters/a/cluster_type/typed_config/clusters", "[b]")],
        |world| {
            only("c", &world.calls(60, grpc()).await)?;
            under_calls(world, async |world| {
                world.update("/endpoints/b/endpoints", "[{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$b}]}]").await?;
                world.ready("a", 2).await
            }).await?;
            only("b", &world.calls(60, grpc()).await)?;
            under_calls(world, async |world| world.update("/endpoints/b/endpoints", "[]").await).await?;
            only("c", &world.calls(60, grpc()).await)?;
            check(world.c.counters().connections == 1, "one connection to c all the time")
        }
    }

    fail_over {
        row: "aggregate clusters: all priorities of one cluster before the next one",
        source: "A37, A56, `aggregate.v3.ClusterConfig.clusters`",
        config: concat!("{clusters: {a: ", aggregate!("[b, c]"), "}, endpoints: {b: {endpoints: [
            {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]},
            {locality: {region: s}, load_balancing_weight: 1, priority: 1, lb_endpoints: [{$b}]}]}}}"),
        strip: [("/clusters/a/cluster_type/typed_config/clusters", "[c, b]")],
        |world| {
            only("b", &world.calls(60, grpc()).await)?;
            let all_refuse = "[{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{endpoint: {
                address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]";
            under_calls(world, async |world| world.update("/endpoints/b/endpoints", all_refuse).await).await?;
            only("c", &world.calls(60, grpc()).await)
        }
    }

    policy_of_the_leaf {
        row: "aggregate clusters: the policy is the leaf's, and not the aggregate's", source: "A75, `Cluster.lb_policy`",
        config: concat!("{clusters: {a: ", aggregate!("[b]"), ", b: {lb_policy: ROUND_ROBIN}}, endpoints: {b: {", one_locality!("[{$a}, {$b}, {$c}]"), "}}}"),
        strip: [("/clusters/b/lb_policy", "RANDOM")],
        |world| {
            world.update("/clusters/a/lb_policy", "RANDOM").await?;
            check(in_turn(world).await?, "any three calls in a row at three backends")
        }
    }

    drops_of_the_leaf {
        row: "aggregate clusters: drops are those of the leaf that gets the call", source: "A37, `ClusterLoadAssignment.policy.drop_overloads`",
        config: concat!("{clusters: {a: ", aggregate!("[b, c]"), "}, endpoints: {b: {endpoints: []},
            c: {policy: {drop_overloads: [{category: all, drop_percentage: {numerator: 100}}]}}}}"),
        strip: [("/endpoints/c/policy", "")],
        |world| {
            fails("Unavailable", &["dropped", "\"all\"", "in-process"], world.call(grpc()).await)?;
            world.update("/endpoints/b/endpoints", "[{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$b}]}]").await?;
            world.ready("a", 2).await?;
            only("b", &world.calls(60, grpc()).await)
        }
    }

    tls_of_the_leaf {
        row: "aggregate clusters: security is the leaf's; one that can not be honoured is passed over, never plaintext",
        source: "A37, `Cluster.transport_socket`",
        config: concat!("{clusters: {a: ", aggregate!("[b, c]"), ", b: {transport_socket: {name: envoy.transport_sockets.tls, typed_config: {
            '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext,
            common_tls_context: {validation_context: {system_root_certs: {}}}}}}}}"),
        strip: [("/clusters/b", "{}")],
        |world| {
            only("c", &world.calls(60, grpc()).await)?;
            check(world.b.counters().connections == 0, "no connection")
        }
    }

    diamond {
        row: "aggregate clusters: below each other, depth first, one that comes again keeps its first place",
        source: "A37, `aggregate.v3.ClusterConfig.clusters`",
        config: concat!("clusters: {a: ", aggregate!("[x, y]"), ", x: ", aggregate!("[d]"), ", y: ", aggregate!("[b, d]"), "}"),
        strip: [("/clusters/x", "{type: STATIC}")],
        |world| {
            from("d", world.call(grpc()).await)?;
            let cluster = world.channel.status().clusters.into_iter().find(|cluster| cluster.name == "a");
            let endpoints = cluster.map_or(0, |cluster| cluster.endpoints.len());
            check(endpoints == 2, format!("d's endpoint once and b's, and not {endpoints}"))
        }
    }

    cycle {
        row: "aggregate clusters: a cycle is followed once, and one without a leaf fails its calls alone",
        source: "A37, `aggregate.v3.ClusterConfig.clusters`",
        config: concat!("{clusters: {a: ", aggregate!("[x]"), ", x: ", aggregate!("[a, b]"), "}}"),
        strip: [("/clusters/x/cluster_type/typed_config/clusters", "[c]")],
        |world| {
            from("b", world.call(grpc()).await)?;
            world.update("/clusters/x/cluster_type/typed_config/clusters", "[x, a]").await?;
            fails("Unavailable", &["\"a\"", "aggregates only itself", "in-process"], world.call(grpc()).await)?;
            world.update("/clusters/x/cluster_type/typed_config/clusters", "[x, b]").await?;
            from("b", world.call(grpc()).await)
        }
    }

    depth {
        row: "aggregate clusters: 16 levels with the leaf, and no more", source: "A37, `aggregate.v3.ClusterConfig.clusters`",
        config: concat!("{clusters: {a: ", aggregate!("[l2]"),
            ", l2: ", aggregate!("[l3]"), ", l3: ", aggregate!("[l4]"), ", l4: ", aggregate!("[l5]"), ", l5: ", aggregate!("[l6]"),
            ", l6: ", aggregate!("[l7]"), ", l7: ", aggregate!("[l8]"), ", l8: ", aggregate!("[l9]"), ", l9: ", aggregate!("[l10]"),
            ", l10: ", aggregate!("[l11]"), ", l11: ", aggregate!("[l12]"), ", l12: ", aggregate!("[l13]"), ", l13: ", aggregate!("[l14]"),
            ", l14: ", aggregate!("[l15]"), ", l15: ", aggregate!("[b]"), ", m: ", aggregate!("[b]"), "}}"),
        strip: [("/clusters/l15/cluster_type/typed_config/clusters", "[c]")],
        |world| {
            from("b", world.call(grpc()).await)?;
            world.update("/clusters/l15/cluster_type/typed_config/clusters", "[m]").await?;
            fails("Unavailable", &["\"a\"", "more than 16 levels deep", "in-process"], world.call(grpc()).await)
        }
    }
}

/// One that does not exist is skipped, and used when it comes; without any, calls fail (A74).
#[tokio::test]
async fn child_that_is_not_there() {
    let [b, c] = backends(["b", "c"]).await;
    let aggregate = Resources::from_yaml(
        "resources: [{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a, cluster_type: {
            name: envoy.clusters.aggregate, typed_config: {
            '@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [b, c]}}}]",
    );
    let mut resources = aggregate.expect("a cluster").with(listener("svc", "routes"));
    resources.insert(route_config("routes", vec![virtual_host("*", "a")]));
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(resources.clone());
    let bootstrap = Bootstrap::builder().node_id("n").server(control_plane.in_process()).build().expect("a server");
    // Instead of 15 s.
    let mesh = Mesh::builder(bootstrap.with_resource_timeout(Duration::from_millis(300))).build();
    let channel = mesh.channel("xds:///svc").expect("a valid target");
    let status = unary(&channel).await.expect_err("there is neither");
    for part in ["\"a\"", "none of the clusters", "\"b\"", "does not exist", "\"n\""] {
        assert!(status.message().contains(part), "{part} in {status}");
    }
    resources.insert(cluster_static("c", &addresses([&c])));
    control_plane.set_unchecked(resources.clone());
    answers(&channel, "c").await;
    // From here on no call may fail.
    resources.insert(cluster_static("b", &addresses([&b])));
    control_plane.set_unchecked(resources);
    within("b", async { while unary(&channel).await.expect("no call fails") != "b" {} }).await;
    assert_eq!(c.counters().connections, 1);
}

/// Calls until `hostname` answers.
async fn answers(channel: &MeshChannel, hostname: &str) {
    within(hostname, async { while unary(channel).await.ok().as_deref() != Some(hostname) {} }).await;
}
