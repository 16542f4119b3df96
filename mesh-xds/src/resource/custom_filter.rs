//! HTTP filters that a program brings along: a type URL, and how its bytes become a configuration.
//!
//! They come in listeners and overrides like the known ones, and are NACKed with the field's path like them. What such a
//! filter does with a call is NOT known here.

use super::Invalid;
use std::{
    any::{Any, TypeId},
    fmt,
    panic::{UnwindSafe, catch_unwind},
    sync::Arc,
};

/// The configuration of a user's own HTTP filter.
///
/// ```
/// use mesh_xds::resource::{FilterConfig, Invalid};
///
/// /// Which tenant calls are made for; our own control plane sends the name as it is.
/// #[derive(Debug, PartialEq)]
/// struct Tenant(String);
///
/// impl FilterConfig for Tenant {
///     const TYPE_URL: &'static str = "type.googleapis.com/example.Tenant";
///
///     fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
///         match std::str::from_utf8(bytes) {
///             Ok(name) if !name.is_empty() => Ok(Self(name.to_owned())),
///             _ => Err(Invalid::new("must not be empty").within("name")),
///         }
///     }
/// }
/// assert_eq!(Tenant::decode(b"").unwrap_err().to_string(), "name: must not be empty");
/// ```
pub trait FilterConfig: PartialEq + fmt::Debug + Send + Sync + Sized + 'static {
    /// Says what the configuration is on the wire, with `type.googleapis.com/`.
    const TYPE_URL: &'static str;

    /// Reads and validates a configuration: the value of the `Any` in `typed_config` or `typed_per_filter_config`.
    ///
    /// # Errors
    /// What is wrong and where: the resource is NACKed with it, and the last good one stays in use.
    fn decode(bytes: &[u8]) -> Result<Self, Invalid>;

    /// The same for a configuration in a `TypedStruct` (`xds.type.v3` or `udpa.type.v1`): its `value`, as JSON text. Unless
    /// it is implemented, such a configuration is refused.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    fn decode_json(json: &str) -> Result<Self, Invalid> {
        let _ = json;
        Err(Invalid::new("must not come in a TypedStruct"))
    }
}

/// Names a [`FilterConfig`] and knows its decoders.
#[derive(Clone, Copy)]
pub struct FilterType(&'static Table);

struct Table {
    type_url: &'static str,
    id: fn() -> TypeId,
    decode: fn(&[u8]) -> Decoded,
    decode_json: fn(&str) -> Decoded,
}

type Decoded = Result<Arc<dyn Value>, Invalid>;

/// Where the table of a type lives.
struct Vtable<C>(C);

impl<C: FilterConfig> Vtable<C> {
    const TABLE: &'static Table = &Table {
        type_url: C::TYPE_URL,
        id: TypeId::of::<C>,
        decode: |bytes| Ok(Arc::new(C::decode(bytes)?)),
        decode_json: |json| Ok(Arc::new(C::decode_json(json)?)),
    };
}

impl FilterType {
    /// The type of filters with this configuration.
    pub const fn of<C: FilterConfig>() -> Self {
        Self(Vtable::<C>::TABLE)
    }

    /// The type URL.
    pub const fn type_url(self) -> &'static str {
        self.0.type_url
    }

    pub(crate) fn decode(self, bytes: &[u8]) -> Result<CustomFilter, Invalid> {
        self.guarded(|| (self.0.decode)(bytes))
    }

    pub(crate) fn decode_json(self, json: &str) -> Result<CustomFilter, Invalid> {
        self.guarded(|| (self.0.decode_json)(json))
    }

    /// User code: one bad resource must stay one bad resource.
    fn guarded(self, decode: impl FnOnce() -> Decoded + UnwindSafe) -> Result<CustomFilter, Invalid> {
        let decoded = catch_unwind(decode).unwrap_or_else(|_| Err(Invalid::new("its decoder panicked")));
        decoded.map(|value| CustomFilter { kind: self, value })
    }
}

impl fmt::Debug for FilterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.type_url())
    }
}

/// One type URL, read by one Rust type.
impl PartialEq for FilterType {
    fn eq(&self, other: &Self) -> bool {
        self.type_url() == other.type_url() && (self.0.id)() == (other.0.id)()
    }
}

impl Eq for FilterType {}

/// The configuration of a filter of a user's own type.
#[derive(Clone)]
pub struct CustomFilter {
    kind: FilterType,
    value: Arc<dyn Value>,
}

impl CustomFilter {
    /// A configuration that is in hand.
    pub fn new<C: FilterConfig>(config: C) -> Self {
        Self { kind: FilterType::of::<C>(), value: Arc::new(config) }
    }

    /// Its type.
    pub fn kind(&self) -> FilterType {
        self.kind
    }

    /// The configuration, unless it is of another type.
    pub fn config<C: FilterConfig>(&self) -> Option<&C> {
        self.value.as_any().downcast_ref()
    }
}

impl fmt::Debug for CustomFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl PartialEq for CustomFilter {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.value, &other.value) || self.value.same(&*other.value)
    }
}

/// A `FilterConfig`, whichever it is.
trait Value: fmt::Debug + Send + Sync + Any {
    fn same(&self, other: &dyn Value) -> bool;
    fn as_any(&self) -> &dyn Any;
}

impl<C: FilterConfig> Value for C {
    fn same(&self, other: &dyn Value) -> bool {
        other.as_any().downcast_ref::<C>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
