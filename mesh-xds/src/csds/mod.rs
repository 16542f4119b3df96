//! `ClientStatusDiscoveryService` (A40): what this process knows of its xDS resources, for operators and their tools.
//!
//! A service that a user adds to an admin server of their own, as `grpcdebug xds status` and its like ask for it. All
//! of its content is `XdsClient::status`'s, put into messages by `dump`. It opens NO port, and it keeps NO client alive.

mod dump;

use crate::{XdsClient, client::WeakClient};
use dump::ClientStatusResponse;
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use futures_util::{StreamExt, stream::BoxStream};
use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{
    Request, Response, Status, Streaming,
    codegen::{Body, BoxFuture, Service, StdError, http},
    server::{Grpc, NamedService, StreamingService, UnaryService},
};
use tonic_prost::ProstCodec;

const FETCH: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus";
const STREAM: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/StreamClientStatus";

/// The CSDS service, to be added to a tonic server.
///
/// For each client there is one `ClientConfig` for each target that is watched (A71's `client_scope`), with the
/// resources that the target uses, and one without a scope for what is subscribed besides. While a target falls back to
/// another control plane, that is what it has of both: a name then comes twice, told apart by `server`. Each resource has its
/// `client_status`, the version and the bytes in use as they were received, and in `error_state` what went wrong with a
/// later update: version, bytes, reason and time. `exclude_resource_contents` leaves the bytes out.
///
/// Some tools take an answer with exactly one `ClientConfig`, as `grpcdebug` does, also from gRPC's own CSDS. That is what
/// a process with one target gives them; for any other there is [`unscoped`](Self::unscoped).
///
/// The fields of a resource that have no effect here, and the server that it is from, have no place in Envoy's
/// message. They are extra fields of `GenericXdsConfig`, which tools that do not know them skip:
///
/// ```protobuf
/// message IgnoredField { string path = 1; string reason = 2; }
/// repeated IgnoredField ignored_fields = 50001;
/// string server = 50002;
/// ```
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let admin = tonic::service::Routes::new(mesh_xds::CsdsService::of_process());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CsdsService {
    clients: Clients,
    scopes: Scopes,
}

#[derive(Clone, Debug)]
enum Clients {
    Process,
    Given(Arc<[WeakClient]>),
}

/// How the resources of a client are told.
#[derive(Clone, Copy, Debug)]
enum Scopes {
    ByTarget,
    Together,
}

impl CsdsService {
    /// Tells of every client of this process, also of later ones: those that [`XdsClient::connect`] made.
    pub fn of_process() -> Self {
        Self { clients: Clients::Process, scopes: Scopes::ByTarget }
    }

    /// Tells of these clients, as long as they live.
    pub fn new<'a>(clients: impl IntoIterator<Item = &'a XdsClient>) -> Self {
        let clients = clients.into_iter().map(XdsClient::downgrade).collect();
        Self { clients: Clients::Given(clients), scopes: Scopes::ByTarget }
    }

    /// Tells all resources of a client, each once, in one `ClientConfig` without a scope: for tools that do not know A71.
    #[must_use]
    pub fn unscoped(self) -> Self {
        Self { scopes: Scopes::Together, ..self }
    }

    fn answer(&self, request: &ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        // "If node_matchers is not empty, INVALID_ARGUMENT": they are for control planes that tell of many clients - A40.
        if !request.node_matchers.is_empty() {
            return Err(Status::invalid_argument(
                "node_matchers are not supported: this is a client, not a control plane",
            ));
        }
        let clients = match &self.clients {
            Clients::Process => XdsClient::of_process(),
            Clients::Given(clients) => clients.iter().filter_map(WeakClient::upgrade).collect(),
        };
        Ok(dump::response(&clients, self.scopes, request.exclude_resource_contents))
    }
}

// === The gRPC face ===

impl NamedService for CsdsService {
    const NAME: &'static str = "envoy.service.status.v3.ClientStatusDiscoveryService";
}

/// The methods, apart from the public service since their messages are not public.
struct Methods(CsdsService);

impl UnaryService<ClientStatusRequest> for Methods {
    type Response = ClientStatusResponse;
    type Future = Ready<Result<Response<ClientStatusResponse>, Status>>;

    fn call(&mut self, request: Request<ClientStatusRequest>) -> Self::Future {
        ready(self.0.answer(request.get_ref()).map(Response::new))
    }
}

impl StreamingService<ClientStatusRequest> for Methods {
    type Response = ClientStatusResponse;
    type ResponseStream = BoxStream<'static, Result<ClientStatusResponse, Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, requests: Request<Streaming<ClientStatusRequest>>) -> Self::Future {
        let service = self.0.clone();
        // An answer for each request, not a watch.
        let answers = requests.into_inner().map(move |request| service.answer(&request?));
        ready(Ok(Response::new(answers.boxed())))
    }
}

impl<B> Service<http::Request<B>> for CsdsService
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let methods = Methods(self.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(match request.uri().path() {
                FETCH => grpc.unary(methods, request).await,
                STREAM => grpc.streaming(methods, request).await,
                _ => Status::unimplemented("CSDS has FetchClientStatus and StreamClientStatus").into_http(),
            })
        })
    }
}
