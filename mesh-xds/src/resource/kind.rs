//! `Kind`: the type of a resource, and tables that have one entry for each.
//!
//! The four types of gRPC's xDS are known by name; a program may bring more of its own, each with its decoder. This
//! file does NOT say what the types mean.

use super::OtherType;
use std::{collections::BTreeMap, fmt};

/// The four resource types of gRPC's xDS, in the order in which they refer to each other, and those a user brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// LDS: `envoy.config.listener.v3.Listener`.
    Listener,
    /// RDS: `envoy.config.route.v3.RouteConfiguration`.
    RouteConfig,
    /// CDS: `envoy.config.cluster.v3.Cluster`.
    Cluster,
    /// EDS: `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    Endpoints,
    /// A type of the user's own ([`ResourceType`](super::ResourceType)).
    Other(OtherType),
}

impl Kind {
    /// The four that the assembly of targets knows, in reference order.
    pub const ALL: [Self; 4] = [Self::Listener, Self::RouteConfig, Self::Cluster, Self::Endpoints];

    /// The type URL that stands for this kind on the wire.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::RouteConfig => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Other(other) => other.type_url(),
        }
    }

    /// The kind behind a type URL, if it is one of the four.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether a SotW response lists every subscribed resource, so that absence means deletion.
    ///
    /// "only LDS and CDS responses are full-state" (xDS protocol, SotW).
    pub const fn is_full_state(self) -> bool {
        matches!(self, Self::Listener | Self::Cluster)
    }

    const fn index(self) -> Option<usize> {
        match self {
            Self::Listener => Some(0),
            Self::RouteConfig => Some(1),
            Self::Cluster => Some(2),
            Self::Endpoints => Some(3),
            Self::Other(_) => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listener => "Listener",
            Self::RouteConfig => "RouteConfiguration",
            Self::Cluster => "Cluster",
            Self::Endpoints => "ClusterLoadAssignment",
            Self::Other(other) => other.type_url().rsplit(['/', '.']).next().unwrap_or_default(),
        })
    }
}

/// A `T` for each kind: the four are always there, the others once they are asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByKind<T> {
    known: [T; 4],
    others: BTreeMap<OtherType, T>,
}

impl<T: Default> ByKind<T> {
    /// What there is for `kind`; nothing only for a kind that [`ByKind::of`] was never called with.
    pub(crate) fn get(&self, kind: Kind) -> Option<&T> {
        match (kind, kind.index()) {
            (_, Some(index)) => self.known.get(index),
            (Kind::Other(other), None) => self.others.get(&other),
            (_, None) => None,
        }
    }

    /// The entry of `kind`.
    pub(crate) fn of(&mut self, kind: Kind) -> &mut T {
        match kind {
            Kind::Listener => &mut self.known[0],
            Kind::RouteConfig => &mut self.known[1],
            Kind::Cluster => &mut self.known[2],
            Kind::Endpoints => &mut self.known[3],
            Kind::Other(other) => self.others.entry(other).or_default(),
        }
    }

    /// All of them, in reference order, the user's own last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Kind, &T)> {
        let others = self.others.iter().map(|(other, entry)| (Kind::Other(*other), entry));
        Kind::ALL.into_iter().zip(&self.known).chain(others)
    }

    /// The kinds that have an entry.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        self.iter().map(|(kind, _)| kind).collect()
    }
}
