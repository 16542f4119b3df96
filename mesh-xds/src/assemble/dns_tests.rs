//! Clusters by DNS: what an answer, an error and a new name do to what is served.

use super::*;
use crate::resource::{DnsFamily, DnsRefresh};
use std::{net::SocketAddr, time::Duration};

fn name(host: &str) -> DnsName {
    let second = Duration::from_secs(1);
    let refresh = DnsRefresh { interval: None, failure_base: second, failure_max: second, respect_ttl: false };
    DnsName { host: host.into(), port: 1, refresh }
}

fn with(name: &str, discovery: Discovery) -> Resource {
    let Resource::Cluster(cluster) = cluster(name, name) else { unreachable!("a cluster") };
    Resource::Cluster(Arc::new(Cluster { discovery, ..Cluster::clone(&cluster) }))
}

fn logical(cluster: &str, host: &str) -> Resource {
    with(cluster, Discovery::LogicalDns { name: name(host), family: DnsFamily::All })
}

fn strict(cluster: &str, hosts: &str) -> Resource {
    let endpoint = |host| Endpoint { addresses: name(host), health: Health::Unknown, weight: 1, hostname: None };
    let endpoints = hosts.split_whitespace().map(endpoint).collect();
    let priorities = vec![vec![Locality { id: Arc::default(), weight: 1, endpoints }]];
    let assignment = ClusterLoadAssignment { name: cluster.to_owned(), priorities, drops: Vec::new() };
    with(cluster, Discovery::StrictDns { assignment: Arc::new(assignment), family: DnsFamily::All })
}

/// Target `l` with this cluster `a`.
fn room(a: Resource) -> Room {
    Room::with(&[listener("r"), routes("r", vec![host("shop.example", "a")]), a])
}

impl Room {
    fn answer(&mut self, host: &str, result: Result<&str, &str>) {
        let addresses = |list: &str| list.split_whitespace().map(|it| it.parse().expect("an address")).collect();
        let result = result.map(addresses).map_err(Into::into);
        if self.answers.answered(&name(host), result) {
            self.assembler.name_changed(&name(host));
        }
        self.settle();
    }

    fn addresses(&self) -> Vec<Vec<SocketAddr>> {
        let snapshot = self.snapshot();
        let leaves = snapshot.clusters["a"].state.as_ref().expect("resolved");
        let endpoints = leaves.iter().flat_map(|leaf| leaf.endpoints.endpoints());
        endpoints.map(|endpoint| endpoint.addresses.iter().collect()).collect()
    }

    fn note(&self) -> Option<Arc<str>> {
        self.snapshot().clusters["a"].state.as_ref().expect("resolved").first.note.clone()
    }

    fn looked_up(&self) -> String {
        self.names.iter().map(|name| &*name.host).collect::<Vec<_>>().join(" ")
    }
}

fn list(addresses: &str) -> Vec<SocketAddr> {
    addresses.split_whitespace().map(|address| address.parse().expect("an address")).collect()
}

#[test]
fn a_logical_name_is_one_endpoint_with_every_address() {
    let mut room = room(logical("a", "db"));
    assert_eq!(room.missing(), "waiting for DNS name \"db:1\" of cluster \"a\"");
    room.answer("db", Ok("10.0.0.1:1 [::1]:1"));
    assert_eq!(room.addresses(), [list("10.0.0.1:1 [::1]:1")]);
    let snapshot = room.snapshot();
    let leaf = &snapshot.clusters["a"].state.as_ref().expect("resolved").first;
    let locality = &leaf.endpoints.priorities[0][0];
    assert_eq!((locality.weight, locality.id.to_string().as_str()), (1, "//"));
    assert_eq!(locality.endpoints[0].hostname.as_deref(), Some("db:1"));
}

#[test]
fn a_failure_keeps_what_was_known_and_says_so() {
    let mut room = room(logical("a", "db"));
    room.answer("db", Ok("10.0.0.1:1"));
    let before = room.snapshot();
    room.answer("db", Ok("10.0.0.1:1"));
    assert!(Arc::ptr_eq(&before, &room.snapshot()), "an equal answer is no news");
    room.answer("db", Err("no such host"));
    assert_eq!(room.addresses(), [list("10.0.0.1:1")]);
    assert!(room.note().is_some_and(|note| note.contains("DNS name \"db:1\" cannot be resolved: no such host")));
    let (before, now) = (before.clusters["a"].state.clone(), room.snapshot().clusters["a"].state.clone());
    assert!(Arc::ptr_eq(&before.expect("good").first.endpoints, &now.expect("good").first.endpoints));
    room.answer("db", Ok("10.0.0.2:1"));
    assert_eq!((room.addresses(), room.note()), (vec![list("10.0.0.2:1")], None));
}

#[test]
fn a_first_failure_is_no_endpoint_with_the_reason() {
    let mut room = room(logical("a", "db"));
    room.answer("db", Err("no such host"));
    assert!(room.addresses().is_empty() && room.note().is_some_and(|note| note.contains("no such host")));
    room.answer("db", Ok("10.0.0.1:1"));
    assert_eq!(room.addresses(), [list("10.0.0.1:1")]);
}

#[test]
fn another_name_replaces_the_old_one_when_it_is_known() {
    let mut room = room(logical("a", "db"));
    room.answer("db", Ok("10.0.0.1:1"));
    room.tell(logical("a", "new"));
    assert_eq!((room.addresses(), room.looked_up()), (vec![list("10.0.0.1:1")], "db new".into()));
    room.answer("db", Ok("10.0.0.9:1"));
    room.answer("new", Ok("10.0.0.2:1"));
    assert_eq!((room.addresses(), room.looked_up()), (vec![list("10.0.0.2:1")], "new".into()));
    room.tell(cluster("a", "a"));
    room.tell(endpoints("a", &[(1, 1, Health::Healthy)]));
    assert_eq!(room.looked_up(), "");
}

#[test]
fn a_strict_cluster_waits_for_each_name_once_and_then_follows_them() {
    let mut room = room(strict("a", "x y"));
    room.answer("x", Ok("10.0.0.2:1 10.0.0.1:1"));
    assert_eq!(room.missing(), "waiting for DNS name \"y:1\" of cluster \"a\"");
    room.answer("y", Err("no such host"));
    assert_eq!(room.addresses(), [list("10.0.0.1:1"), list("10.0.0.2:1")]);
    assert!(room.note().is_some_and(|note| note.contains("\"y:1\"")));
    room.answer("y", Ok("10.0.0.3:1 10.0.0.1:1"));
    assert_eq!(room.addresses(), [list("10.0.0.1:1"), list("10.0.0.2:1"), list("10.0.0.3:1")]);
    room.answer("x", Ok("10.0.0.1:1"));
    assert_eq!(room.addresses(), [list("10.0.0.1:1"), list("10.0.0.3:1")]);
    // The same in another order is no news.
    let before = room.snapshot();
    room.answer("y", Ok("10.0.0.1:1 10.0.0.3:1"));
    assert!(Arc::ptr_eq(&before, &room.snapshot()));
}

#[test]
fn a_name_is_looked_up_as_long_as_some_cluster_wants_it() {
    let mut room = Room::with(&[listener("r"), routes("r", vec![host("shop.example", "a")])]);
    room.tell(aggregate::aggregate("a", "x y"));
    room.tell(logical("x", "db"));
    room.tell(strict("y", "db"));
    assert_eq!(room.looked_up(), "db");
    room.answer("db", Ok("10.0.0.1:1 10.0.0.2:1"));
    assert_eq!(room.addresses().len(), 3, "one endpoint with two addresses, and two with one");
    room.tell(aggregate::aggregate("a", "y"));
    assert_eq!(room.looked_up(), "db");
    room.assembler.remove(TargetId(1));
    room.settle();
    assert_eq!(room.looked_up(), "");
}
