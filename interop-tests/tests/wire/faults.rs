//! Fault injection over the wire: who is delayed or aborted, how, and for how many it holds (A33).
//!
//! Shares are asserted five sigma around what is configured, over so many calls that this is at most 0.05, and at most a
//! fifth of the share itself. Time is a paused clock. It does NOT test the arithmetic of draws; `mesh-client` does.

use crate::{
    features::{Call, World, check, fails, features, from, get, grpc, share},
    rig::until,
};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use mesh_client::fault::active_faults;
use mesh_xds::resource::Kind;
use std::{collections::BTreeMap, future::poll_fn, task::Poll, time::Duration};
use tokio::{
    sync::RwLock,
    time::{self, Instant},
};

/// The gauge of active faults is the process's: whoever injects faults holds this, and who counts them holds it alone.
pub(crate) static FAULTS: RwLock<()> = RwLock::const_new(());

/// Five sigma are 0.05 for a half.
const HALF: usize = 2_500;

/// Five sigma are 0.05 for a quarter.
const QUARTER: usize = 1_875;

/// Five sigma are 0.02 for a tenth.
const TENTH: usize = 5_625;

/// A listener with one fault filter, `f`.
macro_rules! fault {
    ($fault:literal) => {
        concat!(
            "http_filters: [{name: f, typed_config: {
                '@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, ",
            $fault,
            "}}, {name: router, typed_config: {
                '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]"
        )
    };
}
pub(crate) use fault;

/// The same as a whole document.
macro_rules! faulty {
    ($fault:literal) => {
        concat!("http: {", crate::faults::fault!($fault), "}")
    };
}

/// Makes a call on a paused clock, and fails if it ended before this much of its time.
async fn takes(wanted: Duration, world: &World, call: Call) -> Result<Result<String, String>, String> {
    time::pause();
    let begin = Instant::now();
    let outcome = (world.call(call).await, begin.elapsed());
    time::resume();
    let (answer, elapsed) = outcome;
    check(elapsed >= wanted, format!("{answer:?} after {wanted:?}, and not {elapsed:?}"))?;
    Ok(answer)
}

/// Fails unless backend a was never called.
fn unreached(world: &World) -> Result<(), String> {
    check(world.a.last_call().is_none(), "no call of backend a")
}

const MINUTE: Duration = Duration::from_secs(60);

features! {
    abort_http_status {
        row: "fault: aborts with an HTTP status; gRPC calls get the code that stands for it",
        source: "A33, `HTTPFault.abort.http_status`",
        config: faulty!("abort: {http_status: 401, percentage: {numerator: 100}}"),
        strip: [("/http/http_filters/0/typed_config/abort/http_status", "")],
        |world| {
            let _turn = FAULTS.read().await;
            fails("Unauthenticated", &["fault filter abort"], world.call(grpc()).await)?;
            fails("401", &["fault filter abort"], world.call(get("/")).await)?;
            unreached(world)
        }
    }

    abort_grpc_status {
        row: "fault: aborts with a gRPC status, and a text of one's own; plain HTTP gets 200 and the text, as in Envoy",
        source: "A33, `HTTPFault.abort.grpc_status`, Envoy, `.response_body`",
        config: faulty!("abort: {grpc_status: 3, percentage: {numerator: 100}, response_body: 'out of order'}"),
        strip: [("/http/http_filters/0/typed_config/abort/grpc_status", "")],
        |world| {
            let _turn = FAULTS.read().await;
            fails("InvalidArgument", &["out of order"], world.call(grpc()).await)?;
            from("", world.call(get("/")).await)?;
            unreached(world)
        }
    }

    abort_with_ok {
        row: "fault: an abort with status 0 is an OK without a message", source: "A33, `HTTPFault.abort.grpc_status: 0`",
        config: faulty!("abort: {grpc_status: 0, percentage: {numerator: 100}}"),
        strip: [("/http/http_filters/0/typed_config/abort/grpc_status", "")],
        |world| {
            let _turn = FAULTS.read().await;
            from("", world.call(grpc()).await)?;
            let unary = crate::mesh::unary(&world.channel).await;
            check(unary.is_err_and(|status| status.code() != tonic::Code::Ok), "no message, which is no answer")?;
            unreached(world)
        }
    }

    abort_percentage {
        row: "fault: aborts a share of the calls", source: "A33, `HTTPFault.abort.percentage`",
        config: faulty!("abort: {http_status: 503, percentage: {numerator: 5000, denominator: TEN_THOUSAND}}"),
        strip: [("/http/http_filters/0/typed_config/abort/percentage", "")],
        |world| {
            let _turn = FAULTS.read().await;
            share("Unavailable", 0.5, &world.calls(HALF, grpc()).await)
        }
    }

    aborts_are_not_retried {
        row: "fault: an abort is the answer, whatever the retry policy says", source: "A33, A44, `HTTPFault.abort`",
        config: concat!("{http: {", fault!("abort: {http_status: 503, percentage: {numerator: 50}}"), "},
                          routes: [{match: {prefix: ''}, route: {cluster: a,
                                    retry_policy: {retry_on: 'unavailable,5xx', num_retries: 3}}}]}"),
        strip: [("/http/http_filters/0/typed_config/abort", "")],
        |world| {
            let _turn = FAULTS.read().await;
            share("Unavailable", 0.5, &world.calls(HALF, grpc()).await)?;
            share("503", 0.5, &world.calls(HALF, get("/")).await)
        }
    }

    fixed_delay {
        row: "fault: delays; the call's deadline covers it", source: "A33, A31, `HTTPFault.delay.fixed_delay`",
        config: faulty!("delay: {fixed_delay: 60s, percentage: {numerator: 100}}"),
        strip: [("/http/http_filters/0/typed_config/delay/fixed_delay", "")],
        |world| {
            let _turn = FAULTS.read().await;
            let late = takes(Duration::from_secs(1), world, grpc().header("grpc-timeout", "1S")).await?;
            fails("DeadlineExceeded", &["deadline exceeded after 1s"], late)?;
            // 15 s are what plain HTTP has.
            fails("504", &["deadline exceeded after 15s"], takes(MINUTE / 4, world, get("/")).await?)?;
            unreached(world)?;
            from("a", takes(MINUTE, world, grpc()).await?)?;
            // What the delay took is not the server's to use.
            from("a", takes(MINUTE, world, grpc().header("grpc-timeout", "100S")).await?)?;
            let head = world.a.last_call().ok_or("a call")?;
            let told = head.headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).unwrap_or_default();
            let left: u64 = told.trim_end_matches('u').parse().map_err(|_| format!("microseconds, and not {told:?}"))?;
            check(left <= 40_000_000, format!("at most 40 s, and not {told}"))
        }
    }

    delay_percentage {
        row: "fault: delays a share of the calls", source: "A33, `HTTPFault.delay.percentage`",
        config: faulty!("delay: {fixed_delay: 3600s, percentage: {numerator: 50}}"),
        strip: [("/http/http_filters/0/typed_config/delay/percentage", "")],
        |world| {
            let _alone = FAULTS.write().await;
            let (mut calls, mut made, mut spared) = (FuturesUnordered::new(), 0, 0);
            while made < HALF {
                calls.extend((0..10).map(|_| world.call(grpc())));
                made += 10;
                // Until each of them is answered or in its delay.
                poll_fn(|cx| {
                    while let Poll::Ready(Some(_)) = calls.poll_next_unpin(cx) {
                        spared += 1;
                    }
                    if spared + active_faults() as usize == made { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
            share("delayed", 0.5, &BTreeMap::from([("delayed".to_owned(), made - spared), ("a".to_owned(), spared)]))
        }
    }

    delay_then_abort {
        row: "fault: the delay first, then the abort; one draw for each", source: "A33, `HTTPFault.delay`, `.abort`",
        config: faulty!("delay: {fixed_delay: 60s, percentage: {numerator: 100}},
                         abort: {http_status: 403, percentage: {numerator: 100}}"),
        strip: [("/http/http_filters/0/typed_config/abort", "")],
        |world| {
            let _turn = FAULTS.read().await;
            fails("PermissionDenied", &[], takes(MINUTE, world, grpc()).await?)?;
            unreached(world)
        }
    }

    delay_or_abort {
        row: "fault: a draw for the delay and another one for the abort: half and half are a quarter of each kind",
        source: "A33, `HTTPFault.delay.percentage`, `.abort.percentage`",
        config: faulty!("delay: {fixed_delay: 60s, percentage: {numerator: 50}},
                         abort: {http_status: 403, percentage: {numerator: 50}}"),
        strip: [("/http/http_filters/0/typed_config/abort", "")],
        |world| {
            let _turn = FAULTS.read().await;
            let mut counts = BTreeMap::new();
            for _ in 0..QUARTER {
                let (answer, elapsed) = world.timed(grpc()).await;
                let kind = match (answer.is_ok(), elapsed >= MINUTE) {
                    (true, false) => "spared",
                    (true, true) => "delayed",
                    (false, false) => "aborted",
                    (false, true) => "delayed and aborted",
                };
                *counts.entry(kind.to_owned()).or_default() += 1;
            }
            ["spared", "delayed", "aborted", "delayed and aborted"].iter().try_for_each(|kind| share(kind, 0.25, &counts))
        }
    }

    header_delay {
        row: "fault: the request asks for a delay", source: "A33, `HTTPFault.delay.header_delay`",
        config: faulty!("delay: {header_delay: {}, percentage: {numerator: 100}}"),
        strip: [("/http/http_filters/0/typed_config/delay", "")],
        |world| {
            let _turn = FAULTS.read().await;
            from("a", world.call(grpc()).await)?;
            let delayed = || grpc().header("x-envoy-fault-delay-request", "60000");
            from("a", takes(MINUTE, world, delayed()).await?)?;
            // A share of none is none: the call is through before its time is over.
            let spared = delayed().header("x-envoy-fault-delay-request-percentage", "0").header("grpc-timeout", "10S");
            from("a", world.call(spared).await)
        }
    }

    header_abort {
        row: "fault: the request asks for an abort, and can only lower the share",
        source: "A33, `HTTPFault.abort.header_abort`",
        config: faulty!("abort: {header_abort: {}, percentage: {numerator: 50}}"),
        strip: [("/http/http_filters/0/typed_config/abort", "")],
        |world| {
            let _turn = FAULTS.read().await;
            from("a", world.call(grpc()).await)?;
            let aborted = || grpc().header("x-envoy-fault-abort-grpc-request", "3");
            let percentage = "x-envoy-fault-abort-request-percentage";
            share("InvalidArgument", 0.5, &world.calls(HALF, aborted().header(percentage, "100")).await)?;
            share("InvalidArgument", 0.1, &world.calls(TENTH, aborted().header(percentage, "10")).await)
        }
    }

    header_abort_by_http_status {
        row: "fault: of an HTTP and a gRPC status that the request asks for, the HTTP one counts",
        source: "A33, `HTTPFault.abort.header_abort`",
        config: faulty!("abort: {header_abort: {}, percentage: {numerator: 100}}"),
        strip: [("/http/http_filters/0/typed_config/abort", "")],
        |world| {
            let _turn = FAULTS.read().await;
            let call = grpc().header("x-envoy-fault-abort-grpc-request", "3").header("x-envoy-fault-abort-request", "404");
            fails("Unimplemented", &[], world.call(call).await)?;
            fails("404", &[], world.call(get("/").header("x-envoy-fault-abort-request", "404")).await)
        }
    }

    max_active_faults {
        row: "fault: while so many calls are being faulted, others pass untouched",
        source: "A33, `HTTPFault.max_active_faults`",
        config: faulty!("delay: {fixed_delay: 3600s, percentage: {numerator: 100}}, max_active_faults: 1"),
        strip: [("/http/http_filters/0/typed_config/max_active_faults", "")],
        |world| {
            let _alone = FAULTS.write().await;
            let mut calls: FuturesUnordered<_> = (0..10).map(|_| world.call(grpc().header("grpc-timeout", "10S"))).collect();
            for _ in 0..9 {
                from("a", calls.next().await.ok_or("ten calls")?)?;
            }
            check(calls.next().now_or_never().is_none() && active_faults() == 1, "one call is being delayed")?;
            // Given up, it counts no more, and the next call is the one.
            drop(calls);
            check(active_faults() == 0, "no call is being delayed")?;
            from("a", takes(60 * MINUTE, world, grpc()).await?)?;
            check(active_faults() == 0, "no call is being delayed any more")
        }
    }

    max_active_faults_of_zero {
        row: "fault: a limit of 0 switches faults off", source: "A33, `HTTPFault.max_active_faults: 0`",
        config: faulty!("abort: {http_status: 503, percentage: {numerator: 100}}, max_active_faults: 0"),
        strip: [("/http/http_filters/0/typed_config/max_active_faults", "")],
        |world| {
            let _turn = FAULTS.read().await;
            from("a", world.call(grpc()).await)
        }
    }

    fault_by_headers {
        row: "fault: only for calls whose headers match", source: "Envoy, `HTTPFault.headers`",
        config: faulty!("abort: {http_status: 403, percentage: {numerator: 100}},
                         headers: [{name: x-user, string_match: {exact: tester}}, {name: ':path', prefix_match: /grpc}]"),
        strip: [("/http/http_filters/0/typed_config/headers", "")],
        |world| {
            let _turn = FAULTS.read().await;
            fails("PermissionDenied", &[], world.call(grpc().header("x-user", "tester")).await)?;
            from("a", world.call(grpc()).await)?;
            from("a", world.call(get("/").header("x-user", "tester")).await)
        }
    }

    fault_by_cluster {
        row: "fault: only for calls to one cluster", source: "Envoy, `HTTPFault.upstream_cluster`",
        config: concat!("{http: {", fault!("abort: {http_status: 403, percentage: {numerator: 100}}, upstream_cluster: b"), "},
                          routes: [{match: {path: /b}, route: {cluster: b}}, {match: {prefix: ''}, route: {cluster: a}}]}"),
        strip: [("/http/http_filters/0/typed_config/upstream_cluster", "")],
        |world| {
            let _turn = FAULTS.read().await;
            fails("403", &[], world.call(get("/b")).await)?;
            from("a", world.call(get("/a")).await)
        }
    }

    fault_by_downstream_node {
        row: "fault: only for calls of some nodes", source: "Envoy, `HTTPFault.downstream_nodes`",
        config: faulty!("abort: {http_status: 403, percentage: {numerator: 100}}, downstream_nodes: [n1, n2]"),
        strip: [("/http/http_filters/0/typed_config/downstream_nodes", "")],
        |world| {
            let _turn = FAULTS.read().await;
            let of = |node| get("/").header("x-envoy-downstream-service-node", node);
            fails("403", &[], world.call(of("n2")).await)?;
            from("a", world.call(of("n3")).await)?;
            from("a", world.call(get("/")).await)
        }
    }

    fault_update {
        row: "a new fault counts from the next call on", source: "A33, `HTTPFault`",
        config: faulty!("abort: {http_status: 403, percentage: {numerator: 100}}"),
        strip: [("/http/http_filters/0/typed_config/abort", "{}")],
        |world| {
            let _turn = FAULTS.read().await;
            fails("403", &[], world.call(get("/")).await)?;
            world.update("/http/http_filters/0/typed_config/abort/http_status", "404").await?;
            fails("404", &[], world.call(get("/")).await)?;
            world.update("/http/http_filters/0/typed_config/abort/percentage", "{numerator: 0}").await?;
            from("a", world.call(get("/")).await)
        }
    }

    fault_without_effect {
        row: "fault: fields without effect are reported", source: "Envoy, `HTTPFault.response_rate_limit`, `.*_runtime`",
        config: faulty!("response_rate_limit: {fixed_limit: {limit_kbps: 1}}, abort_percent_runtime: k"),
        strip: [("/http/http_filters/0/typed_config/response_rate_limit", "")],
        |world| {
            from("a", world.call(grpc()).await)?;
            world.ignores(Kind::Listener, crate::features::SERVICE, "abort_percent_runtime")?;
            world.ignores(Kind::Listener, crate::features::SERVICE, "response_rate_limit")
        }
    }
}

/// Calls that end in an injected delay leave nothing behind, however they end.
/// What answers in the place of a backend does not wait for anything, and this runtime has one thread.
#[tokio::test]
async fn a_caller_that_never_stops_being_aborted_keeps_nobody_from_running() {
    let _alone = FAULTS.read().await;
    let world = World::start(
        faulty!(
            "headers: [{name: x-abort, present_match: true}],
        abort: {http_status: 401, percentage: {numerator: 100}}"
        ),
        &[],
    )
    .await;
    let channel = world.channel_builder().build().expect("a valid target");
    let aborted = tokio::spawn(async move {
        for _ in 0..20_000 {
            fails("401", &["fault filter abort"], get("/").header("x-abort", "yes").on(&channel).await)?;
        }
        Ok::<_, String>(())
    });
    from("a", world.call(get("/")).await).expect("another caller is answered");
    assert!(!aborted.is_finished(), "while the first one goes on");
    aborted.await.expect("no panic").expect("aborted, all of them");
}

#[tokio::test]
async fn a_call_that_ends_in_a_delay_is_no_active_fault_any_more() {
    let _alone = FAULTS.write().await;
    let config = faulty!("delay: {fixed_delay: 3600s, percentage: {numerator: 100}}");
    let world = World::start(config, &[]).await;
    let calls: FuturesUnordered<_> = (0..50).map(|_| world.call(grpc().header("grpc-timeout", "1000S"))).collect();
    let given_up: FuturesUnordered<_> = (0..50).map(|_| Box::pin(world.call(get("/")))).collect();
    let mut given_up = given_up.fuse();
    assert!(given_up.next().now_or_never().is_none());
    assert_eq!(active_faults(), 50);
    let calls = tokio::join!(calls.collect::<Vec<_>>(), async {
        until("all of them", || active_faults() == 100).await;
        drop(given_up);
        assert_eq!(active_faults(), 50);
        // Their time is up, and the delay is not.
        world.leap(1000).await;
    });
    assert!(calls.0.iter().all(|answer| answer.as_ref().is_err_and(|why| why.starts_with("DeadlineExceeded"))));
    assert_eq!(active_faults(), 0);
    assert_eq!(world.a.counters().calls, 0);
}

#[tokio::test]
async fn meshes_of_a_process_count_their_active_faults_together() {
    let _alone = FAULTS.write().await;
    let config = faulty!("delay: {fixed_delay: 3600s, percentage: {numerator: 100}}, max_active_faults: 1");
    let [first, second] = [World::start(config, &[]).await, World::start(config, &[]).await];
    let delayed = tokio::spawn({
        let channel = first.channel.clone();
        async move { grpc().on(&channel).await }
    });
    until("the one call that may be delayed", || active_faults() == 1).await;
    from("a", second.call(grpc()).await).expect("another mesh's call passes");
    delayed.abort();
    until("no call that is delayed", || active_faults() == 0).await;
}
