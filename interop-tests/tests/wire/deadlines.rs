//! How long a call may take (A31, and Envoy's `timeout` for plain HTTP), over the wire.
//!
//! Backends answer late, on a clock that is paused while a call is under way: it leaps from one timer to the next, so
//! that nothing here waits and no limit is too short for a busy machine. It does NOT test the arithmetic; `mesh-client`
//! does.

use crate::features::{Call, World, check, fails, features, from, get, grpc};
use http::Version;
use interop_tests::proto::testing::{
    ResponseParameters, StreamingOutputCallRequest, test_service_client::TestServiceClient,
};
use std::time::Duration;
use tokio::time;

/// Answered after this many seconds.
fn slow(call: Call) -> Call {
    call.header("rpc-behavior", "sleep-60")
}

/// Fails unless the call ended with `code` at `limit`, in milliseconds.
async fn ends_at(limit: u64, code: &str, world: &World, call: Call) -> Result<(), String> {
    let (answer, elapsed) = world.timed(call).await;
    let limit = Duration::from_millis(limit);
    fails(code, &[&format!("deadline exceeded after {limit:?}"), "in-process"], answer)?;
    // Timers are rounded up to milliseconds.
    check((limit..limit + Duration::from_millis(2)).contains(&elapsed), format!("{limit:?}, and not {elapsed:?}"))
}

/// Fails unless backend a answers, however late.
async fn waits(world: &World, call: Call) -> Result<(), String> {
    from("a", world.timed(call).await.0)
}

/// Makes a call, and fails unless backend a was told that it has this much time.
async fn tells(timeout: Option<&str>, world: &World, call: Call) -> Result<(), String> {
    from("a", world.call(call).await)?;
    let head = world.a.last_call().ok_or("a call")?;
    let told = head.headers.get("grpc-timeout").and_then(|value| value.to_str().ok());
    check(told == timeout, format!("grpc-timeout {timeout:?}, and not {told:?}"))
}

features! {
    max_stream_duration {
        row: "deadline from the route, told to the server", source: "A31, `RouteAction.max_stream_duration.max_stream_duration`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, max_stream_duration: {max_stream_duration: 20s}}}]",
        strip: [("/routes/0/route/max_stream_duration", "")],
        |world| {
            ends_at(20_000, "DeadlineExceeded", world, slow(grpc())).await?;
            // "min(app deadline, route limit)"
            ends_at(20_000, "DeadlineExceeded", world, slow(grpc()).header("grpc-timeout", "50S")).await?;
            ends_at(100, "DeadlineExceeded", world, slow(grpc()).header("grpc-timeout", "100m")).await?;
            tells(Some("20000000u"), world, grpc()).await
        }
    }

    grpc_timeout_header_max {
        row: "deadline from the route: the cap on `grpc-timeout` comes first",
        source: "A31, `RouteAction.max_stream_duration.grpc_timeout_header_max`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, max_stream_duration:
                    {max_stream_duration: 50s, grpc_timeout_header_max: 20s}}}]",
        strip: [("/routes/0/route/max_stream_duration/grpc_timeout_header_max", "")],
        |world| {
            ends_at(20_000, "DeadlineExceeded", world, slow(grpc())).await?;
            ends_at(20_000, "DeadlineExceeded", world, slow(grpc()).header("grpc-timeout", "50S")).await?;
            tells(Some("20000000u"), world, grpc()).await
        }
    }

    grpc_timeout_header_max_of_zero {
        row: "deadline from the route: a cap of 0 lifts the route's limit",
        source: "A31, `RouteAction.max_stream_duration.grpc_timeout_header_max: 0s`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, max_stream_duration:
                    {max_stream_duration: 20s, grpc_timeout_header_max: 0s}}}]",
        strip: [("/routes/0/route/max_stream_duration/grpc_timeout_header_max", "")],
        |world| {
            waits(world, slow(grpc())).await?;
            tells(None, world, grpc()).await?;
            ends_at(50_000, "DeadlineExceeded", world, slow(grpc()).header("grpc-timeout", "50S")).await
        }
    }

    listener_max_stream_duration {
        row: "deadline from the listener, for routes that say nothing",
        source: "A31, `HttpConnectionManager.common_http_protocol_options.max_stream_duration`",
        config: "http: {common_http_protocol_options: {max_stream_duration: 20s}}",
        strip: [("/http", "{}")],
        |world| {
            ends_at(20_000, "DeadlineExceeded", world, slow(grpc())).await
        }
    }

    route_without_limit {
        row: "deadline: 0 on the route beats the listener's limit",
        source: "A31, `RouteAction.max_stream_duration.max_stream_duration: 0s`",
        config: "{http: {common_http_protocol_options: {max_stream_duration: 20s}},
                  routes: [{match: {prefix: ''}, route: {cluster: a, max_stream_duration: {max_stream_duration: 0s}}}]}",
        strip: [("/routes/0/route/max_stream_duration", "")],
        |world| {
            waits(world, slow(grpc())).await
        }
    }

    deadline_update {
        row: "a new deadline counts from the next call on", source: "A31, `RouteAction.max_stream_duration`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, max_stream_duration: {max_stream_duration: 20s}}}]",
        strip: [("/routes/0/route/max_stream_duration", "{}")],
        |world| {
            ends_at(20_000, "DeadlineExceeded", world, slow(grpc())).await?;
            world.update("/routes/0/route/max_stream_duration/max_stream_duration", "40s").await?;
            ends_at(40_000, "DeadlineExceeded", world, slow(grpc())).await
        }
    }

    http_timeout {
        row: "deadline of plain HTTP: 504; gRPC calls do not look at it", source: "Envoy, `RouteAction.timeout`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 20s}}]",
        strip: [("/routes/0/route/timeout", "")],
        |world| {
            ends_at(20_000, "504", world, slow(get("/"))).await?;
            waits(world, slow(grpc())).await
        }
    }

    http_timeout_unset {
        row: "deadline of plain HTTP: 15 s where the route says nothing", source: "Envoy, `RouteAction.timeout`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a}}]",
        strip: [("/routes/0/route", "{cluster: a, timeout: 0s}")],
        |world| {
            ends_at(15_000, "504", world, slow(get("/"))).await
        }
    }

    http_timeout_of_zero {
        row: "deadline of plain HTTP: 0 is none",
        source: "Envoy, `RouteAction.timeout: 0s`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 0s}}]",
        strip: [("/routes/0/route/timeout", "")],
        |world| {
            waits(world, slow(get("/"))).await
        }
    }

    http_timeout_and_uploads {
        row: "deadline of plain HTTP: it begins when the request is complete", source: "Envoy, `RouteAction.timeout`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 5s}}]",
        strip: [("/routes/0/route/timeout", "")],
        |world| {
            for version in [Version::HTTP_11, Version::HTTP_2] {
                let call = get("/").version(version).header("rpc-behavior", "sleep-20").uploads_for(30);
                from("a", world.timed(call).await.0)?;
                let (answer, elapsed) = world.timed(slow(get("/").version(version)).uploads_for(30)).await;
                fails("504", &["deadline exceeded after 5s", "in-process"], answer)?;
                check((35_000..35_010).contains(&elapsed.as_millis()), format!("30 s and 5, and not {elapsed:?}"))?;
            }
            Ok(())
        }
    }

    http_max_stream_duration {
        row: "deadline of plain HTTP: how long a stream may last, from its begin; 408 if the request is not complete by then",
        source: "Envoy, `RouteAction.max_stream_duration`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 0s, max_stream_duration: {max_stream_duration: 20s}}}]",
        strip: [("/routes/0/route/max_stream_duration", "")],
        |world| {
            ends_at(20_000, "504", world, slow(get("/"))).await?;
            let (answer, elapsed) = world.timed(slow(get("/")).uploads_for(30)).await;
            fails("408", &["request not complete after 20s", "in-process"], answer)?;
            check((20_000..20_010).contains(&elapsed.as_millis()), format!("20 s, and not {elapsed:?}"))
        }
    }

    idle_timeout {
        row: "a call may pause so long", source: "Envoy: `RouteAction.idle_timeout`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 0s, idle_timeout: 3s}}]",
        strip: [("/routes/0/route/idle_timeout", "")],
        |world| {
            for (call, code) in [(get("/"), "504"), (grpc(), "DeadlineExceeded")] {
                let (answer, elapsed) = world.timed(slow(call)).await;
                fails(code, &["idle for 3s", "in-process"], answer)?;
                check((3_000..3_010).contains(&elapsed.as_millis()), format!("3 s, and not {elapsed:?}"))?;
            }
            // A request that goes on is not idle; one that pauses is its caller's fault.
            fails("408", &["request not complete after 3s"], world.timed(slow(get("/")).uploads_for(4)).await.0)?;
            let (answer, elapsed) = world.timed(slow(get("/")).uploads_for(2)).await;
            fails("504", &["idle for 3s"], answer)?;
            check((5_000..5_010).contains(&elapsed.as_millis()), format!("2 s and 3, and not {elapsed:?}"))?;
            // A stream whose messages come every 2 s is not idle; a pause of 4 s in it is.
            time::pause();
            let message = |seconds: i32| ResponseParameters { interval_us: seconds * 1_000_000, ..Default::default() };
            let pauses = [2, 2, 2, 4].map(message).to_vec();
            let request = StreamingOutputCallRequest { response_parameters: pauses, ..Default::default() };
            let call = TestServiceClient::new(world.channel.clone()).streaming_output_call(request).await;
            let mut messages = call.map_err(|status| status.to_string())?.into_inner();
            for _ in 0..3 {
                messages.message().await.map_err(|status| status.to_string())?.ok_or("a message")?;
            }
            let ended = messages.message().await;
            time::resume();
            check(ended.is_err_and(|status| status.message().contains("idle for 3s")), "an end after the pause")
        }
    }
}

/// Nobody reads a request before there is an endpoint: its caller has nothing to do with how long that takes.
#[tokio::test]
async fn a_request_that_goes_on_does_not_make_the_wait_for_an_endpoint_longer() {
    let config = "
endpoints: {a: {endpoints: [{locality: {}, load_balancing_weight: 1, lb_endpoints: [
    {endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}}
routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 5s}}]";
    let world = World::start(config, &[]).await;
    let (answer, elapsed) = world.timed(get("/").uploads_for(30).waits_for_ready()).await;
    fails("504", &["deadline exceeded after 5s", "cluster"], answer).expect("late");
    assert!((5_000..5_010).contains(&elapsed.as_millis()), "5 s, and not {elapsed:?}");
}

/// A call whose cluster leaves the routes while it waits there is routed again, with the time that its application gave it.
#[tokio::test]
async fn a_call_that_is_routed_again_has_the_time_of_its_new_route() {
    let config = "
clusters: {a: {}, b: {}}
endpoints: {b: {endpoints: [{locality: {}, load_balancing_weight: 1, lb_endpoints: [$b]}]}}
routes: [{match: {prefix: ''}, route: {cluster: a, max_stream_duration: {max_stream_duration: 500s}, retry_policy: {
    retry_on: unavailable, num_retries: 1, per_try_timeout: 2s, retry_back_off: {base_interval: 30s, max_interval: 30s}}}}]";
    let mut world = World::start(config, &[]).await;
    let before = world.a.counters().calls;
    let channel = world.channel.clone();
    let call = grpc().header("rpc-behavior", "hostname=a error-code-14").waits_for_ready();
    let call = tokio::spawn(async move { call.on(&channel).await });
    let arrived = async {
        while world.a.counters().calls == before {
            tokio::task::yield_now().await;
        }
    };
    time::timeout(Duration::from_secs(20), arrived).await.expect("the first attempt");
    // Nobody is there: the next attempt waits for a connection.
    let nobody = "{address: 127.0.0.1, port_value: 1}";
    world
        .update("/endpoints/a", &format!("{{endpoints: [{{locality: {{}}, load_balancing_weight: 1, lb_endpoints: [{{endpoint: {{address: {{socket_address: {nobody}}}}}}}]}}]}}"))
        .await
        .expect("a valid assignment");
    world.leap(40).await;
    world.update("/routes", "[{match: {prefix: ''}, route: {cluster: b}}]").await.expect("valid routes");
    from("b", call.await.expect("no panic")).expect("the new route's endpoint");
    let head = world.b.last_call().expect("a call");
    assert_eq!(head.headers.get("grpc-timeout"), None, "the new route has no limit");
}

/// A31's table: what the application, `grpc_timeout_header_max` and `max_stream_duration` say, and when the call ends.
#[tokio::test]
async fn the_table_of_a31() {
    let rows = [
        (None, None, None, None),
        (None, None, Some(0), None),
        (None, None, Some(10), Some(10)),
        (None, Some(0), Some(10), None),
        (None, Some(10), Some(20), Some(10)),
        (Some(20), None, Some(10), Some(10)),
        (Some(20), Some(0), Some(10), Some(20)),
        (Some(20), Some(10), Some(30), Some(10)),
    ];
    let field = |name: &str, seconds: Option<u64>| seconds.map(|seconds| format!("{name}: {seconds}s"));
    let routes: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(row, &(_, header_max, max, _))| {
            let limits = [field("grpc_timeout_header_max", header_max), field("max_stream_duration", max)];
            let limits = limits.into_iter().flatten().collect::<Vec<_>>().join(", ");
            let matches = format!("{{prefix: '', headers: [{{name: row, exact_match: '{row}'}}]}}");
            format!("{{match: {matches}, route: {{cluster: a, max_stream_duration: {{{limits}}}}}}}")
        })
        .collect();
    let world = World::start(&format!("routes: [{}]", routes.join(", ")), &[]).await;
    for (row, (app, header_max, max, wanted)) in rows.into_iter().enumerate() {
        let call = slow(grpc()).header("row", ["0", "1", "2", "3", "4", "5", "6", "7"][row]);
        let call = if app.is_some() { call.header("grpc-timeout", "20S") } else { call };
        let outcome = match wanted {
            None => waits(&world, call).await,
            Some(limit) => ends_at(limit * 1000, "DeadlineExceeded", &world, call).await,
        };
        outcome.unwrap_or_else(|failure| panic!("{app:?}, {header_max:?}, {max:?}: expected {failure}"));
    }
}
