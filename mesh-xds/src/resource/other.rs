//! Resource types that a program brings along: a type URL, and how its bytes become a value.
//!
//! The client subscribes, versions, ACKs and NACKs them like its own. It does NOT know what they mean: they are
//! watched one by one.

use super::{Cluster, ClusterLoadAssignment, Invalid, Kind, Listener, Resource, RouteConfig};
use crate::name::canonical_string;
use std::{any::Any, cmp::Ordering, fmt, hash, sync::Arc};

/// A type of resource of a user's own.
///
/// ```
/// use mesh_xds::resource::{Invalid, ResourceType};
///
/// /// A limit that our own control plane sends as text: `name=limit`.
/// #[derive(Debug, PartialEq)]
/// struct Quota { name: String, limit: u32 }
///
/// impl ResourceType for Quota {
///     const TYPE_URL: &'static str = "type.googleapis.com/example.Quota";
///
///     fn name(bytes: &[u8]) -> Option<String> {
///         std::str::from_utf8(bytes).ok()?.split_once('=').map(|(name, _)| name.to_owned())
///     }
///
///     fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
///         let name = Self::name(bytes).ok_or_else(|| Invalid::new("not name=limit"))?;
///         let limit = std::str::from_utf8(&bytes[name.len() + 1..]).ok().and_then(|limit| limit.parse().ok());
///         Ok(Self { name, limit: limit.ok_or_else(|| Invalid::new("not a number").within("limit"))? })
///     }
/// }
/// assert_eq!(Quota::decode(b"a=7").map(|quota| quota.limit), Ok(7));
/// ```
pub trait ResourceType: PartialEq + fmt::Debug + Send + Sync + Sized + 'static {
    /// Says what the resource is on the wire, with `type.googleapis.com/`.
    const TYPE_URL: &'static str;

    /// The name that the bytes have, also if they are wrong in other ways: it is what a NACK can call them. Without one
    /// a resource is known by the `envoy.service.discovery.v3.Resource` that wraps it.
    fn name(bytes: &[u8]) -> Option<String>;

    /// Reads and validates a resource.
    ///
    /// # Errors
    /// What is wrong and where: the resource is NACKed with it, and the last good one stays in use.
    fn decode(bytes: &[u8]) -> Result<Self, Invalid>;
}

/// What can be watched by itself: every [`ResourceType`], and [`Listener`], [`RouteConfig`], [`Cluster`] and
/// [`ClusterLoadAssignment`]. Not to be implemented by others.
pub trait Watchable: sealed::Sealed + Send + Sync + Sized + 'static {
    /// Its type on the wire.
    fn kind() -> Kind;

    /// The value in a resource of this type.
    fn from_resource(resource: &Resource) -> Option<Arc<Self>>;
}

mod sealed {
    pub trait Sealed {}
}

impl<T: ResourceType> sealed::Sealed for T {}

impl<T: ResourceType> Watchable for T {
    fn kind() -> Kind {
        Kind::Other(OtherType(Vtable::<T>::TABLE))
    }

    fn from_resource(resource: &Resource) -> Option<Arc<Self>> {
        match resource {
            Resource::Other(other) => Arc::clone(&other.value).into_any().downcast().ok(),
            _ => None,
        }
    }
}

macro_rules! watchable {
    ($($kind:ident: $type:ty),*) => { $(
        impl sealed::Sealed for $type {}

        impl Watchable for $type {
            fn kind() -> Kind {
                Kind::$kind
            }

            fn from_resource(resource: &Resource) -> Option<Arc<Self>> {
                match resource {
                    Resource::$kind(value) => Some(Arc::clone(value)),
                    _ => None,
                }
            }
        }
    )* };
}

watchable!(Listener: Listener, RouteConfig: RouteConfig, Cluster: Cluster, Endpoints: ClusterLoadAssignment);

/// Names a [`ResourceType`] and knows its decoder.
#[derive(Clone, Copy)]
pub struct OtherType(&'static Table);

struct Table {
    type_url: &'static str,
    name: fn(&[u8]) -> Option<String>,
    decode: Decode,
}

type Decode = fn(&[u8]) -> Result<Arc<dyn Value>, Invalid>;

/// Where the table of a type lives.
struct Vtable<T>(T);

impl<T: ResourceType> Vtable<T> {
    const TABLE: &'static Table = &Table {
        type_url: T::TYPE_URL,
        name: T::name,
        decode: |bytes| {
            let value: Arc<dyn Value> = Arc::new(T::decode(bytes)?);
            Ok(value)
        },
    };
}

impl OtherType {
    /// The type URL.
    pub const fn type_url(self) -> &'static str {
        self.0.type_url
    }

    /// Decodes a resource that is known as `known_as`, unless it says otherwise. Returns its name besides.
    pub(crate) fn decode(self, bytes: &[u8], known_as: Option<String>) -> (Option<String>, Result<Resource, Invalid>) {
        let name = (self.0.name)(bytes).filter(|name| !name.is_empty()).or(known_as).map(canonical_string);
        let resource = |value| {
            let name = name.clone().unwrap_or_default();
            Resource::Other(OtherResource { kind: self, name, value })
        };
        let decoded = (self.0.decode)(bytes).map(resource);
        (name, decoded)
    }
}

impl fmt::Debug for OtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_url())
    }
}

// By type URL: it is what a server knows the type by, and addresses of tables say nothing.

impl PartialEq for OtherType {
    fn eq(&self, other: &Self) -> bool {
        self.type_url() == other.type_url()
    }
}

impl Eq for OtherType {}

impl PartialOrd for OtherType {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OtherType {
    fn cmp(&self, other: &Self) -> Ordering {
        self.type_url().cmp(other.type_url())
    }
}

impl hash::Hash for OtherType {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.type_url().hash(state);
    }
}

/// A valid resource of a user's own type.
#[derive(Clone, Debug)]
pub struct OtherResource {
    kind: OtherType,
    name: String,
    value: Arc<dyn Value>,
}

impl OtherResource {
    /// Its type.
    pub fn kind(&self) -> OtherType {
        self.kind
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl PartialEq for OtherResource {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.value.same(&*other.value)
    }
}

/// A `ResourceType`, whichever it is.
trait Value: fmt::Debug + Send + Sync + Any {
    fn same(&self, other: &dyn Value) -> bool;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn as_any(&self) -> &dyn Any;
}

impl<T: ResourceType> Value for T {
    fn same(&self, other: &dyn Value) -> bool {
        other.as_any().downcast_ref::<T>() == Some(self)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
