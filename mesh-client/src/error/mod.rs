//! Why a call failed, and the one place that knows what stands for it in gRPC's and HTTP's own words.
//!
//! Below this room failures are causes; only here do they become a gRPC code or an HTTP status code. Every text names the
//! xDS node and, where there is one, the resource. Nothing here decides about retries, or knows responses.

mod grpc;

pub(crate) use grpc::{code_of_reset, grpc_code_of, grpc_status, http_status_of, write_grpc_status};

use crate::endpoint::SendFailure;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mesh_xds::resource::ClusterName;
use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

/// A call that this library failed, with its cause.
///
/// gRPC calls see it as a status, UNAVAILABLE if nothing else is said below; other HTTP calls as a response 503 or 504
/// that carries the `MeshError` as an extension, or as the error of a response body that ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshError {
    cause: Cause,
    node: Arc<str>,
}

/// What went wrong. `Display` is a sentence without the node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The control plane gave no usable configuration for the target; says why.
    NoConfig(Arc<str>),
    /// No configuration arrived in time and nothing failed either; says what is missing.
    ConfigTimeout {
        /// What has not arrived.
        missing: Arc<str>,
        /// How long the call waited.
        waited: Duration,
    },
    /// No virtual host of the route configuration has a domain for the target.
    NoVirtualHost {
        /// Name of the route configuration.
        routes: String,
        /// The authority that matched no domain.
        authority: String,
    },
    /// No route of the virtual host matches the request.
    NoRoute {
        /// Name of the virtual host.
        virtual_host: String,
    },
    /// The matching route does something other than forwarding.
    UnsupportedAction {
        /// Name of the route.
        route: String,
        /// The `Route.action` field.
        action: &'static str,
    },
    /// The cluster is missing, invalid, or cannot be used.
    Cluster {
        /// Its name.
        cluster: ClusterName,
        /// Why.
        reason: Arc<str>,
    },
    /// `drop_overloads` says so (A27). Never retried.
    Dropped {
        /// The cluster.
        cluster: ClusterName,
        /// Which drop category.
        category: Arc<str>,
    },
    /// As many calls as `max_requests` allows are in flight (A32). Never retried.
    CircuitOpen {
        /// The cluster.
        cluster: ClusterName,
        /// The limit.
        max: u32,
    },
    /// As many calls as are allowed already wait for a connection. Never retried.
    TooManyPending {
        /// The cluster.
        cluster: ClusterName,
        /// The limit.
        max: u32,
    },
    /// The connection broke, was closed, or the server refused the stream.
    Connection {
        /// The cluster.
        cluster: ClusterName,
        /// The endpoint.
        peer: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// The server reset the stream.
    Reset {
        /// The cluster.
        cluster: ClusterName,
        /// The endpoint.
        peer: SocketAddr,
        /// The HTTP/2 error code.
        code: u32,
    },
    /// The response cannot be taken: its headers are larger than allowed, or malformed. INTERNAL, or 502.
    Unacceptable {
        /// The cluster.
        cluster: ClusterName,
        /// The endpoint.
        peer: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
    /// The deadline passed: DEADLINE_EXCEEDED, or 504.
    DeadlineExceeded {
        /// From the start of the call.
        after: Duration,
        /// What was missing, if the call was waiting to be given to an endpoint.
        waiting_for: Option<Arc<str>>,
    },
    /// Nothing of the call moved for as long as the route's `idle_timeout`, or `per_try_idle_timeout`: DEADLINE_EXCEEDED,
    /// or 504.
    IdleTimeout {
        /// The limit.
        after: Duration,
        /// The cluster and the endpoint, once it was sent to one.
        endpoint: Option<(ClusterName, SocketAddr)>,
    },
    /// Likewise, or `max_stream_duration` passed, while the caller had not given all of an HTTP request: 408.
    RequestTimeout {
        /// The limit.
        after: Duration,
    },
    /// The last attempt took longer than the route's `per_try_timeout`: DEADLINE_EXCEEDED, or 504.
    TryTimeout {
        /// The cluster.
        cluster: ClusterName,
        /// The endpoint.
        peer: SocketAddr,
        /// The limit.
        after: Duration,
    },
    /// The caller's request body failed: CANCELLED.
    RequestBody(String),
    /// The request cannot be sent as it is: INTERNAL, or 400.
    InvalidRequest(String),
    /// An HTTP filter panicked: INTERNAL, or 500.
    FilterPanicked {
        /// Name of the filter instance.
        filter: String,
    },
    /// `Mesh::shutdown` was called.
    ShuttingDown,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConfig(reason) => f.write_str(reason),
            Self::ConfigTimeout { missing, waited } => write!(f, "no configuration after {waited:?}: {missing}"),
            Self::NoVirtualHost { routes, authority } => {
                write!(f, "RouteConfiguration {routes:?} has no virtual host for {authority:?}")
            }
            Self::NoRoute { virtual_host } => write!(f, "virtual host {virtual_host:?} has no route for the request"),
            Self::UnsupportedAction { route, action } => write!(f, "route {route:?}: action {action} is not supported"),
            Self::Cluster { cluster, reason } => write!(f, "cluster {cluster:?}: {reason}", cluster = cluster.as_str()),
            Self::Dropped { cluster, category } => {
                write!(f, "cluster {:?}: dropped by category {category:?}", cluster.as_str())
            }
            Self::CircuitOpen { cluster, max } => {
                write!(f, "cluster {:?}: circuit open: {max} calls are in flight", cluster.as_str())
            }
            Self::TooManyPending { cluster, max } => {
                write!(f, "cluster {:?}: {max} calls already wait for a connection", cluster.as_str())
            }
            Self::Connection { cluster, peer, reason } => {
                write!(f, "cluster {:?}: endpoint {peer}: {reason}", cluster.as_str())
            }
            Self::Reset { cluster, peer, code } => {
                let cluster = cluster.as_str();
                write!(f, "cluster {cluster:?}: endpoint {peer}: stream reset with HTTP/2 error code {code}")
            }
            Self::Unacceptable { cluster, peer, reason } => {
                write!(f, "cluster {:?}: endpoint {peer}: response cannot be taken: {reason}", cluster.as_str())
            }
            Self::DeadlineExceeded { after, waiting_for: None } => write!(f, "deadline exceeded after {after:?}"),
            Self::DeadlineExceeded { after, waiting_for: Some(missing) } => {
                write!(f, "deadline exceeded after {after:?}: {missing}")
            }
            Self::IdleTimeout { after, endpoint: None } => write!(f, "idle for {after:?}"),
            Self::IdleTimeout { after, endpoint: Some((cluster, peer)) } => {
                write!(f, "cluster {:?}: endpoint {peer}: idle for {after:?}", cluster.as_str())
            }
            Self::RequestTimeout { after } => write!(f, "request not complete after {after:?}"),
            Self::TryTimeout { cluster, peer, after } => {
                write!(
                    f,
                    "cluster {:?}: endpoint {peer}: no response within per_try_timeout, {after:?}",
                    cluster.as_str()
                )
            }
            Self::RequestBody(reason) => write!(f, "request body failed: {reason}"),
            Self::InvalidRequest(reason) => write!(f, "request cannot be sent: {reason}"),
            Self::FilterPanicked { filter } => write!(f, "HTTP filter {filter:?} panicked"),
            Self::ShuttingDown => f.write_str("the mesh is shutting down"),
        }
    }
}

impl MeshError {
    pub(crate) fn new(cause: Cause, node: Arc<str>) -> Self {
        Self { cause, node }
    }

    /// What went wrong.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// The xDS node that this client is.
    pub fn node_id(&self) -> &str {
        &self.node
    }

    /// The gRPC status code that stands for the cause.
    pub fn grpc_code(&self) -> u8 {
        self.cause.grpc_code()
    }

    /// The HTTP status code that stands for the cause.
    pub fn http_status(&self) -> StatusCode {
        self.cause.http_status()
    }

    /// The status as final trailers, for a response that had begun.
    pub(crate) fn into_trailers(self) -> HeaderMap {
        self.cause.trailers(&self.to_string())
    }
}

impl fmt::Display for MeshError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cause, node) = (self.cause.to_string(), &*self.node);
        // What comes from the xDS client names the node already.
        let named = cause.contains(&format!("(xDS node id {node:?})"));
        if named { f.write_str(&cause) } else { write!(f, "{cause} (xDS node id {node:?})") }
    }
}

impl std::error::Error for MeshError {}

/// In whose words a caller is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyForm {
    /// Trailers-only, `grpc-status` and `grpc-message`.
    Grpc,
    /// A status code and a text.
    Http,
}

impl ReplyForm {
    /// gRPC's if the request's content type is.
    pub fn of(headers: &HeaderMap) -> Self {
        // One by one, since most heads are short: to hash a name costs as much as half a dozen comparisons.
        Self::of_content_type(headers.iter().find_map(|(name, value)| (name == header::CONTENT_TYPE).then_some(value)))
    }

    pub(crate) fn of_content_type(value: Option<&HeaderValue>) -> Self {
        match value {
            Some(value) if value.as_bytes().starts_with(b"application/grpc") => Self::Grpc,
            _ => Self::Http,
        }
    }
}

impl Cause {
    pub(crate) fn grpc_code(&self) -> u8 {
        match self {
            Self::DeadlineExceeded { .. }
            | Self::TryTimeout { .. }
            | Self::IdleTimeout { .. }
            | Self::RequestTimeout { .. } => grpc::DEADLINE_EXCEEDED,
            Self::RequestBody(_) => grpc::CANCELLED,
            Self::InvalidRequest(_) | Self::Unacceptable { .. } | Self::FilterPanicked { .. } => grpc::INTERNAL,
            Self::Reset { code, .. } => code_of_reset(*code),
            _ => grpc::UNAVAILABLE,
        }
    }

    pub(crate) fn http_status(&self) -> StatusCode {
        match self {
            Self::DeadlineExceeded { .. } | Self::TryTimeout { .. } | Self::IdleTimeout { .. } => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::RequestTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Unacceptable { .. } => StatusCode::BAD_GATEWAY,
            Self::FilterPanicked { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::InvalidRequest(_) | Self::RequestBody(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whether a limit or a drop has refused the call, so that repeating it would only add to the load.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Dropped { .. } | Self::CircuitOpen { .. } | Self::TooManyPending { .. })
    }

    /// The status as final trailers, for a response that had begun.
    pub(crate) fn trailers(&self, text: &str) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(2);
        write_grpc_status(&mut trailers, self.grpc_code(), text.as_bytes());
        trailers
    }

    /// Says what the deadline was spent waiting for.
    pub(crate) fn waiting_for(self, missing: impl FnOnce() -> Arc<str>) -> Self {
        match self {
            Self::DeadlineExceeded { after, .. } => Self::DeadlineExceeded { after, waiting_for: Some(missing()) },
            other => other,
        }
    }

    /// Says where the call was when nothing moved any more.
    pub(crate) fn at(self, endpoint: impl FnOnce() -> (ClusterName, SocketAddr)) -> Self {
        match self {
            Self::IdleTimeout { after, .. } => Self::IdleTimeout { after, endpoint: Some(endpoint()) },
            other => other,
        }
    }

    /// The end of an attempt that will not be repeated.
    pub(crate) fn from_send(failure: SendFailure, cluster: ClusterName, peer: SocketAddr) -> Self {
        let reason = match failure {
            SendFailure::Unsent(reason) | SendFailure::Io(reason) => reason,
            SendFailure::Refused => "stream refused".to_owned(),
            SendFailure::GoneAway => "connection is going away".to_owned(),
            SendFailure::Reset(code) => return Self::Reset { cluster, peer, code },
            SendFailure::Unacceptable(reason) => return Self::Unacceptable { cluster, peer, reason },
            SendFailure::RequestBody(reason) => return Self::RequestBody(reason),
            SendFailure::Invalid(reason) => return Self::InvalidRequest(reason),
        };
        Self::Connection { cluster, peer, reason }
    }
}
