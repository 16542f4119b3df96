//! What must hold of values: what may follow what, and what they come to.

use super::{
    run::OUTAGE,
    script::Setting,
    world::{ERROR, NAMES, World, resource},
};
use crate::{
    assemble::{Found, Subject, Value},
    cache::{Cache, Lookup},
    resource::{Cluster, ClusterName, Discovery, DnsName, Kind, Resource, RouteAction},
    snapshot::{ResolvedCluster, Snapshot, Target},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// "The last good config keeps serving": what served goes on but for a cause that A88 allows.
pub(super) fn may_follow(before: Option<&Value>, new: &Value, setting: Setting, caches: &[Cache]) {
    // With one server, and without the feature, nothing that a server says takes away what was good.
    let nothing_goes = !setting.has_fallback() && !setting.fail_on_data_errors;
    match (before, new) {
        (Some(Value::Target(Target::Ready(old))), Value::Target(Target::Ready(new))) => {
            is_complete(new);
            assert!(new.generation > old.generation);
            clusters_go_on(old, new, setting, caches);
        }
        (_, Value::Target(Target::Ready(new))) => is_complete(new),
        (Some(Value::Target(Target::Ready(old))), Value::Target(Target::Failed(text))) => {
            let listener = says(text, Kind::Listener, caches);
            let routes = says(text, Kind::RouteConfig, caches);
            assert!(listener.is_some() || routes.is_some(), "a control plane's word, and no outage: {text}");
            if nothing_goes {
                // Other routes than those that served; those do not exist.
                assert!(routes.is_some_and(|name| name != old.routes.name), "{text}");
            }
        }
        (Some(Value::Target(Target::Ready(_))), Value::Target(Target::Pending { missing })) => {
            panic!("the old serves until the new is complete: {missing}");
        }
        (Some(Value::Resource(Found::Usable { .. })), Value::Resource(Found::Failed(text))) => {
            assert!(!text.contains(OUTAGE) && !nothing_goes, "{text}");
        }
        (Some(Value::Resource(Found::Usable { .. })), Value::Resource(Found::Pending)) => panic!("it was known"),
        _ => {}
    }
}

/// The resource of this kind that `text` is about, if a control plane's word is why there is none.
fn says(text: &str, kind: Kind, caches: &[Cache]) -> Option<&'static str> {
    let is_about = |name: &&&str| text.starts_with(&format!("{kind} {name:?}"));
    let name = *NAMES.iter().find(is_about)?;
    let is_failed = caches.iter().any(|cache| matches!(cache.lookup(kind, name), Lookup::Failed(why) if &*why == text));
    (is_failed || is_of_nobody(text)).then_some(name)
}

/// The bootstrap's word, which is the last.
fn is_of_nobody(text: &str) -> bool {
    text.contains("the bootstrap has no authority \"nowhere\"")
}

/// A74: every cluster of the routes is there, resolved or failed, and none else.
fn is_complete(snapshot: &Snapshot) {
    let host = snapshot.virtual_host.as_ref().expect("the domain is *");
    let referenced: BTreeSet<&ClusterName> = host
        .routes
        .iter()
        .flat_map(|route| match &route.action {
            RouteAction::Forward(forward) => forward.cluster.names().collect::<Vec<_>>(),
            RouteAction::Unsupported(_) => Vec::new(),
        })
        .collect();
    assert_eq!(referenced, snapshot.clusters.keys().collect());
}

/// "No outage of any length disturbs traffic that is already configured."
fn clusters_go_on(old: &Snapshot, new: &Snapshot, setting: Setting, caches: &[Cache]) {
    for (name, config) in new.clusters.iter() {
        let before = old.clusters.get(name).filter(|before| before.server == config.server);
        match (before.map(|before| &before.state), &config.state) {
            (Some(Ok(_)), Err(error)) => {
                // An aggregate is what its newest list makes of it.
                let may_fail = setting.fail_on_data_errors || caches.iter().any(|cache| is_aggregate(cache, name));
                assert!(may_fail && !error.0.contains(OUTAGE), "{name} served: {error}");
            }
            (Some(Ok(old)), Ok(new)) => {
                for new in new.iter() {
                    let old = old.iter().find(|old| old.cluster.name == new.cluster.name);
                    old.into_iter().for_each(|old| leaf_goes_on(old, new));
                }
            }
            (None, Err(error)) if !old.clusters.contains_key(name) => {
                assert!(!error.0.contains(OUTAGE), "an outage came in with {name}: {error}");
            }
            _ => {}
        }
    }
}

fn is_aggregate(cache: &Cache, name: &ClusterName) -> bool {
    let Lookup::Usable { value: Resource::Cluster(cluster), .. } = cache.lookup(Kind::Cluster, name.as_str()) else {
        return false;
    };
    matches!(cluster.discovery, Discovery::Aggregate(_))
}

fn leaf_goes_on(old: &ResolvedCluster, new: &ResolvedCluster) {
    let serves = |leaf: &ResolvedCluster| leaf.endpoints.endpoints().next().is_some();
    if !names(&old.cluster).is_empty() && old.cluster.discovery == new.cluster.discovery && serves(old) {
        assert!(serves(new), "a lookup that failed took the addresses of {:?}", new.cluster.name);
    }
    let is_outage = new.note.as_ref().is_some_and(|note| note.contains(OUTAGE));
    if is_outage && old.endpoints.name == new.endpoints.name && serves(old) {
        assert_eq!(old.endpoints, new.endpoints, "an outage changed {:?}", new.cluster.name);
    }
}

/// What a healthy server has under a subscribed name is what the client knows.
pub(super) fn is_delivered(cache: &Cache, world: &World, kind: Kind, name: &str) {
    let known = *NAMES.iter().find(|known| **known == name).expect("one of ours");
    let found = cache.lookup(kind, name);
    match world.get(&(kind, known)).map(|number| (*number, resource(kind, name, *number))) {
        Some((number, Ok(value))) if number < ERROR => match found {
            Lookup::Usable { value: held, note, .. } => assert_eq!((held, note), (&value, None), "{kind} {name:?}"),
            other => panic!("{kind} {name:?} was not delivered: {other:?}"),
        },
        // Refused, or an error: whoever has something keeps it, with a note, unless the operator wants otherwise.
        Some(_) => match found {
            Lookup::Usable { note: Some(_), .. } | Lookup::Failed(_) => {}
            other => panic!("{kind} {name:?} is bad: {other:?}"),
        },
        // Withheld, lost in silence, or deleted.
        None => assert!(matches!(found, Lookup::Usable { .. } | Lookup::Failed(_)), "{kind} {name:?}: {found:?}"),
    }
}

/// Nothing waits for ever.
pub(super) fn is_settled(subject: &Subject, value: Option<&Value>) {
    let waits = matches!(value, None | Some(Value::Target(Target::Pending { .. }) | Value::Resource(Found::Pending)));
    assert!(!waits, "{subject:?}: {value:?}");
}

/// The DNS names that a value is made of.
pub(super) fn dns_names(value: &Value) -> BTreeSet<DnsName> {
    let Value::Target(Target::Ready(snapshot)) = value else { return BTreeSet::new() };
    let leaves = snapshot.clusters.values().filter_map(|config| config.state.as_ref().ok());
    leaves.flat_map(|leaves| leaves.iter()).flat_map(|leaf| names(&leaf.cluster)).collect()
}

fn names(cluster: &Cluster) -> BTreeSet<DnsName> {
    match &cluster.discovery {
        Discovery::LogicalDns { name, .. } => BTreeSet::from([name.clone()]),
        Discovery::StrictDns { assignment, .. } => assignment.endpoints().map(|it| it.addresses.clone()).collect(),
        _ => BTreeSet::new(),
    }
}

/// What a subject came to, without notes (their text tells history) and identities.
pub(super) fn outcome(value: Option<&Value>) -> String {
    match value {
        Some(Value::Target(Target::Ready(snapshot))) => {
            let contents = |leaf: &Arc<ResolvedCluster>| (Arc::clone(&leaf.cluster), Arc::clone(&leaf.endpoints));
            let cluster = |name: &ClusterName| {
                let config = &snapshot.clusters[name];
                let leaves = config.state.as_ref().ok().map(|leaves| leaves.iter().map(contents).collect::<Vec<_>>());
                (name.clone(), (config.server, leaves))
            };
            let clusters: BTreeMap<_, _> = snapshot.clusters.keys().map(cluster).collect();
            format!("{:?} {:?} {clusters:?}", snapshot.http, snapshot.virtual_host)
        }
        Some(Value::Resource(Found::Usable { value, .. })) => format!("{value:?}"),
        Some(Value::Target(Target::Failed(text)) | Value::Resource(Found::Failed(text))) if is_of_nobody(text) => {
            text.to_string()
        }
        other => panic!("all is well, and yet: {other:?}"),
    }
}
