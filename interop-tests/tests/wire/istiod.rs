//! An istiod 1.14 played back: its recorded resources, served over a real ADS stream with its manners.
//!
//! A recording is one conversation; another client asks in another order, so what is replayed is what the istiod *had* in
//! each of its configurations, answered by the rules that were observed (facts 1 to 9 of `fixtures/istiod/README.md`):
//! a push brings every subscribed type in the order CDS, EDS, LDS, RDS under one new version; a request with a stale
//! nonce is dropped in silence; a changed list of names is answered, an empty one ends the subscription. Like
//! istio's agent it closes all streams but the newest. It does NOT compute anything from Istio's configuration.

use crate::rig::within;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};
use interop_tests::recordings::{Configuration, configurations};
use mesh_xds::resource::Kind;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// The order in which an istiod pushes.
const PUSH_ORDER: [Kind; 4] = [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::RouteConfig];

/// What the client has said so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    /// The newest version ACKed of each type.
    pub(crate) acked: BTreeMap<Kind, String>,
    /// Every NACK.
    pub(crate) nacks: Vec<String>,
    /// Empty lists where this istiod takes them for something else than "unsubscribe" (fact 7).
    pub(crate) wildcards: Vec<Kind>,
}

/// The replay, on a port of its own. Ends when dropped.
pub(crate) struct Istiod {
    pub(crate) address: SocketAddr,
    configurations: Arc<Vec<Configuration>>,
    current: watch::Sender<usize>,
    heard: watch::Receiver<Heard>,
    newest: watch::Receiver<u64>,
    server: JoinHandle<()>,
}

impl Istiod {
    /// Plays the recording in `fixtures/istiod/NAME`, beginning with its first configuration.
    pub(crate) async fn replay(name: &str) -> Self {
        let configurations = Arc::new(configurations(name).expect("recorded"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let current = watch::Sender::new(0);
        let (heard, hearing) = watch::channel(Heard::default());
        let (newest, streams) = watch::channel(0);
        let service = Service {
            configurations: configurations.clone(),
            current: current.subscribe(),
            heard: Arc::new(heard),
            nonces: Arc::default(),
            newest: Arc::new(newest),
        };
        let server = tokio::spawn(async move {
            let router = Server::builder().add_service(AggregatedDiscoveryServiceServer::new(service));
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("it serves until it is aborted");
        });
        Self { address, configurations, current, heard: hearing, newest: streams, server }
    }

    /// How many configurations the recording has.
    pub(crate) fn configurations(&self) -> usize {
        self.configurations.len()
    }

    /// How many streams were ever opened. Each closed the one before, as istio's agent does.
    pub(crate) fn streams(&self) -> u64 {
        *self.newest.borrow()
    }

    /// The istiod's next configuration is in place: it pushes.
    pub(crate) fn advance(&self) {
        self.current.send_modify(|current| *current += 1);
    }

    /// Waits until the client has ACKed the current version of these types.
    pub(crate) async fn acked(&self, kinds: &[Kind]) -> Heard {
        let version = &self.configurations[*self.current.borrow()].version;
        let mut heard = self.heard.clone();
        let all = heard.wait_for(|heard| {
            !heard.nacks.is_empty() || kinds.iter().all(|kind| heard.acked.get(kind) == Some(version))
        });
        within(&format!("ACKs of {version} for {kinds:?}"), all).await.expect("it serves").clone()
    }

    /// What the client has said so far.
    pub(crate) fn heard(&self) -> Heard {
        self.heard.borrow().clone()
    }
}

impl Drop for Istiod {
    fn drop(&mut self) {
        self.server.abort();
    }
}

// === Service ===

#[derive(Clone, Debug)]
struct Service {
    configurations: Arc<Vec<Configuration>>,
    current: watch::Receiver<usize>,
    heard: Arc<watch::Sender<Heard>>,
    nonces: Arc<AtomicU64>,
    /// Number of the newest stream.
    newest: Arc<watch::Sender<u64>>,
}

/// One stream's view.
struct Session {
    number: u64,
    service: Service,
    subscriptions: BTreeMap<Kind, Subscription>,
    responses: mpsc::Sender<Result<DiscoveryResponse, Status>>,
}

#[derive(Default)]
struct Subscription {
    names: BTreeSet<String>,
    nonce: String,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        // One push at a time is under way; a client that does not read stops us, as HTTP/2 would.
        let (responses, stream) = mpsc::channel(4);
        self.newest.send_modify(|newest| *newest += 1);
        let number = *self.newest.borrow();
        let session = Session { number, service: self.clone(), subscriptions: BTreeMap::new(), responses };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("this recording is SotW"))
    }
}

impl Session {
    async fn run(mut self, mut requests: Streaming<DiscoveryRequest>) {
        let mut current = self.service.current.clone();
        current.mark_unchanged();
        let (number, mut newest) = (self.number, self.service.newest.subscribe());
        loop {
            tokio::select! {
                biased; // The agent before all; then requests, since a push goes to what is subscribed by then.
                () = async { drop(newest.wait_for(|newest| *newest > number).await) } => return,
                request = requests.message() => match request {
                    Ok(Some(request)) => self.requested(request).await,
                    Ok(None) | Err(_) => return,
                },
                changed = current.changed() => match changed {
                    Ok(()) => self.push().await,
                    Err(_) => return,
                },
            }
        }
    }

    async fn requested(&mut self, request: DiscoveryRequest) {
        let Some(kind) = Kind::from_type_url(&request.type_url) else { return };
        let subscription = self.subscriptions.entry(kind).or_default();
        if !request.response_nonce.is_empty() && request.response_nonce != subscription.nonce {
            return; // Stale: dropped in silence, changed names and all (fact 5).
        }
        if let Some(error) = request.error_detail {
            let nack = format!("{kind:?}: {}", error.message);
            self.service.heard.send_modify(|heard| heard.nacks.push(nack));
            return; // Name changes of a NACK are ignored (fact 6).
        }
        if !request.response_nonce.is_empty() {
            self.service.heard.send_modify(|heard| {
                heard.acked.insert(kind, request.version_info);
            });
        }
        let names = request.resource_names.into_iter().collect();
        let changed = names != subscription.names;
        subscription.names = names;
        if changed && subscription.names.is_empty() {
            if matches!(kind, Kind::Listener | Kind::Cluster) {
                self.service.heard.send_modify(|heard| heard.wildcards.push(kind));
            }
            return;
        }
        if changed || request.response_nonce.is_empty() {
            self.respond(kind).await;
        }
    }

    async fn push(&mut self) {
        for kind in PUSH_ORDER {
            if self.subscriptions.get(&kind).is_some_and(|subscription| !subscription.names.is_empty()) {
                self.respond(kind).await;
            }
        }
    }

    async fn respond(&mut self, kind: Kind) {
        let configuration = &self.service.configurations[*self.service.current.borrow()];
        let Some(subscription) = self.subscriptions.get_mut(&kind) else { return };
        let number = self.service.nonces.fetch_add(1, Ordering::Relaxed);
        subscription.nonce = format!("DCB+X5TzRNI={number:08x}-7ecd-4aa9-a7a6-add6cb1d5302");
        let known = configuration.resources.get(&kind);
        let resources = subscription.names.iter().filter_map(|name| known?.get(name).cloned()).collect();
        let response = DiscoveryResponse {
            version_info: configuration.version.clone(),
            resources,
            type_url: kind.type_url().to_owned(),
            nonce: subscription.nonce.clone(),
            ..DiscoveryResponse::default()
        };
        // An error means that the stream is gone, which `run` hears by itself.
        let _ = self.responses.send(Ok(response)).await;
    }
}
