//! Turns with much to do: in slices, and one turn nevertheless.

use super::world::{resource, route};
use crate::{
    Bootstrap, InProcess, XdsServer,
    ads::{Asks, Request, Response},
    assemble::{Subject, TargetId, Value},
    bootstrap::ServerId,
    budget::Budget,
    cache::Cache,
    client::core::{Core, Input},
    resource::{ClusterName, Invalid, Kind, Received, Resource, RouteConfig, VirtualHost},
    snapshot::{Snapshot, Target},
};
use std::sync::Arc;
use tokio::time::Instant;

/// Clusters, and assignments.
const MANY: usize = 10 * Budget::SLICE;

/// A client of one server, which watches a target with so many clusters.
struct Client {
    core: Core,
    caches: Vec<Cache>,
    server: ServerId,
    /// Of the last turn.
    slices: usize,
    requests: Vec<Request>,
    target: Option<Target>,
}

impl Client {
    fn new(server: fn(XdsServer) -> XdsServer) -> Self {
        let bootstrap = Bootstrap::builder().server(server(XdsServer::new(InProcess::new("cp").0))).build();
        let bootstrap = bootstrap.expect("one server is enough");
        let (server, _) = bootstrap.servers().next().expect("there is one");
        let caches = vec![Cache::new("n", &[])];
        let core = Core::new(Arc::new(bootstrap));
        let mut client = Self { core, caches, server, slices: 0, requests: Vec::new(), target: None };
        let subject = Subject::Target { listener: "l".into(), authority: "any".into() };
        client.turn(Input::Added(TargetId(1), subject));
        client.turn(Input::Connected(server));
        client.gets("1", vec![plain(Kind::Listener, "l")]);
        client
    }

    /// One that has its routes and waits for clusters.
    fn with_routes(server: fn(XdsServer) -> XdsServer) -> Self {
        let mut client = Self::new(server);
        client.gets("2", vec![routes()]);
        client
    }

    fn turn(&mut self, input: Input) {
        let now = Instant::now();
        let mut values = self.core.turn(&mut self.caches, input, now);
        self.slices = 1;
        while self.core.is_under_way() {
            assert!(values.is_empty(), "published before the end: {values:?}");
            values = self.core.go_on(&mut self.caches, now);
            self.slices += 1;
        }
        self.requests = self.core.take_requests(self.server);
        for (_, value) in values {
            let Value::Target(target) = value else { panic!("{value:?}") };
            self.target = Some(target);
        }
    }

    /// A response, whose version is its nonce.
    fn gets(&mut self, nonce: &str, resources: Vec<Received>) {
        let kind = match resources.first().map(|received| &received.value) {
            Some(Ok(resource)) => resource.kind(),
            _ => Kind::Cluster,
        };
        let (removed, errors) = (Vec::new(), Vec::new());
        let response = Response { kind, version: nonce.into(), nonce: nonce.into(), resources, removed, errors };
        self.turn(Input::Received(self.server, response));
    }

    fn snapshot(&self) -> &Arc<Snapshot> {
        match &self.target {
            Some(Target::Ready(snapshot)) => snapshot,
            other => panic!("{other:?}"),
        }
    }

    /// The answer to a response, and the names that are asked for besides.
    #[track_caller]
    fn answer_and_names(&self) -> (Option<&str>, usize) {
        let [answer, more @ ..] = &*self.requests else { panic!("no answer") };
        assert!(!answer.nonce.is_empty() && more.len() <= 1, "{:?}", self.requests);
        let names = more.first().map(|request| match &request.asks {
            Asks::All { names, .. } => names.len(),
            Asks::Change { subscribe, .. } => subscribe.len(),
        });
        (answer.nack.as_deref(), names.unwrap_or_default())
    }
}

fn name(n: usize) -> String {
    format!("c{n:05}")
}

fn received(name: &str, value: Result<Resource, Invalid>) -> Received {
    Received { name: Some(name.to_owned()), value, version: None, ignored: Vec::new(), raw: bytes::Bytes::new() }
}

/// As the simulation has it.
fn plain(kind: Kind, name: &str) -> Received {
    received(name, resource(kind, name, 0))
}

/// To all clusters.
fn routes() -> Received {
    let Ok(Resource::RouteConfig(config)) = resource(Kind::RouteConfig, "l", 0) else { panic!("routes are routes") };
    let routes = (0..MANY).map(|n| route(ClusterName::new(name(n)))).collect();
    let host = VirtualHost { routes, ..VirtualHost::clone(&config.virtual_hosts[0]) };
    let config = RouteConfig { virtual_hosts: vec![Arc::new(host)], ..RouteConfig::clone(&config) };
    received("l", Ok(Resource::RouteConfig(Arc::new(config))))
}

fn cluster(n: usize) -> Received {
    plain(Kind::Cluster, &name(n))
}

fn assignment(n: usize) -> Received {
    plain(Kind::Endpoints, &name(n))
}

/// At least one slice for what came, and not many more for all that follows from it.
#[track_caller]
fn is_in_proportion(slices: usize) {
    assert!((MANY / Budget::SLICE..8 * MANY / Budget::SLICE).contains(&slices), "{slices} slices");
}

#[test]
fn a_start_is_done_in_slices_and_each_turn_tells_new_names_once() {
    for server in [|server| server, XdsServer::delta] {
        let mut client = Client::with_routes(server);
        is_in_proportion(client.slices);
        assert_eq!(client.answer_and_names(), (None, MANY));
        client.gets("3", (0..MANY).map(cluster).collect());
        is_in_proportion(client.slices);
        assert_eq!(client.answer_and_names(), (None, MANY));
        client.gets("4", (0..MANY).map(assignment).collect());
        is_in_proportion(client.slices);
        assert_eq!(client.answer_and_names(), (None, 0));
        assert_eq!(client.snapshot().clusters.len(), MANY);
    }
}

#[test]
fn a_refusal_early_in_a_response_is_told_at_its_end_and_its_siblings_are_taken() {
    let mut client = Client::with_routes(|server| server);
    let bad = received(&name(0), Err(Invalid::new("odd")));
    client.gets("3", std::iter::once(bad).chain((1..MANY).map(cluster)).collect());
    assert_eq!(client.answer_and_names(), (Some("Cluster \"c00000\": odd"), MANY - 1));
}

#[test]
fn what_a_long_response_leaves_out_is_known_at_its_end() {
    let mut client = Client::with_routes(|server| server);
    client.gets("3", (0..MANY).map(cluster).collect());
    client.gets("4", (0..MANY).map(assignment).collect());
    let before = Arc::clone(client.snapshot());
    client.gets("5", (MANY / 2..MANY).map(cluster).collect());
    is_in_proportion(client.slices);
    assert_eq!(client.answer_and_names(), (None, 0));
    // They are kept, with a note (A88); the others are the very same.
    let is_same = |n: &usize| Arc::ptr_eq(&before.clusters[&*name(*n)], &client.snapshot().clusters[&*name(*n)]);
    assert_eq!((0..MANY).filter(is_same).collect::<Vec<_>>(), (MANY / 2..MANY).collect::<Vec<_>>());
}

#[test]
fn what_is_small_is_one_slice() {
    let client = Client::new(|server| server);
    assert_eq!(client.slices, 1);
}
