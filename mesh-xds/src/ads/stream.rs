//! The task that keeps one ADS stream: dial, carry requests and responses, dial again.
//!
//! ```text
//!  ┌─► connect ──► Event::Connected(requests) ──► open the call ──► Event::Response ... ─┐
//!  │      │ cause                                      │ cause        stream ended       │
//!  │      ▼                                            ▼                                 ▼
//!  │   Event::Disconnected(cause), A57's backoff ◄── before any response     at once, with jitter
//!  └──────┴──────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Protobuf ends here: the driver gets `Received`. The task does NOT know subscriptions, versions or nonces.

use super::{
    backoff::{Again, Backoff},
    connect,
    decoder::Decoder,
    protocol::Request,
    wire::{Outgoing, wire},
};
use crate::{
    bootstrap::{Bootstrap, Node, Server},
    decode::DecodeContext,
    resource::{ByKind, Kind, Received, ReportedError},
};
use envoy_types::pb::{
    envoy::{
        config::core::v3 as core,
        service::discovery::v3::{
            DiscoveryRequest, DiscoveryResponse, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::{
        protobuf::{self, value::Kind as JsonKind},
        rpc,
    },
};
use futures_util::FutureExt;
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        watch,
    },
    task::JoinHandle,
    time::{Instant, sleep},
};
use tonic::{Streaming, codegen::http::Uri};

/// Between a panic of the task and its next start.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// What happened on the stream.
#[derive(Debug)]
pub(crate) enum Event {
    /// Nothing is dialled, since nothing is subscribed; what was last said of the server is old.
    Idle,
    /// A dial begins.
    Connecting,
    /// HTTP/2 is up: requests may be put in. They reach this stream only; the sender of an earlier one leads nowhere.
    Connected(UnboundedSender<Request>),
    /// The transport took a request.
    Sent { kind: Kind, serial: u64 },
    /// A response of a known type, decoded.
    Response(Response),
    /// The stream ended. With a cause when that is a connectivity error: nothing was received on it (A57), or the server
    /// answers and closes again and again.
    Disconnected { cause: Option<String> },
}

/// A decoded `DiscoveryResponse`.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) kind: Kind,
    pub(crate) version: Arc<str>,
    pub(crate) nonce: Arc<str>,
    pub(crate) resources: Vec<Received>,
    pub(crate) errors: Vec<ReportedError>,
}

/// Owns the task: dropping it closes the stream.
#[derive(Debug)]
pub(crate) struct StreamTask(JoinHandle<()>);

impl StreamTask {
    /// `wanted` says whether anything is subscribed: without that nothing is dialled.
    pub(crate) fn spawn(
        runtime: &Handle,
        bootstrap: Arc<Bootstrap>,
        server: usize,
        events: mpsc::Sender<Event>,
        wanted: watch::Receiver<bool>,
        seed: u64,
    ) -> Self {
        let context = DecodeContext { certificate_providers: bootstrap.certificate_providers.clone() };
        let stream = move || {
            let stream = AdsStream {
                bootstrap: Arc::clone(&bootstrap),
                server,
                events: events.clone(),
                wanted: wanted.clone(),
                decoder: Decoder::new(context.clone()),
                backoff: Backoff::default(),
                random: fastrand::Rng::with_seed(seed),
            };
            (stream.events.clone(), stream.run())
        };
        Self(runtime.spawn(supervised(stream)))
    }
}

impl Drop for StreamTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs what `start` makes, and again whenever that panics: a client has no other stream.
async fn supervised<F: Future<Output = ()>>(start: impl Fn() -> (mpsc::Sender<Event>, F)) {
    loop {
        let (events, run) = start();
        // Unwind safety: a stream that panicked is dropped whole, and the next one starts from nothing.
        if AssertUnwindSafe(run).catch_unwind().await.is_ok() {
            return;
        }
        tracing::error!("the ADS stream's task panicked and starts again");
        let cause = Some("the stream's task panicked".to_owned());
        if events.send(Event::Disconnected { cause }).await.is_err() {
            return;
        }
        sleep(RESTART_DELAY).await;
    }
}

struct AdsStream {
    bootstrap: Arc<Bootstrap>,
    /// Index into the bootstrap's list.
    server: usize,
    events: mpsc::Sender<Event>,
    wanted: watch::Receiver<bool>,
    decoder: Decoder,
    backoff: Backoff,
    random: fastrand::Rng,
}

/// How a stream ended.
enum End {
    /// After at least one response: "not an error, retry immediately with backoff reset" - A57.
    Answered { opened: Instant, why: String },
    /// Before any.
    Failed(String),
    /// Nobody listens any more.
    Orphaned,
}

/// The names that were last asked for, by kind.
type Asked = Mutex<ByKind<Arc<[Arc<str>]>>>;

impl AdsStream {
    async fn run(mut self) {
        loop {
            if !*self.wanted.borrow_and_update() && self.events.send(Event::Idle).await.is_err() {
                return;
            }
            if self.wanted.wait_for(|wanted| *wanted).await.is_err()
                || self.events.send(Event::Connecting).await.is_err()
            {
                return;
            }
            let (cause, delay) = match self.one_stream().await {
                End::Orphaned => return,
                End::Answered { opened, why } => {
                    match self.backoff.answered(opened, Instant::now(), self.random.f64()) {
                        Again::AtOnce(delay) => {
                            tracing::debug!(%why, "the ADS stream ended after a response");
                            (None, delay)
                        }
                        Again::Flapping(delay) => {
                            (Some(format!("it answers and closes, again and again: {why}")), delay)
                        }
                    }
                }
                End::Failed(cause) => (Some(cause), self.backoff.failed(self.random.f64())),
            };
            if self.events.send(Event::Disconnected { cause }).await.is_err() {
                return;
            }
            sleep(delay).await;
        }
    }

    async fn one_stream(&mut self) -> End {
        let Some(server) = self.bootstrap.servers.get(self.server).cloned() else { return End::Orphaned };
        let connection = match connect::connect(&server.address, &self.bootstrap.transport).await {
            Ok(connection) => connection,
            Err(cause) => return End::Failed(cause),
        };
        // Unbounded: one entry per response and per change of subscriptions on this stream, and gone with it.
        let (requests, outbox) = mpsc::unbounded_channel();
        if self.events.send(Event::Connected(requests)).await.is_err() {
            return End::Orphaned;
        }
        let opened = Instant::now();
        let (to_wire, messages) = wire();
        let mut client = AggregatedDiscoveryServiceClient::with_origin(connection, origin(&server))
            .max_decoding_message_size(self.bootstrap.transport.max_message_size);
        let asked = Asked::default();
        let write = write(outbox, to_wire, self.events.clone(), &self.bootstrap.node, &asked);
        let read = async {
            match client.stream_aggregated_resources(messages).await {
                Ok(responses) => read(responses.into_inner(), opened, &mut self.decoder, &self.events, &asked).await,
                Err(status) => End::Failed(describe(&status)),
            }
        };
        tokio::select! {
            end = read => end,
            // Ends only when nobody listens: a wire that is closed is the reader's to report.
            () = write => End::Orphaned,
        }
    }
}

/// Carries requests to the transport and reports each one that it took.
async fn write(
    mut outbox: UnboundedReceiver<Request>,
    wire: Outgoing<DiscoveryRequest>,
    events: mpsc::Sender<Event>,
    node: &Node,
    asked: &Asked,
) {
    while let Some(request) = outbox.recv().await {
        let (kind, serial) = (request.kind, request.serial);
        *asked.lock().unwrap_or_else(PoisonError::into_inner).of(kind) = Arc::clone(&request.names);
        if !wire.take(message(request, node)).await {
            return std::future::pending().await;
        }
        if events.send(Event::Sent { kind, serial }).await.is_err() {
            return;
        }
    }
}

/// The kind behind a type URL, and the names that were last asked for.
fn find(asked: &Asked, type_url: &str) -> Option<(Kind, Arc<[Arc<str>]>)> {
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    asked.iter().find(|(kind, _)| kind.type_url() == type_url).map(|(kind, names)| (kind, Arc::clone(names)))
}

async fn read(
    mut responses: Streaming<DiscoveryResponse>,
    opened: Instant,
    decoder: &mut Decoder,
    events: &mpsc::Sender<Event>,
    asked: &Asked,
) -> End {
    let mut answered = false;
    loop {
        let response = match responses.message().await {
            Ok(Some(response)) => response,
            Ok(None) if answered => return End::Answered { opened, why: "the server ended the stream".to_owned() },
            Err(status) if answered => return End::Answered { opened, why: describe(&status) },
            Ok(None) => return End::Failed("the stream ended without a response".to_owned()),
            Err(status) => return End::Failed(describe(&status)),
        };
        answered = true;
        let Some((kind, names)) = find(asked, &response.type_url) else {
            tracing::debug!(type_url = response.type_url, "response of a type that was never requested");
            continue;
        };
        decoder.retain(kind, &names);
        let resources = response.resources.into_iter().map(|any| (any.type_url, any.value.into()));
        let response = Response {
            kind,
            version: response.version_info.into(),
            nonce: response.nonce.into(),
            resources: decoder.decode(kind, resources).await,
            errors: response.resource_errors.into_iter().filter_map(reported).collect(),
        };
        // One slot: "do not read the next ADS message until all watchers have processed the previous one" - A57.
        if events.send(Event::Response(response)).await.is_err() {
            return End::Orphaned;
        }
    }
}

// === Protobuf ===

fn message(request: Request, node: &Node) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: request.version.to_string(),
        // "First request on each stream carries Node" - A27; istiod reads it from nowhere else.
        node: request.with_node.then(|| node_message(node)),
        resource_names: request.names.iter().map(|name| name.to_string()).collect(),
        type_url: request.kind.type_url().to_owned(),
        response_nonce: request.nonce.to_string(),
        // INVALID_ARGUMENT, as gRPC sends.
        error_detail: request.nack.map(|message| rpc::Status { code: 3, message, details: Vec::new() }),
        ..DiscoveryRequest::default()
    }
}

fn node_message(node: &Node) -> core::Node {
    let locality =
        core::Locality { region: node.region.clone(), zone: node.zone.clone(), sub_zone: node.sub_zone.clone() };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    core::Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata: (!node.metadata.is_empty()).then(|| structure(&node.metadata)),
        locality: (locality != core::Locality::default()).then_some(locality),
        user_agent_name: env!("CARGO_PKG_NAME").to_owned(),
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(version)),
        client_features: vec![
            "envoy.lb.does_not_support_overprovisioning".to_owned(),
            "xds.config.resource-in-sotw".to_owned(),
        ],
        ..core::Node::default()
    }
}

fn structure(map: &serde_json::Map<String, serde_json::Value>) -> protobuf::Struct {
    protobuf::Struct { fields: map.iter().map(|(key, value)| (key.clone(), json(value))).collect() }
}

fn json(value: &serde_json::Value) -> protobuf::Value {
    use serde_json::Value;
    let kind = match value {
        Value::Null => JsonKind::NullValue(0),
        Value::Bool(value) => JsonKind::BoolValue(*value),
        Value::Number(number) => JsonKind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => JsonKind::StringValue(text.clone()),
        Value::Array(values) => JsonKind::ListValue(protobuf::ListValue { values: values.iter().map(json).collect() }),
        Value::Object(map) => JsonKind::StructValue(structure(map)),
    };
    protobuf::Value { kind: Some(kind) }
}

fn reported(error: envoy_types::pb::envoy::service::discovery::v3::ResourceError) -> Option<ReportedError> {
    let (name, detail) = (error.resource_name?.name, error.error_detail.unwrap_or_default());
    Some(ReportedError { name, code: detail.code, message: detail.message })
}

/// The `:authority` of the call.
fn origin(server: &Server) -> Uri {
    use crate::bootstrap::ServerAddress;
    let authority = match &server.address {
        ServerAddress::Name { host, port } => format!("{host}:{port}"),
        ServerAddress::Sockets(sockets) => sockets.first().map(ToString::to_string).unwrap_or_default(),
        // "localhost", as gRPC has it for Unix sockets.
        ServerAddress::Unix(_) | ServerAddress::InProcess(_) => String::new(),
    };
    format!("http://{authority}").parse().unwrap_or_else(|_| Uri::from_static("http://localhost"))
}

/// "Control-plane status codes must not leak" (A54): they become words.
fn describe(status: &tonic::Status) -> String {
    format!("the stream failed with {:?}: {}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_panics_is_a_connectivity_error_and_starts_again() {
        let (events, mut seen) = mpsc::channel(1);
        let starts = Cell::new(0);
        supervised(|| {
            starts.set(starts.get() + 1);
            let first = starts.get() == 1;
            (events.clone(), async move { assert!(!first, "the first one panics") })
        })
        .await;
        assert_eq!(starts.get(), 2);
        assert!(matches!(seen.try_recv(), Ok(Event::Disconnected { cause: Some(_) })));
    }
}
