//! What one node is served: every resource encoded once, with versions that come from the content.
//!
//! A stream remembers which `Arc<Entry>` it sent; whether something must be pushed is a pointer comparison. An entry
//! whose content did not change keeps its `Arc` from one snapshot to the next. This file does NOT know streams.

use super::resources::Resources;
use crate::resource::Kind;
use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
            route::v3::RouteConfiguration,
        },
        service::discovery::v3::DiscoveryResponse,
    },
    google::protobuf::Any,
};
use prost::Message;
use rustc_hash::FxHasher;
use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// One resource, ready for the wire.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    value: Bytes,
    /// The `resources` field of a DiscoveryResponse that holds just this resource. Protobuf messages concatenate, so
    /// a response is its header followed by the frames of its entries, shared by all streams.
    pub(super) frame: Bytes,
    hash: u64,
}

/// All resources of one type.
#[derive(Debug, Default)]
pub(super) struct TypeSet {
    pub(super) version: String,
    pub(super) entries: BTreeMap<Arc<str>, Arc<Entry>>,
}

/// Everything that one node is served.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    types: BTreeMap<String, Arc<TypeSet>>,
}

impl Entry {
    fn new(type_url: &str, name: &Arc<str>, value: &Bytes) -> Self {
        let any = Any { type_url: type_url.to_owned(), value: value.to_vec() };
        let frame = DiscoveryResponse { resources: vec![any], ..Default::default() }.encode_to_vec().into();
        let mut hasher = FxHasher::default();
        (name, value).hash(&mut hasher);
        Self { name: name.clone(), value: value.clone(), frame, hash: hasher.finish() }
    }
}

impl TypeSet {
    fn new(entries: BTreeMap<Arc<str>, Arc<Entry>>) -> Self {
        let mut hasher = FxHasher::default();
        entries.values().for_each(|entry| entry.hash.hash(&mut hasher));
        Self { version: format!("{:016x}", hasher.finish()), entries }
    }

    /// The same resources in new clothes: entries that did not change keep their `Arc`, and so does the whole set.
    fn next(previous: Option<&Arc<Self>>, type_url: &str, values: &BTreeMap<Arc<str>, Bytes>) -> Arc<Self> {
        let entries: BTreeMap<_, _> = values
            .iter()
            .map(|(name, value)| match previous.and_then(|set| set.entries.get(name)) {
                Some(entry) if same_content(type_url, &entry.value, value) => (name.clone(), entry.clone()),
                _ => (name.clone(), Arc::new(Entry::new(type_url, name, value))),
            })
            .collect();
        match previous {
            Some(set) if same_entries(&set.entries, &entries) => set.clone(),
            _ => Arc::new(Self::new(entries)),
        }
    }
}

impl Snapshot {
    /// The snapshot of these resources, sharing what did not change.
    pub(super) fn next(previous: &Self, resources: &Resources) -> Self {
        let types = resources
            .by_type()
            .map(|(url, values)| (url.to_owned(), TypeSet::next(previous.types.get(url), url, values)))
            .collect();
        Self { types }
    }

    pub(super) fn set(&self, type_url: &str) -> Option<&Arc<TypeSet>> {
        self.types.get(type_url)
    }

    pub(super) fn entry(&self, type_url: &str, name: &str) -> Option<&Arc<Entry>> {
        self.types.get(type_url)?.entries.get(name)
    }
}

/// Whether both maps hold the very same entries.
pub(super) fn same_entries(a: &BTreeMap<Arc<str>, Arc<Entry>>, b: &BTreeMap<Arc<str>, Arc<Entry>>) -> bool {
    a.len() == b.len() && a.values().zip(b.values()).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// Whether two encodings say the same.
///
/// prost keeps protobuf maps in hash maps, so that one message encodes to different bytes from one time to the next:
/// where only the order can differ (same length), the messages are compared, for which order does not matter.
fn same_content(type_url: &str, a: &Bytes, b: &Bytes) -> bool {
    fn same<M: Message + Default + PartialEq>(a: &Bytes, b: &Bytes) -> bool {
        matches!((M::decode(a.clone()), M::decode(b.clone())), (Ok(a), Ok(b)) if a == b)
    }
    if a == b || a.len() != b.len() {
        return a == b;
    }
    match Kind::from_type_url(type_url) {
        Some(Kind::Listener) => same::<Listener>(a, b),
        Some(Kind::RouteConfig) => same::<RouteConfiguration>(a, b),
        Some(Kind::Cluster) => same::<Cluster>(a, b),
        Some(Kind::Endpoints) => same::<ClusterLoadAssignment>(a, b),
        Some(Kind::Other(_)) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::resources::{self, Resources};
    use super::*;

    #[test]
    fn unchanged_resources_and_types_keep_their_identity() {
        let clusters = || Resources::default().with(resources::cluster_eds("a")).with(resources::cluster_eds("b"));
        let first = Snapshot::next(&Snapshot::default(), &clusters());
        let second = Snapshot::next(&first, &clusters());
        let url = Kind::Cluster.type_url();
        assert!(Arc::ptr_eq(&first.types[url], &second.types[url]));
        let third = Snapshot::next(&second, &clusters().with(resources::cluster_eds("c")));
        assert!(Arc::ptr_eq(&second.types[url].entries["a"], &third.types[url].entries["a"]));
        assert_ne!(second.types[url].version, third.types[url].version);
    }

    #[test]
    fn the_version_depends_on_the_content_alone() {
        let snapshot = || Snapshot::next(&Snapshot::default(), &Resources::default().with(resources::cluster_eds("a")));
        let url = Kind::Cluster.type_url();
        assert_eq!(snapshot().types[url].version, snapshot().types[url].version);
    }

    #[test]
    fn the_order_of_protobuf_maps_is_not_a_change() {
        use envoy_types::pb::envoy::config::core::v3::Metadata;
        let cluster = || Cluster {
            metadata: Some(Metadata {
                filter_metadata: (0..8).map(|i| (format!("key{i}"), Default::default())).collect(),
                ..Default::default()
            }),
            ..resources::cluster_eds("a")
        };
        let url = Kind::Cluster.type_url();
        let mut snapshot = Snapshot::next(&Snapshot::default(), &Resources::default().with(cluster()));
        let version = snapshot.types[url].version.clone();
        for _ in 0..8 {
            snapshot = Snapshot::next(&snapshot, &Resources::default().with(cluster()));
            assert_eq!(snapshot.types[url].version, version);
        }
    }
}
