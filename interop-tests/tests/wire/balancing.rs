//! Which endpoint of a cluster takes a call (A27, A52, A56, A62), over the wire.
//!
//! All calls go to cluster `a` unless a scenario says otherwise. It does NOT test what becomes of calls in flight when
//! an endpoint goes.

use crate::features::{World, check, features, from, get, grpc, only, share};
use mesh_xds::resource::Kind;
use std::{collections::BTreeSet, time::Duration};
use tokio::{net::TcpListener, time::timeout};

/// How long what can come may take. A scenario without its field waits that long for what can not.
const PATIENCE: Duration = Duration::from_secs(8);

/// Backend a, and b for when it is gone.
const TWO_PRIORITIES: &str = "endpoints: {a: {endpoints: [
    {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]},
    {locality: {region: s}, load_balancing_weight: 1, lb_endpoints: [{$b}], priority: 1}]}}";

/// Whether any three calls in a row went to three backends.
pub(crate) async fn in_turn(world: &World) -> Result<bool, String> {
    world.ready("a", 3).await?;
    let answers = world.in_turn(30, grpc()).await?;
    Ok(answers.windows(3).all(|three| BTreeSet::from_iter(three).len() == 3))
}

/// Calls until `hostname` answers; the failures before that.
async fn until(hostname: &str, world: &World) -> Result<Vec<String>, String> {
    let answered = async {
        let mut failures = Vec::new();
        loop {
            match world.call(grpc()).await {
                Ok(answer) if answer == hostname => return failures,
                Ok(_) => {}
                Err(failure) => failures.push(failure),
            }
        }
    };
    timeout(PATIENCE, answered).await.map_err(|_| format!("an answer from {hostname}"))
}

/// Replaces the endpoints of the first locality of cluster a by one that accepts connections and says nothing.
pub(crate) async fn first_endpoint_is_silent(world: &mut World) -> Result<TcpListener, String> {
    endpoint_is_silent(world, 0).await
}

/// The same for another locality.
pub(crate) async fn endpoint_is_silent(world: &mut World, locality: usize) -> Result<TcpListener, String> {
    let socket = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    let port = socket.local_addr().map_err(|error| error.to_string())?.port();
    let endpoint =
        format!("[{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]");
    world.update(&format!("/endpoints/a/endpoints/{locality}/lb_endpoints"), &endpoint).await?;
    Ok(socket)
}

/// The `load_assignment`, or the assignment, of one locality with these endpoints.
macro_rules! one_locality {
    ($endpoints:literal) => {
        concat!("endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: ", $endpoints, "}]")
    };
}

pub(crate) use one_locality;

/// A cluster's typed policy.
macro_rules! typed_policy {
    ($name:literal, $type:literal) => {
        concat!(
            "{typed_extension_config: {name: ",
            $name,
            ", typed_config: {'@type': type.googleapis.com/envoy.extensions.load_balancing_policies.",
            $type,
            "}}}"
        )
    };
}

features! {
    // === Policies ===

    round_robin {
        row: "round_robin: READY endpoints in turn", source: "A27, `Cluster.lb_policy: ROUND_ROBIN`",
        config: concat!("{clusters: {a: {lb_policy: ROUND_ROBIN}}, endpoints: {a: {", one_locality!("[{$a}, {$b}, {$c}]"), "}}}"),
        strip: [("/clusters/a/lb_policy", "RANDOM")],
        |world| {
            check(in_turn(world).await?, "any three calls in a row at three backends")
        }
    }

    random {
        row: "random: endpoints by chance", source: "Envoy, `Cluster.lb_policy: RANDOM`",
        config: concat!("{clusters: {a: {lb_policy: RANDOM}}, endpoints: {a: {", one_locality!("[{$a}, {$b}, {$c}]"), "}}}"),
        strip: [("/clusters/a/lb_policy", "")],
        |world| {
            check(!in_turn(world).await?, "calls in no order")?;
            let counts = world.calls(2223, grpc()).await;
            ["a", "b", "c"].into_iter().try_for_each(|backend| share(backend, 1.0 / 3.0, &counts))
        }
    }

    pick_first {
        row: "pick_first: one connection; the next address when it goes",
        source: "A62, `load_balancing_policies.pick_first.v3.PickFirst`",
        config: concat!("{clusters: {a: {load_balancing_policy: {policies: [", typed_policy!("p", "pick_first.v3.PickFirst"),
                        "]}}}, endpoints: {a: {", one_locality!("[{$a}, {$b}, {$c}]"), "}}}"),
        strip: [("/clusters/a/load_balancing_policy", "")],
        |world| {
            only("a", &world.calls(60, grpc()).await)?;
            let connections = [&world.b, &world.c].map(|backend| backend.counters().connections);
            check(connections == [0, 0], format!("no connection to b and c, and not {connections:?}"))?;
            world.a.kill().await;
            until("b", world).await?;
            only("b", &world.calls(60, grpc()).await)
        }
    }

    policy_list {
        row: "policy list: the first known one counts, and beats `lb_policy`", source: "A52, `Cluster.load_balancing_policy`",
        config: concat!("{clusters: {a: {lb_policy: ROUND_ROBIN, load_balancing_policy: {policies: [",
                        typed_policy!("unknown", "subset.v3.Subset"), ", ", typed_policy!("p", "pick_first.v3.PickFirst"), ", ",
                        typed_policy!("r", "random.v3.Random"), "]}}}, endpoints: {a: {", one_locality!("[{$a}, {$b}]"), "}}}"),
        strip: [("/clusters/a/load_balancing_policy/policies/1", "")],
        |world| {
            only("a", &world.calls(60, grpc()).await)
        }
    }

    wrr_locality {
        row: "policy list: wrr_locality holds the policy of the endpoints",
        source: "A52, `load_balancing_policies.wrr_locality.v3.WrrLocality`",
        config: concat!("{clusters: {a: {load_balancing_policy: {policies: [{typed_extension_config: {name: w, typed_config: {
                    '@type': type.googleapis.com/envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality,
                    endpoint_picking_policy: {policies: [", typed_policy!("r", "random.v3.Random"), "]}}}}]}}},
                    endpoints: {a: {", one_locality!("[{$a}, {$b}, {$c}]"), "}}}"),
        strip: [("/clusters/a/load_balancing_policy", "")],
        |world| {
            check(!in_turn(world).await?, "calls in no order")
        }
    }

    policies_to_come {
        row: "least_request, ring_hash and maglev are validated, run as round_robin, and say so",
        source: "A42, A48, `Cluster.lb_policy`",
        config: concat!("{clusters: {a: {lb_policy: LEAST_REQUEST, least_request_lb_config: {choice_count: 3}},
                                     b: {lb_policy: RING_HASH}, c: {lb_policy: MAGLEV},
                                     d: {load_balancing_policy: {policies: [", typed_policy!("h", "ring_hash.v3.RingHash"), "]}}},
                          endpoints: {a: {", one_locality!("[{$a}, {$b}, {$c}]"), "}},
                          routes: [{match: {prefix: /b}, route: {cluster: b}}, {match: {prefix: /c}, route: {cluster: c}},
                                   {match: {prefix: /d}, route: {cluster: d}}, {match: {prefix: ''}, route: {cluster: a}}]}"),
        strip: [("/clusters/a/lb_policy", "")],
        |world| {
            check(in_turn(world).await?, "any three calls in a row at three backends")?;
            for (cluster, path) in [("b", "/b"), ("c", "/c"), ("d", "/d")] {
                from(cluster, world.call(get(path)).await)?;
            }
            for cluster in ["a", "b", "c"] {
                world.ignores(Kind::Cluster, cluster, "lb_policy")?;
            }
            world.ignores(Kind::Cluster, "d", "load_balancing_policy.policies[0].typed_extension_config.typed_config")
        }
    }

    // === Localities and priorities ===

    locality_weights {
        row: "localities by weight, whatever their number of endpoints",
        source: "A27, `LocalityLbEndpoints.load_balancing_weight`",
        config: "endpoints: {a: {endpoints: [
                    {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]},
                    {locality: {region: s}, load_balancing_weight: 3, lb_endpoints: [{$b}]}]}}",
        strip: [("/endpoints/a/endpoints/1/load_balancing_weight", "1")],
        |world| {
            world.ready("a", 2).await?;
            share("b", 0.75, &world.calls(1875, grpc()).await)?;
            world.update("/endpoints/a/endpoints/1/lb_endpoints", "[{$b}, {$c}, {$d}]").await?;
            world.ready("a", 4).await?;
            share("a", 0.25, &world.calls(1875, grpc()).await)
        }
    }

    locality_without_weight {
        row: "a locality without weight gets no call", source: "A27, `LocalityLbEndpoints.load_balancing_weight`",
        config: "endpoints: {a: {endpoints: [
                    {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]},
                    {locality: {region: s}, lb_endpoints: [{$b}]},
                    {locality: {region: t}, load_balancing_weight: 0, lb_endpoints: [{$c}]}]}}",
        strip: [("/endpoints/a/endpoints/0/load_balancing_weight", ""), ("/endpoints/a/endpoints/1/load_balancing_weight", "1")],
        |world| {
            only("a", &world.calls(60, grpc()).await)?;
            let connections = [&world.b, &world.c].map(|backend| backend.counters().connections);
            check(connections == [0, 0], format!("no connection to b and c, and not {connections:?}"))
        }
    }

    locality_that_is_gone {
        row: "the weight of a locality that cannot be reached goes to the others",
        source: "A27, `ClusterLoadAssignment.endpoints`",
        config: "endpoints: {a: {endpoints: [
                    {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]},
                    {locality: {region: s}, load_balancing_weight: 99, lb_endpoints: [{$b}]}]}}",
        strip: [("/endpoints/a/endpoints/0", "")],
        |world| {
            world.b.kill().await;
            until("a", world).await?;
            world.lost("a", 1).await?;
            only("a", &world.calls(60, grpc()).await)
        }
    }

    priorities {
        row: "priorities: the next one when all endpoints fail, and back once one recovers",
        source: "A56, `LocalityLbEndpoints.priority`",
        config: "endpoints: {a: {endpoints: [
                    {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]},
                    {locality: {region: s}, load_balancing_weight: 1, lb_endpoints: [{$b}], priority: 1}]}}",
        strip: [("/endpoints/a/endpoints/1/priority", "")],
        |world| {
            only("a", &world.calls(60, grpc()).await)?;
            check(world.b.counters().connections == 0, "no connection to b while a is there")?;
            world.a.kill().await;
            until("b", world).await?;
            only("b", &world.calls(60, grpc()).await)?;
            world.a.revive().await.map_err(|error| error.to_string())?;
            world.leap(120).await;
            let failures = until("a", world).await?;
            check(failures.is_empty(), format!("no failed call, and not {failures:?}"))?;
            only("a", &world.calls(60, grpc()).await)
        }
    }

    part_of_a_priority {
        row: "priorities: no call to the next one while one endpoint is left",
        source: "A56, `LocalityLbEndpoints.priority`",
        config: "endpoints: {a: {endpoints: [
                    {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}, {$b}]},
                    {locality: {region: s}, load_balancing_weight: 1, lb_endpoints: [{$c}], priority: 1}]}}",
        strip: [("/endpoints/a/endpoints/1/priority", "")],
        |world| {
            world.ready("a", 2).await?;
            check(world.c.counters().connections == 0, "no connection to c while a and b are there")?;
            world.a.kill().await;
            until("b", world).await?;
            world.lost("a", 1).await?;
            only("b", &world.calls(60, grpc()).await)?;
            check(world.c.counters().connections == 0, "no connection to c while b is there")
        }
    }

    failover_timer {
        row: "priorities: one that neither works nor fails is given 10 s", source: "A56, `LocalityLbEndpoints.priority`",
        config: "endpoints: {a: {endpoints: [
                    {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]},
                    {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$b}], priority: 1}]}}",
        strip: [("/endpoints/a/endpoints/1", "")],
        |world| {
            from("a", world.call(grpc()).await)?;
            let _silent = first_endpoint_is_silent(world).await?;
            check(world.b.counters().connections == 0, "no connection to b at once")?;
            // Longer than the timer, shorter than the connect timeout.
            world.leap(12).await;
            let answer = timeout(PATIENCE, world.call(grpc())).await;
            from("b", answer.map_err(|_| "an answer before the connect timeout".to_owned())?)
        }
    }
}

/// "EDS moves locality L from P1 to P0: same TCP connection" (A56).
#[tokio::test]
async fn an_endpoint_that_moves_to_another_priority_keeps_its_connection() {
    let mut world = World::start(TWO_PRIORITIES, &[]).await;
    world.a.kill().await;
    until("b", &world).await.expect("failover");
    let first = "[{locality: {region: s}, load_balancing_weight: 1, lb_endpoints: [{$b}]}]";
    world.update("/endpoints/a/endpoints", first).await.expect("an endpoint of cluster a");
    only("b", &world.calls(60, grpc()).await).expect("answers");
    assert_eq!(world.b.counters().connections, 1);
}

/// A deactivated priority is kept for 15 minutes (A56), one that left the assignment not at all (A115).
#[tokio::test]
async fn a_lower_priority_keeps_its_connections_until_it_leaves_the_assignment() {
    let mut world = World::start(TWO_PRIORITIES, &[]).await;
    world.a.kill().await;
    until("b", &world).await.expect("failover");
    world.a.revive().await.expect("its old port");
    world.leap(120).await;
    until("a", &world).await.expect("recovery");
    assert_eq!(world.b.counters().open_connections, 1, "kept for the next failover");
    let first = "[{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]}]";
    world.update("/endpoints/a/endpoints", first).await.expect("an endpoint of cluster a");
    world.b.wait_for(|counters| counters.open_connections == 0).await.expect("its connection is closed");
    only("a", &world.calls(60, grpc()).await).expect("answers");
}
