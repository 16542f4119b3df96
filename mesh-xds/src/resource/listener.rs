//! LDS: what a client target resolves to first.
//!
//! Only what gRPC reads of a Listener is here (A27, A31, A39). A listener with sockets is valid and
//! says so; a client target that gets one fails its calls (A74).

use super::{HttpFilter, RouteConfig};
use std::{sync::Arc, time::Duration};

/// A validated `envoy.config.listener.v3.Listener`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Resource name.
    pub name: String,
    /// For whom the listener is.
    pub kind: ListenerKind,
}

/// The two shapes a Listener has.
#[derive(Clone, Debug, PartialEq)]
pub enum ListenerKind {
    /// `api_listener`: for clients.
    Api(HttpConnectionManager),
    /// A listener with an address and filter chains: for servers. Not usable as a client target.
    Socket,
}

/// A validated `HttpConnectionManager`, as far as clients read it.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConnectionManager {
    /// Where the routes are.
    pub routes: RouteSource,
    /// `common_http_protocol_options.max_stream_duration`; zero means none (A31).
    pub max_stream_duration: Option<Duration>,
    /// Filters in order, without the terminal router.
    pub filters: Vec<HttpFilter>,
}

/// `HttpConnectionManager.route_specifier`.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteSource {
    /// `rds.route_config_name`, from ADS (or `self`).
    Rds(String),
    /// `route_config`, in line.
    Inline(Arc<RouteConfig>),
}
