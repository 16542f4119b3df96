//! A response in encoded pieces, in either dialect.
//!
//! A head of its own, then the frames of its resources, which all streams share. What is inside, and when it is sent, is
//! NOT decided here.

use super::subscription::News;
use crate::control_plane::{
    events::{Dialect, Event},
    resources::Resources,
};
use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::core::v3::ControlPlane as Identity,
        service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse, Resource},
    },
    google::protobuf::Any,
};
use prost::Message;

/// A DiscoveryResponse or DeltaDiscoveryResponse.
#[derive(Debug)]
pub(in crate::control_plane) struct Answer {
    pub(in crate::control_plane) event: Option<Event>,
    pub(in crate::control_plane) pieces: Vec<Bytes>,
}

/// A hand-made response that waits for its turn.
#[derive(Clone, Debug)]
pub(in crate::control_plane) struct Raw {
    pub(in crate::control_plane) type_url: String,
    pub(in crate::control_plane) version: String,
    pub(in crate::control_plane) resources: Vec<Any>,
}

/// What a response is about.
#[derive(Debug)]
pub(super) enum Content {
    News(News),
    Raw(Raw),
}

impl Content {
    /// The names of its resources, as far as they are known.
    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::News(news) => news.entries.iter().map(|entry| entry.name.to_string()).collect(),
            Self::Raw(_) => vec![],
        }
    }

    pub(super) fn removed(&self) -> Vec<String> {
        match self {
            Self::News(news) => news.removed.iter().map(|name| name.to_string()).collect(),
            Self::Raw(_) => vec![],
        }
    }

    pub(super) fn encode(&self, dialect: Dialect, type_url: &str, version: &str, nonce: &str) -> Vec<Bytes> {
        let head = match dialect {
            Dialect::Sotw => self.sotw_head(type_url, version, nonce).encode_to_vec(),
            Dialect::Delta => self.delta_head(type_url, version, nonce).encode_to_vec(),
        };
        let mut pieces = vec![head.into()];
        if let Self::News(news) = self {
            for entry in &news.entries {
                if dialect == Dialect::Delta {
                    pieces.push(entry.delta_head.clone());
                }
                pieces.push(entry.frame.clone());
            }
        }
        pieces
    }

    fn sotw_head(&self, type_url: &str, version: &str, nonce: &str) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: version.to_owned(),
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            control_plane: Some(identity()),
            resources: self.raw().to_vec(),
            ..Default::default()
        }
    }

    fn delta_head(&self, type_url: &str, version: &str, nonce: &str) -> DeltaDiscoveryResponse {
        let resource = |any: &Any| Resource {
            name: Resources::name_of(any),
            version: version.to_owned(),
            resource: Some(any.clone()),
            ..Default::default()
        };
        DeltaDiscoveryResponse {
            system_version_info: version.to_owned(),
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            control_plane: Some(identity()),
            resources: self.raw().iter().map(resource).collect(),
            removed_resources: self.removed(),
            ..Default::default()
        }
    }

    fn raw(&self) -> &[Any] {
        match self {
            Self::News(_) => &[],
            Self::Raw(raw) => &raw.resources,
        }
    }
}

fn identity() -> Identity {
    Identity { identifier: "mesh-xds".to_owned() }
}
