//! Retries that go to another priority (Envoy's previous_priorities), over the wire.
//!
//! Backend a is the first priority, b the next. Which attempt goes where in other cases is a table in `mesh-client`.

use crate::{
    aggregate::aggregate,
    balancing::endpoint_is_silent,
    features::{Call, World, check, fails, features, from, get, grpc, only},
    mesh::applied,
};
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, route::Action, route_action::ClusterSpecifier};
use interop_tests::recordings::configurations;
use mesh_xds::resource::Kind;
use prost::Message;

/// Backend a, and b in the next priority.
macro_rules! in_two_priorities {
    () => {
        "{a: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]},
                          {locality: {region: s}, load_balancing_weight: 1, lb_endpoints: [{$b}], priority: 1}]}}"
    };
}

/// Routes to cluster a whose retries go to another priority after so many attempts.
macro_rules! routes {
    ($retries:literal, $frequency:literal) => {
        concat!(
            "routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: 'unavailable,5xx', num_retries: ",
            $retries,
            ", retry_priority: {name: envoy.retry_priorities.previous_priorities, typed_config: {
                '@type': type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig,
                update_frequency: ",
            $frequency,
            "}}}}}]"
        )
    };
}

/// How calls of both kinds fail everywhere, or at one backend.
const EVERYWHERE: [&str; 2] = ["error-code-14", "error-code-503"];
const AT_A: [&str; 2] = ["hostname=a error-code-14", "hostname=a error-code-503"];
const AT_B: [&str; 2] = ["hostname=b error-code-14", "hostname=b error-code-503"];

/// Calls of both kinds.
fn failing([of_grpc, of_http]: [&'static str; 2]) -> [Call; 2] {
    [grpc().header("rpc-behavior", of_grpc), get("/").header("rpc-behavior", of_http)]
}

/// How many calls backends a and b have seen.
fn seen(world: &World) -> [u64; 2] {
    [&world.a, &world.b].map(|backend| backend.counters().calls)
}

features! {
    previous_priorities {
        row: "a retry goes to another priority, which is connected for it, and other calls stay where they are",
        source: "Envoy: `RetryPolicy.retry_priority` (previous_priorities)",
        config: concat!("{endpoints: ", in_two_priorities!(), ", ", routes!(1, 1), "}"),
        strip: [("/routes/0/route/retry_policy/retry_priority", "")],
        |world| {
            check(world.ignored(Kind::RouteConfig, "routes").is_empty(), "nothing that is ignored")?;
            only("a", &world.calls(60, grpc()).await)?;
            check(world.b.counters().connections == 0, "no connection to b while no retry needs it")?;
            for call in failing(AT_A) {
                let before = seen(world);
                only("b", &world.calls(60, call).await)?;
                check(seen(world) == before.map(|before| before + 60), "each first attempt at a, and one more at b")?;
            }
            for call in [grpc(), get("/")] {
                only("a", &world.calls(60, call).await)?;
            }
            Ok(())
        }
    }

    update_frequency {
        row: "so many attempts go to a priority, then as many to the next, and after the last one it starts over",
        source: "Envoy: `PreviousPrioritiesConfig.update_frequency`",
        config: concat!("{endpoints: ", in_two_priorities!(), ", ", routes!(4, 2), "}"),
        strip: [("/routes/0/route/retry_policy/retry_priority/typed_config/update_frequency", "9")],
        |world| {
            for (call, code) in failing(EVERYWHERE).into_iter().zip(["Unavailable", "503"]) {
                let before = seen(world);
                fails(code, &[], world.call(call).await)?;
                let seen = [seen(world)[0] - before[0], seen(world)[1] - before[1]];
                check(seen == [3, 2], format!("a, a, b, b, a, and not {seen:?} attempts at a and b"))?;
            }
            for call in failing(AT_A) {
                let before = seen(world);
                from("b", world.call(call).await)?;
                check(seen(world) == [before[0] + 2, before[1] + 1], "two attempts at a before the one at b")?;
            }
            Ok(())
        }
    }

    leaves_of_an_aggregate {
        row: "a retry goes to the next priority of an aggregate cluster, in another leaf",
        source: "A37, Envoy: `RetryPolicy.retry_priority` (previous_priorities)",
        config: concat!("{clusters: {a: ", aggregate!("[b, c]"), "}, ", routes!(1, 1), "}"),
        strip: [("/routes/0/route/retry_policy/retry_priority", "")],
        |world| {
            for call in failing(AT_B) {
                only("c", &world.calls(60, call).await)?;
            }
            only("b", &world.calls(60, grpc()).await)
        }
    }

    out_of_reach {
        row: "a retry passes over a priority that cannot be reached",
        source: "A56, Envoy: `RetryPolicy.retry_priority` (previous_priorities)",
        config: concat!("{endpoints: {a: {endpoints: [
            {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]},
            {locality: {region: s}, load_balancing_weight: 1, priority: 1, lb_endpoints: [
                {endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]},
            {locality: {region: t}, load_balancing_weight: 1, priority: 2, lb_endpoints: [{$b}]}]}}, ", routes!(1, 1), "}"),
        strip: [("/routes/0/route/retry_policy/retry_priority", "")],
        |world| {
            for call in failing(AT_A) {
                only("b", &world.calls(60, call).await)?;
            }
            Ok(())
        }
    }

    per_try_timeout {
        row: "a retry waits for another priority as long as an attempt may take, then it goes where there is one",
        source: "Envoy: `RetryPolicy.retry_priority`, `.per_try_timeout`",
        config: concat!("{endpoints: ", in_two_priorities!(), ", ", routes!(1, 1), "}"),
        strip: [("/routes/0/route/retry_policy/retry_priority", "")],
        |world| {
            world.update("/routes/0/route/retry_policy/per_try_timeout", "2s").await?;
            let _silent = endpoint_is_silent(world, 1).await?;
            let ([call, _], before) = (failing(AT_A), seen(world));
            let (answer, elapsed) = world.timed(call).await;
            fails("Unavailable", &[], answer)?;
            check(seen(world)[0] == before[0] + 2, "both attempts at a")?;
            check((2_000..2_100).contains(&elapsed.as_millis()), format!("one wait of 2 s, and not {elapsed:?}"))
        }
    }
}

/// Two attempts at each priority, none of them at an endpoint that was tried, a quarter of a second each.
#[tokio::test]
async fn retries_go_where_an_istiod_says() {
    let endpoints = "endpoints: {a: {endpoints: [
        {locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]},
        {locality: {region: s}, load_balancing_weight: 1, lb_endpoints: [{$b}, {$c}], priority: 1}]}}";
    let world = World::start(endpoints, &[]).await;
    let recorded = configurations("05-retries-timeouts").expect("a recording");
    let recorded = recorded.iter().rev().find_map(|configuration| configuration.resources.get(&Kind::RouteConfig));
    let any = recorded.and_then(|routes| routes.values().next()).expect("routes");
    let mut routes = RouteConfiguration::decode(any.value.as_slice()).expect("recorded");
    // The same routes, for the world's service and cluster.
    "routes".clone_into(&mut routes.name);
    for host in &mut routes.virtual_hosts {
        host.domains = vec!["*".to_owned()];
        for route in &mut host.routes {
            if let Some(Action::Route(action)) = &mut route.action {
                action.cluster_specifier = Some(ClusterSpecifier::Cluster("a".to_owned()));
            }
        }
    }
    let mut resources = world.resources();
    resources.insert(routes);
    world.mesh.control_plane().set_unchecked(resources);
    applied(&world.mesh, Kind::RouteConfig, "routes").await;

    let call = || get("/demo.Echo/Say");
    assert_eq!(world.call(call()).await.as_deref(), Ok("a"));
    let seen = || [&world.a, &world.b, &world.c].map(|backend| backend.counters().calls);
    let failing = || world.call(call().header("rpc-behavior", "error-code-503"));
    // The first to need b and c may meet one of them before the other is there.
    fails("503", &[], failing().await).expect("after four attempts");
    world.ready("a", 3).await.expect("all of both priorities");
    let before = seen();
    fails("503", &[], failing().await).expect("after four attempts");
    assert_eq!(seen(), [before[0] + 2, before[1] + 1, before[2] + 1]);
}
