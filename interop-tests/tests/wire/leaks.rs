//! Whatever becomes of calls, nothing of them stays: no stream, permit, retry, fault, connection, task, and no byte of a body.
//!
//! Calls of all kinds are made at random over HTTP/2 and HTTP/1.1, some of them streams: answered, refused, failed and made
//! again, late, given up by their caller before or after the headers, cut by a backend that dies. Bodies are counted until
//! the last reference to their bytes is gone. The seed is printed; `MESH_SEED` chooses it. It does NOT judge answers.

use crate::{
    faults::FAULTS,
    features::{SERVICE, World},
    mesh::soak,
    refuser::Refuser,
    rig::{until, within},
};
use bytes::Bytes;
use fastrand::Rng;
use futures_util::stream;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Version, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use interop_tests::{
    backend::Backend,
    proto::testing::{ResponseParameters, StreamingOutputCallRequest},
};
use mesh_client::{Filter, FilterRequest, HttpVersion, Mesh, MeshChannel, Reply, Verdict, fault::active_faults};
use mesh_xds::{
    Bootstrap,
    control_plane::{
        ControlPlane,
        proto::{
            envoy::{
                config::listener::v3::Listener,
                extensions::filters::{
                    common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
                    http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
                },
                r#type::v3::FractionalPercent,
            },
            google::protobuf as pb,
        },
        resources::{http_filter, listener_with, pack},
    },
    resource::{FilterConfig, Invalid},
};
use prost::Message;
use std::{
    convert::Infallible,
    env,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
    vec,
};
use tokio::{runtime::Handle, task::JoinSet, time::timeout};
use tower_service::Service;

const AT_ONCE: usize = 48;

/// One channel of each; gRPC is HTTP/2 in any case.
const VERSIONS: [HttpVersion; 2] = [HttpVersion::Http2, HttpVersion::Http1];

/// Retries, limits on everything, and ejection. `$R` is a backend that refuses streams.
const CONFIG: &str = "
clusters: {a: {eds_cluster_config: {service_name: leaks},
  circuit_breakers: {thresholds: [{max_connections: 10, max_requests: 32, max_pending_requests: 16, max_retries: 8}]},
  outlier_detection: {consecutive_5xx: 6, interval: 0.05s, base_ejection_time: 0.01s, max_ejection_percent: 50}}}
endpoints: {leaks: {endpoints: [{locality: {}, load_balancing_weight: 1, lb_endpoints: [{$a}, {$b}, {$c}, $R]}]}}
routes: [{match: {prefix: ''}, route: {cluster: a, timeout: 0.02s, idle_timeout: 1s, max_stream_duration: {max_stream_duration: 0.02s},
  retry_policy: {retry_on: 'unavailable,5xx,reset', num_retries: 3, per_try_timeout: 0.01s, retry_back_off: {base_interval: 0.001s},
    retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}]}}}]
";

// === What is counted ===

/// How many [`Counted`] there are.
static ALIVE: AtomicU64 = AtomicU64::new(0);
/// How many calls the filter has seen.
static FILTERED: AtomicU64 = AtomicU64::new(0);

/// Counts as long as anybody refers to it.
struct Counted<T>(T);

impl<T> Counted<T> {
    fn new(what: T) -> Self {
        ALIVE.fetch_add(1, Ordering::Relaxed);
        Self(what)
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Counted<T> {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

/// A filter that keeps something with each call, lets some wait, and answers others.
#[derive(Debug, PartialEq)]
struct Keeps;

impl FilterConfig for Keeps {
    const TYPE_URL: &'static str = "type.googleapis.com/example.Keeps";

    fn decode(_: &[u8]) -> Result<Self, Invalid> {
        Ok(Self)
    }
}

impl Filter for Keeps {
    fn request<'a>(&'a self, request: &'a mut FilterRequest<'_>) -> Verdict<'a> {
        // An extension has to be Clone; what is counted is what all clones share.
        request.head_mut().extensions.insert(Bytes::from_owner(Counted::new([])));
        match FILTERED.fetch_add(1, Ordering::Relaxed) % 64 {
            0 => Verdict::Reply(Reply::new(StatusCode::FORBIDDEN, "not you")),
            1 => Verdict::Wait(Box::pin(async {
                tokio::task::yield_now().await;
                Ok(())
            })),
            _ => Verdict::Continue,
        }
    }
}

/// Faults for some, behind a filter of our own.
fn listener() -> Listener {
    let percent = |numerator| Some(FractionalPercent { numerator, ..Default::default() });
    let pause = FaultDelaySecifier::FixedDelay(pb::Duration { seconds: 0, nanos: 2_000_000 });
    let delay = FaultDelay { fault_delay_secifier: Some(pause), percentage: percent(5) };
    let abort =
        FaultAbort { error_type: Some(ErrorType::HttpStatus(503)), percentage: percent(2), ..Default::default() };
    let fault = HttpFault { delay: Some(delay), abort: Some(abort), ..Default::default() };
    let keeps = pb::Any { type_url: Keeps::TYPE_URL.to_owned(), value: Vec::new() };
    listener_with(SERVICE, "routes", vec![http_filter("keeps", keeps), http_filter("fault", pack(fault))])
}

// === Calls ===

type Body = StreamBody<stream::Iter<vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// One call, and when its caller gives it up.
struct Plan {
    request: Request<Body>,
    patience: Option<Duration>,
    reads: bool,
}

const BEHAVIOR: HeaderName = HeaderName::from_static("rpc-behavior");
const CALL: HeaderName = HeaderName::from_static("x-call");

fn plan(random: &mut Rng, number: u32, version: HttpVersion) -> Plan {
    let grpc = random.bool();
    let behavior = match random.u32(..20) {
        0..10 => None,
        10..14 => Some(if grpc { "error-code-14" } else { "error-code-503" }),
        14 | 15 => Some(if grpc { "hostname=a error-code-14" } else { "hostname=a error-code-503" }),
        16 => Some("keep-open"),
        17 => Some("hostname=b keep-open"),
        _ => Some("error-code-9"),
    };
    // Over HTTP/1.1 a server sees that its caller is gone only once it has read the body.
    let is_read = version == HttpVersion::Http2 || behavior.is_none_or(|behavior| !behavior.ends_with("keep-open"));
    let (uri, chunks) =
        if grpc { grpc_call(random) } else { ("/echo", if is_read { echo(random) } else { Vec::new() }) };
    let frames: Vec<_> = chunks.into_iter().map(|chunk| Ok(Frame::data(chunk))).collect();
    let mut request = Request::new(StreamBody::new(stream::iter(frames)));
    *request.version_mut() = Version::HTTP_2;
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.parse().expect("a path");
    let headers = request.headers_mut();
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    headers.extend(behavior.map(|behavior| (BEHAVIOR, HeaderValue::from_static(behavior))));
    headers.insert(CALL, HeaderValue::from(number));
    let patience = (random.u32(..4) == 0).then(|| Duration::from_micros(random.u64(..4_000)));
    Plan { request, patience, reads: random.u32(..5) > 0 }
}

/// Bytes of a body: mostly few, some more than is kept without a policy, and few more than is kept with one.
fn echo(random: &mut Rng) -> Vec<Bytes> {
    static ZEROS: [u8; 300 * 1024] = [0; 300 * 1024];
    let size = match random.u32(..64) {
        0 => ZEROS.len(),
        1..4 => random.usize(..70_000),
        _ => random.usize(..1_000),
    };
    ZEROS[..size].chunks(16 * 1024).map(|chunk| Bytes::from_owner(Counted::new(chunk))).collect()
}

/// Unary, or streams of some messages there, here, and both ways.
fn grpc_call(random: &mut Rng) -> (&'static str, Vec<Bytes>) {
    let response_parameters = vec![ResponseParameters { size: 10, ..Default::default() }; random.usize(..4)];
    let request = StreamingOutputCallRequest { response_parameters, ..Default::default() };
    match random.u32(..16) {
        0 => ("/grpc.testing.TestService/StreamingOutputCall", vec![message(&request)]),
        1 => ("/grpc.testing.TestService/FullDuplexCall", vec![message(&request), message(&request)]),
        _ => ("/grpc.testing.TestService/UnaryCall", vec![message(&())]),
    }
}

fn message(message: &impl Message) -> Bytes {
    let length = u32::try_from(message.encoded_len()).expect("small");
    let mut frame = [&[0][..], &length.to_be_bytes()].concat();
    message.encode(&mut frame).expect("it grows");
    Bytes::from_owner(Counted::new(frame))
}

async fn make(mut channel: MeshChannel, Plan { request, patience, reads }: Plan) {
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
    let refuser = Refuser::start("refuser").await;
    let port = refuser.address().port();
    let refusing = format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}");
    let mut world = World::start(&CONFIG.replace("$R", &refusing), &[]).await;
    // One that makes no call, and so no connection, sees what the others have.
    world.channel = world.channel_builder().connect_timeout(Duration::from_secs(9)).build().expect("a valid target");
    until("no connection", || world.channel.status().clusters.iter().any(|cluster| cluster.connections == 0)).await;
    let tasks = Handle::current().metrics().num_alive_tasks();

    // The mesh of `world` does not know the filter.
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(world.resources().with(listener()));
    let bootstrap = Bootstrap::builder().node_id("leaks").server(control_plane.in_process()).build();
    let mesh = Mesh::builder(bootstrap.expect("a server")).filter(|_: &Keeps| Keeps).build();
    let mut channels = Vec::new();
    for version in VERSIONS {
        let builder = mesh.channel_builder(&format!("xds:///{SERVICE}")).http_protocol(version);
        let channel = builder.build().expect("a valid target");
        channel.ready(Duration::from_secs(20)).await.expect("configured");
        channels.push(channel);
    }
    let mut calls = JoinSet::new();
    let count = soak(25_000);
    for number in 0..count {
        if calls.len() >= AT_ONCE {
            calls.join_next().await.expect("there are some").expect("no panic");
        }
        let channel = random.usize(..2);
        calls.spawn(make(channels[channel].clone(), plan(&mut random, number, VERSIONS[channel])));
        if number % 2_500 == 2_499 {
            world.c.kill().await;
            world.c.revive().await.expect("its port");
        }
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("no panic");
    }
    until("every gauge of calls at zero", || in_use(&world.channel)[1..] == [0; 3] && active_faults() == 0).await;
    until("no byte of a body", || ALIVE.load(Ordering::Relaxed) == 0).await;
    let is_over = |backend: &Backend| {
        let seen = backend.counters();
        seen.calls == seen.succeeded + seen.failed + seen.cancelled
    };
    until("no call at a backend", || [&world.a, &world.b, &world.c].into_iter().all(is_over)).await;
    assert!(refuser.refused() > 0 && FILTERED.load(Ordering::Relaxed) > u64::from(count) / 2, "calls of all kinds");

    // The pool of HTTP/1.1 keeps connections; without the mesh there is nothing to keep.
    drop((channels, mesh));
    until("no connection", || in_use(&world.channel) == [0; 4]).await;
    until("the tasks there were before", || Handle::current().metrics().num_alive_tasks() <= tasks).await;
}
