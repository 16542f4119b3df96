//! Seeded simulations: one client against a model of a control plane with istiod's manners, in thousands of
//! interleavings of pushes, deletions, bad resources, withheld answers, cuts, watches and clock steps.

use super::*;
use crate::resource::{
    Addresses, ByKind, Cluster, ClusterLoadAssignment, ClusterName, ClusterSpecifier, Discovery, Domain, Endpoint,
    Forward, Health, HttpConnectionManager, HttpProtocol, Invalid, LbPolicy, Listener, ListenerKind, Locality,
    PathMatch, Resource, Route, RouteAction, RouteConfig, RouteMatch, RouteSource, TransportSocket, VirtualHost,
};
use crate::{
    InProcess,
    ads::{Asks, Request},
    snapshot::{ResolvedCluster, Snapshot, Target},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

/// What the control plane has: a number per name, odd for a refused resource, which decides the content.
type World = BTreeMap<(Kind, String), u32>;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Part of every reason for which the control plane is away.
const OUTAGE: &str = "outage";

/// The resource that `number` stands for. A listener refers to its routes, or to others when the number is large,
/// routes to clusters by the bits of the number.
fn resource(kind: Kind, name: &str, number: u32) -> Result<Resource, Invalid> {
    if number % 2 == 1 {
        return Err(Invalid::new("odd").within("number"));
    }
    let owned = || name.to_owned();
    Ok(match kind {
        Kind::Listener => {
            let other = NAMES[number as usize % NAMES.len()].to_owned();
            let http = HttpConnectionManager {
                routes: RouteSource::Rds(if number < 24 { owned() } else { other }),
                max_stream_duration: Some(Duration::from_secs(u64::from(number))),
                filters: Vec::new(),
            };
            Resource::Listener(Arc::new(Listener { name: owned(), kind: ListenerKind::Api(http) }))
        }
        Kind::RouteConfig => {
            let clusters = NAMES.iter().enumerate().filter(|(bit, _)| number >> (bit + 1) & 1 == 1);
            let routes = clusters.map(|(_, cluster)| route((*cluster).into())).collect();
            let host = VirtualHost { name: owned(), domains: vec![Domain::Any], routes };
            Resource::RouteConfig(Arc::new(RouteConfig { name: owned(), virtual_hosts: vec![Arc::new(host)] }))
        }
        Kind::Cluster => Resource::Cluster(Arc::new(Cluster {
            name: name.into(),
            discovery: Discovery::Eds { service_name: owned() },
            lb_policy: LbPolicy::RoundRobin,
            transport_socket: TransportSocket::Plaintext,
            http_protocol: HttpProtocol::Unspecified,
            max_requests: Some(number),
            load_reporting: None,
            connect_timeout: None,
        })),
        Kind::Endpoints => {
            let endpoint = |port: u32| Endpoint {
                addresses: Addresses::one(([10, 0, 0, 1], port as u16).into()),
                health: Health::Healthy,
                weight: 1,
                hostname: None,
            };
            let endpoints = (0..number % 8).map(endpoint).collect();
            let locality = Locality { id: Arc::default(), weight: 1, endpoints };
            let priorities = vec![vec![locality]];
            Resource::Endpoints(Arc::new(ClusterLoadAssignment { name: owned(), priorities, drops: Vec::new() }))
        }
        Kind::Other(_) => unreachable!("the world has none"),
    })
}

fn route(cluster: ClusterName) -> Route {
    let path = PathMatch::Prefix { value: String::new(), ignore_case: false };
    let forward = Forward {
        cluster: ClusterSpecifier::Cluster(cluster),
        timeout: None,
        max_stream_duration: None,
        grpc_timeout_header_max: None,
        retry_policy: None,
    };
    Route {
        name: String::new(),
        matches: RouteMatch { path, headers: Vec::new(), fraction: None },
        action: RouteAction::Forward(forward),
    }
}

/// A control plane as istiod is: stale nonces are dropped, a NACK does not change the subscription, LDS and CDS
/// answer with the full set, RDS and EDS with what changed.
#[derive(Default)]
struct Server {
    types: ByKind<Served>,
    nonces: u32,
    /// Responses that are on their way.
    wire: VecDeque<Response>,
    /// Nonces that have not been answered.
    unanswered: BTreeSet<String>,
    saw_node: bool,
}

#[derive(Default)]
struct Served {
    names: BTreeSet<String>,
    /// The list of the last request, accepted or not.
    said: BTreeSet<String>,
    nonce: String,
    told: BTreeMap<String, u32>,
}

impl Server {
    fn hears(&mut self, request: &Request, world: &World) {
        assert_eq!(request.with_node, !self.saw_node, "node in the first request only");
        self.saw_node = true;
        let names = listed(request);
        assert!(!(names.is_empty() && request.kind.is_full_state()), "an empty LDS or CDS list is a wildcard");
        self.unanswered.remove(&*request.nonce);
        let served = self.types.of(request.kind);
        if *request.nonce != served.nonce || request.nack.is_some() {
            return;
        }
        let new = names.difference(&served.names).next().is_some();
        served.told.retain(|name, _| names.contains(name));
        served.names = names;
        if new {
            self.push(request.kind, world);
        }
    }

    fn push(&mut self, kind: Kind, world: &World) {
        let served = self.types.of(kind);
        let wanted = served.names.iter().filter_map(|name| Some((name, *world.get(&(kind, name.clone()))?)));
        let due: Vec<_> = wanted
            .filter(|(name, number)| kind.is_full_state() || served.told.get(*name) != Some(number))
            .map(|(name, number)| (name.clone(), number))
            .collect();
        if served.names.is_empty() || (due.is_empty() && !kind.is_full_state()) {
            return;
        }
        served.told.extend(due.iter().cloned());
        self.nonces += 1;
        served.nonce = self.nonces.to_string();
        self.unanswered.insert(served.nonce.clone());
        let received = |(name, number): (String, u32)| {
            let value = resource(kind, &name, number);
            Received { name: Some(name), value, version: None, ignored: Vec::new(), raw: bytes::Bytes::new() }
        };
        self.wire.push_back(Response {
            kind,
            version: served.nonce.as_str().into(),
            nonce: served.nonce.as_str().into(),
            resources: due.into_iter().map(received).collect(),
            removed: Vec::new(),
            errors: Vec::new(),
        });
    }
}

/// The names of a SotW request.
fn listed(request: &Request) -> BTreeSet<String> {
    let Asks::All { names, .. } = &request.asks else { panic!("the server speaks SotW: {request:?}") };
    names.iter().map(|name| name.to_string()).collect()
}

/// A client, the control plane, and what lies between them.
struct Simulation {
    core: Core,
    caches: Vec<Cache>,
    /// The only one.
    id: ServerId,
    now: Instant,
    targets: BTreeMap<TargetId, Target>,
    requests: VecDeque<Request>,
    server: Option<Server>,
}

impl Simulation {
    fn new() -> Self {
        let bootstrap = Bootstrap::builder().server(InProcess::new("cp").0).build().expect("one server is enough");
        let id = bootstrap.servers().map(|(id, _)| id).next().expect("there is one");
        Self {
            id,
            core: Core::new(Arc::new(bootstrap)),
            caches: vec![Cache::new("n", &[])],
            now: Instant::now(),
            targets: BTreeMap::new(),
            requests: VecDeque::new(),
            server: None,
        }
    }

    fn turn(&mut self, input: Input) {
        for (id, value) in self.core.turn(&mut self.caches, input, self.now) {
            let Value::Target(target) = value else { panic!("no resource is watched by itself") };
            match (&target, self.targets.get(&id)) {
                (Target::Ready(new), Some(Target::Ready(old))) => {
                    assert_complete(new);
                    assert_no_outage_came_in(old, new);
                }
                (Target::Ready(new), _) => assert_complete(new),
                (Target::Failed(text), Some(Target::Ready(_))) => {
                    assert!(!text.contains(OUTAGE), "an outage takes nothing away: {text}");
                }
                (Target::Pending { missing }, Some(Target::Ready(_))) => {
                    panic!("the old serves until the new is complete: {missing}");
                }
                _ => {}
            }
            self.targets.insert(id, target);
        }
        self.requests.extend(self.core.take_requests(self.id));
    }

    fn watch(&mut self, id: TargetId, name: &str) {
        self.targets.insert(id, Target::Pending { missing: Arc::default() });
        self.turn(Input::Added(id, Subject::Target { listener: name.into(), authority: "any".into() }));
    }

    fn unwatch(&mut self, id: TargetId) {
        self.targets.remove(&id);
        self.turn(Input::Removed(id));
    }

    fn connect(&mut self) {
        self.requests.clear();
        self.server = Some(Server::default());
        self.turn(Input::Connected(self.id));
    }

    fn disconnect(&mut self, cause: Option<&str>) {
        self.server = None;
        self.turn(Input::Disconnected { server: self.id, cause: cause.map(str::to_owned) });
        self.requests.clear();
    }

    /// The transport takes the oldest request and the server reads it.
    fn carry_request(&mut self, world: &World) -> bool {
        let (Some(server), Some(request)) = (&mut self.server, self.requests.pop_front()) else { return false };
        server.hears(&request, world);
        server.types.of(request.kind).said = listed(&request);
        self.turn(Input::Sent { server: self.id, kind: request.kind, serial: request.serial });
        true
    }

    fn carry_response(&mut self) -> bool {
        let Some(response) = self.server.as_mut().and_then(|server| server.wire.pop_front()) else { return false };
        self.turn(Input::Received(self.id, response));
        true
    }

    /// Everything changed is pushed, and arrives.
    fn push_all(&mut self, world: &World) {
        for kind in Kind::ALL {
            if let Some(server) = &mut self.server {
                server.push(kind, world);
            }
        }
        self.come_to_rest(world);
    }

    /// Everything arrives, and the timers of what does not exist fire.
    fn come_to_rest(&mut self, world: &World) {
        if self.server.is_none() {
            self.connect();
        }
        loop {
            while self.carry_request(world) || self.carry_response() {}
            let Some(deadline) = self.core.next_deadline() else { break };
            self.now = deadline;
            self.turn(Input::TimerFired);
        }
        let server = self.server.as_ref().expect("connected");
        assert!(server.unanswered.is_empty(), "every response is answered: {:?}", server.unanswered);
        for (_, served) in server.types.iter() {
            assert_eq!(served.names, served.said, "no name is lost");
        }
        for target in self.targets.values() {
            assert!(!matches!(target, Target::Pending { .. }), "nothing waits for ever: {target:?}");
        }
    }
}

/// A74: every cluster of the routes is there, resolved or failed, and none else.
fn assert_complete(snapshot: &Snapshot) {
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

/// "No outage of any length disturbs traffic that is already configured": nothing is switched to a cluster that is
/// only missing because the control plane is away.
fn assert_no_outage_came_in(old: &Snapshot, new: &Snapshot) {
    for (name, config) in &new.clusters {
        if let (false, Err(error)) = (old.clusters.contains_key(name), &config.state) {
            assert!(!error.0.contains(OUTAGE), "{error}");
        }
    }
}

/// What a target came to, without notes (their text tells history) and identities.
fn outcome(target: &Target) -> String {
    match target {
        Target::Pending { .. } => "pending".to_owned(),
        Target::Failed(_) => "failed".to_owned(),
        Target::Ready(snapshot) => {
            let cluster = |name: &ClusterName| match &snapshot.clusters[name].state {
                Ok(leaves) => {
                    let contents =
                        |leaf: &Arc<ResolvedCluster>| (Arc::clone(&leaf.cluster), Arc::clone(&leaf.endpoints));
                    (name.clone(), Some(leaves.iter().map(contents).collect::<Vec<_>>()))
                }
                Err(_) => (name.clone(), None),
            };
            let clusters: BTreeMap<_, _> = snapshot.clusters.keys().map(cluster).collect();
            format!("{:?} {:?} {clusters:?}", snapshot.http, snapshot.virtual_host)
        }
    }
}

fn random_number(random: &mut fastrand::Rng) -> u32 {
    // One in six is refused.
    random.u32(..32) / 2 * 2 + u32::from(random.u8(..6) == 0)
}

fn random_name(random: &mut fastrand::Rng) -> String {
    NAMES[random.usize(..NAMES.len())].to_owned()
}

fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut world = World::new();
    let mut simulation = Simulation::new();
    let id = simulation.id;
    let mut next = 0;
    for _ in 0..random.usize(20..200) {
        match random.u8(..14) {
            0..=2 => {
                let kind = Kind::ALL[random.usize(..4)];
                world.insert((kind, random_name(&mut random)), random_number(&mut random));
                if let Some(server) = &mut simulation.server {
                    server.push(kind, &world);
                }
            }
            3 => {
                // Withheld from now on, or deleted: the server's choice of pushing tells which.
                let kind = Kind::ALL[random.usize(..4)];
                world.remove(&(kind, random_name(&mut random)));
                if let Some(server) = &mut simulation.server
                    && random.bool()
                {
                    server.push(kind, &world);
                }
            }
            4 => {
                next += 1;
                simulation.watch(TargetId(next), &random_name(&mut random));
            }
            5 => {
                let all: Vec<_> = simulation.targets.keys().copied().collect();
                if let Some(id) = random.choice(all) {
                    simulation.unwatch(id);
                }
            }
            6 => match (&simulation.server, random.bool()) {
                (Some(_), true) => simulation.disconnect(random.bool().then_some(OUTAGE)),
                (Some(_), false) => {}
                (None, true) => simulation.connect(),
                (None, false) if random.bool() => simulation.turn(Input::Idle(id)),
                (None, false) => simulation.turn(Input::Disconnected { server: id, cause: Some(OUTAGE.to_owned()) }),
            },
            7 => {
                simulation.now += Duration::from_secs(random.u64(..20));
                simulation.turn(Input::TimerFired);
            }
            8..=10 => drop(simulation.carry_request(&world)),
            _ => drop(simulation.carry_response()),
        }
    }
    simulation.come_to_rest(&world);
    // The same world, complete and good, for this client and for one that knows nothing of the past.
    for kind in Kind::ALL {
        for name in NAMES {
            let number = random_number(&mut random) / 2 * 2;
            world.insert((kind, name.to_owned()), number);
        }
    }
    simulation.push_all(&world);
    let mut fresh = Simulation::new();
    fresh.connect();
    for (id, target) in &simulation.targets {
        if let Target::Ready(snapshot) = target {
            fresh.watch(*id, &snapshot.listener_name);
        }
    }
    fresh.come_to_rest(&world);
    for (id, target) in &simulation.targets {
        assert!(matches!(target, Target::Ready(_)), "{target:?}");
        assert_eq!(outcome(target), outcome(&fresh.targets[id]));
    }
    // When nobody watches, nothing but the lingering names is left.
    let all: Vec<_> = simulation.targets.keys().copied().collect();
    all.into_iter().for_each(|id| simulation.unwatch(id));
    let left = simulation.caches[0].status(&"s".into(), &crate::status::Clock::now());
    assert!(left.len() <= 2 && left.iter().all(|resource| resource.kind.is_full_state()), "{left:?}");
}

#[test]
fn any_interleaving_ends_like_a_fresh_client() {
    let runs = std::env::var("SIMULATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    for seed in 0..runs {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
