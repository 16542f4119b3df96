//! Retries by policy (A6, A44; Envoy's `retry_on` for what is not gRPC), over the wire.
//!
//! Backends count the attempts they see; backoffs pass on a paused clock. It does NOT test the tables of conditions;
//! `mesh-client` does.

use crate::features::{Answer, Call, World, check, fails, features, from, get, grpc, only};
use interop_tests::proto::testing::{Payload, SimpleRequest, test_service_client::TestServiceClient};
use mesh_client::retry::RetryThrottling;
use std::time::Duration;

/// Makes a call that fails, and fails unless backends a and b have then seen so many attempts.
async fn attempts(world: &World, call: Call, code: &str, wanted: [u64; 2]) -> Result<(), String> {
    let seen = || [world.a.counters().calls, world.b.counters().calls];
    let before = seen();
    let (answer, _) = world.timed(call).await;
    fails(code, &[], answer)?;
    let seen = [seen()[0] - before[0], seen()[1] - before[1]];
    check(seen == wanted, format!("{wanted:?} attempts at a and b, and not {seen:?}"))
}

/// Fails unless that was the answer of backend a, within `range` of milliseconds.
fn took(range: std::ops::Range<u64>, (answer, elapsed): (Answer, Duration)) -> Result<(), String> {
    from("a", answer)?;
    // Timers are rounded up to milliseconds.
    let range = Duration::from_millis(range.start)..Duration::from_millis(range.end + 5);
    check(range.contains(&elapsed), format!("an answer within {range:?}, and not {elapsed:?}"))
}

fn failing(call: Call) -> Call {
    call.header("rpc-behavior", "error-code-14")
}

/// Answered by the `N`th retry.
fn later(behavior: &'static str) -> Call {
    grpc().header("rpc-behavior", behavior)
}

/// The time of day, in seconds since 1970.
fn today() -> u64 {
    #[expect(clippy::disallowed_types, reason = "servers tell times of day")]
    std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

features! {
    codes {
        row: "gRPC calls are repeated for the status codes of the policy, so many times", source: "A6, A44, `RouteAction.retry_policy.retry_on`, `.num_retries`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: ' Unavailable , foo', num_retries: 3}}}]",
        strip: [("/routes/0/route/retry_policy", "")],
        |world| {
            from("a", world.call(later("succeed-on-retry-attempt-3,error-code-14")).await)?;
            let head = world.a.last_call().ok_or("a call")?;
            let told = head.headers.get("grpc-previous-rpc-attempts").ok_or("grpc-previous-rpc-attempts")?;
            check(told == "3", format!("the third retry, and not {told:?}"))?;
            attempts(world, later("succeed-on-retry-attempt-4,error-code-14"), "Unavailable", [4, 0]).await?;
            // Each of the five, and no other.
            let five = [("cancelled", 1), ("deadline-exceeded", 4), ("internal", 13), ("resource-exhausted", 8), ("unavailable", 14)];
            for (word, code) in five {
                world.update("/routes/0/route/retry_policy/retry_on", word).await?;
                for (behavior, name, other) in [("error-code-1", "Cancelled", 1), ("error-code-4", "DeadlineExceeded", 4),
                    ("error-code-13", "Internal", 13), ("error-code-8", "ResourceExhausted", 8),
                    ("error-code-14", "Unavailable", 14), ("error-code-2", "Unknown", 2)] {
                    let wanted = if code == other { 4 } else { 1 };
                    attempts(world, later(behavior), name, [wanted, 0]).await.map_err(|failure| format!("{word}: {failure}"))?;
                }
            }
            Ok(())
        }
    }

    five_attempts {
        row: "a gRPC call makes five attempts at most, with gRPC's backoff between them", source: "A6, A44, `RouteAction.retry_policy.num_retries`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: unavailable, num_retries: 10}}}]",
        strip: [("/routes/0/route/retry_policy", "")],
        |world| {
            attempts(world, failing(grpc()), "Unavailable", [5, 0]).await?;
            // 25 + 50 + 100 + 200 ms, each +- 20 %.
            took(300..450, world.timed(later("succeed-on-retry-attempt-4,error-code-14")).await)
        }
    }

    backoff {
        row: "the backoff of retries", source: "A44, `RouteAction.retry_policy.retry_back_off`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: unavailable, num_retries: 3,
                           retry_back_off: {base_interval: 1s, max_interval: 2s}}}}]",
        strip: [("/routes/0/route/retry_policy/retry_back_off", "")],
        |world| { took(4_000..6_000, world.timed(later("succeed-on-retry-attempt-3,error-code-14")).await) }
    }

    of_virtual_host {
        row: "the virtual host's retry policy, unless the route has one, however useless", source: "A44, `VirtualHost.retry_policy`",
        config: "virtual_hosts: [{name: v, domains: ['*'], retry_policy: {retry_on: unavailable}, routes: [
                   {match: {path: /grpc.testing.TestService/UnaryCall, headers: [{name: k}]}, route: {cluster: a, retry_policy: {retry_on: 5xx}}},
                   {match: {prefix: ''}, route: {cluster: a}}]}]",
        strip: [("/virtual_hosts/0/retry_policy", "")],
        |world| {
            attempts(world, failing(grpc()), "Unavailable", [2, 0]).await?;
            attempts(world, failing(grpc()).header("k", "1"), "Unavailable", [1, 0]).await
        }
    }

    pushback {
        row: "a server says when to come again, or never", source: "A6, `grpc-retry-pushback-ms`, `RouteAction.retry_policy`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: unavailable, num_retries: 3}}}]",
        strip: [("/routes/0/route/retry_policy", "")],
        |world| {
            let told = later("succeed-on-retry-attempt-2,error-code-14").header("answer-grpc-retry-pushback-ms", "500");
            took(1_000..1_001, world.timed(told).await)?;
            attempts(world, failing(grpc()).header("answer-grpc-retry-pushback-ms", "-1"), "Unavailable", [1, 0]).await
        }
    }

    within_the_deadline {
        row: "a deadline covers all attempts, and each is told what is left", source: "A31, A6, `RouteAction.retry_policy`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, max_stream_duration: {max_stream_duration: 1s}, retry_policy: {
                           retry_on: unavailable, num_retries: 4, retry_back_off: {base_interval: 0.7s}}}}]",
        strip: [("/routes/0/route/retry_policy", "")],
        |world| {
            let (answer, elapsed) = world.timed(failing(grpc())).await;
            fails("DeadlineExceeded", &[], answer)?;
            check((1_000..1_005).contains(&elapsed.as_millis()), format!("1 s, and not {elapsed:?}"))?;
            check(world.a.counters().calls == 2, "two attempts")?;
            let head = world.a.last_call().ok_or("a call")?;
            let told = head.headers.get("grpc-timeout").and_then(|it| it.to_str().ok()).ok_or("grpc-timeout")?;
            let micros: u64 = told.trim_end_matches('u').parse().map_err(|_| format!("{told} in microseconds"))?;
            check((100_000..500_000).contains(&micros), format!("what is left after 0.56 to 0.84 s, and not {told}"))
        }
    }

    http_statuses {
        row: "other requests are repeated for the HTTP statuses of the policy", source: "Envoy: `RetryPolicy.retry_on` (5xx, gateway-error, retriable-4xx, retriable-status-codes)",
        config: "routes: [
            {match: {prefix: /5xx}, route: {cluster: a, retry_policy: {retry_on: 5xx, num_retries: 6}}},
            {match: {prefix: /gateway}, route: {cluster: a, retry_policy: {retry_on: gateway-error}}},
            {match: {prefix: /4xx}, route: {cluster: a, retry_policy: {retry_on: retriable-4xx}}},
            {match: {prefix: /codes}, route: {cluster: a, retry_policy: {retry_on: retriable-status-codes, retriable_status_codes: [418]}}}]",
        strip: [("/routes/0/route/retry_policy", "")],
        |world| {
            let call = |path, behavior| get(path).header("rpc-behavior", behavior);
            // No cap of five: that is gRPC's.
            attempts(world, call("/5xx", "error-code-500"), "500", [7, 0]).await?;
            attempts(world, call("/5xx", "error-code-404"), "404", [1, 0]).await?;
            attempts(world, call("/gateway", "error-code-503"), "503", [2, 0]).await?;
            attempts(world, call("/gateway", "error-code-500"), "500", [1, 0]).await?;
            attempts(world, call("/4xx", "error-code-409"), "409", [2, 0]).await?;
            attempts(world, call("/4xx", "error-code-404"), "404", [1, 0]).await?;
            attempts(world, call("/codes", "error-code-418"), "418", [2, 0]).await?;
            attempts(world, call("/codes", "error-code-503"), "503", [1, 0]).await
        }
    }

    http_headers {
        row: "other requests are repeated for headers of the response, if a header of theirs allows it; gRPC calls ask for neither", source: "A44, Envoy: `RetryPolicy.retriable_headers`, `.retriable_request_headers`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: 'retriable-headers,unavailable',
                           retriable_headers: [{name: x-again, string_match: {exact: 'yes'}}], retriable_request_headers: [{name: x-safe}]}}}]",
        strip: [("/routes/0/route/retry_policy/retriable_headers", "")],
        |world| {
            let call = || get("/").header("rpc-behavior", "error-code-404").header("x-safe", "1");
            attempts(world, call().header("answer-x-again", "yes"), "404", [2, 0]).await?;
            attempts(world, call().header("answer-x-again", "no"), "404", [1, 0]).await?;
            let unsafe_call = get("/").header("rpc-behavior", "error-code-404").header("answer-x-again", "yes");
            attempts(world, unsafe_call, "404", [1, 0]).await?;
            attempts(world, failing(grpc()), "Unavailable", [2, 0]).await?;
            let again = grpc().header("rpc-behavior", "error-code-13").header("answer-x-again", "yes").header("x-safe", "1");
            attempts(world, again, "Internal", [1, 0]).await
        }
    }

    rate_limited {
        row: "a response says when to come again: at least then, at most half as much later", source: "Envoy: `RetryPolicy.rate_limited_retry_back_off`",
        config: "endpoints: {a: {endpoints: [{locality: {}, load_balancing_weight: 1, lb_endpoints: [{$b}, {$a}]}]}}
routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 60s, retry_policy: {retry_on: 5xx, num_retries: 1,
                   retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}],
                   rate_limited_retry_back_off: {reset_headers: [{name: Retry-After}], max_interval: 20s}}}}]",
        strip: [("/routes/0/route/retry_policy/rate_limited_retry_back_off", "")],
        |world| {
            world.ready("a", 2).await?;
            let call = |after| get("/").header("rpc-behavior", "hostname=b error-code-503").header("answer-retry-after", after);
            let mut waited = false;
            // Of two calls in turn at least one meets b first.
            for _ in 0..2 {
                let (answer, elapsed) = world.timed(call("10")).await;
                from("a", answer)?;
                let in_time = (Duration::from_secs(10)..Duration::from_millis(15_005)).contains(&elapsed);
                waited |= in_time;
                check(in_time || elapsed < Duration::from_secs(1), format!("10 to 15 s, or none, and not {elapsed:?}"))?;
            }
            check(waited, "a call that met b first")?;
            // Longer than its maximum: as if it had not been said.
            for _ in 0..2 {
                let (answer, elapsed) = world.timed(call("21")).await;
                from("a", answer)?;
                check(elapsed < Duration::from_secs(1), format!("the usual backoff, and not {elapsed:?}"))?;
            }
            Ok(())
        }
    }

    rate_limited_until {
        row: "a response says until when to wait, by the time of day", source: "Envoy: `RetryPolicy.rate_limited_retry_back_off` (UNIX_TIMESTAMP)",
        config: "endpoints: {a: {endpoints: [{locality: {}, load_balancing_weight: 1, lb_endpoints: [{$b}, {$a}]}]}}
routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 200s, retry_policy: {retry_on: 5xx, num_retries: 1,
                   retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}],
                   rate_limited_retry_back_off: {reset_headers: [{name: X-Reset, format: UNIX_TIMESTAMP}], max_interval: 100s}}}}]",
        strip: [("/routes/0/route/retry_policy/rate_limited_retry_back_off/reset_headers/0/format", "")],
        |world| {
            world.ready("a", 2).await?;
            let call = |at: u64| get("/").header("rpc-behavior", "hostname=b error-code-503").header("answer-x-reset", at.to_string());
            let mut waited = false;
            // Of two calls in turn at least one meets b first.
            for _ in 0..2 {
                let (answer, elapsed) = world.timed(call(today() + 60)).await;
                from("a", answer)?;
                // The time of day goes on while the clock stands: 20 s of it are for slow machines.
                let in_time = (Duration::from_secs(40)..Duration::from_millis(90_005)).contains(&elapsed);
                waited |= in_time;
                check(in_time || elapsed < Duration::from_secs(1), format!("up to 60 s and half as much again, or none, and not {elapsed:?}"))?;
            }
            check(waited, "a call that met b first")?;
            // Long ago, and after the maximum: as if it had not been said.
            for at in [today() - 60, today() - 60, today() + 200, today() + 200] {
                let (answer, elapsed) = world.timed(call(at)).await;
                from("a", answer)?;
                check(elapsed < Duration::from_secs(1), format!("the usual backoff, and not {elapsed:?}"))?;
            }
            Ok(())
        }
    }

    per_try_timeout {
        row: "an attempt may take so long, and then the next one has its turn", source: "Envoy: `RetryPolicy.per_try_timeout`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 30s, retry_policy: {
                           retry_on: 'gateway-error,deadline-exceeded', num_retries: 2, per_try_timeout: 2s}}}]",
        strip: [("/routes/0/route/retry_policy/per_try_timeout", "")],
        |world| {
            let (answer, elapsed) = world.timed(get("/").header("rpc-behavior", "sleep-60")).await;
            fails("504", &["per_try_timeout", "2s", "in-process"], answer)?;
            check((6_000..6_300).contains(&elapsed.as_millis()), format!("three attempts of 2 s, and not {elapsed:?}"))?;
            let before = world.a.counters().calls;
            let (answer, _) = world.timed(grpc().header("rpc-behavior", "sleep-60")).await;
            fails("DeadlineExceeded", &["per_try_timeout"], answer)?;
            check(world.a.counters().calls == before + 3, "three attempts")?;
            let told = world.a.last_call().and_then(|head| head.headers.get("grpc-timeout").cloned());
            check(told.is_some_and(|told| told == "2000000u"), "the limit of the attempt, told to the server")
        }
    }

    previous_hosts {
        row: "a retry goes to another endpoint", source: "Envoy: `RetryPolicy.retry_host_predicate` (previous_hosts)",
        config: "endpoints: {a: {endpoints: [{locality: {}, load_balancing_weight: 1, lb_endpoints: [{$a}, {$b}, {$c}]}]}}
clusters: {a: {lb_policy: RANDOM}}
routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: 'unavailable,5xx', num_retries: 1,
            retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}]}}}]",
        strip: [("/routes/0/route/retry_policy/retry_host_predicate", "")],
        |world| {
            world.ready("a", 3).await?;
            for call in [grpc().header("rpc-behavior", "hostname=a error-code-14"), get("/").header("rpc-behavior", "hostname=a error-code-503")] {
                let (before, counts) = (world.a.counters().calls, world.calls(60, call).await);
                // Without it a third of the retries would meet the same endpoint again.
                check(counts.keys().all(|hostname| hostname == "b" || hostname == "c"), format!("no failure among {counts:?}"))?;
                check(world.a.counters().calls > before, "some that failed at first")?;
            }
            Ok(())
        }
    }

    host_selection {
        row: "a retry goes to the one endpoint that is left, if it may look at so many", source: "Envoy: `RetryPolicy.host_selection_retry_max_attempts`",
        config: "endpoints: {a: {endpoints: [{locality: {}, load_balancing_weight: 1, lb_endpoints: [{$a}, {$b}, {$c}]}]}}
clusters: {a: {lb_policy: RANDOM}}
routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: 'unavailable,5xx', num_retries: 2, host_selection_retry_max_attempts: 2,
            retry_back_off: {base_interval: 0.001s}, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}]}}}]",
        // One look, then.
        strip: [("/routes/0/route/retry_policy/host_selection_retry_max_attempts", "")],
        |world| {
            world.ready("a", 3).await?;
            only("c", &world.calls(120, grpc().header("rpc-behavior", "hostname=a error-code-14,hostname=b error-code-14")).await)?;
            only("c", &world.calls(120, get("/").header("rpc-behavior", "hostname=a error-code-503,hostname=b error-code-503")).await)
        }
    }

    not_for_grpc {
        row: "of Envoy's conditions a gRPC status meets none", source: "A44, `RouteAction.retry_policy.retry_on`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: '5xx,gateway-error,reset,retriable-4xx', num_retries: 3}}}]",
        strip: [("/routes/0/route/retry_policy/retry_on", "unavailable")],
        |world| { attempts(world, failing(grpc()), "Unavailable", [1, 0]).await }
    }

    per_try_idle_timeout {
        row: "an attempt may pause so long, and then the next one has its turn", source: "Envoy: `RetryPolicy.per_try_idle_timeout`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 30s, retry_policy: {retry_on: reset, num_retries: 1, per_try_idle_timeout: 2s}}}]",
        strip: [("/routes/0/route/retry_policy/per_try_idle_timeout", "")],
        |world| {
            let before = world.a.counters().calls;
            let (answer, elapsed) = world.timed(get("/").header("rpc-behavior", "sleep-60")).await;
            fails("504", &["idle for 2s", "in-process"], answer)?;
            check((4_000..4_100).contains(&elapsed.as_millis()), format!("two attempts of 2 s, and not {elapsed:?}"))?;
            check(world.a.counters().calls == before + 2, "two attempts")?;
            world.update("/routes/0/route/retry_policy/retry_on", "deadline-exceeded").await?;
            let (answer, _) = world.timed(grpc().header("rpc-behavior", "sleep-60")).await;
            fails("DeadlineExceeded", &["idle for 2s", "in-process"], answer)?;
            check(world.a.counters().calls == before + 4, "two attempts of a gRPC call")
        }
    }

    jitter {
        row: "the backoff of retries is drawn: gRPC's is 0.8 to 1.2 of it, that of other requests anything up to it",
        source: "A6, Envoy: `RetryPolicy.retry_back_off`",
        config: "routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 60s, retry_policy: {retry_on: 'unavailable,5xx', num_retries: 1,
                           retry_back_off: {base_interval: 10s, max_interval: 10s}}}}]",
        strip: [("/routes/0/route/retry_policy/retry_back_off", "")],
        |world| {
            for (call, code, all, below, above) in [
                (failing(grpc()), "Unavailable", 8.0..12.01, 9.0, 11.0),
                (get("/").header("rpc-behavior", "error-code-503"), "503", 0.0..10.01, 3.0, 7.0),
            ] {
                let mut drawn = Vec::new();
                for _ in 0..100 {
                    let (answer, elapsed) = world.timed(call.clone()).await;
                    fails(code, &[], answer)?;
                    drawn.push(elapsed.as_secs_f64());
                }
                drawn.sort_by(f64::total_cmp);
                let (least, most) = (drawn[0], drawn[99]);
                check(all.contains(&least) && all.contains(&most), format!("within {all:?}, and not {least} to {most}"))?;
                check(least < below && most > above, format!("spread over {all:?}, and not {least} to {most}"))?;
            }
            Ok(())
        }
    }

    unreachable {
        row: "a cluster that cannot be reached is tried again", source: "A6, Envoy: `RetryPolicy.retry_on` (connect-failure, reset-before-request)",
        config: "endpoints: {a: {endpoints: [{locality: {}, load_balancing_weight: 1, lb_endpoints: [
                   {endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}}
routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 60s, retry_policy: {retry_on: connect-failure, num_retries: 2,
            retry_back_off: {base_interval: 10s, max_interval: 10s}}}}]",
        strip: [("/routes/0/route/retry_policy", "")],
        |world| {
            for condition in ["connect-failure", "reset-before-request"] {
                if condition != "connect-failure" {
                    world.update("/routes/0/route/retry_policy/retry_on", condition).await?;
                }
                let (answer, elapsed) = world.timed(grpc()).await;
                fails("Unavailable", &["127.0.0.1:1"], answer)?;
                check((16_000..24_010).contains(&elapsed.as_millis()), format!("two pauses of 10 s, and not {elapsed:?}"))?;
                let (answer, elapsed) = world.timed(get("/")).await;
                fails("503", &["127.0.0.1:1"], answer)?;
                check((10..20_010).contains(&elapsed.as_millis()), format!("two pauses of 0 to 10 s, and not {elapsed:?}"))?;
            }
            // That is for responses.
            world.update("/routes/0/route/retry_policy/retry_on", "retriable-4xx").await?;
            let (answer, elapsed) = world.timed(grpc()).await;
            fails("Unavailable", &["127.0.0.1:1"], answer)?;
            check(elapsed.as_millis() < 10, format!("no pause, and not {elapsed:?}"))
        }
    }
}

#[tokio::test]
async fn throttling_leaves_a_server_alone_that_keeps_failing() {
    let route = "routes: [{match: {prefix: '', headers: [{name: no-policy}]}, route: {cluster: a}},
        {match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: unavailable, num_retries: 1}}}]";
    let world = World::start(route, &[]).await;
    let throttling = RetryThrottling::new(10.0, 0.5).expect("valid");
    let channel = world.channel_builder().retry_throttling(throttling).build().expect("a valid target");
    let attempts = async |call: Call| {
        let before = world.a.counters().calls;
        let _ = call.on(&channel).await;
        world.a.counters().calls - before
    };
    // Ten tokens; each attempt that fails takes one, and retries need more than five.
    let mut made = Vec::new();
    for _ in 0..4 {
        made.push(attempts(failing(grpc())).await);
    }
    assert_eq!(made, [2, 2, 1, 1]);
    // 4 are left: two successes bring back one each two, and then a failure may be repeated.
    for _ in 0..6 {
        assert_eq!(attempts(grpc()).await, 1);
    }
    assert_eq!(attempts(failing(grpc())).await, 2);
    // Plain HTTP is not throttled, and takes nothing.
    assert_eq!(attempts(get("/")).await, 1);
    // 5 are left. A server that wants no retry takes one, whatever its status and the call's policy, if there is one.
    let internal = || grpc().header("rpc-behavior", "error-code-13");
    let wants_none = |no| internal().header("answer-grpc-retry-pushback-ms", no);
    let twice = wants_none("1").header("answer-grpc-retry-pushback-ms", "1");
    let of_no_policy = wants_none("-1").header("no-policy", "1");
    for (call, then) in [
        (wants_none("-1"), 1),
        (wants_none("soon"), 1),
        (twice, 1),
        (of_no_policy, 1),
        // No failure to count.
        (internal(), 2),
        (wants_none("1"), 2),
        (grpc().header("answer-grpc-retry-pushback-ms", "-1"), 2),
    ] {
        for _ in 0..4 {
            assert_eq!(attempts(grpc()).await, 1);
        }
        assert_eq!(attempts(call.clone()).await, 1, "{call:?}");
        assert_eq!(attempts(failing(grpc())).await, then, "{call:?}");
    }
}

#[tokio::test]
async fn retries_can_be_switched_off() {
    let route =
        "routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: unavailable, num_retries: 3}}}]";
    let world = World::start(route, &[]).await;
    let channel = world.channel_builder().disable_retries().build().expect("a valid target");
    fails("Unavailable", &[], failing(grpc()).on(&channel).await).expect("no retry");
    assert_eq!(world.a.counters().calls, 1);
}

#[tokio::test]
async fn a_body_that_is_too_large_to_keep_is_sent_once() {
    let route =
        "routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: unavailable, num_retries: 1}}}]";
    let world = World::start(route, &[]).await;
    for (size, attempts) in [(256 * 1024 - 64, 2), (256 * 1024 + 1, 1)] {
        let payload = Payload { body: vec![0; size], ..Default::default() };
        let mut request = tonic::Request::new(SimpleRequest { payload: Some(payload), ..Default::default() });
        request.metadata_mut().insert("rpc-behavior", "error-code-14".parse().expect("text"));
        let before = world.a.counters().calls;
        let mut client = TestServiceClient::new(world.channel.clone());
        let failure = client.unary_call(request).await.expect_err("told to fail");
        assert_eq!(failure.code(), tonic::Code::Unavailable);
        assert_eq!(world.a.counters().calls - before, attempts, "{size} bytes");
    }
}
