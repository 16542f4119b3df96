//! What one node is served: every resource encoded once, with versions that come from the content.
//!
//! An entry or a type whose content did not change keeps its `Arc` from one snapshot to the next, and a type that did
//! change remembers for a while which names did: a stream that saw one of the last snapshots looks at those names alone.
//! This file does NOT know streams.

use super::{
    check::{Holes, Inconsistent, Reference, references},
    digest::digest,
    resources::Resources,
};
use crate::{name::canonical, resource::Kind};
use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
            route::v3::RouteConfiguration,
        },
        service::discovery::v3::{DiscoveryResponse, Resource},
    },
    google::protobuf::Any,
};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use rustc_hash::FxHasher;
use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    sync::{Arc, Weak},
};

/// How many changes of a type are remembered. A stream that is further behind compares everything.
const REMEMBERED_CHANGES: usize = 16;

/// `DeltaDiscoveryResponse.resources`.
const DELTA_RESOURCES_FIELD: u32 = 2;

/// One resource, ready for the wire.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    /// Of this content, wherever and whenever it is served.
    pub(super) version: Box<str>,
    value: Bytes,
    /// The `resources` field of a DiscoveryResponse that holds just this resource. Protobuf messages concatenate, so
    /// a response is its header followed by the frames of its entries, shared by all streams.
    pub(super) frame: Bytes,
    /// What makes `frame` the `resources` field of a DeltaDiscoveryResponse when it is put before it.
    pub(super) delta_head: Bytes,
    /// The resources that it names.
    references: Box<[Reference]>,
}

/// All resources of one type.
#[derive(Debug, Default)]
pub(super) struct TypeSet {
    pub(super) version: String,
    pub(super) entries: BTreeMap<Arc<str>, Arc<Entry>>,
    /// How it came about, oldest change first.
    history: Vec<Arc<Change>>,
}

/// What happened between a set and the next one.
#[derive(Debug)]
struct Change {
    /// Where it started. `Weak` keeps the address from being used again.
    from: Weak<TypeSet>,
    names: Vec<Arc<str>>,
}

/// Everything that one node is served.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    types: BTreeMap<String, Arc<TypeSet>>,
}

impl Entry {
    fn new(type_url: &str, name: &Arc<str>, value: &Bytes) -> Self {
        let any = Any { type_url: type_url.to_owned(), value: value.to_vec() };
        let frame: Bytes = DiscoveryResponse { resources: vec![any], ..Default::default() }.encode_to_vec().into();
        let version = format!("{:016x}", digest(type_url, value));
        let delta_head = delta_head(name, &version, &frame);
        // The value is the last field of the last field: the frame ends with it, and is kept alone.
        let value = frame.slice(frame.len() - value.len()..);
        let references = references(type_url, &value).into();
        Self { name: name.clone(), version: version.into(), value, frame, delta_head, references }
    }
}

/// `Resource.resource` has the number and type of `DiscoveryResponse.resources`, so that a frame of SotW is also the
/// last field of a `Resource`; what comes before it is made here.
fn delta_head(name: &str, version: &str, frame: &Bytes) -> Bytes {
    let wrapper = Resource { name: name.to_owned(), version: version.to_owned(), ..Default::default() }.encode_to_vec();
    let mut head = Vec::with_capacity(wrapper.len() + 8);
    encode_key(DELTA_RESOURCES_FIELD, WireType::LengthDelimited, &mut head);
    encode_varint((wrapper.len() + frame.len()) as u64, &mut head);
    head.extend_from_slice(&wrapper);
    head.into()
}

impl TypeSet {
    fn new(entries: BTreeMap<Arc<str>, Arc<Entry>>, history: Vec<Arc<Change>>) -> Self {
        let mut hasher = FxHasher::default();
        entries.values().for_each(|entry| (&entry.name, &entry.version).hash(&mut hasher));
        Self { version: format!("{:016x}", hasher.finish()), entries, history }
    }

    /// The same resources in new clothes: entries that did not change keep their `Arc`, and so does the whole set.
    fn next(previous: Option<&Arc<Self>>, type_url: &str, values: &BTreeMap<Arc<str>, Bytes>) -> Arc<Self> {
        let Some(previous) = previous else {
            let entry =
                |(name, value): (&Arc<str>, &Bytes)| (name.clone(), Arc::new(Entry::new(type_url, name, value)));
            return Arc::new(Self::new(values.iter().map(entry).collect(), vec![]));
        };
        let mut names: Vec<_> = previous.entries.keys().filter(|name| !values.contains_key(*name)).cloned().collect();
        let entries = values.iter().map(|(name, value)| match previous.entries.get(name) {
            Some(entry) if same_content(type_url, &entry.value, value) => (name.clone(), entry.clone()),
            _ => {
                names.push(name.clone());
                (name.clone(), Arc::new(Entry::new(type_url, name, value)))
            }
        });
        let entries: BTreeMap<_, _> = entries.collect();
        if names.is_empty() {
            return previous.clone();
        }
        let change = Arc::new(Change { from: Arc::downgrade(previous), names });
        Arc::new(Self::new(entries, previous.history_with(change)))
    }

    fn history_with(&self, change: Arc<Change>) -> Vec<Arc<Change>> {
        let kept = &self.history[self.history.len().saturating_sub(REMEMBERED_CHANGES - 1)..];
        kept.iter().cloned().chain([change]).collect()
    }

    /// The names that differ between two sets of one type; `None` when that is not known.
    pub(super) fn changes<'a>(from: Option<&Arc<Self>>, to: Option<&'a Arc<Self>>) -> Option<Vec<&'a Arc<str>>> {
        match (from, to) {
            (None, None) => Some(vec![]),
            (Some(from), Some(to)) if Arc::ptr_eq(from, to) => Some(vec![]),
            (Some(from), Some(to)) => {
                let start = to.history.iter().position(|change| change.from.as_ptr() == Arc::as_ptr(from))?;
                Some(to.history[start..].iter().flat_map(|change| &change.names).collect())
            }
            _ => None,
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

    /// Looks for references that lead nowhere.
    pub(super) fn check(&self) -> Result<(), Inconsistent> {
        let mut holes = Holes::default();
        for (type_url, set) in Kind::ALL.iter().filter_map(|kind| self.types.get_key_value(kind.type_url())) {
            for entry in set.entries.values() {
                holes.look(type_url, &entry.name, &entry.references, |kind, name| self.entry(kind, name).is_some());
            }
        }
        holes.found()
    }

    pub(super) fn set(&self, type_url: &str) -> Option<&Arc<TypeSet>> {
        self.types.get(type_url)
    }

    pub(super) fn entry(&self, type_url: &str, name: &str) -> Option<&Arc<Entry>> {
        self.types.get(type_url)?.entries.get(&*canonical(name))
    }
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
    use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;

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
    fn the_last_changes_are_known_by_name() {
        let of = |names: &[&str]| {
            names.iter().fold(Resources::default(), |all, name| all.with(resources::cluster_eds(name)))
        };
        let url = Kind::Cluster.type_url();
        let first = Snapshot::next(&Snapshot::default(), &of(&["a", "b"]));
        let second = Snapshot::next(&first, &of(&["b", "c"]));
        let third = Snapshot::next(&second, &of(&["b"]));
        let changes = |from: &Snapshot, to: &Snapshot| {
            let names = TypeSet::changes(from.set(url), to.set(url))?;
            Some(names.into_iter().map(|name| name.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(changes(&first, &first), Some(vec![]));
        assert_eq!(changes(&first, &third), Some(vec!["a".into(), "c".into(), "c".into()]));
        assert_eq!(changes(&third, &first), None);
        let later = (0..REMEMBERED_CHANGES)
            .fold(third.types, |types, n| Snapshot::next(&Snapshot { types }, &of(&[&n.to_string()])).types);
        assert_eq!(changes(&first, &Snapshot { types: later }), None);
    }

    #[test]
    fn a_frame_is_the_end_of_a_delta_resource() {
        let cluster = resources::cluster_eds("a");
        let snapshot = Snapshot::next(&Snapshot::default(), &Resources::default().with(cluster.clone()));
        let entry = snapshot.entry(Kind::Cluster.type_url(), "a").expect("as set");
        let bytes = [&*entry.delta_head, &*entry.frame].concat();
        let response = DeltaDiscoveryResponse::decode(bytes.as_slice()).expect("well-formed");
        let [resource] = &response.resources[..] else { panic!("{response:?}") };
        assert_eq!((resource.name.as_str(), resource.version.as_str()), ("a", &*entry.version));
        assert_eq!(resource.resource, Some(resources::pack(cluster.clone())));
        assert_eq!(entry.value, cluster.encode_to_vec());
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
