//! Protobuf in, `resource` values out: pure functions, and the only way in.
//!
//! Each resource is refused or accepted on its own (A46), a refusal names the field in protobuf spelling, and what
//! is valid but has no effect here is reported. A field of an unknown type is not fatal; a wrong value in a known
//! one is. This room does NOT cache, compare versions or know what was asked for.

#![expect(deprecated, reason = "istiod and others still send the deprecated fields, and they are part of the contract")]

mod basics;
mod circuit_breakers;
mod cluster;
mod dns;
mod endpoints;
mod fault;
mod filter;
mod lb_policy;
mod listener;
mod load;
mod matcher;
mod outlier_detection;
mod retry;
mod reuse;
mod route;
mod scope;
mod tls;
mod unchanged;
mod wire;
mod wrapper;

pub use reuse::reuse;
pub(crate) use wrapper::Wrapped;

use crate::{
    name::{canonical, canonical_string},
    registry::Registry,
    resource::{Invalid, Kind, Received, Resource},
};
use basics::type_name;
use bytes::Bytes;
use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener, route::v3::RouteConfiguration,
};
use prost::Message;
use scope::Scope;
use std::{collections::BTreeSet, ops::Range, sync::Arc};

/// What decoding must know besides the bytes.
#[derive(Clone, Debug, Default)]
pub struct DecodeContext {
    /// Names of the bootstrap's `certificate_providers`: a TLS context may refer to no others (A29).
    pub certificate_providers: BTreeSet<String>,
    /// The server has the feature `trusted_xds_server`: it may rewrite authorities (A81).
    pub trusted: bool,
    /// What of the program's own may come in resources.
    pub extensions: Registry,
}

/// Decodes and validates one `Any` of a response for `kind`.
///
/// An `envoy.service.discovery.v3.Resource` wrapper is taken off first. Never panics, whatever the bytes.
///
/// ```
/// use bytes::Bytes;
/// use mesh_xds::{decode::{DecodeContext, decode}, resource::Kind};
///
/// // cluster_name: "greeter", and nothing else: a service without endpoints.
/// let bytes = Bytes::from_static(b"\x0a\x07greeter");
/// let received = decode(Kind::Endpoints, Kind::Endpoints.type_url(), &bytes, &DecodeContext::default());
/// assert_eq!(received.name.as_deref(), Some("greeter"));
/// assert!(received.value.is_ok());
/// ```
pub fn decode(kind: Kind, type_url: &str, bytes: &Bytes, context: &DecodeContext) -> Received {
    let wrapped = match Wrapped::unwrap(type_url, bytes) {
        Ok(Some(wrapped)) => wrapped,
        Ok(None) => return decode_bare(kind, type_url, bytes, None, context),
        Err(invalid) => return refused(None, bytes, invalid),
    };
    match &wrapped.resource {
        // The wrapper tells the name even when what it holds cannot be read.
        Some((type_url, bytes)) => {
            wrapped.around(decode_bare(kind, type_url, bytes, Some(wrapped.name.clone()), context))
        }
        None => wrapped.empty(),
    }
}

/// As [`decode`], for bytes that replace those of `previous`: the same result for less work.
///
/// The virtual hosts of a route configuration whose bytes are equal are taken over with their identity; so are a
/// load assignment's endpoints before and after those that changed, by value.
pub fn decode_after(
    previous: &Received,
    kind: Kind,
    type_url: &str,
    bytes: &Bytes,
    context: &DecodeContext,
) -> Received {
    fast(previous, kind, type_url, bytes, context).unwrap_or_else(|| decode(kind, type_url, bytes, context))
}

/// [`decode`] or [`decode_after`], for a resource that came without its wrapper or is out of it: then `known_as` is the
/// name that the wrapper tells.
pub(crate) fn decode_unwrapped(
    previous: Option<&Received>,
    kind: Kind,
    type_url: &str,
    bytes: &Bytes,
    known_as: Option<&str>,
    context: &DecodeContext,
) -> Received {
    let fast = previous.and_then(|previous| fast(previous, kind, type_url, bytes, context));
    fast.unwrap_or_else(|| decode_bare(kind, type_url, bytes, known_as.map(str::to_owned), context))
}

fn fast(previous: &Received, kind: Kind, type_url: &str, bytes: &Bytes, context: &DecodeContext) -> Option<Received> {
    let bare = type_name(type_url) == type_name(kind.type_url());
    match kind {
        Kind::RouteConfig if bare => unchanged::route_config(bytes, context, previous),
        Kind::Endpoints if bare => unchanged::load_assignment(bytes, context, previous),
        _ => None,
    }
}

/// The places of a repeated message field of an encoded message, and its bytes without them; `None` when it is malformed.
pub(crate) fn parts(message: &[u8], field: u32) -> Option<(Vec<Range<usize>>, Vec<u8>)> {
    wire::split(message, field).map(|split| (split.parts, split.rest))
}

/// The name that an encoded resource of any kind has, without decoding it; `None` when it is not to be seen.
pub fn peek_name(bytes: &[u8]) -> Option<&str> {
    wire::name(bytes)
}

fn decode_bare(kind: Kind, type_url: &str, raw: &Bytes, known_as: Option<String>, context: &DecodeContext) -> Received {
    if type_name(type_url) != type_name(kind.type_url()) {
        let reason = format!("the resource is a {:?}, not a {:?}", type_url, kind.type_url());
        return refused(known_as, raw, Invalid::new(reason));
    }
    match kind {
        Kind::Listener => decode_as(
            raw,
            known_as,
            context,
            |listener: &Listener| &listener.name,
            |listener, scope| {
                listener::listener(listener, scope).map(|listener| Resource::Listener(Arc::new(listener)))
            },
        ),
        Kind::RouteConfig => decode_as(
            raw,
            known_as,
            context,
            |routes: &RouteConfiguration| &routes.name,
            |routes, scope| {
                route::named_route_config(routes, scope).map(|routes| Resource::RouteConfig(Arc::new(routes)))
            },
        ),
        Kind::Cluster => decode_as(
            raw,
            known_as,
            context,
            |cluster: &Cluster| &cluster.name,
            |cluster, scope| cluster::cluster(cluster, scope).map(|cluster| Resource::Cluster(Arc::new(cluster))),
        ),
        Kind::Endpoints => decode_as(
            raw,
            known_as,
            context,
            |endpoints: &ClusterLoadAssignment| &endpoints.cluster_name,
            |endpoints, scope| {
                endpoints::endpoints(endpoints, scope).map(|endpoints| Resource::Endpoints(Arc::new(endpoints)))
            },
        ),
        Kind::Other(other) => {
            let (name, value) = other.decode(raw, known_as.filter(|name| !name.is_empty()));
            Received { name, value, version: None, ignored: Vec::new(), raw: raw.clone() }
        }
    }
}

fn decode_as<M: Message + Default>(
    raw: &Bytes,
    known_as: Option<String>,
    context: &DecodeContext,
    name: fn(&M) -> &String,
    validate: fn(M, &mut Scope<'_>) -> Result<Resource, Invalid>,
) -> Received {
    let message = match M::decode(raw.clone()) {
        Ok(message) => message,
        Err(error) => return refused(known_as, raw, Invalid::new(format!("malformed protobuf: {error}"))),
    };
    let name = Some(name(&message).as_str()).filter(|name| !name.is_empty()).or(known_as.as_deref());
    let name = name.map(|name| canonical(name).into_owned());
    let mut scope = Scope::new(context);
    let value = validate(message, &mut scope);
    Received { name, value, version: None, ignored: scope.into_ignored(), raw: raw.clone() }
}

/// A resource that cannot be used.
pub(crate) fn refused(name: Option<String>, raw: &Bytes, invalid: Invalid) -> Received {
    let name = name.filter(|name| !name.is_empty()).map(canonical_string);
    Received { name, value: Err(invalid), version: None, ignored: Vec::new(), raw: raw.clone() }
}
