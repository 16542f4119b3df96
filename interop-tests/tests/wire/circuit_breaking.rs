//! Circuit breaking over the wire: how much of a cluster may be in use at once (A32, and Envoy's other limits).
//!
//! Limits are counted per {cluster, EDS service name} in the whole process, so each test has a cluster of its own. Calls
//! are held open by backends that never answer them, retries by a backoff that lasts. When a call is retried is NOT judged
//! here.

use crate::{
    features::{Answer, Call, World, check, fails, features, from, get, grpc},
    mesh::{applied, mesh, ready, service},
    rig::{addresses, backends, until, within},
};
use bytes::Bytes;
use futures_util::future::{join_all, select_all};
use http::{Request, StatusCode};
use http_body_util::Empty;
use interop_tests::backend::Backend;
use mesh_client::{Cause, MeshChannel, MeshError};
use mesh_xds::{
    control_plane::{
        ReportedClusters, Resources,
        proto::envoy::config::{
            cluster::v3::Cluster,
            core::v3::{ConfigSource, SelfConfigSource, config_source::ConfigSourceSpecifier},
            endpoint::v3::ClusterStats,
        },
        resources::{ClusterExt, cluster_eds, endpoints},
    },
    resource::Kind,
};
use std::{net::SocketAddr, time::Duration};
use tokio::task::JoinHandle;
use tower_service::Service;

/// Calls that stay open until they are ended here.
struct Open(Vec<JoinHandle<Answer>>);

impl Open {
    /// `count` more calls, all of which reach `backend`.
    async fn start(channel: &MeshChannel, backend: &Backend, count: usize, call: Call) -> Self {
        let open = Self::offer(channel, count, call);
        let arrived = backend.counters().calls + count as u64;
        backend.wait_for(|seen| seen.calls == arrived).await.expect("all of them arrive");
        open
    }

    /// `count` more calls, wherever they go.
    fn offer(channel: &MeshChannel, count: usize, call: Call) -> Self {
        Self::start_with(channel, count, call.header("rpc-behavior", "keep-open"))
    }

    /// The same, and what becomes of them is the caller's business.
    fn start_with(channel: &MeshChannel, count: usize, call: Call) -> Self {
        let start = |_| {
            let (channel, call) = (channel.clone(), call.clone());
            tokio::spawn(async move { call.on(&channel).await })
        };
        Self((0..count).map(start).collect())
    }

    /// Cancels `count` of them. Returns when nothing of them is left.
    async fn end(&mut self, count: usize) {
        for call in self.0.split_off(self.0.len() - count) {
            call.abort();
            let cancelled = call.await.expect_err("it is open");
            assert!(cancelled.is_cancelled());
        }
    }
}

/// The answers to `count` calls at the same time: how many are refused by the circuit breaker; the rest must be OK.
async fn refused(channel: &MeshChannel, count: usize, call: Call) -> usize {
    let answers = join_all((0..count).map(|_| call.clone().on(channel))).await;
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    let strange: Vec<_> = refused.iter().filter(|failure| !failure.contains("circuit open")).collect();
    assert!(strange.is_empty(), "{strange:?}");
    refused.len()
}

/// Calls in flight, over all clusters of the channel.
fn in_flight(channel: &MeshChannel) -> u32 {
    channel.status().clusters.iter().map(|cluster| cluster.active_requests).sum()
}

/// A service whose cluster has these limits.
fn limited(name: &str, max_requests: u32, addresses: &[SocketAddr]) -> Resources {
    service(name, addresses).with(cluster_eds(&format!("{name}-cluster")).with_max_requests(max_requests))
}

/// A route with a policy whose retries stay in their backoff.
macro_rules! slow_retries {
    ($retry_on:literal) => {
        concat!(
            "routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 0s, retry_policy: {retry_on: '",
            $retry_on,
            "', num_retries: 1, retry_back_off: {base_interval: 600s}}}}]"
        )
    };
}

/// Of `count` calls that fail, waits until each has either failed or is a retry in its backoff: how many are which.
async fn failed_and_retrying(world: &World, count: usize, call: Call) -> (usize, u32, Open) {
    let retrying = || world.channel.status().clusters.iter().map(|cluster| cluster.active_retries).sum::<u32>();
    let before = retrying();
    let calls = Open::start_with(&world.channel, count, call);
    let failed = || calls.0.iter().filter(|call| call.is_finished()).count();
    until("all have failed once", || failed() + (retrying() - before) as usize >= count).await;
    (failed(), retrying() - before, calls)
}

/// Fails with this gRPC code, or HTTP status.
fn failing(call: Call, code: &'static str) -> Call {
    call.header("rpc-behavior", code)
}

features! {
    max_requests {
        row: "circuit breaking: no more calls in flight than `max_requests`; more are UNAVAILABLE at once",
        source: "A32, `CircuitBreakers.thresholds[].max_requests`",
        config: "{clusters: {a: {eds_cluster_config: {service_name: cb-max}, circuit_breakers: {thresholds: [
                     {priority: HIGH, max_requests: 0}, {max_requests: 3}, {max_requests: 1}]}}},
                  endpoints: {cb-max: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]}]}}}",
        strip: [("/clusters/a/circuit_breakers", "")],
        |world| {
            let mut open = Open::start(&world.channel, &world.a, 3, grpc()).await;
            let answers = join_all((0..100).map(|_| world.call(grpc()))).await;
            for answer in answers {
                fails("Unavailable", &["\"a\"", "circuit open: 3 calls", "in-process"], answer)?;
            }
            check(world.a.counters().calls == 3, "none of the 100 at the backend")?;
            open.end(1).await;
            from("a", world.call(grpc()).await)
        }
    }

    max_requests_of_nothing {
        row: "circuit breaking: `max_requests` of 0 fails every call", source: "grpc-go, `CircuitBreakers.thresholds[].max_requests`",
        config: "{clusters: {a: {eds_cluster_config: {service_name: cb-zero}, circuit_breakers: {thresholds: [{max_requests: 0}]}}},
                  endpoints: {cb-zero: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]}]}}}",
        strip: [("/clusters/a/circuit_breakers", "")],
        |world| {
            for _ in 0..10 {
                fails("Unavailable", &["circuit open"], world.call(grpc()).await)?;
                fails("503", &["circuit open"], world.call(get("/")).await)?;
            }
            check(world.a.counters().calls == 0, "no call at the backend")
        }
    }

    max_requests_raised_and_lowered {
        row: "circuit breaking: a new limit counts the calls that are there already",
        source: "A32, `CircuitBreakers.thresholds[].max_requests`",
        config: "{clusters: {a: {eds_cluster_config: {service_name: cb-moves}, circuit_breakers: {thresholds: [{max_requests: 105}]}}},
                  endpoints: {cb-moves: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]}]}}}",
        strip: [("/clusters/a/circuit_breakers/thresholds/0", "{}")],
        |world| {
            let mut open = Open::start(&world.channel, &world.a, 105, grpc()).await;
            world.update("/clusters/a/circuit_breakers/thresholds/0/max_requests", "100").await?;
            for _ in 0..6 {
                fails("Unavailable", &["circuit open: 100 calls"], world.call(grpc()).await)?;
                open.end(1).await;
            }
            from("a", world.call(grpc()).await)?;
            world.update("/clusters/a/circuit_breakers/thresholds/0/max_requests", "101").await?;
            let more = Open::start(&world.channel, &world.a, 2, grpc()).await;
            fails("Unavailable", &["circuit open: 101 calls"], world.call(grpc()).await)?;
            drop(more);
            Ok(())
        }
    }

    max_requests_of_the_leaf {
        row: "circuit breaking: an aggregate counts with its leaf, and so with whoever uses the leaf directly",
        source: "A37, A32, `CircuitBreakers.thresholds[].max_requests`",
        config: "{clusters: {
                    a: {type: null, eds_cluster_config: null, cluster_type: {name: envoy.clusters.aggregate, typed_config: {
                        '@type': type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [b, c]}}},
                    b: {eds_cluster_config: {service_name: cb-empty}, circuit_breakers: {thresholds: [{max_requests: 0}]}},
                    c: {eds_cluster_config: {service_name: cb-leaf}, circuit_breakers: {thresholds: [{max_requests: 1}]}}},
                  endpoints: {cb-empty: {endpoints: []}, cb-leaf: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$c}]}]}},
                  routes: [{match: {prefix: /direct}, route: {cluster: c}}, {match: {prefix: ''}, route: {cluster: a}}]}",
        strip: [("/clusters/c/circuit_breakers", "")],
        |world| {
            let open = Open::start(&world.channel, &world.c, 1, grpc()).await;
            fails("Unavailable", &["\"a\"", "circuit open: 1 calls"], world.call(grpc()).await)?;
            fails("503", &["\"c\"", "circuit open: 1 calls"], world.call(get("/direct")).await)?;
            drop(open);
            Ok(())
        }
    }

    max_requests_of_a_name {
        row: "circuit breaking: LOGICAL_DNS clusters, too", source: "A32, A37, `CircuitBreakers.thresholds[].max_requests`",
        config: "{clusters: {cb-dns: {type: LOGICAL_DNS, circuit_breakers: {thresholds: [{max_requests: 1}]}, load_assignment: {
                     endpoints: [{lb_endpoints: [{$a}]}]}}},
                  routes: [{match: {prefix: ''}, route: {cluster: cb-dns}}]}",
        strip: [("/clusters/cb-dns/circuit_breakers", "")],
        |world| {
            let open = Open::start(&world.channel, &world.a, 1, grpc()).await;
            fails("Unavailable", &["\"cb-dns\"", "circuit open: 1 calls"], world.call(grpc()).await)?;
            drop(open);
            Ok(())
        }
    }

    max_pending_requests {
        row: "circuit breaking: no more calls wait for a connection than `max_pending_requests`; the cluster's beats the channel's; a refusal is never retried",
        source: "Envoy, `CircuitBreakers.thresholds[].max_pending_requests`",
        config: concat!("{clusters: {a: {eds_cluster_config: {service_name: cb-pending}, circuit_breakers: {thresholds: [{max_pending_requests: 2}]}}},
                  endpoints: {cb-pending: {endpoints: []}}, ", slow_retries!("unavailable,5xx"), "}"),
        strip: [("/clusters/a/circuit_breakers", "")],
        |world| {
            // Accepts, and says nothing: calls wait for it.
            let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
            let port = silent.local_addr().map_err(|error| error.to_string())?.port();
            let endpoint = format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}");
            let channel = world.channel_builder().max_pending_requests(5).build().map_err(|error| error.to_string())?;
            world.update("/endpoints/cb-pending/endpoints", &format!(
                "[{{locality: {{region: r}}, load_balancing_weight: 1, lb_endpoints: [{endpoint}]}}]")).await?;
            let mut waiting = Open::offer(&channel, 20, grpc());
            // Those that may not wait are told so at once; the two that may do not end.
            while waiting.0.len() > 2 {
                let (answer, _, rest) = within("a refusal", select_all(waiting.0)).await;
                fails("Unavailable", &["\"a\"", "2 calls already wait"], answer.map_err(|error| error.to_string())?)?;
                waiting.0 = rest;
            }
            fails("503", &["2 calls already wait"], get("/").on(&channel).await)?;
            let request = Request::get("/").body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
            let refused = channel.clone().call(request).await.map_err(|error| error.to_string())?;
            let told = refused.headers().get("x-envoy-overloaded").ok_or("x-envoy-overloaded")?;
            check(told == "true", format!("true, and not {told:?}"))?;
            waiting.end(2).await;
            Ok(())
        }
    }

    // === Retries ===

    max_retries {
        row: "circuit breaking: no more retries in flight than `max_retries`, backoffs included",
        source: "Envoy, `CircuitBreakers.thresholds[].max_retries`",
        config: concat!("{clusters: {a: {eds_cluster_config: {service_name: cb-retries}, circuit_breakers: {thresholds: [{max_retries: 2}]}}},
                  endpoints: {cb-retries: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]}]}}, ",
                  slow_retries!("unavailable"), "}"),
        strip: [("/clusters/a/circuit_breakers", "")],
        |world| {
            let (failed, retrying, mut calls) = failed_and_retrying(world, 5, failing(grpc(), "error-code-14")).await;
            check((failed, retrying) == (3, 2), format!("3 failures and 2 retries, and not {failed} and {retrying}"))?;
            calls.0.retain(|call| !call.is_finished());
            calls.end(2).await;
            let (failed, retrying, _calls) = failed_and_retrying(world, 1, failing(grpc(), "error-code-14")).await;
            check((failed, retrying) == (0, 1), "room again")
        }
    }

    retry_budget {
        row: "circuit breaking: retries in flight as a share of the calls, and some in any case; a budget beats `max_retries`",
        source: "Envoy, `CircuitBreakers.thresholds[].retry_budget`",
        config: concat!("{clusters: {a: {eds_cluster_config: {service_name: cb-budget}, circuit_breakers: {thresholds: [{max_retries: 9,
                     retry_budget: {budget_percent: {value: 50}, min_retry_concurrency: 1}}]}}},
                  endpoints: {cb-budget: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]}]}}, ",
                  slow_retries!("unavailable"), "}"),
        strip: [("/clusters/a/circuit_breakers/thresholds/0/retry_budget", "")],
        |world| {
            // One at a time: what the budget is a share of includes the call that asks.
            let next = async || {
                let (failed, retrying, _) = failed_and_retrying(world, 1, failing(grpc(), "error-code-14")).await;
                (failed, retrying)
            };
            check(next().await == (0, 1), "one in any case")?;
            check(next().await == (1, 0), "half of one is nothing more")?;
            let _open = Open::start(&world.channel, &world.a, 6, grpc()).await;
            check(next().await == (0, 1), "the second")?;
            check(next().await == (0, 1), "the third")?;
            check(next().await == (1, 0), "half of seven is three")?;
            Ok(())
        }
    }

    refusals_are_not_retried {
        row: "circuit breaking: a refusal is never retried, whatever the policy",
        source: "A32, A6, `CircuitBreakers.thresholds[].max_requests`",
        config: concat!("{clusters: {a: {eds_cluster_config: {service_name: cb-final}, circuit_breakers: {thresholds: [{max_requests: 0}]}}},
                  endpoints: {cb-final: {endpoints: [{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]}]}}, ",
                  slow_retries!("unavailable,5xx"), "}"),
        strip: [("/clusters/a/circuit_breakers", "")],
        |world| {
            fails("Unavailable", &["circuit open"], world.call(grpc()).await)?;
            fails("503", &["circuit open"], world.call(get("/")).await)?;
            check(world.a.counters().calls == 0, "no call at the backend")
        }
    }
}

#[tokio::test]
async fn without_a_limit_three_retries_of_plain_http_are_in_flight_and_any_number_of_grpc() {
    let config = concat!(
        "{clusters: {a: {eds_cluster_config: {service_name: cb-usual}, circuit_breakers: null}}, endpoints: {cb-usual: {endpoints: [{locality: \
         {region: r}, load_balancing_weight: 1, lb_endpoints: [{$a}]}]}}, ",
        slow_retries!("unavailable,5xx"),
        "}"
    );
    let world = World::start(config, &[]).await;
    let (failed, retrying, _http) = failed_and_retrying(&world, 5, failing(get("/"), "error-code-503")).await;
    assert_eq!((failed, retrying), (2, 3));
    let grpc = Open::start_with(&world.channel, 5, failing(grpc(), "error-code-14"));
    until("all are retried", || world.channel.status().clusters[0].active_retries == 8).await;
    assert!(grpc.0.iter().all(|call| !call.is_finished()));
}

// === Counts ===

/// The same, with its load reported.
fn reported(name: &str, max_requests: u32, addresses: &[SocketAddr]) -> Resources {
    let to_itself = ConfigSourceSpecifier::Self_(SelfConfigSource::default());
    let lrs = ConfigSource { config_source_specifier: Some(to_itself), ..ConfigSource::default() };
    let cluster = cluster_eds(&format!("{name}-cluster")).with_max_requests(max_requests);
    service(name, addresses).with(Cluster { lrs_server: Some(lrs), ..cluster })
}

#[tokio::test]
async fn what_is_refused_is_a_drop_without_a_category_in_load_reports() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(reported("cb-lrs", 3, &addresses([&a])));
    mesh.control_plane().request_load(Duration::from_millis(100), ReportedClusters::All);
    let channel = ready(&mesh, "cb-lrs").await;
    let _open = Open::start(&channel, &a, 3, grpc()).await;
    assert_eq!(refused(&channel, 100, grpc()).await, 100);
    let dropped = |stats: &[ClusterStats]| stats.iter().map(|cluster| cluster.total_dropped_requests).sum::<u64>();
    let all = |stats: &[ClusterStats]| dropped(stats) >= 100;
    within("the drops", mesh.control_plane().wait_for_load("in-process", "cb-lrs-cluster", all)).await;
    let stats = mesh.control_plane().load("in-process", "cb-lrs-cluster");
    assert_eq!(dropped(&stats), 100);
    assert!(stats.iter().all(|cluster| cluster.dropped_requests.is_empty()), "{stats:?}");
    let localities = || stats.iter().flat_map(|cluster| &cluster.upstream_locality_stats);
    assert_eq!(localities().map(|locality| locality.total_issued_requests).sum::<u64>(), 3);
    assert_eq!(localities().map(|locality| locality.total_requests_in_progress).max(), Some(3));
}

#[tokio::test]
async fn callers_that_never_stop_fill_the_limit_and_no_more() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(limited("cb-psm", 500, &addresses([&a])));
    let channel = ready(&mesh, "cb-psm").await;
    let mut open = Open::offer(&channel, 1_000, grpc());
    until("500 at the backend", || a.counters().calls == 500).await;
    until("the others refused", || open.0.iter().filter(|call| call.is_finished()).count() == 500).await;
    assert_eq!((a.counters().calls, in_flight(&channel)), (500, 500));
    mesh.control_plane().set_unchecked(limited("cb-psm", 800, &addresses([&a])));
    applied(&mesh, Kind::Cluster, "cb-psm-cluster").await;
    open.0.retain(|call| !call.is_finished());
    open.0.extend(Open::offer(&channel, 1_000, grpc()).0);
    until("800 at the backend", || a.counters().calls == 800).await;
    until("the others refused", || open.0.iter().filter(|call| call.is_finished()).count() == 700).await;
    assert_eq!((a.counters().calls, in_flight(&channel)), (800, 800));
    open.0.retain(|call| !call.is_finished());
    open.end(800).await;
    assert_eq!(in_flight(&channel), 0);
}

#[tokio::test]
async fn channels_and_meshes_count_together() {
    let [a] = backends(["a"]).await;
    let resources = limited("cb-shared", 10, &addresses([&a]));
    let meshes = [mesh(resources.clone()), mesh(resources)];
    let [first, other_mesh] = [ready(&meshes[0], "cb-shared").await, ready(&meshes[1], "cb-shared").await];
    // With settings of its own, so that it has connections of its own.
    let builder = meshes[0].mesh().channel_builder("xds:///cb-shared").connect_timeout(Duration::from_secs(7));
    let other_channel = builder.build().expect("a valid target");
    let open = [
        Open::start(&first, &a, 4, grpc()).await,
        Open::start(&other_mesh, &a, 3, grpc()).await,
        Open::start(&other_channel, &a, 3, grpc()).await,
    ];
    for channel in [&first, &other_mesh, &other_channel] {
        assert_eq!(refused(channel, 5, grpc()).await, 5);
        assert_eq!(in_flight(channel), 10);
    }
    drop(open);
}

#[tokio::test]
async fn one_cluster_with_two_names_of_endpoints_is_counted_twice() {
    let [a] = backends(["a"]).await;
    let named = |service_name: &str| {
        let mut cluster = cluster_eds("cb-key-cluster").with_max_requests(10);
        if let Some(eds) = &mut cluster.eds_cluster_config {
            eds.service_name = service_name.to_owned();
        }
        service("cb-key", &[]).with(cluster).with(endpoints(service_name, &addresses([&a])))
    };
    let meshes = [mesh(named("cb-key-one")), mesh(named("cb-key-two"))];
    let [one, two] = [ready(&meshes[0], "cb-key").await, ready(&meshes[1], "cb-key").await];
    let _open = [Open::start(&one, &a, 10, grpc()).await, Open::start(&two, &a, 10, grpc()).await];
    for channel in [&one, &two] {
        assert_eq!((refused(channel, 5, grpc()).await, in_flight(channel)), (5, 10));
    }
}

#[tokio::test]
async fn without_a_limit_it_is_1024() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(service("cb-default", &addresses([&a])));
    let channel = ready(&mesh, "cb-default").await;
    let open = Open::offer(&channel, 1_100, grpc());
    until("1024 at the backend", || a.counters().calls == 1_024).await;
    until("76 refused", || open.0.iter().filter(|call| call.is_finished()).count() == 76).await;
    assert_eq!((a.counters().calls, in_flight(&channel)), (1_024, 1_024));
}

#[tokio::test]
async fn a_call_counts_until_its_response_body_has_ended() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(limited("cb-body", 1, &addresses([&a])));
    let mut channel = ready(&mesh, "cb-body").await;
    let request = || Request::get("/").body(Empty::<Bytes>::new()).expect("valid");
    let first = channel.call(request()).await.expect("failures are responses");
    assert_eq!((first.status(), in_flight(&channel)), (StatusCode::OK, 1), "its body is not read");
    let second = channel.call(request()).await.expect("failures are responses");
    assert_eq!(second.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(second.headers()["x-envoy-overloaded"], "true");
    let cause = second.extensions().get::<MeshError>().expect("a failure of ours").cause();
    assert!(matches!(cause, Cause::CircuitOpen { max: 1, .. }), "{cause:?}");
    drop(first);
    assert_eq!(in_flight(&channel), 0);
    assert_eq!(refused(&channel, 1, get("/")).await, 0);
}

#[tokio::test]
async fn a_call_that_waits_for_a_stream_holds_no_place() {
    let a = Backend::builder("a").max_concurrent_streams(1).start().await.expect("a free port");
    let mesh = mesh(limited("cb-queue", 3, &addresses([&a])));
    let channel = ready(&mesh, "cb-queue").await;
    let mut open = Open::start(&channel, &a, 1, grpc()).await;
    let waiting = Open::offer(&channel, 5, grpc());
    let pending = || channel.status().clusters[0].pending_requests;
    until("five wait", || pending() == 5).await;
    assert_eq!(in_flight(&channel), 1);
    // One after the other gets the stream.
    open.end(1).await;
    until("the next call", || a.counters().calls == 2).await;
    until("four wait", || pending() == 4).await;
    drop(waiting.0.into_iter().map(|call| call.abort()).collect::<Vec<_>>());
    until("all is given back", || pending() == 0 && in_flight(&channel) == 0).await;
}
