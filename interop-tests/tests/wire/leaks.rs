//! Whatever becomes of calls, nothing of them stays: no stream, permit, retry, fault, connection, task.
//!
//! Calls of all kinds are made at random, 48 at a time: answered, refused, failed and made again, late, given up by their
//! caller before or after the headers, cut by a backend that dies. The seed is printed; `MESH_SEED` chooses it. It does NOT
//! judge answers.

use crate::{
    faults::FAULTS,
    features::World,
    mesh::soak,
    rig::{until, within},
};
use bytes::Bytes;
use fastrand::Rng;
use http::{HeaderMap, HeaderValue, Method, Request, Version, header};
use http_body_util::{BodyExt, Full};
use interop_tests::backend::Backend;
use mesh_client::{HttpVersion, MeshChannel, fault::active_faults};
use std::{env, time::Duration};
use tokio::{runtime::Handle, task::JoinSet, time::timeout};
use tower_service::Service;

const AT_ONCE: usize = 48;

/// Retries, limits on everything, and faults for some.
const CONFIG: &str = "
http: {http_filters: [
  {name: fault, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault,
     delay: {fixed_delay: 0.002s, percentage: {numerator: 5}}, abort: {http_status: 503, percentage: {numerator: 2}}}},
  {name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}
clusters: {a: {circuit_breakers: {thresholds: [{max_connections: 8, max_requests: 32, max_pending_requests: 16, max_retries: 8}]}}}
endpoints: {a: {endpoints: [{locality: {}, load_balancing_weight: 1, lb_endpoints: [{$a}, {$b}, {$c}]}]}}
routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 0.02s, idle_timeout: 1s, max_stream_duration: {max_stream_duration: 0.02s},
  retry_policy: {retry_on: 'unavailable,5xx,reset', num_retries: 3, per_try_timeout: 0.01s, retry_back_off: {base_interval: 0.001s},
    retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}]}}}]
";

/// One call, and when its caller gives it up.
#[derive(Debug)]
struct Plan {
    request: Request<Full<Bytes>>,
    http2: bool,
    patience: Option<Duration>,
    reads: bool,
}

fn plan(random: &mut Rng) -> Plan {
    let grpc = random.bool();
    let behavior = match random.u32(..10) {
        0..4 => None,
        4 | 5 => Some(if grpc { "error-code-14" } else { "error-code-503" }),
        6 => Some(if grpc { "hostname=a error-code-14" } else { "hostname=a error-code-503" }),
        7 => Some("keep-open"),
        8 => Some("hostname=b keep-open"),
        _ => Some("error-code-9"),
    };
    let http2 = grpc || random.bool();
    let is_held = behavior.is_some_and(|behavior| behavior.ends_with("keep-open"));
    let mut request = Request::new(Full::new(match random.usize(..70_000) {
        _ if grpc => Bytes::from_static(&[0; 5]),
        // A backend that reads no body does not see that an HTTP/1.1 connection was closed.
        _ if is_held && !http2 => Bytes::new(),
        size => Bytes::from(vec![0; size]),
    }));
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = Method::POST;
    let uri = if grpc { "/grpc.testing.TestService/UnaryCall" } else { "/echo" };
    *request.uri_mut() = uri.parse().expect("a path");
    let mut headers = HeaderMap::new();
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    headers.extend(
        behavior.map(|behavior| (http::HeaderName::from_static("rpc-behavior"), HeaderValue::from_static(behavior))),
    );
    *request.headers_mut() = headers;
    let patience = (random.u32(..4) == 0).then(|| Duration::from_micros(random.u64(..4_000)));
    Plan { request, http2, patience, reads: random.u32(..5) > 0 }
}

async fn make(mut channel: MeshChannel, Plan { request, patience, reads, .. }: Plan) {
    let call = async {
        let response = channel.call(request).await.expect("failures are responses");
        if reads {
            let _ = response.into_body().collect().await;
        }
    };
    match patience {
        Some(patience) => drop(timeout(patience, call).await),
        None => within("the end of a call", call).await,
    }
}

/// What is in use of the one cluster: connections, calls, calls that wait, retries.
fn in_use(channel: &MeshChannel) -> [u32; 4] {
    let status = channel.status();
    let cluster = status.clusters.first().expect("configured");
    [cluster.connections, cluster.active_requests, cluster.pending_requests, cluster.active_retries]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_of_calls_however_they_end() {
    let _alone = FAULTS.write().await;
    let seed = env::var("MESH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("MESH_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let mut world = World::start(CONFIG, &[]).await;
    // One that makes no call, and so no connection, sees what the others have.
    world.channel = world.channel_builder().connect_timeout(Duration::from_secs(9)).build().expect("a valid target");
    until("no connection", || world.channel.status().clusters.iter().any(|cluster| cluster.connections == 0)).await;
    let tasks = Handle::current().metrics().num_alive_tasks();
    let channel = |version| world.channel_builder().http_protocol(version).build().expect("a valid target");
    let (http1, http2) = (channel(HttpVersion::Http1), channel(HttpVersion::Http2));
    http2.ready(Duration::from_secs(20)).await.expect("configured");
    let mut calls = JoinSet::new();
    let count = soak(5_000);
    for number in 0..count {
        if calls.len() >= AT_ONCE {
            calls.join_next().await.expect("there are some").expect("no panic");
        }
        let plan = plan(&mut random);
        let channel = if plan.http2 { &http2 } else { &http1 };
        calls.spawn(make(channel.clone(), plan));
        if number % 1_000 == 999 {
            world.c.kill().await;
            world.c.revive().await.expect("its port");
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("no panic");
    }
    until("every gauge of calls at zero", || in_use(&world.channel)[1..] == [0; 3] && active_faults() == 0).await;
    let is_over = |backend: &Backend| {
        let seen = backend.counters();
        seen.calls == seen.succeeded + seen.failed + seen.cancelled
    };
    until("no call at a backend", || [&world.a, &world.b, &world.c].into_iter().all(is_over)).await;
    drop((http1, http2));
    until("no connection", || in_use(&world.channel) == [0; 4]).await;
    until("the tasks there were before", || Handle::current().metrics().num_alive_tasks() <= tasks).await;
}
