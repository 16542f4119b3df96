//! The channel: what a user holds, and what it knows of its target.
//!
//! What a call does stands in `stack.rs`, what calls and the apply task share in `shared.rs`. A channel is always ready:
//! there is no queue in front of a call.

mod routing;
mod shared;
mod stack;
mod terms;

pub(crate) use shared::{Shared, Use};

use crate::{
    apply::Table,
    call::ResponseBody,
    endpoint::EndpointState,
    error::{Cause, MeshError},
    mesh::Connected,
    retry::Throttle,
    status::{ChannelState, ChannelStatus},
};
use http::{HeaderValue, Request, Response, uri::Authority};
use http_body::Body;
use mesh_xds::TargetWatch;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

/// A channel to one target of the mesh: a tower `Service` for tonic's generated clients and for plain HTTP.
///
/// Cheap to clone; all clones are one channel. Made by [`Mesh::channel`](crate::Mesh::channel). A call is
/// gRPC if its `content-type` begins with `application/grpc`; it then gets failures as a gRPC status. Any other call
/// gets them as a response 503 or 504 with the [`MeshError`] among its extensions.
///
/// The request's authority is replaced by the service's name (see
/// [`ChannelBuilder::authority`](crate::ChannelBuilder::authority), and [`CallAuthority`](crate::CallAuthority) for one call
/// alone); a URI without scheme and authority works.
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
    /// Whether retry policies have effect.
    pub(crate) retries: bool,
    pub(crate) retry_throttle: Option<Arc<Throttle>>,
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
    pub fn destination(&self, head: &http::request::Parts) -> Option<Result<std::net::SocketAddr, MeshError>> {
        use crate::{balance::Tried, cluster::NoPick};
        let inner = &self.inner;
        let picked = match inner.try_route(head, &terms::Terms::of(head))? {
            Ok(routed) => match routed.backends.try_pick(false, &Tried::default())? {
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

// === Service ===

/// The future of a call, boxed once.
pub struct ResponseFuture(Pin<Box<dyn Future<Output = Called> + Send>>);

/// What comes of a call, in the form in which it leaves: it is never an error, and a change of form would be a move.
type Called = Result<Response<ResponseBody>, MeshError>;

impl ResponseFuture {
    pub(crate) fn ready(response: Response<ResponseBody>) -> Self {
        Self(Box::pin(std::future::ready(Ok(response))))
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}

impl Future for ResponseFuture {
    type Output = Called;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
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
        // Made where it stays: moved there from the stack it would cost as much as a pick.
        let call = Box::write(Box::new_uninit(), Arc::clone(&self.inner).call(request));
        ResponseFuture(Box::into_pin(call))
    }
}
