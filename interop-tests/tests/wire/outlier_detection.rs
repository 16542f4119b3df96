//! Outlier detection over the wire: who gets no calls for a while, for how its calls ended (A50, and Envoy's consecutive
//! errors and errors of local origin).
//!
//! Tests leap over intervals, and wait for none. A50's own sweeps are NOT tested here; `outlier_sweeps` does.

use crate::{
    features::{Answer, Call, SERVICE, World, check, features, get, grpc},
    rig::{until, within},
};
use bytes::Bytes;
use futures_util::future;
use http::Request;
use http_body_util::Empty;
use mesh_client::{
    Mesh, MeshChannel,
    outlier_detection::{Consecutive, OutlierDetection},
};
use mesh_xds::Bootstrap;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Cluster `a` with these fields, and endpoints a to e.
macro_rules! five {
    ($($fields:literal),+) => {
        concat!(
            "clusters: {a: {",
            $($fields,)+
            "}}\nendpoints: {a: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}, {$b}, {$c}, {$d}, {$e}]}]}}"
        )
    };
}

/// The same, where answers that do not come count by themselves. A call's time and an interval are so long that only a leap
/// ends them, however busy the machine is.
macro_rules! five_of_local_origin {
    ($fields:literal) => {
        concat!(
            "routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 1000s}}]\n",
            five!(
                "outlier_detection: {enforcing_success_rate: 0, split_external_local_origin_errors: true, \
                 max_ejection_percent: 20, interval: 5000s, ",
                $fields,
                "}"
            )
        )
    };
}
pub(crate) use five;

/// How many endpoints are ejected.
pub(crate) fn ejected(world: &World) -> usize {
    let status = world.channel.status();
    status.clusters.iter().flat_map(|cluster| &cluster.endpoints).filter(|endpoint| endpoint.ejected).count()
}

/// gRPC calls that fail at a, and nowhere else.
pub(crate) fn bad_a() -> Call {
    grpc().header("rpc-behavior", "hostname=a error-code-14")
}

/// Fails unless a gets no call, though it is connected, and the others get theirs.
pub(crate) async fn a_is_out(world: &World) -> Result<(), String> {
    let counts = world.calls(100, bad_a()).await;
    check(counts.keys().all(|hostname| ["b", "c", "d", "e"].contains(&hostname.as_str())), format!("{counts:?}"))?;
    check(world.a.counters().open_connections == 1, "its connection stays")
}

/// Calls that get no answer at a, and one anywhere else.
fn silent_at_a() -> Call {
    get("/").header("rpc-behavior", "hostname=a keep-open")
}

/// Makes so many of these calls at once. When all others are answered, the time of those at a is up: their results.
async fn calls_silent_at_a(world: &World, count: usize) -> Vec<Answer> {
    let (before, answered) = (world.a.counters().calls, AtomicU64::new(0));
    let calls = (0..count).map(async |_| {
        let answer = world.call(silent_at_a()).await;
        answered.fetch_add(1, Ordering::Relaxed);
        answer
    });
    let time_is_up = async {
        let at_a = || world.a.counters().calls - before;
        until("an answer of all others", || answered.load(Ordering::Relaxed) + at_a() == count as u64).await;
        world.leap(1000).await;
    };
    future::join(future::join_all(calls), time_is_up).await.0
}

/// Makes calls until every endpoint is connected and has had one.
async fn each_has_its_turns(world: &World) -> Result<(), String> {
    while world.served()[..5].contains(&0) {
        world.call(get("/")).await?;
    }
    Ok(())
}

/// Fails unless a gets none of these calls.
async fn all_are_answered(world: &World) -> Result<(), String> {
    let failures: Vec<_> = calls_silent_at_a(world, 100).await.into_iter().filter_map(Result::err).collect();
    check(failures.is_empty(), format!("{failures:?}"))
}

/// Fails unless a is ejected by a sweep for answers that do not come, and for no other failures.
async fn answers_that_do_not_come_eject_a(world: &World) -> Result<(), String> {
    each_has_its_turns(world).await?;
    world.calls(150, get("/").header("rpc-behavior", "hostname=a error-code-503")).await;
    world.leap(5000).await;
    world.calls(16, get("/")).await;
    check(ejected(world) == 0, "an answer is an answer")?;
    calls_silent_at_a(world, 150).await;
    world.leap(5000).await;
    world.calls(16, get("/")).await;
    check(ejected(world) == 1, "one endpoint is ejected")?;
    all_are_answered(world).await
}

/// Fails unless these calls are enough for one endpoint to be ejected.
async fn one_is_out_after(world: &World, count: usize, call: Call) -> Result<(), String> {
    world.calls(count, call).await;
    check(ejected(world) == 1, format!("one endpoint ejected, and not {}", ejected(world)))
}

features! {
    consecutive_5xx {
        row: "outlier detection: at once after so many answers 5xx in a row; gRPC codes count as the HTTP status that stands for them",
        source: "Envoy, `OutlierDetection.consecutive_5xx`",
        config: five!("outlier_detection: {enforcing_success_rate: 0, consecutive_5xx: 3, max_ejection_percent: 20}"),
        strip: [("/clusters/a/outlier_detection/consecutive_5xx", "")],
        |world| {
            world.ready("a", 5).await?;
            one_is_out_after(world, 60, bad_a()).await?;
            a_is_out(world).await
        }
    }

    consecutive_gateway_failure {
        row: "outlier detection: at once after so many answers 502, 503 or 504 in a row, if that is enforced",
        source: "Envoy, `OutlierDetection.consecutive_gateway_failure`, `.enforcing_consecutive_gateway_failure`",
        config: five!("outlier_detection: {enforcing_success_rate: 0, consecutive_gateway_failure: 3, enforcing_consecutive_gateway_failure: 100, max_ejection_percent: 20}"),
        strip: [("/clusters/a/outlier_detection/enforcing_consecutive_gateway_failure", "")],
        |world| {
            world.ready("a", 5).await?;
            world.calls(60, grpc().header("rpc-behavior", "hostname=a error-code-13")).await;
            check(ejected(world) == 0, "INTERNAL is a 500")?;
            one_is_out_after(world, 60, bad_a()).await?;
            a_is_out(world).await
        }
    }

    consecutive_local_origin_failure {
        row: "outlier detection: answers that do not come count by themselves where that is asked for",
        source: "Envoy, `OutlierDetection.split_external_local_origin_errors`, `.consecutive_local_origin_failure`",
        config: five_of_local_origin!("consecutive_local_origin_failure: 3, enforcing_local_origin_success_rate: 0"),
        strip: [("/clusters/a/outlier_detection/split_external_local_origin_errors", "")],
        |world| {
            each_has_its_turns(world).await?;
            world.calls(60, get("/").header("rpc-behavior", "hostname=a error-code-503")).await;
            check(ejected(world) == 0, "an answer is an answer")?;
            calls_silent_at_a(world, 60).await;
            one_is_out_after(world, 16, get("/")).await?;
            all_are_answered(world).await
        }
    }

    local_origin_success_rate {
        row: "outlier detection: answers that do not come, by their own success rate where they count by themselves",
        source: "Envoy, `OutlierDetection.enforcing_local_origin_success_rate`",
        config: five_of_local_origin!("enforcing_consecutive_local_origin_failure: 0, enforcing_local_origin_success_rate: 100, success_rate_request_volume: 20"),
        strip: [("/clusters/a/outlier_detection/enforcing_local_origin_success_rate", "0")],
        |world| { answers_that_do_not_come_eject_a(world).await }
    }

    local_origin_failure_percentage {
        row: "outlier detection: answers that do not come, by their percentage where they count by themselves",
        source: "Envoy, `OutlierDetection.enforcing_failure_percentage_local_origin`",
        config: five_of_local_origin!("enforcing_consecutive_local_origin_failure: 0, enforcing_local_origin_success_rate: 0,
            enforcing_failure_percentage_local_origin: 100, failure_percentage_request_volume: 20"),
        strip: [("/clusters/a/outlier_detection/enforcing_failure_percentage_local_origin", "")],
        |world| { answers_that_do_not_come_eject_a(world).await }
    }

    max_ejection_time_jitter {
        row: "outlier detection: an ejection is longer by a random time",
        source: "Envoy, `OutlierDetection.max_ejection_time_jitter`",
        // To be back in time anyhow is a matter of one in 100,000 ejections.
        config: five!("outlier_detection: {enforcing_success_rate: 0, consecutive_5xx: 3, max_ejection_percent: 20, max_ejection_time_jitter: 1000000s}"),
        strip: [("/clusters/a/outlier_detection/max_ejection_time_jitter", "")],
        |world| {
            world.ready("a", 5).await?;
            one_is_out_after(world, 60, bad_a()).await?;
            world.leap(41).await;
            for _ in 0..50 {
                world.calls(16, grpc()).await;
                check(ejected(world) == 1, "it is out after 30 s and a sweep")?;
            }
            world.leap(1_000_000).await;
            until("it is back", || ejected(world) == 0).await;
            Ok(())
        }
    }

    max_ejection_percent {
        row: "outlier detection: no more are out than the share of the whole cluster, all its priorities, allows",
        source: "A75, `OutlierDetection.max_ejection_percent`",
        config: "{clusters: {a: {outlier_detection: {enforcing_success_rate: 0, consecutive_5xx: 3, max_ejection_percent: 20}}},
            endpoints: {a: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}, {$b}, {$c}]},
                {locality: {region: s}, load_balancing_weight: 1, priority: 1, lb_endpoints: [{$d}, {$e}]}]}}}",
        strip: [("/clusters/a/outlier_detection/max_ejection_percent", "100")],
        |world| {
            world.ready("a", 3).await?;
            one_is_out_after(world, 90, grpc().header("rpc-behavior", "error-code-14")).await
        }
    }

    all_of_a_priority {
        row: "outlier detection: a priority whose endpoints are all ejected fails over",
        source: "A50, A56, `OutlierDetection.max_ejection_percent`",
        config: "{clusters: {a: {outlier_detection: {enforcing_success_rate: 0, consecutive_5xx: 3, max_ejection_percent: 100}}},
            endpoints: {a: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]},
                {locality: {region: s}, load_balancing_weight: 1, priority: 1, lb_endpoints: [{$b}]}]}}}",
        strip: [("/clusters/a/outlier_detection/consecutive_5xx", "")],
        |world| {
            world.calls(3, bad_a()).await;
            world.ready("a", 2).await?;
            let counts = world.calls(60, grpc()).await;
            check(counts.len() == 1 && counts.contains_key("b"), format!("{counts:?}"))
        }
    }
}

#[tokio::test]
async fn a_channel_may_say_it_where_the_cluster_does_not() {
    let world = World::start(five!(""), &[]).await;
    let detection = OutlierDetection {
        success_rate: None,
        consecutive_5xx: Some(Consecutive::after(3)),
        always_eject_one_host: true,
        ..OutlierDetection::default()
    };
    let channel = world.channel_builder().outlier_detection(detection).build().expect("a valid target");
    channel.ready(Duration::from_secs(20)).await.expect("configured");
    while out(&channel) == 0 {
        let _ = bad_a().on(&channel).await;
    }
    for _ in 0..20 {
        bad_a().on(&channel).await.expect("a gets no call");
    }
    assert_eq!(out(&channel), 1);
}

/// Endpoints of the channel's one cluster that are ejected.
fn out(channel: &MeshChannel) -> usize {
    channel.status().clusters[0].endpoints.iter().filter(|endpoint| endpoint.ejected).count()
}

#[tokio::test]
async fn a_mesh_may_say_it_for_all_its_channels_and_a_channel_otherwise() {
    let world = World::start(five!(""), &[]).await;
    let nobody = OutlierDetection { success_rate: None, always_eject_one_host: true, ..OutlierDetection::default() };
    let detection = OutlierDetection { consecutive_5xx: Some(Consecutive::after(3)), ..nobody.clone() };
    let server = world.mesh.control_plane().in_process();
    let bootstrap = Bootstrap::builder().node_id("mesh-wide").server(server).build().expect("a server");
    let mesh = Mesh::builder(bootstrap).outlier_detection(detection).build();
    let target = format!("xds:///{SERVICE}");

    let silent = mesh.channel(&target).expect("a valid target");
    silent.ready(Duration::from_secs(20)).await.expect("configured");
    while out(&silent) == 0 {
        let _ = bad_a().on(&silent).await;
    }
    for _ in 0..20 {
        bad_a().on(&silent).await.expect("a gets no call");
    }

    let own = mesh.channel_builder(&target).outlier_detection(nobody).build().expect("a valid target");
    own.ready(Duration::from_secs(20)).await.expect("configured");
    let before = world.a.counters().calls;
    for _ in 0..100 {
        let _ = bad_a().on(&own).await;
    }
    assert!(world.a.counters().calls >= before + 10, "a gets its turns");
    assert_eq!(out(&own), 0);

    let client = mesh.http_client();
    let uri = format!("http://{SERVICE}/");
    let bad_get = || {
        let request = Request::get(&uri).header("rpc-behavior", "hostname=a error-code-503");
        client.request(request.body(Empty::<Bytes>::new()).expect("valid"))
    };
    // Of clusters that detect the same, HTTP/1.1 and HTTP/2 endpoints are judged each for themselves.
    while out(&silent) < 2 {
        let _ = within("a response", bad_get()).await.expect("failures are responses");
    }
    for _ in 0..20 {
        assert_eq!(within("a response", bad_get()).await.expect("failures are responses").status(), 200);
    }
}

#[tokio::test]
async fn pick_first_ejects_nobody() {
    let policy = "load_balancing_policy: {policies: [{typed_extension_config: {name: p, typed_config: {'@type': \
                  type.googleapis.com/envoy.extensions.load_balancing_policies.pick_first.v3.PickFirst}}}]}, \
                  outlier_detection: {consecutive_5xx: 3, max_ejection_percent: 100}";
    let config = format!("{{clusters: {{a: {{{policy}}}}}}}");
    let world = World::start(&config, &[]).await;
    world.calls(20, bad_a()).await;
    assert_eq!((ejected(&world), world.a.counters().calls), (0, 20));
}
