//! One mesh with six backends, configured by a short YAML document, and one call at a time.
//!
//! The document holds only what a test is about; the rest is one listener `svc:80`, one route configuration whose
//! routes lead to cluster `a`, and one EDS cluster with one endpoint for each backend. It does NOT assert anything.
//!
//! ```yaml
//! http: {}           # merge patch onto the HttpConnectionManager
//! routes: []         # of the one virtual host, or else:
//! virtual_hosts: []
//! clusters: {a: {}}  # merge patches onto the Clusters; null removes one
//! endpoints: {a: {}} # the ClusterLoadAssignments; `$b` stands for the endpoint field of backend b, `%b`
//!                    # for its port
//! ```

use crate::mesh::applied;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Version, header, uri::Authority};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use interop_tests::backend::Backend;
use mesh_client::{
    CallAuthority, ChannelBuilder, EndpointReport, EndpointState, MeshChannel, WaitForReady, testing::TestMesh,
};
use mesh_xds::{
    ResourceState,
    control_plane::Resources,
    resource::{IgnoredField, Kind},
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time;
use tower_service::Service;

/// The target of every call.
pub(crate) const SERVICE: &str = "svc:80";
const ROUTES: &str = "routes";
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// The hostname that answered, or the code and the text of the failure.
pub(crate) type Answer = Result<String, String>;

pub(crate) struct World {
    pub(crate) a: Backend,
    pub(crate) b: Backend,
    pub(crate) c: Backend,
    /// `d`, `e` and `f`.
    more: [Backend; 3],
    pub(crate) mesh: TestMesh,
    pub(crate) channel: MeshChannel,
    document: Value,
    ports: Ports,
    leapt: Arc<AtomicU64>,
}

/// The port of each backend, to write a document with.
#[derive(Clone, Debug)]
struct Ports([u16; 6]);

impl World {
    /// A mesh that follows `config` after `changes` to it, with a channel that is ready.
    pub(crate) async fn start(config: &str, changes: &[(&str, &str)]) -> Self {
        let mut backends = Vec::with_capacity(NAMES.len());
        for name in NAMES {
            backends.push(Backend::start(name).await.expect("a free port"));
        }
        let backends: [Backend; 6] = backends.try_into().expect("one for each name");
        let ports = Ports(backends.each_ref().map(|backend| backend.address().port()));
        let mut document = ports.parse(config);
        for (pointer, value) in changes {
            set(&mut document, pointer, ports.parse(value)).expect("the document has it");
        }
        let mesh = TestMesh::new(ports.resources(&document)).expect("a valid bootstrap");
        let channel = mesh.mesh().channel(&format!("xds:///{SERVICE}")).expect("a valid target");
        channel.ready(Duration::from_secs(20)).await.expect("configured");
        let [a, b, c, more @ ..] = backends;
        let world = Self { a, b, c, more, mesh, channel, document, ports, leapt: Arc::default() };
        world.assert_accepted();
        world
    }

    /// What is served now, for meshes of a test's own.
    pub(crate) fn resources(&self) -> Resources {
        self.ports.resources(&self.document)
    }

    /// Another channel to the same service.
    pub(crate) fn channel_builder(&self) -> ChannelBuilder {
        self.mesh.mesh().channel_builder(&format!("xds:///{SERVICE}"))
    }

    /// Changes one field of the document, and returns once every call sees it.
    pub(crate) async fn update(&mut self, pointer: &str, value: &str) -> Result<(), String> {
        set(&mut self.document, pointer, self.ports.parse(value))?;
        self.mesh.control_plane().set_unchecked(self.resources());
        let mut place = pointer.split('/').skip(1);
        let (kind, name) = match (place.next(), place.next()) {
            (Some("http"), _) => (Kind::Listener, SERVICE),
            (Some("clusters"), Some(name)) => (Kind::Cluster, name),
            (Some("endpoints"), Some(name)) => (Kind::Endpoints, name),
            _ => (Kind::RouteConfig, ROUTES),
        };
        applied(&self.mesh, kind, name).await;
        self.assert_accepted();
        Ok(())
    }

    /// Makes one call.
    pub(crate) async fn call(&self, call: Call) -> Answer {
        call.on(&self.channel).await
    }

    /// Makes `count` calls, 16 at a time: how many answers of each kind came; failures count by their code.
    pub(crate) async fn calls(&self, count: usize, call: Call) -> BTreeMap<String, usize> {
        let answers = stream::iter(0..count).map(|_| call.clone().on(&self.channel)).buffer_unordered(16);
        let answers = answers.map(|answer| answer.unwrap_or_else(|failure| code(&failure).to_owned()));
        answers
            .fold(BTreeMap::new(), async |mut counts, answer| {
                *counts.entry(answer).or_default() += 1;
                counts
            })
            .await
    }

    /// Who answers `count` calls, one after the other.
    pub(crate) async fn in_turn(&self, count: usize, call: Call) -> Result<Vec<String>, String> {
        let mut answers = Vec::with_capacity(count);
        for _ in 0..count {
            answers.push(self.call(call.clone()).await?);
        }
        Ok(answers)
    }

    /// Waits until at least `count` endpoints of the cluster are READY.
    pub(crate) async fn ready(&self, cluster: &str, count: usize) -> Result<(), String> {
        self.ready_endpoints(cluster, |ready| ready >= count).await
    }

    /// Waits until no more than `count` endpoints of the cluster are READY.
    pub(crate) async fn lost(&self, cluster: &str, count: usize) -> Result<(), String> {
        self.ready_endpoints(cluster, |ready| ready <= count).await
    }

    async fn ready_endpoints(&self, cluster: &str, wanted: impl Fn(usize) -> bool) -> Result<(), String> {
        let ready = || {
            let status = self.channel.status();
            let cluster = status.clusters.into_iter().find(|found| found.name == cluster);
            let is_ready = |endpoint: &&EndpointReport| endpoint.state == EndpointState::Ready;
            cluster.map_or(0, |cluster| cluster.endpoints.iter().filter(is_ready).count())
        };
        let wait = async {
            while !wanted(ready()) {
                tokio::task::yield_now().await;
            }
        };
        let waited = time::timeout(Duration::from_secs(15), wait).await;
        waited.map_err(|_| format!("other than {} READY endpoints of {cluster}", ready()))
    }

    /// Makes a call on a paused clock: what came, and after how much of its time.
    pub(crate) async fn timed(&self, call: Call) -> (Answer, Duration) {
        time::pause();
        let begin = time::Instant::now();
        let outcome = (self.call(call).await, begin.elapsed());
        time::resume();
        outcome
    }

    /// How many calls each backend has had.
    pub(crate) fn served(&self) -> [u64; 6] {
        let [d, e, f] = &self.more;
        [&self.a, &self.b, &self.c, d, e, f].map(|backend| backend.counters().calls)
    }

    /// How many seconds of the clock were leapt over.
    pub(crate) fn leapt(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.leapt)
    }

    /// Lets every timer of the next `seconds` be due.
    pub(crate) async fn leap(&self, seconds: u64) {
        self.leapt.fetch_add(seconds, Ordering::Relaxed);
        time::pause();
        time::advance(Duration::from_secs(seconds)).await;
        time::resume();
    }

    /// The fields of a resource that are reported to have no effect.
    pub(crate) fn ignored(&self, kind: Kind, name: &str) -> Vec<IgnoredField> {
        let status = self.mesh.mesh().status();
        status.xds.resource(kind, name).map(|resource| resource.ignored.clone()).unwrap_or_default()
    }

    /// Fails unless the resource reports `field` as ignored. There is one route configuration, whatever the name.
    pub(crate) fn ignores(&self, kind: Kind, name: &str, field: &str) -> Result<(), String> {
        let name = if kind == Kind::RouteConfig { ROUTES } else { name };
        let ignored = self.ignored(kind, name);
        let reported = ignored.iter().any(|ignored| ignored.path.contains(field));
        if reported { Ok(()) } else { Err(format!("{field} is not reported as ignored, only {ignored:?}")) }
    }

    /// A refused resource would prove nothing: not with its feature, and not without it.
    fn assert_accepted(&self) {
        for resource in self.mesh.mesh().status().xds.resources {
            assert!(!matches!(resource.state, ResourceState::Nacked { .. }), "{resource:?}");
        }
    }
}

// === Calls ===

/// A call to be made: gRPC's UnaryCall, or an HTTP request without a body.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    uri: String,
    grpc: bool,
    version: Version,
    headers: HeaderMap,
    /// Seconds until a body of two pieces has its second one.
    pause: Option<u64>,
    waits: bool,
    authority: Option<CallAuthority>,
}

/// A unary gRPC call.
pub(crate) fn grpc() -> Call {
    let uri = "/grpc.testing.TestService/UnaryCall".to_owned();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    Call { uri, grpc: true, version: Version::HTTP_2, headers, pause: None, waits: false, authority: None }
}

/// An HTTP GET.
pub(crate) fn get(uri: &str) -> Call {
    Call {
        uri: uri.to_owned(),
        grpc: false,
        version: Version::HTTP_11,
        headers: HeaderMap::new(),
        pause: None,
        waits: false,
        authority: None,
    }
}

impl Call {
    pub(crate) fn header(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        self.headers.append(name, HeaderValue::from_str(value.as_ref()).expect("a valid value"));
        self
    }

    pub(crate) fn version(self, version: Version) -> Self {
        Self { version, ..self }
    }

    /// Waits for an endpoint until its deadline.
    pub(crate) fn waits_for_ready(self) -> Self {
        Self { waits: true, ..self }
    }

    /// Has an authority of its own.
    pub(crate) fn authority(self, authority: &'static str) -> Self {
        Self { authority: Some(CallAuthority(Authority::from_static(authority))), ..self }
    }

    /// Sends the end of its body so many seconds after the begin.
    pub(crate) fn uploads_for(self, seconds: u64) -> Self {
        Self { pause: Some(seconds), ..self }
    }

    fn body(&self) -> BoxBody<Bytes, Infallible> {
        // A message without fields: not compressed, of length 0.
        let whole = if self.grpc { Bytes::from_static(&[0; 5]) } else { Bytes::new() };
        let Some(seconds) = self.pause else { return Full::new(whole).boxed() };
        let begin = if self.grpc { Bytes::from_static(&[0; 2]) } else { Bytes::from_static(b"be") };
        let end = if self.grpc { Bytes::from_static(&[0; 3]) } else { Bytes::from_static(b"gin") };
        let later = async move {
            time::sleep(Duration::from_secs(seconds)).await;
            Ok(Frame::data(end))
        };
        BoxBody::new(StreamBody::new(stream::iter([Ok(Frame::data(begin))]).chain(stream::once(Box::pin(later)))))
    }

    pub(crate) async fn on(self, channel: &MeshChannel) -> Answer {
        let mut request = Request::new(self.body());
        if self.waits {
            request.extensions_mut().insert(WaitForReady);
        }
        if let Some(authority) = self.authority {
            request.extensions_mut().insert(authority);
        }
        let is_post = self.grpc || self.pause.is_some();
        *request.method_mut() = if is_post { http::Method::POST } else { http::Method::GET };
        *request.uri_mut() = self.uri.parse().map_err(|error| format!("{}: {error}", self.uri))?;
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers;
        let response = channel.clone().call(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let text = |name: &str| {
            let value = head.headers.get(name).or_else(|| trailers.get(name));
            String::from_utf8_lossy(value.map_or(&[][..], HeaderValue::as_bytes)).into_owned()
        };
        match (self.grpc, head.status.as_u16(), text("grpc-status").as_str()) {
            (true, _, "0") | (false, 200, _) => Ok(text("hostname")),
            (true, _, status) => {
                let code = tonic::Code::from_bytes(status.as_bytes());
                Err(format!("{code:?}: {}", text("grpc-message")))
            }
            (false, status, _) => Err(format!("{status}: {}", String::from_utf8_lossy(&body.to_bytes()))),
        }
    }
}

/// The code of a failure.
fn code(failure: &str) -> &str {
    failure.split(':').next().unwrap_or(failure)
}

/// Fails unless the answer came from `hostname`.
pub(crate) fn from(hostname: &str, answer: Answer) -> Result<(), String> {
    match answer {
        Ok(answer) if answer == hostname => Ok(()),
        other => Err(format!("an answer from {hostname}, and not {other:?}")),
    }
}

/// Fails unless the call failed with this code and a text that holds all of `words`.
pub(crate) fn fails(wanted: &str, words: &[&str], answer: Answer) -> Result<(), String> {
    match answer {
        Err(failure) if code(&failure) == wanted && words.iter().all(|word| failure.contains(word)) => Ok(()),
        other => Err(format!("{wanted} with {words:?}, and not {other:?}")),
    }
}

/// Fails unless `hostname` answered this share of `counts`, five sigma around it.
pub(crate) fn share(hostname: &str, wanted: f64, counts: &BTreeMap<String, usize>) -> Result<(), String> {
    let total = counts.values().sum::<usize>() as f64;
    let share = counts.get(hostname).copied().unwrap_or(0) as f64 / total;
    let sigma = (wanted * (1.0 - wanted) / total).sqrt();
    let close = (share - wanted).abs() <= 5.0 * sigma;
    if close { Ok(()) } else { Err(format!("{hostname} has {share}, and not {wanted}, of {counts:?}")) }
}

/// Fails unless `hostname` alone answered.
pub(crate) fn only(hostname: &str, counts: &BTreeMap<String, usize>) -> Result<(), String> {
    share(hostname, 1.0, counts)
}

/// Fails unless it holds.
pub(crate) fn check(holds: bool, what: impl ToString) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_string()) }
}

// === Documents ===

impl Ports {
    fn parse(&self, yaml: &str) -> Value {
        let mut yaml = yaml.to_owned();
        for (name, port) in NAMES.into_iter().zip(self.0) {
            let endpoint =
                format!("endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}");
            yaml = yaml.replace(&format!("${name}"), &endpoint).replace(&format!("%{name}"), &port.to_string());
        }
        if yaml.trim().is_empty() {
            return Value::Null;
        }
        serde_norway::from_str(&yaml).unwrap_or_else(|error| panic!("{error} in {yaml}"))
    }

    fn resources(&self, document: &Value) -> Resources {
        let of = |field: &str| document.get(field).cloned().unwrap_or(Value::Null);
        let mut manager = json!({
            "@type":
                "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "rds": { "route_config_name": ROUTES, "config_source": { "ads": {} } },
            "http_filters": [{
                "name": "router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        });
        merge(&mut manager, of("http"));
        let routes = match of("routes") {
            Value::Null => json!([{ "match": { "prefix": "" }, "route": { "cluster": "a" } }]),
            routes => routes,
        };
        let virtual_hosts = match of("virtual_hosts") {
            Value::Null => json!([{ "name": "all", "domains": ["*"], "routes": routes }]),
            hosts => hosts,
        };
        let (mut clusters, mut assignments) = (Map::new(), Map::new());
        for name in NAMES {
            clusters.insert(
                name.to_owned(),
                // Retries are counted in the whole process: those of other tests must not use up the three that Envoy allows.
                json!({ "type": "EDS", "eds_cluster_config": { "eds_config": { "ads": {} } },
                        "circuit_breakers": { "thresholds": [{ "max_retries": 1000 }] } }),
            );
            let endpoint =
                format!("[{{locality: {{region: r}}, load_balancing_weight: 1, lb_endpoints: [{{${name}}}]}}]");
            assignments.insert(name.to_owned(), json!({ "endpoints": self.parse(&endpoint) }));
        }
        let (mut clusters, mut assignments) = (Value::Object(clusters), Value::Object(assignments));
        merge(&mut clusters, of("clusters"));
        merge(&mut assignments, of("endpoints"));
        let mut resources = vec![
            typed(json!({ "name": SERVICE, "api_listener": { "api_listener": manager } }), "listener.v3.Listener"),
            typed(json!({ "name": ROUTES, "virtual_hosts": virtual_hosts }), "route.v3.RouteConfiguration"),
        ];
        resources.extend(named(clusters, "name", "cluster.v3.Cluster"));
        resources.extend(named(assignments, "cluster_name", "endpoint.v3.ClusterLoadAssignment"));
        let yaml = json!({ "resources": resources }).to_string();
        Resources::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}"))
    }
}

fn typed(mut resource: Value, message: &str) -> Value {
    resource["@type"] = format!("type.googleapis.com/envoy.config.{message}").into();
    resource
}

fn named(resources: Value, field: &str, message: &str) -> Vec<Value> {
    let Value::Object(resources) = resources else { panic!("{message}: a map by name is wanted") };
    let named = |(name, mut resource): (String, Value)| {
        resource[field] = name.into();
        typed(resource, message)
    };
    resources.into_iter().map(named).collect()
}

/// JSON merge patch (RFC 7386).
fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (_, Value::Null) => {}
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(&key);
                } else {
                    merge(target.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch,
    }
}

/// Sets the field at a JSON pointer (RFC 6901); null removes it.
fn set(document: &mut Value, pointer: &str, value: Value) -> Result<(), String> {
    let missing = || format!("{pointer}: there is no such field");
    let (parent, last) = pointer.rsplit_once('/').ok_or_else(missing)?;
    match document.pointer_mut(parent).ok_or_else(missing)? {
        Value::Object(parent) if value.is_null() => parent.remove(last).map(drop).ok_or_else(missing),
        Value::Object(parent) => {
            parent.insert(last.to_owned(), value);
            Ok(())
        }
        Value::Array(parent) => {
            let index = last.parse().ok().filter(|&index: &usize| index < parent.len()).ok_or_else(missing)?;
            if value.is_null() {
                parent.remove(index);
            } else {
                parent[index] = value;
            }
            Ok(())
        }
        _ => Err(missing()),
    }
}
