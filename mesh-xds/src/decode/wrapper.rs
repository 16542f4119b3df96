//! `envoy.service.discovery.v3.Resource`: a resource with its name, its version and its time to live.
//!
//! Every resource of the incremental protocol comes in one, and in SotW any may. What is inside, `decode` judges;
//! this file does NOT.

use super::{basics::type_name, refused};
use crate::{
    name::canonical_string,
    resource::{IgnoredField, Invalid, Received},
};
use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::Resource as Wrapper;
use prost::{Message, Name};
use std::sync::Arc;

/// A wrapper, taken off.
#[derive(Debug)]
pub(crate) struct Wrapped {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Type URL and bytes. A heartbeat has none: "the resource field does not need to be populated".
    pub(crate) resource: Option<(String, Bytes)>,
    has_ttl: bool,
    has_aliases: bool,
}

impl Wrapped {
    /// Takes the wrapper off an `Any` of a response, if it is one.
    pub(crate) fn unwrap(type_url: &str, bytes: &Bytes) -> Result<Option<Self>, Invalid> {
        if type_name(type_url) != Wrapper::full_name() {
            return Ok(None);
        }
        match Wrapper::decode(bytes.clone()) {
            Ok(wrapper) => Ok(Some(wrapper.into())),
            Err(error) => Err(Invalid::new(format!("malformed Resource wrapper: {error}"))),
        }
    }

    /// What is inside is known: adds what the wrapper says.
    pub(crate) fn around(&self, mut received: Received) -> Received {
        received.version = (!self.version.is_empty()).then(|| Arc::from(self.version.as_str()));
        let ignored = [
            // "Upon expiration of the timer, the configuration for the resource will be removed": gRPC has no such timer,
            // for what is held must last through an outage of any length (A57). So a heartbeat is a matter of course.
            (self.has_ttl, "ttl", "what is held is kept for as long as the control plane does not take it back"),
            (self.has_aliases, "aliases", "a resource has one name here"),
        ];
        let ignored = ignored.into_iter().filter(|(is_set, ..)| *is_set);
        received.ignored.extend(ignored.map(|(_, path, reason)| IgnoredField { path: path.to_owned(), reason }));
        received
    }

    /// The same, refused if it is not what the wrapper says it is. In delta the wrapper's name is the one that was asked
    /// for, and whoever waits for it must hear why it does not come.
    pub(crate) fn of_the_same_name(&self, received: Received) -> Received {
        match &received.name {
            Some(inner) if !self.name.is_empty() && *inner != self.name => {
                let invalid = Invalid::new(format!("the resource in the wrapper is named {inner:?}")).within("name");
                refused(Some(self.name.clone()), &received.raw, invalid)
            }
            _ => received,
        }
    }

    /// A wrapper without a resource that is no heartbeat.
    pub(crate) fn empty(&self) -> Received {
        let invalid = Invalid::new("the Resource wrapper is empty").within("resource");
        refused(Some(self.name.clone()), &Bytes::new(), invalid)
    }
}

impl From<Wrapper> for Wrapped {
    fn from(wrapper: Wrapper) -> Self {
        // "Only one of `name` or `resource_name` may be set."
        let name = match wrapper.resource_name {
            Some(resource_name) if wrapper.name.is_empty() => resource_name.name,
            _ => wrapper.name,
        };
        Self {
            name: canonical_string(name),
            version: wrapper.version,
            resource: wrapper.resource.map(|any| (any.type_url, any.value.into())),
            has_ttl: wrapper.ttl.is_some(),
            has_aliases: !wrapper.aliases.is_empty(),
        }
    }
}
