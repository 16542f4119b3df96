//! What a client says, in one form for both dialects.
//!
//! SotW lists every name each time, delta lists changes; what else a request carries is the same. What a request means
//! is NOT decided here.

use crate::name::canonical_string;
use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    },
    google::rpc::Status,
};

/// One request, of either dialect.
#[derive(Debug)]
pub(in crate::control_plane) struct Asked {
    pub(super) node: Option<Node>,
    pub(super) type_url: String,
    /// The last version that the client accepted; SotW only.
    pub(super) version: String,
    pub(super) nonce: String,
    pub(super) error: Option<Status>,
    pub(super) names: Names,
}

/// What a request says about names.
#[derive(Debug)]
pub(super) enum Names {
    /// SotW: all that are wanted.
    All(Vec<String>),
    /// Delta: what changed, and what the client holds from an earlier stream, with its versions.
    Change { subscribe: Vec<String>, unsubscribe: Vec<String>, held: Vec<(String, String)> },
}

/// How strange requests are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::control_plane) enum Manners {
    /// As the xDS protocol has it.
    #[default]
    Specified,
    /// As istiod does: a NACK does not change the subscription, and an empty list of listeners or clusters is a wildcard
    /// at any time.
    Istiod,
}

impl Names {
    /// What is asked for, what is not wanted any more, and what is held.
    pub(super) fn into_parts(self) -> (Vec<String>, Vec<String>, Vec<(String, String)>) {
        match self {
            Self::All(names) => (names, vec![], vec![]),
            Self::Change { subscribe, unsubscribe, held } => (subscribe, unsubscribe, held),
        }
    }
}

impl From<DiscoveryRequest> for Asked {
    fn from(request: DiscoveryRequest) -> Self {
        Self {
            node: request.node,
            type_url: request.type_url,
            version: request.version_info,
            nonce: request.response_nonce,
            error: request.error_detail,
            names: Names::All(request.resource_names.into_iter().map(canonical_string).collect()),
        }
    }
}

impl From<DeltaDiscoveryRequest> for Asked {
    fn from(request: DeltaDiscoveryRequest) -> Self {
        // In the order of names: a map has none of its own.
        let held = request.initial_resource_versions.into_iter();
        let mut held: Vec<_> = held.map(|(name, version)| (canonical_string(name), version)).collect();
        held.sort_unstable();
        Self {
            node: request.node,
            type_url: request.type_url,
            version: String::new(),
            nonce: request.response_nonce,
            error: request.error_detail,
            names: Names::Change {
                subscribe: request.resource_names_subscribe.into_iter().map(canonical_string).collect(),
                unsubscribe: request.resource_names_unsubscribe.into_iter().map(canonical_string).collect(),
                held,
            },
        }
    }
}
