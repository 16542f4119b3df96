//! THE client stack, written in one place, outermost first.
//!
//! ```text
//!  tonic / hyper ─► MeshChannel        always ready: there is no queue in front of a call; what can be waited for
//!    error          causes → status    (configuration, a connection) is waited for inside the call, bounded
//!    route          table → cluster
//!    deadline       A31, or Envoy's timeout
//!    attempts       repeated when nothing was sent, or the server says that it did not look
//!      pick         one synchronous step, repeated for each new picker
//!      load         counted for load reports, where the cluster makes any
//!      endpoint     authority, streams, bytes
//! ```
//!
//! The path is one async fn, boxed once. A call reads: an `ArcSwap` load, a match, a pick, a send.

use crate::{
    apply::{Action, Destination, RoutingTable, Table},
    call::{ResponseBody, WaitForReady},
    cluster::{Backends, Cluster, NoPick},
    deadline::{self, Deadline, GRPC_TIMEOUT, Limits, within},
    endpoint::{EndpointState, Protocol, SendFailure, Upload},
    error::{Cause, MeshError, ReplyForm},
    load::Attempt,
    mesh::Connected,
    route::RequestHead,
    status::{ChannelState, ChannelStatus},
    wakeups::Wakeups,
};
use arc_swap::ArcSwap;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Uri, Version,
    header::{self, HeaderName},
    request,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body;
use mesh_xds::TargetWatch;
#[cfg(feature = "http1")]
use mesh_xds::resource::HttpProtocol;
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    task::coop::consume_budget,
    time::{Instant, timeout},
};

/// How much of a request body is kept for transparent retries: refcounted DATA, no copies.
const REPLAY_CAP: usize = 64 * 1024;

/// A channel to one target of the mesh: a tower `Service` for tonic's generated clients and for plain HTTP.
///
/// Cheap to clone; all clones are one channel. Made by [`Mesh::channel`](crate::Mesh::channel). A call is
/// gRPC if its `content-type` begins with `application/grpc`; it then gets failures as a gRPC status. Any other call
/// gets them as a response 503 or 504 with the [`MeshError`] among its extensions.
///
/// The request's authority is replaced by the service's name (see
/// [`ChannelBuilder::authority`](crate::ChannelBuilder::authority)); a URI without scheme and authority works.
#[derive(Clone)]
pub struct MeshChannel {
    inner: Arc<Inner>,
}

/// One channel.
pub(crate) struct Inner {
    pub(crate) target: Arc<str>,
    pub(crate) shared: Arc<Shared>,
    options: CallOptions,
    node: Arc<str>,
    /// The newest snapshot that there is, to compare with the one that is applied.
    pub(crate) newest: TargetWatch,
    /// Keeps the channel's apply task, its clusters' registry and its XdsClient.
    connected: Connected,
}

/// What a channel does with every call, as its builder says.
#[derive(Clone, Debug)]
pub(crate) struct CallOptions {
    /// `:authority`: the service's name.
    pub(crate) authority: Authority,
    /// How long a call waits for the first configuration if nothing else ends the wait.
    pub(crate) config_timeout: Duration,
    /// For plain HTTP, where the cluster does not say.
    #[cfg(feature = "http1")]
    pub(crate) http_protocol: HttpVersion,
    /// For gRPC calls that have none.
    pub(crate) user_agent: HeaderValue,
}

/// The HTTP version for requests that are not gRPC, to clusters that do not say which they speak.
#[cfg(feature = "http1")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HttpVersion {
    /// HTTP/1.1, as in Envoy.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

// === Shared ===

/// The table, and who waits for one: written by apply, read by calls.
#[derive(Debug)]
pub(crate) struct Shared {
    table: ArcSwap<Table>,
    pub(crate) wakeups: Wakeups,
    /// Each [`Use`] that was made of the channel: new clusters are connected for these before the routes point at them.
    uses: AtomicU8,
    #[cfg(feature = "http1")]
    http_protocol: HttpVersion,
}

/// What a channel is used for. Together with the cluster it decides which HTTP version is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Grpc = 1,
    /// Plain HTTP, in a request of version 1.
    Http1 = 2,
    /// Plain HTTP, in a request of version 2.
    Http2 = 4,
    /// Somebody waits until it is ready; for what, calls have not said yet.
    Ready = 8,
}

impl Use {
    const ALL: [Self; 4] = [Self::Grpc, Self::Http1, Self::Http2, Self::Ready];

    fn of(version: Version, form: ReplyForm) -> Self {
        match form {
            ReplyForm::Grpc => Self::Grpc,
            ReplyForm::Http if version == Version::HTTP_2 => Self::Http2,
            ReplyForm::Http => Self::Http1,
        }
    }
}

impl Shared {
    #[cfg_attr(not(feature = "http1"), expect(unused_variables, reason = "there is one version"))]
    pub(crate) fn new(options: &CallOptions) -> Self {
        let pending = Table::Pending("waiting for the control plane".into());
        Self {
            table: ArcSwap::from_pointee(pending),
            wakeups: Wakeups::default(),
            uses: AtomicU8::new(0),
            #[cfg(feature = "http1")]
            http_protocol: options.http_protocol,
        }
    }

    pub(crate) fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// What a call waits for.
    fn missing(&self) -> Arc<str> {
        match &**self.table() {
            Table::Pending(missing) | Table::Failed(missing) => Arc::clone(missing),
            Table::Ready(_) | Table::ShutDown => "a configuration".into(),
        }
    }

    pub(crate) fn publish(&self, table: Table) {
        let table = Arc::new(table);
        self.table.rcu(|current| match **current {
            // Nothing comes after a shutdown.
            Table::ShutDown => Arc::clone(current),
            _ => Arc::clone(&table),
        });
        self.wakeups.all();
    }

    fn used(&self, usage: Use) {
        // Read first: the cache line stays shared by all callers.
        if self.uses.load(Ordering::Relaxed) & usage as u8 == 0 {
            self.uses.fetch_or(usage as u8, Ordering::Relaxed);
        }
    }

    /// Starts what calls like those so far will need of a cluster.
    pub(crate) fn warm(&self, cluster: &Cluster) {
        let uses = self.uses.load(Ordering::Relaxed);
        for usage in Use::ALL.into_iter().filter(|usage| uses & *usage as u8 != 0) {
            // To be ready for anything is to be ready for what calls have asked for, if they have.
            if usage != Use::Ready || cluster.running().next().is_none() {
                cluster.backends(self.protocol(cluster, usage));
            }
        }
    }

    /// gRPC is always HTTP/2; the rest as the cluster says, or else the channel.
    #[cfg(feature = "http1")]
    fn protocol(&self, cluster: &Cluster, usage: Use) -> Protocol {
        match (usage, cluster.http_protocol(), self.http_protocol) {
            (Use::Grpc, ..) => Protocol::Http2,
            (Use::Ready, HttpProtocol::Http1, _) => Protocol::Http1,
            (Use::Ready, ..) => Protocol::Http2,
            (_, HttpProtocol::Http2, _) | (_, HttpProtocol::Unspecified, HttpVersion::Http2) => Protocol::Http2,
            (Use::Http2, HttpProtocol::Downstream, _) => Protocol::Http2,
            // ALPN decides for `auto_config` under TLS; in plaintext it means HTTP/1.1.
            (Use::Http1 | Use::Http2, ..) => Protocol::Http1,
        }
    }

    #[cfg(not(feature = "http1"))]
    fn protocol(&self, _: &Cluster, _: Use) -> Protocol {
        Protocol::Http2
    }
}

// === Route ===

/// A call's decision: made once, kept for all its attempts.
struct Routed {
    backends: Arc<Backends>,
    limits: Limits,
}

impl Inner {
    pub(crate) fn new(
        target: Arc<str>,
        shared: Arc<Shared>,
        options: CallOptions,
        node: Arc<str>,
        newest: TargetWatch,
        connected: Connected,
    ) -> Self {
        Self { target, shared, options, node, newest, connected }
    }

    /// Routes by the current table; `None` while there is none to wait for.
    fn try_route(&self, head: &request::Parts, form: ReplyForm, waits: bool) -> Option<Result<Routed, Cause>> {
        match &**self.shared.table() {
            Table::Ready(table) => Some(self.decide(table, head, form)),
            Table::Pending(_) => None,
            Table::Failed(_) if waits => None,
            Table::Failed(reason) => Some(Err(Cause::NoConfig(Arc::clone(reason)))),
            Table::ShutDown => Some(Err(Cause::ShuttingDown)),
        }
    }

    /// Routes, and waits for the first table if need be: until the control plane fails, or the time is up.
    async fn route(&self, head: &request::Parts, form: ReplyForm, waits: bool) -> Result<Routed, Cause> {
        if let Some(routed) = self.try_route(head, form, waits) {
            return routed;
        }
        let routed = self.shared.wakeups.wait_unless(|| self.try_route(head, form, waits));
        if waits {
            return routed.await;
        }
        let waited = self.options.config_timeout;
        timeout(waited, routed)
            .await
            .unwrap_or_else(|_elapsed| Err(Cause::ConfigTimeout { missing: self.shared.missing(), waited }))
    }

    fn decide(&self, table: &RoutingTable, head: &request::Parts, form: ReplyForm) -> Result<Routed, Cause> {
        let Some(host) = &table.host else {
            return Err(Cause::NoVirtualHost {
                routes: table.snapshot.routes.name.clone(),
                authority: self.target.to_string(),
            });
        };
        let request = RequestHead {
            method: &head.method,
            path: head.uri.path(),
            query: head.uri.query(),
            scheme: "http",
            authority: self.options.authority.as_str(),
            headers: &head.headers,
            is_grpc: form == ReplyForm::Grpc,
        };
        let action = host.matcher.find(&request, &mut || fastrand::u32(..1_000_000)).map(|index| &host.actions[index]);
        let (destination, limits) = match action {
            Some(Action::Forward { destination, limits }) => (destination, limits),
            Some(Action::Unsupported(route, action)) => {
                return Err(Cause::UnsupportedAction { route: route.clone(), action });
            }
            None => return Err(Cause::NoRoute { virtual_host: host.name().to_owned() }),
        };
        let cluster = match destination {
            Destination::One(cluster) => cluster,
            Destination::Split(choice, clusters) => &clusters[choice.choose(fastrand::u64(..choice.total()))],
        };
        let backends = Arc::clone(cluster.backends(self.shared.protocol(cluster, Use::of(head.version, form))));
        Ok(Routed { backends, limits: *limits })
    }
}

impl Inner {
    pub(crate) fn connected(&self) -> &Connected {
        &self.connected
    }
}

impl MeshChannel {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// What calls see now.
    pub fn state(&self) -> ChannelState {
        ChannelStatus::of(&self.inner).state
    }

    /// The channel in detail: what is applied, clusters, endpoints.
    pub fn status(&self) -> ChannelStatus {
        ChannelStatus::of(&self.inner)
    }

    /// Waits until configuration is applied and each of its clusters has a READY endpoint or is known to fail; starts
    /// connecting. Failing clusters are in the answer, by name with the reason.
    ///
    /// # Errors
    /// [`NotReady`], which says what is missing, when that takes longer than `within`.
    pub async fn ready(&self, within: Duration) -> Result<Vec<FailingCluster>, NotReady> {
        self.inner.shared.used(Use::Ready);
        let settled = async {
            let clusters = self
                .inner
                .shared
                .wakeups
                .wait_unless(|| match &**self.inner.shared.table() {
                    Table::Ready(table) => Some(table.clusters.values().map(Arc::clone).collect::<Vec<_>>()),
                    Table::Pending(_) | Table::Failed(_) | Table::ShutDown => None,
                })
                .await;
            let mut failing = Vec::new();
            for cluster in clusters {
                self.inner.shared.warm(&cluster);
                for backends in cluster.running() {
                    if let Err(reason) = backends.settled().await {
                        failing.push(FailingCluster { cluster: cluster.name().to_string(), reason });
                    }
                }
            }
            failing
        };
        timeout(within, settled).await.map_err(|_elapsed| NotReady { missing: self.missing() })
    }

    /// Where a call with this head would go: routed and picked as a call is, and not sent. `None` while it would wait.
    ///
    /// It counts as a call for whoever takes turns: round_robin moves on, a share of a split is drawn.
    ///
    /// # Errors
    /// What the call would fail with.
    #[cfg(feature = "testing")]
    pub fn destination(&self, head: &request::Parts) -> Option<Result<std::net::SocketAddr, MeshError>> {
        let inner = &self.inner;
        let picked = match inner.try_route(head, form(&head.headers), false)? {
            Ok(routed) => match routed.backends.try_pick(false)? {
                Ok(slot) => Ok(slot.peer()),
                Err(NoPick::Failed(cause)) => Err(cause),
                Err(NoPick::Removed) => return None,
            },
            Err(cause) => Err(cause),
        };
        Some(picked.map_err(|cause| MeshError::new(cause, Arc::clone(&inner.node))))
    }

    fn missing(&self) -> String {
        match self.state() {
            ChannelState::Pending(missing) => missing.to_string(),
            ChannelState::Failed(reason) => reason.to_string(),
            ChannelState::ShutDown => Cause::ShuttingDown.to_string(),
            ChannelState::Ready => {
                let connecting = self.status().clusters.into_iter().filter(|cluster| {
                    cluster.error.is_none() && !cluster.endpoints.iter().any(|e| e.state == EndpointState::Ready)
                });
                let names: Vec<_> = connecting.map(|cluster| format!("{:?}", cluster.name)).collect();
                format!("no endpoint is ready in cluster {}", names.join(", "))
            }
        }
    }
}

/// A cluster that [`MeshChannel::ready`] found unusable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailingCluster {
    /// Its name.
    pub cluster: String,
    /// Why.
    pub reason: Arc<str>,
}

/// A channel was not ready in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not ready: {missing}")]
#[non_exhaustive]
pub struct NotReady {
    /// What has not arrived, or which clusters have no connection yet.
    pub missing: String,
}

impl fmt::Debug for MeshChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshChannel").field("target", &self.inner.target).finish_non_exhaustive()
    }
}

// === Call ===

impl Inner {
    /// The whole client path.
    async fn call<B>(self: Arc<Self>, request: Request<B>) -> Response<ResponseBody>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        let (head, body) = request.into_parts();
        let form = form(&head.headers);
        match self.attempts(head, body, form).await {
            Ok(response) => response,
            Err(cause) => {
                // A caller that tries again at once must not keep the workers from running: nothing on the way to a
                // failure has to wait for anything.
                consume_budget().await;
                MeshError::new(cause, Arc::clone(&self.node)).into_response(form)
            }
        }
    }

    async fn attempts<B>(
        &self,
        mut head: request::Parts,
        body: B,
        form: ReplyForm,
    ) -> Result<Response<ResponseBody>, Cause>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        let started = Instant::now();
        self.shared.used(Use::of(head.version, form));
        let waits = head.extensions.get::<WaitForReady>().is_some();
        self.address(&mut head, form)?;
        // Until a route adds its own limit, the caller's holds: it covers the wait for configuration, too.
        let own = deadline::limit(true, &head.headers, &Limits::default()).filter(|_| form == ReplyForm::Grpc);
        let mut deadline = own.map(|limit| Deadline::new(started, limit));
        let mut upload = Some(Upload::new(body, REPLAY_CAP));
        let mut refused = false;
        loop {
            let routed = within(&mut deadline, self.route(&head, form, waits)).await;
            let routed = routed.map_err(|late| late.waiting_for(|| self.shared.missing()))??;
            let limit = deadline::limit(form == ReplyForm::Grpc, &head.headers, &routed.limits);
            if limit != deadline.as_ref().map(Deadline::limit) {
                deadline = limit.map(|limit| Deadline::new(started, limit));
                if let (ReplyForm::Grpc, Some(limit)) = (form, limit) {
                    head.headers.insert(GRPC_TIMEOUT, deadline::grpc_timeout(limit));
                }
            }
            loop {
                let picked = within(&mut deadline, routed.backends.pick(waits)).await;
                let mut slot = match picked.map_err(|late| late.waiting_for(|| routed.backends.missing()))? {
                    Ok(slot) => slot,
                    Err(NoPick::Failed(cause)) => return Err(cause),
                    // The cluster left the routes while the call waited for it: nothing was sent, so route again.
                    Err(NoPick::Removed) => break,
                };
                let mut attempt = Attempt::begin(slot.take_load(), form);
                let failure = match within(&mut deadline, slot.send(&head, &mut upload)).await? {
                    Ok((parts, body)) => {
                        attempt.head(&parts, body.is_end_stream());
                        let body = ResponseBody::live(body, slot, attempt, deadline, form, Arc::clone(&self.node));
                        return Ok(Response::from_parts(parts, body));
                    }
                    Err(failure) => failure,
                };
                let again = match failure {
                    SendFailure::Unsent(_) => true,
                    // "transparent once, then policy" (A6).
                    SendFailure::Refused | SendFailure::GoneAway => !std::mem::replace(&mut refused, true),
                    _ => false,
                };
                match &mut upload {
                    Some(upload) if again && upload.can_replay() => upload.rewind(),
                    _ => return Err(Cause::from_send(failure, slot.cluster().clone(), slot.peer())),
                }
            }
        }
    }

    /// Writes the service's name into the URI, and takes out what belongs to the caller's own hop.
    fn address(&self, head: &mut request::Parts, form: ReplyForm) -> Result<(), Cause> {
        let mut uri = std::mem::take(&mut head.uri).into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.options.authority.clone());
        uri.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
        head.uri = Uri::from_parts(uri).map_err(|error| Cause::InvalidRequest(error.to_string()))?;
        match form {
            ReplyForm::Grpc => {
                head.headers.entry(header::USER_AGENT).or_insert_with(|| self.options.user_agent.clone());
            }
            ReplyForm::Http if head.method == Method::CONNECT => {
                return Err(Cause::InvalidRequest("CONNECT asks for a tunnel, and a mesh has none".to_owned()));
            }
            ReplyForm::Http => {
                for name in &HOP_BY_HOP {
                    head.headers.remove(name);
                }
            }
        }
        Ok(())
    }
}

/// "Connection-specific header fields" (RFC 9113, 8.2.2), and `host`, which the authority replaces.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::HOST,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Whether a request is gRPC, which decides how it is answered.
pub(crate) fn form(headers: &HeaderMap) -> ReplyForm {
    match headers.get(header::CONTENT_TYPE) {
        Some(value) if value.as_bytes().starts_with(b"application/grpc") => ReplyForm::Grpc,
        _ => ReplyForm::Http,
    }
}

// === Service ===

/// The future of a call. It is the one allocation of the path.
pub struct ResponseFuture(Pin<Box<dyn Future<Output = Response<ResponseBody>> + Send>>);

impl ResponseFuture {
    pub(crate) fn ready(response: Response<ResponseBody>) -> Self {
        Self(Box::pin(std::future::ready(response)))
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, MeshError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

impl<B> tower_service::Service<Request<B>> for MeshChannel
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: fmt::Display,
{
    type Response = Response<ResponseBody>;
    type Error = MeshError;
    type Future = ResponseFuture;

    /// Always ready: which cluster a call goes to, and so what it would have to wait for, is known only from the call.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), MeshError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        ResponseFuture(Box::pin(Arc::clone(&self.inner).call(request)))
    }
}
