//! One resource of a response as `decode` hands it on: its name, its value or what is wrong with it.
//!
//! The ADS machine turns the `Invalid`s into a NACK, the cache keeps the values, CSDS shows the bytes. A response
//! with one bad resource is still a response with good ones (A46), so each resource carries its own verdict.

use super::{IgnoredField, Invalid, Resource};
use bytes::Bytes;
use std::sync::Arc;

/// A resource that arrived, valid or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// Resource name; `None` when the bytes do not even tell that.
    pub name: Option<String>,
    /// The validated value, or why it must be NACKed.
    pub value: Result<Resource, Invalid>,
    /// The resource's own version, when it came in a wrapper that tells one.
    pub version: Option<Arc<str>>,
    /// Fields that are set and have no effect here: the first place of each.
    pub ignored: Vec<IgnoredField>,
    /// The resource as it came, without its wrapper.
    pub raw: Bytes,
}

/// An error that the server reported for one resource (xRFC TP3).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReportedError {
    pub(crate) name: String,
    /// A gRPC status code.
    pub(crate) code: i32,
    pub(crate) message: String,
}

impl ReportedError {
    /// Whether it says that there is no such resource.
    pub(crate) fn is_not_found(&self) -> bool {
        self.code == 5
    }
}
