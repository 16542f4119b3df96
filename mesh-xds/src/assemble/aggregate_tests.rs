//! Aggregates: what is complete, what is kept, and what is watched for them.

use super::*;

pub(super) fn aggregate(name: &str, children: &str) -> Resource {
    let Resource::Cluster(cluster) = cluster(name, name) else { unreachable!("a cluster") };
    let children = children.split_whitespace().map(ClusterName::from).collect();
    Resource::Cluster(Arc::new(Cluster { discovery: Discovery::Aggregate(children), ..Cluster::clone(&cluster) }))
}

fn one(service: &str, port: u16) -> Resource {
    endpoints(service, &[(port, 1, Health::Healthy)])
}

impl Room {
    /// Names of an aggregate's leaves.
    fn leaves(&self, name: &str) -> String {
        let snapshot = self.snapshot();
        let leaves = snapshot.clusters[name].state.as_ref().expect("resolved");
        leaves.iter().map(|leaf| leaf.cluster.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    fn error(&self, name: &str) -> String {
        self.snapshot().clusters[name].state.as_ref().expect_err("no leaf").to_string()
    }

    /// What is watched of a kind.
    fn watched(&self, kind: Kind) -> String {
        let names = self.watched.iter().filter(|(of, _)| *of == kind).map(|(_, name)| name.as_str());
        names.collect::<Vec<_>>().join(" ")
    }
}

/// Target `l` with cluster `a`, which aggregates `b` and `c`.
fn pair() -> Room {
    let mut room = Room::with(&[listener("r"), routes("r", vec![host("shop.example", "a")]), aggregate("a", "b c")]);
    for resource in [cluster("b", "b"), cluster("c", "c"), one("b", 1), one("c", 2)] {
        room.tell(resource);
    }
    room
}

#[test]
fn an_aggregate_is_complete_when_each_leaf_is() {
    let mut room = Room::with(&[listener("r"), routes("r", vec![host("shop.example", "a")]), aggregate("a", "b c")]);
    assert_eq!(room.missing(), "waiting for Cluster \"b\" of aggregate cluster \"a\"");
    room.tell(cluster("b", "b"));
    room.tell(cluster("c", "c"));
    room.tell(one("c", 2));
    assert_eq!(room.missing(), "waiting for ClusterLoadAssignment \"b\" of cluster \"b\" of aggregate cluster \"a\"");
    room.tell(one("b", 1));
    assert_eq!(room.leaves("a"), "b c");
    assert_eq!(room.endpoints("a"), [(1, Health::Healthy), (2, Health::Healthy)]);
}

#[test]
fn a_leaf_that_changes_leaves_the_others_alone() {
    let mut room = pair();
    let before = room.snapshot().clusters["a"].state.clone().expect("resolved");
    room.tell(one("c", 3));
    let after = room.snapshot().clusters["a"].state.clone().expect("resolved");
    assert!(Arc::ptr_eq(&before.first, &after.first) && !Arc::ptr_eq(&before.rest[0], &after.rest[0]));
}

#[test]
fn children_that_do_not_exist_are_skipped_until_they_do() {
    let mut room = pair();
    room.delete(Kind::Cluster, "b");
    // Deleted, and kept (A88).
    assert_eq!(room.leaves("a"), "b c");
    let mut room = Room::with(&[listener("r"), routes("r", vec![host("shop.example", "a")]), aggregate("a", "b c")]);
    room.tell(cluster("c", "c"));
    room.tell(one("c", 2));
    room.expire(Kind::Cluster, "b");
    assert_eq!(room.leaves("a"), "c");
    room.tell(cluster("b", "b"));
    assert_eq!(room.leaves("a"), "c", "make before break");
    room.tell(one("b", 1));
    assert_eq!(room.leaves("a"), "b c");
}

#[test]
fn an_aggregate_without_a_usable_leaf_fails_with_the_reason() {
    let mut room = Room::with(&[listener("r"), routes("r", vec![host("shop.example", "a")]), aggregate("a", "b c")]);
    room.expire(Kind::Cluster, "b");
    room.expire(Kind::Cluster, "c");
    let error = room.error("a");
    assert!(
        error.contains("\"a\": none of the clusters that it aggregates can be used: Cluster \"b\": does not exist"),
        "{error}"
    );
    room.tell(aggregate("b", "a"));
    room.tell(aggregate("c", "a b c"));
    assert!(room.error("a").contains("\"a\": aggregates only itself"), "{}", room.error("a"));
    room.tell(cluster("c", "c"));
    room.tell(one("c", 2));
    assert_eq!(room.leaves("a"), "c");
}

#[test]
fn a_leaf_whose_endpoints_are_refused_is_an_empty_one() {
    let mut room = Room::with(&[listener("r"), routes("r", vec![host("shop.example", "a")]), aggregate("a", "b c")]);
    for resource in [cluster("b", "b"), cluster("c", "c"), one("c", 2)] {
        room.tell(resource);
    }
    room.tell_received(Kind::Endpoints, "b", Err(Invalid::new("duplicate")));
    assert_eq!(room.leaves("a"), "b c");
    assert_eq!(room.endpoints("a"), [(2, Health::Healthy)]);
    assert!(room.snapshot().clusters["a"].state.as_ref().is_ok_and(|leaves| leaves.first.note.is_some()));
}

#[test]
fn sixteen_levels_resolve_and_the_seventeenth_fails_the_cluster() {
    let mut room = Room::with(&[listener("r"), routes("r", vec![host("shop.example", "c1")])]);
    for level in 1..16 {
        room.tell(aggregate(&format!("c{level}"), &format!("c{}", level + 1)));
    }
    room.tell(cluster("c16", "c16"));
    room.tell(one("c16", 1));
    assert_eq!(room.leaves("c1"), "c16");
    room.tell(aggregate("c16", "c17"));
    assert!(room.error("c1").contains("more than 16 levels"), "{}", room.error("c1"));
    assert!(!room.watched(Kind::Cluster).contains("c17"));
    room.tell(aggregate("c15", "x"));
    room.tell(cluster("x", "x"));
    room.tell(one("x", 2));
    assert_eq!(room.leaves("c1"), "x");
}

#[test]
fn a_new_list_of_clusters_replaces_the_old_one_when_all_of_it_is_there() {
    let mut room = pair();
    room.tell(aggregate("a", "c d"));
    assert_eq!(room.leaves("a"), "b c", "make before break");
    assert_eq!(room.watched(Kind::Cluster), "a b c d");
    // What is served follows its endpoints meanwhile.
    room.tell(one("b", 7));
    assert_eq!(room.endpoints("a")[0], (7, Health::Healthy));
    room.tell(cluster("d", "d"));
    assert_eq!(room.leaves("a"), "b c");
    room.tell(one("d", 4));
    assert_eq!(room.leaves("a"), "c d");
    assert_eq!((room.watched(Kind::Cluster), room.watched(Kind::Endpoints)), ("a c d".into(), "c d".into()));
}

#[test]
fn a_cluster_becomes_an_aggregate_and_back_without_a_gap() {
    let mut room = shop();
    room.tell(aggregate("a", "b"));
    assert_eq!((room.leaves("a"), room.watched(Kind::Endpoints)), ("a".into(), "a".into()));
    room.tell(cluster("b", "b"));
    room.tell(one("b", 5));
    assert_eq!((room.leaves("a"), room.watched(Kind::Endpoints)), ("b".into(), "b".into()));
    room.tell(cluster("a", "a2"));
    assert_eq!((room.leaves("a"), room.watched(Kind::Cluster)), ("b".into(), "a b".into()));
    room.tell(one("b", 6));
    assert_eq!(room.endpoints("a"), [(6, Health::Healthy)]);
    room.tell(one("a2", 8));
    assert_eq!((room.leaves("a"), room.watched(Kind::Cluster)), ("a".into(), "a".into()));
    assert_eq!(room.watched(Kind::Endpoints), "a2");
}

#[test]
fn a_cluster_that_is_used_directly_as_well_is_one_subscription_and_one_value() {
    let mut room = Room::with(&[listener("r"), routes("r", vec![host("shop.example", "a")]), aggregate("a", "b")]);
    room.tell(cluster("b", "b"));
    room.tell(one("b", 1));
    let through = Arc::clone(&room.snapshot().clusters["a"].state.as_ref().expect("resolved").first);
    room.tell(routes("r", vec![host("shop.example", "b")]));
    assert!(Arc::ptr_eq(&through, &room.snapshot().clusters["b"].state.as_ref().expect("resolved").first));
    assert_eq!(room.watched(Kind::Cluster), "b", "the aggregate is not needed any more");
}

#[test]
fn clusters_that_aggregate_each_other_are_forgotten_with_their_target() {
    let mut room = pair();
    room.tell(aggregate("b", "a c"));
    room.assembler.add(TargetId(2), subject());
    room.settle();
    room.assembler.remove(TargetId(1));
    room.settle();
    assert_eq!(room.watched(Kind::Cluster), "a b c");
    room.assembler.remove(TargetId(2));
    room.settle();
    assert!(room.watched.is_empty() && room.assembler.nodes.is_empty());
}

#[test]
fn an_aggregate_waits_without_hurting_the_clusters_below_it() {
    let mut room = pair();
    room.tell(cluster("b", "b2"));
    assert_eq!(room.leaves("a"), "b c");
    assert_eq!(room.assembler.behind().count(), 1, "ACKed and not served");
    room.tell(one("b2", 9));
    assert_eq!(room.endpoints("a")[0], (9, Health::Healthy));
    assert_eq!(room.assembler.behind().count(), 0);
}
