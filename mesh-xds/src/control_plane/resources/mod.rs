//! A set of resources to serve, and makers of the common ones with good defaults.
//!
//! [`Resources`] holds encoded protobuf: whatever has a type URL and a name can be served, also types and bytes that
//! nothing here understands. The makers return protobuf messages, whose `with_` methods (traits of this module) say what
//! most resources say, and whose fields say the rest. This file does NOT validate; [`Resources::check`] looks for
//! dangling references.
//!
//! ```
//! use mesh_xds::control_plane::resources::*;
//! use std::time::Duration;
//!
//! let slow = route("/reports", to_cluster("reports")).with_timeout(Duration::from_secs(60));
//! let rest = route("", to_weighted(&[("web-v1", 90), ("web-v2", 10)])).with_retries("unavailable", 2);
//! let near = locality("eu", "eu-1", vec![endpoint("10.0.0.1:80".parse()?).with_weight(2)]);
//! let far = locality("us", "us-1", vec![endpoint("10.1.0.1:80".parse()?)]).with_priority(1);
//! let resources = Resources::default()
//!     .with(listener_inline("web:80", route_config("web", vec![virtual_host_with("*", vec![slow, rest])])))
//!     .with(cluster_dns("reports", "reports.example.com", 80))
//!     .with(cluster_eds("web-v1").with_max_requests(500))
//!     .with(endpoints_in("web-v1", vec![near, far]))
//!     .with(cluster_static("web-v2", &["10.0.0.2:80".parse()?]).with_tls("default", "web.example.com"));
//! assert_eq!(resources.check(), Ok(()));
//! # Ok::<_, std::net::AddrParseError>(())
//! ```

mod cluster;
mod endpoints;
mod listener;
mod route;

pub use cluster::*;
pub use endpoints::*;
pub use listener::*;
pub use route::*;

use crate::name::canonical;
use bytes::Bytes;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

/// The resources of one snapshot, by type URL and name.
///
/// ```
/// use mesh_xds::control_plane::resources::{self, Resources};
/// let resources = Resources::default()
///     .with(resources::listener("greeter:80", "greeter-routes"))
///     .with(resources::route_config("greeter-routes", vec![resources::virtual_host("*", "greeter")]))
///     .with(resources::cluster_eds("greeter"))
///     .with(resources::endpoints("greeter", &["127.0.0.1:5000".parse().unwrap()]));
/// assert_eq!(resources.len(), 4);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    types: BTreeMap<String, BTreeMap<Arc<str>, Bytes>>,
}

/// The one field that every xDS resource type has in common: its name is field 1.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

impl Resources {
    /// Adds a resource, or replaces the one of the same type and name.
    #[must_use]
    pub fn with<M: Message + Name>(mut self, resource: M) -> Self {
        self.insert(resource);
        self
    }

    /// Adds a service, as most are: a client listener of this name that sends everything to an EDS cluster of this name
    /// with these endpoints.
    ///
    /// ```
    /// # use mesh_xds::control_plane::Resources;
    /// let resources = Resources::default().with_service("greeter:80", &["127.0.0.1:5000".parse()?]);
    /// assert_eq!(resources.len(), 3);
    /// assert_eq!(resources.check(), Ok(()));
    /// # Ok::<_, std::net::AddrParseError>(())
    /// ```
    #[must_use]
    pub fn with_service(self, name: &str, addresses: &[SocketAddr]) -> Self {
        self.with(listener_inline(name, route_config(name, vec![virtual_host("*", name)])))
            .with(cluster_eds(name))
            .with(endpoints(name, addresses))
    }

    /// Adds a resource, or replaces the one of the same type and name.
    pub fn insert<M: Message + Name>(&mut self, resource: M) {
        self.insert_any(envoy_types::util::pack_any(resource));
    }

    /// Adds an encoded resource; its name is field 1 of the message, as in every xDS resource type.
    pub fn insert_any(&mut self, resource: Any) {
        self.insert_raw(&Self::name_of(&resource), resource);
    }

    /// Adds bytes under a name, without looking at them: also what is not a valid resource.
    pub fn insert_raw(&mut self, name: &str, resource: Any) {
        self.types.entry(resource.type_url).or_default().insert((&*canonical(name)).into(), resource.value.into());
    }

    /// Removes a resource; tells whether it was there.
    pub fn remove(&mut self, type_url: &str, name: &str) -> bool {
        self.types.get_mut(type_url).is_some_and(|of_type| of_type.remove(&*canonical(name)).is_some())
    }

    /// Adds everything from `other`, which wins where both have a name.
    pub fn extend(&mut self, other: Self) {
        for (type_url, values) in other.types {
            self.types.entry(type_url).or_default().extend(values);
        }
    }

    /// The resource of this type and name, decoded; `None` when it is absent or no such message.
    pub fn message<M: Message + Name + Default>(&self, name: &str) -> Option<M> {
        M::decode(self.types.get(&M::type_url())?.get(&*canonical(name))?.clone()).ok()
    }

    /// Whether a resource of this type and name is here.
    pub fn contains(&self, type_url: &str, name: &str) -> bool {
        self.types.get(type_url).is_some_and(|of_type| of_type.contains_key(&*canonical(name)))
    }

    /// The names of one type, sorted.
    pub fn names(&self, type_url: &str) -> impl Iterator<Item = &str> {
        self.types.get(type_url).into_iter().flat_map(|of_type| of_type.keys().map(|name| &**name))
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.types.values().map(BTreeMap::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that are no message have no name; whoever wants to serve such bytes names them with `insert_raw`.
    pub(super) fn name_of(resource: &Any) -> String {
        Named::decode(resource.value.as_slice()).unwrap_or_default().name
    }

    pub(super) fn by_type(&self) -> impl Iterator<Item = (&str, &BTreeMap<Arc<str>, Bytes>)> {
        self.types.iter().map(|(url, values)| (url.as_str(), values))
    }

    pub(super) fn of_type(&self, type_url: &str) -> Option<(&str, &BTreeMap<Arc<str>, Bytes>)> {
        self.types.get_key_value(type_url).map(|(url, values)| (url.as_str(), values))
    }
}

/// A message as a protobuf `Any`.
pub fn pack<M: Message + Name>(message: M) -> Any {
    envoy_types::util::pack_any(message)
}
