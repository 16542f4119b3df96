//! The assembly rules that one can see without a wire: identity, make before break, deleted clusters.

#[path = "aggregate_tests.rs"]
mod aggregate;
#[path = "dns_tests.rs"]
mod dns;

use super::*;
use crate::resource::{
    Addresses, CircuitBreakers, Cluster, ClusterLoadAssignment, ClusterSpecifier, Discovery, Domain, Endpoint,
    FilterOverrides, Forward, Health, HttpConnectionManager, HttpProtocol, Invalid, LbPolicy, Listener, ListenerKind,
    Locality, PathMatch, Received, Resource, Route, RouteAction, RouteConfig, RouteMatch, RouteSource, TransportSocket,
    VirtualHost,
};
use crate::{
    Bootstrap, InProcess,
    budget::Budget,
    cache::{Cache, Choice, Said},
    dns::Answers,
    snapshot::Snapshot,
};
use tokio::time::Instant;

fn said() -> Said {
    Said { version: "1".into(), at: Instant::now() }
}

/// A cache that is told things, and the assembler that looks at it.
struct Room {
    cache: Cache,
    answers: Answers,
    assembler: Assembler,
    target: Option<Target>,
    watched: BTreeSet<(Kind, String)>,
    /// DNS names that are looked up.
    names: BTreeSet<DnsName>,
}

fn subject() -> Subject {
    Subject::Target { listener: "l".into(), authority: "shop.example".into() }
}

/// With one server.
fn bootstrap() -> Bootstrap {
    Bootstrap::builder().server(InProcess::new("cp").0).build().expect("one server is enough")
}

impl Room {
    /// Target `l`, which is told of each thing in turn.
    fn with(resources: &[Resource]) -> Self {
        let assembler = Assembler::default();
        let mut room = Self {
            cache: Cache::new("n", &[]),
            answers: Answers::default(),
            assembler,
            target: None,
            watched: BTreeSet::new(),
            names: BTreeSet::new(),
        };
        room.assembler.add(TargetId(1), subject());
        room.settle();
        for resource in resources {
            room.tell(resource.clone());
        }
        room
    }

    fn settle(&mut self) {
        let bootstrap = bootstrap();
        let choice = Choice::preferred(&bootstrap.authorities);
        let sources = Sources::new(std::slice::from_ref(&self.cache), &bootstrap.authorities, &choice);
        assert!(self.assembler.settle(&sources, &self.answers, &mut Budget::new(usize::MAX)), "as much as there is");
        let settled = self.assembler.take_settled();
        while let Some(need) = self.assembler.next_need() {
            match need {
                Need::Resource(kind, name) if self.assembler.needs(kind, &name) => {
                    self.cache.requested(kind, &name);
                    self.watched.insert((kind, name.to_string()));
                }
                Need::Resource(kind, name) => {
                    self.cache.forget(kind, &name);
                    self.watched.remove(&(kind, name.to_string()));
                }
                Need::Name(name) if self.assembler.needs_name(&name) => {
                    self.answers.requested(&name);
                    self.names.insert(name);
                }
                Need::Name(name) => {
                    self.answers.forget(&name);
                    self.names.remove(&name);
                }
            }
        }
        for (_, value) in settled.publish {
            let Value::Target(target) = value else { panic!("no resource is watched by itself") };
            self.target = Some(target);
        }
    }

    fn tell(&mut self, resource: Resource) {
        let (kind, name) = (resource.kind(), resource.name().to_owned());
        self.tell_received(kind, &name, Ok(resource));
    }

    fn tell_received(&mut self, kind: Kind, name: &str, value: Result<Resource, Invalid>) {
        let received = Received {
            name: Some(name.to_owned()),
            value,
            version: None,
            ignored: Vec::new(),
            raw: bytes::Bytes::new(),
        };
        if self.cache.received(kind, name, received, &said()).visible {
            self.assembler.changed(kind, name);
        }
        self.settle();
    }

    fn delete(&mut self, kind: Kind, name: &str) {
        self.cache.removed(kind, name, &said());
        self.assembler.changed(kind, name);
        self.settle();
    }

    /// The does-not-exist timer fires.
    fn expire(&mut self, kind: Kind, name: &str) {
        self.cache.timed_out(kind, name, std::time::Duration::from_secs(15), Instant::now());
        self.assembler.changed(kind, name);
        self.settle();
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        match &self.target {
            Some(Target::Ready(snapshot)) => Arc::clone(snapshot),
            other => panic!("{other:?}"),
        }
    }

    fn failure(&self) -> &str {
        match &self.target {
            Some(Target::Failed(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    fn missing(&self) -> &str {
        match &self.target {
            Some(Target::Pending { missing }) => missing,
            other => panic!("{other:?}"),
        }
    }

    /// Port and health of each endpoint of a cluster.
    fn endpoints(&self, cluster: &str) -> Vec<(u16, Health)> {
        let snapshot = self.snapshot();
        let leaves = snapshot.clusters[cluster].state.as_ref().expect("resolved");
        let all = leaves.iter().flat_map(|leaf| leaf.endpoints.endpoints());
        all.map(|endpoint| (endpoint.addresses.first.port(), endpoint.health)).collect()
    }
}

fn listener(routes: &str) -> Resource {
    let http = HttpConnectionManager {
        routes: RouteSource::Rds(routes.to_owned()),
        max_stream_duration: None,
        filters: Vec::new(),
    };
    Resource::Listener(Arc::new(Listener { name: "l".to_owned(), kind: ListenerKind::Api(http) }))
}

fn host(domain: &str, cluster: &str) -> VirtualHost {
    let forward = Forward {
        cluster: ClusterSpecifier::Cluster(cluster.into()),
        timeout: None,
        max_stream_duration: None,
        grpc_timeout_header_max: None,
        idle_timeout: None,
        retry_policy: None,
        auto_host_rewrite: false,
    };
    let path = PathMatch::Prefix { value: String::new(), ignore_case: false };
    let matches = RouteMatch { path, headers: Vec::new(), fraction: None };
    let routes = vec![Route {
        name: String::new(),
        matches,
        action: RouteAction::Forward(forward),
        overrides: FilterOverrides::default(),
    }];
    VirtualHost {
        name: domain.to_owned(),
        domains: vec![Domain::Exact(domain.to_owned())],
        routes,
        overrides: FilterOverrides::default(),
    }
}

fn routes(name: &str, hosts: Vec<VirtualHost>) -> Resource {
    let virtual_hosts = hosts.into_iter().map(Arc::new).collect();
    Resource::RouteConfig(Arc::new(RouteConfig {
        name: name.to_owned(),
        virtual_hosts,
        overrides: FilterOverrides::default(),
    }))
}

fn cluster(name: &str, service: &str) -> Resource {
    Resource::Cluster(Arc::new(Cluster {
        name: name.into(),
        discovery: Discovery::Eds { service_name: service.to_owned() },
        lb_policy: LbPolicy::RoundRobin,
        transport_socket: TransportSocket::Plaintext,
        http_protocol: HttpProtocol::Unspecified,
        circuit_breakers: CircuitBreakers::default(),
        outlier_detection: None,
        load_reporting: None,
        connect_timeout: None,
    }))
}

fn endpoints(service: &str, list: &[(u16, u32, Health)]) -> Resource {
    let endpoint = |&(port, weight, health): &(u16, u32, Health)| Endpoint {
        addresses: Addresses::one(([10, 0, 0, 1], port).into()),
        health,
        weight,
        hostname: None,
    };
    let locality = Locality { id: Arc::default(), weight: 1, endpoints: list.iter().map(endpoint).collect() };
    let priorities = vec![vec![locality]];
    Resource::Endpoints(Arc::new(ClusterLoadAssignment { name: service.to_owned(), priorities, drops: Vec::new() }))
}

fn shop() -> Room {
    Room::with(&[
        listener("r"),
        routes("r", vec![host("shop.example", "a"), host("other.example", "z")]),
        cluster("a", "a"),
        endpoints("a", &[(1, 1, Health::Healthy), (2, 1, Health::Healthy)]),
    ])
}

#[test]
fn only_the_selected_virtual_hosts_clusters_are_needed() {
    let room = shop();
    assert_eq!(room.snapshot().clusters.len(), 1);
    let needed: Vec<_> = room.watched.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
    let expected = [(Kind::Listener, "l"), (Kind::RouteConfig, "r"), (Kind::Cluster, "a"), (Kind::Endpoints, "a")];
    assert_eq!(needed, expected);
}

#[test]
fn what_is_missing_is_said_at_every_stage() {
    let mut room = Room::with(&[]);
    assert_eq!(room.missing(), "waiting for Listener \"l\"");
    room.tell(listener("r"));
    assert_eq!(room.missing(), "waiting for RouteConfiguration \"r\"");
    room.tell(routes("r", vec![host("shop.example", "a")]));
    assert_eq!(room.missing(), "waiting for Cluster \"a\"");
    room.tell(cluster("a", "svc"));
    assert_eq!(room.missing(), "waiting for ClusterLoadAssignment \"svc\" of cluster \"a\"");
}

#[test]
fn a_change_of_another_virtual_host_keeps_the_selected_one_and_its_clusters() {
    let mut room = shop();
    let before = room.snapshot();
    let kept = before.virtual_host.clone().expect("matches");
    let other = Arc::new(host("other.example", "y"));
    room.tell(Resource::RouteConfig(Arc::new(RouteConfig {
        name: "r".to_owned(),
        virtual_hosts: vec![Arc::clone(&kept), other],
        overrides: FilterOverrides::default(),
    })));
    let after = room.snapshot();
    assert!(after.generation > before.generation && !Arc::ptr_eq(&before.routes, &after.routes));
    assert!(Arc::ptr_eq(&kept, after.virtual_host.as_ref().expect("matches")));
    assert!(Arc::ptr_eq(&before.clusters["a"], &after.clusters["a"]) && Arc::ptr_eq(&before.http, &after.http));
}

#[test]
fn equal_resources_are_no_new_snapshot() {
    let mut room = shop();
    let before = room.snapshot();
    room.tell(cluster("a", "a"));
    room.tell(listener("r"));
    room.tell(endpoints("a", &[(1, 1, Health::Healthy), (2, 1, Health::Healthy)]));
    assert!(Arc::ptr_eq(&before, &room.snapshot()));
}

#[test]
fn renamed_routes_replace_the_old_ones_only_when_they_are_there() {
    let mut room = shop();
    let before = room.snapshot();
    room.tell(listener("r2"));
    assert!(Arc::ptr_eq(&before, &room.snapshot()));
    assert!(room.watched.contains(&(Kind::RouteConfig, "r".to_owned())), "make before break");
    room.tell(routes("r2", vec![host("shop.example", "a")]));
    assert_eq!(room.snapshot().routes.name, "r2");
    assert!(!room.watched.contains(&(Kind::RouteConfig, "r".to_owned())));
}

#[test]
fn another_service_name_replaces_the_endpoints_only_when_they_are_there() {
    let mut room = shop();
    room.tell(cluster("a", "a2"));
    assert_eq!(room.endpoints("a").len(), 2);
    assert!(room.watched.contains(&(Kind::Endpoints, "a".to_owned())));
    room.tell(endpoints("a2", &[(3, 1, Health::Healthy)]));
    assert_eq!(room.endpoints("a"), [(3, Health::Healthy)]);
    assert!(!room.watched.contains(&(Kind::Endpoints, "a".to_owned())));
}

#[test]
fn a_service_name_that_never_came_is_given_up_for_the_next_one() {
    let mut room = Room::with(&[listener("r"), routes("r", vec![host("shop.example", "a")]), cluster("a", "z")]);
    room.tell(cluster("a", "b"));
    assert_eq!(room.missing(), "waiting for ClusterLoadAssignment \"b\" of cluster \"a\"");
    assert!(!room.watched.contains(&(Kind::Endpoints, "z".to_owned())));
    room.tell(endpoints("b", &[(1, 1, Health::Healthy)]));
    room.tell(cluster("a", "c"));
    room.tell(cluster("a", "d"));
    let watched: Vec<_> = room.watched.iter().filter(|(kind, _)| *kind == Kind::Endpoints).collect();
    assert_eq!(watched.len(), 2, "what serves and what is wanted: {watched:?}");
}

#[test]
fn a_deleted_clusters_endpoints_may_go_but_not_come_or_change_weight() {
    let mut room = shop();
    room.delete(Kind::Cluster, "a");
    room.tell(endpoints("a", &[(2, 7, Health::Draining), (1, 9, Health::Healthy), (3, 1, Health::Healthy)]));
    assert_eq!(room.endpoints("a"), [(1, Health::Healthy), (2, Health::Draining)]);
    let snapshot = room.snapshot();
    let kept = &snapshot.clusters["a"].state.as_ref().expect("kept").first;
    assert!(kept.endpoints.endpoints().all(|endpoint| endpoint.weight == 1));
    assert!(kept.note.as_ref().is_some_and(|note| note.contains("was deleted")));
    room.tell(endpoints("a", &[(1, 1, Health::Healthy)]));
    assert_eq!(room.endpoints("a"), [(1, Health::Healthy)]);
    // Back in CDS, it is a cluster like any other.
    room.tell(cluster("a", "a"));
    room.tell(endpoints("a", &[(1, 1, Health::Healthy), (3, 1, Health::Healthy)]));
    assert_eq!(room.endpoints("a").len(), 2);
}

#[test]
fn a_listener_with_sockets_fails_a_client() {
    let mut room = shop();
    room.tell(Resource::Listener(Arc::new(Listener { name: "l".to_owned(), kind: ListenerKind::Socket })));
    assert!(room.failure().contains("Listener \"l\": is a listener with sockets"), "{}", room.failure());
    assert_eq!(room.watched.len(), 1, "nothing below it is needed");
    room.tell(listener("r"));
    assert_eq!(room.missing(), "waiting for RouteConfiguration \"r\"");
}

#[test]
fn invalid_endpoints_are_an_empty_cluster_with_a_note_that_recovers() {
    let mut room = Room::with(&[listener("r"), routes("r", vec![host("shop.example", "a")]), cluster("a", "a")]);
    room.tell_received(Kind::Endpoints, "a", Err(Invalid::new("duplicate").within("endpoints[1]")));
    let note = room.snapshot().clusters["a"].state.as_ref().expect("resolved").first.note.clone().expect("says why");
    assert!(note.contains("ClusterLoadAssignment \"a\": invalid: endpoints[1]: duplicate"), "{note}");
    assert_eq!(room.endpoints("a"), []);
    room.tell(endpoints("a", &[(1, 1, Health::Healthy)]));
    assert_eq!(room.endpoints("a"), [(1, Health::Healthy)]);
}

#[test]
fn two_targets_share_a_cluster_and_the_last_one_releases_it() {
    let mut room = shop();
    room.assembler.add(TargetId(2), subject());
    let first = room.snapshot();
    room.settle();
    let second = room.snapshot();
    assert!(second.generation > first.generation && Arc::ptr_eq(&first.clusters["a"], &second.clusters["a"]));
    room.assembler.remove(TargetId(1));
    room.settle();
    assert_eq!(room.watched.len(), 4);
    room.assembler.remove(TargetId(2));
    room.settle();
    assert!(room.watched.is_empty());
}
