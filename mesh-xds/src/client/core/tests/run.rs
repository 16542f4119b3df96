//! A client, its control planes, what lies between them, and what must hold at every step.
//!
//! What must hold once nothing moves any more is `rest`'s. It does NOT choose what happens.

use super::{
    checks,
    lookups::Lookups,
    script::{Setting, Step},
    servers::Server,
    world::{AUTHORITIES, NAMES, World, spelled},
};
use crate::{
    Authority, Bootstrap, InProcess, XdsServer,
    ads::{Asks, Protocol, Request},
    assemble::{Subject, TargetId, Value},
    bootstrap::ServerId,
    cache::Cache,
    client::core::{Core, Input},
    name::canonical,
    resource::{ByKind, Kind, Received},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Part of every reason for which a control plane is away.
pub(super) const OUTAGE: &str = "outage";

pub(super) struct Run {
    pub(super) setting: Setting,
    pub(super) core: Core,
    pub(super) caches: Vec<Cache>,
    pub(super) ids: Vec<ServerId>,
    pub(super) now: Instant,
    next_id: u64,
    pub(super) subjects: BTreeMap<TargetId, (Subject, Option<Value>)>,
    pub(super) worlds: Vec<World>,
    pub(super) links: Vec<Option<Link>>,
    pub(super) lookups: Lookups,
    /// Whether the task that dials a server has been started.
    dials: Vec<bool>,
}

/// One stream, and what is under way on it.
pub(super) struct Link {
    pub(super) server: Server,
    /// Made, and not taken by the transport.
    outbox: VecDeque<Request>,
    /// Taken, and the client has not heard.
    taken: VecDeque<(Kind, u64)>,
    /// Taken, and not read by the server.
    inbox: VecDeque<Request>,
    /// Of the newest response that was delivered.
    newest: ByKind<Arc<str>>,
    answered: bool,
}

impl Run {
    pub(super) fn new(setting: Setting) -> Self {
        let server = |manners: &super::script::Manners| {
            let server = XdsServer::new(InProcess::new("simulated").0);
            let server = if manners.delta { server.delta() } else { server };
            if setting.fail_on_data_errors { server.feature("fail_on_data_errors") } else { server }
        };
        let servers: Vec<XdsServer> = setting.servers.iter().map(server).collect();
        let [top, named @ ..] = setting.lists;
        let of = |list: &'static [usize]| list.iter().map(|server| servers[*server].clone());
        let builder = of(top).fold(Bootstrap::builder().node_id("n"), |builder, server| builder.server(server));
        let builder = AUTHORITIES.into_iter().zip(named).fold(builder, |builder, (name, list)| {
            builder.authority(name, of(list).fold(Authority::default(), Authority::server))
        });
        let bootstrap = builder.build().expect("a bootstrap with servers");
        let ids: Vec<_> = bootstrap.servers().map(|(id, _)| id).collect();
        let caches = bootstrap.servers().map(|(_, server)| Cache::new("n", &server.features)).collect();
        let mut core = Core::new(Arc::new(bootstrap));
        core.slice = setting.slice;
        Self {
            setting,
            caches,
            core,
            now: Instant::now(),
            next_id: 0,
            subjects: BTreeMap::new(),
            worlds: ids.iter().map(|_| World::new()).collect(),
            links: ids.iter().map(|_| None).collect(),
            lookups: Lookups::default(),
            dials: ids.iter().map(|_| false).collect(),
            ids,
        }
    }

    pub(super) fn happens(&mut self, step: Step) {
        // A bootstrap with one server has no second one for anything to happen to.
        let of = |server: usize| server % self.ids.len();
        match step {
            Step::Push { server, kind, name, number } => {
                let server = of(server);
                self.worlds[server].insert((kind, name), number);
                self.tell(server, kind);
            }
            Step::Lose { server, kind, name, tell } => {
                let server = of(server);
                self.worlds[server].remove(&(kind, name));
                if tell {
                    self.tell(server, kind);
                }
            }
            Step::Watch { name } => {
                // As the handles do.
                let spelled = spelled(name, self.subjects.len());
                self.watch(Subject::Target { listener: canonical(&spelled).into(), authority: "any".into() });
            }
            Step::WatchResource { kind, name } => self.watch(Subject::Resource(kind, name.into())),
            Step::Unwatch { nth } => drop(self.unwatch_nth(nth)),
            Step::Blink { nth } => {
                if let Some(subject) = self.unwatch_nth(nth) {
                    self.watch(subject);
                }
            }
            Step::Dial { server } => self.dial(of(server)),
            Step::Refuse { server } => self.refuse(of(server)),
            Step::Cut { server, flapping } => self.cut(of(server), flapping),
            Step::Take { server } => drop(self.take(of(server))),
            Step::Taken { server } => drop(self.taken(of(server))),
            Step::Read { server } => drop(self.read(of(server))),
            Step::Deliver { server, nth } => drop(self.deliver(of(server), nth)),
            Step::Dns { host, number } => drop(self.lookups.world.insert(host, number)),
            Step::Resolve { nth } => drop(self.lookups.resolve(nth, self.now)),
            Step::Hear => drop(self.hear()),
            Step::EndpointFails { nth } => self.lookups.endpoint_fails(nth, self.now),
            Step::Wait { seconds } => self.wait_until(self.now + Duration::from_secs(seconds)),
        }
    }

    pub(super) fn watch(&mut self, subject: Subject) {
        // The driver gives watchers of one subject one id.
        if self.subjects.values().any(|(known, _)| *known == subject) {
            return;
        }
        self.next_id += 1;
        let id = TargetId(self.next_id);
        self.subjects.insert(id, (subject.clone(), None));
        self.turn(Input::Added(id, subject));
    }

    fn unwatch_nth(&mut self, nth: usize) -> Option<Subject> {
        let nth = nth % self.subjects.len().max(1);
        let (id, subject) = self.subjects.iter().nth(nth).map(|(id, (subject, _))| (*id, subject.clone()))?;
        self.unwatch(id);
        Some(subject)
    }

    pub(super) fn unwatch(&mut self, id: TargetId) {
        self.subjects.remove(&id);
        self.turn(Input::Removed(id));
    }

    pub(super) fn tell(&mut self, server: usize, kind: Kind) {
        if let Some(link) = &mut self.links[server] {
            link.server.tells(kind, &self.worlds[server]);
        }
    }

    pub(super) fn protocol(&self, server: usize) -> &Protocol {
        &self.core.protocols[server]
    }

    // === The wire ===

    /// Whether the server would be dialled now.
    pub(super) fn is_wanted(&self, server: usize) -> bool {
        self.dials[server] && self.links[server].is_none() && self.core.wants_stream(self.ids[server])
    }

    pub(super) fn dial(&mut self, server: usize) {
        if self.is_wanted(server) {
            let answers_for = |name: &&'static str| self.setting.servers_of(name).contains(&server);
            let names = NAMES.into_iter().filter(answers_for).collect();
            self.links[server] = Some(Link {
                server: Server::new(self.setting.servers[server], names),
                outbox: VecDeque::new(),
                taken: VecDeque::new(),
                inbox: VecDeque::new(),
                newest: ByKind::default(),
                answered: false,
            });
            self.turn(Input::Connected(self.ids[server]));
        } else {
            self.idle(server);
        }
    }

    /// Nothing is subscribed there, so nobody dials.
    fn idle(&mut self, server: usize) {
        if self.dials[server] && self.links[server].is_none() && !self.core.wants_stream(self.ids[server]) {
            self.turn(Input::Idle(self.ids[server]));
        }
    }

    pub(super) fn wait_until(&mut self, then: Instant) {
        self.now = then;
        self.lookups.start(then);
        self.turn(Input::TimerFired);
    }

    pub(super) fn refuse(&mut self, server: usize) {
        if self.is_wanted(server) {
            self.turn(Input::Disconnected { server: self.ids[server], cause: Some(OUTAGE.to_owned()) });
        } else {
            self.idle(server);
        }
    }

    pub(super) fn cut(&mut self, server: usize, flapping: bool) {
        if let Some(link) = self.links[server].take() {
            let cause = (!link.answered || flapping).then(|| OUTAGE.to_owned());
            self.turn(Input::Disconnected { server: self.ids[server], cause });
        }
    }

    pub(super) fn take(&mut self, server: usize) -> bool {
        let Some(link) = &mut self.links[server] else { return false };
        let Some(request) = link.outbox.pop_front() else { return false };
        link.taken.push_back((request.kind, request.serial));
        link.inbox.push_back(request);
        true
    }

    pub(super) fn taken(&mut self, server: usize) -> bool {
        let Some((kind, serial)) = self.links[server].as_mut().and_then(|link| link.taken.pop_front()) else {
            return false;
        };
        self.turn(Input::Sent { server: self.ids[server], kind, serial });
        true
    }

    pub(super) fn read(&mut self, server: usize) -> bool {
        let Some(link) = &mut self.links[server] else { return false };
        let Some(request) = link.inbox.pop_front() else { return false };
        link.server.hears(&request, &self.worlds[server]);
        true
    }

    pub(super) fn deliver(&mut self, server: usize, nth: usize) -> bool {
        let id = self.ids[server];
        let Some(link) = &mut self.links[server] else { return false };
        let Some(response) = link.server.next(nth) else { return false };
        link.answered = true;
        *link.newest.of(response.kind) = Arc::clone(&response.nonce);
        let (kind, nonce, before) = (response.kind, Arc::clone(&response.nonce), link.outbox.len());
        let is_bad = |received: &Received| {
            let is_subscribed = |name: &String| self.protocol(server).is_subscribed(kind, name);
            received.value.is_err() && received.name.as_ref().is_some_and(is_subscribed)
        };
        let bad = response.resources.iter().any(is_bad);
        self.turn(Input::Received(id, response));
        // The answer comes in the same turn, before anything else about this type.
        let link = self.links[server].as_ref().expect("a response ends no stream");
        let answer = link.outbox.iter().skip(before).find(|request| request.kind == kind).expect("an answer");
        assert_eq!((&answer.nonce, answer.nack.is_some()), (&nonce, bad), "{answer:?}");
        true
    }

    /// The client hears of a lookup.
    pub(super) fn hear(&mut self) -> bool {
        let answered = self.lookups.next();
        answered.is_some_and(|answered| {
            self.turn(Input::Answered(answered));
            true
        })
    }

    fn turn(&mut self, input: Input) {
        let values = self.slices(input);
        self.lookups.told(self.core.take_names(), self.now);
        self.told(values);
        for (server, id) in self.ids.clone().into_iter().enumerate() {
            // As the driver does: a fallback that nothing needs any more is left.
            let wanted = self.core.wants_stream(id);
            if !wanted && !self.setting.is_preferred(server) && std::mem::take(&mut self.dials[server]) {
                self.links[server] = None;
                for input in [Input::Disconnected { server: id, cause: None }, Input::Idle(id)] {
                    let values = self.slices(input);
                    self.lookups.told(self.core.take_names(), self.now);
                    assert!(values.is_empty(), "nobody needs it: {values:?}");
                }
            }
            self.dials[server] |= wanted;
            let requests = self.core.take_requests(id);
            if let Some(link) = &mut self.links[server] {
                link.make(requests);
            }
        }
        self.no_timer_for_what_is_held();
    }

    /// A turn, in as many slices as it takes.
    fn slices(&mut self, input: Input) -> Vec<(TargetId, Value)> {
        let mut values = self.core.turn(&mut self.caches, input, self.now);
        for slice in 0.. {
            if !self.core.is_under_way() {
                break;
            }
            assert!(
                slice < 10_000 && values.is_empty(),
                "a turn for ever, or one that speaks before its end: {values:?}"
            );
            values = self.core.go_on(&mut self.caches, self.now);
        }
        values
    }

    fn told(&mut self, values: Vec<(TargetId, Value)>) {
        for (id, value) in values {
            let (_, current) = self.subjects.get_mut(&id).expect("nothing is told to those who left");
            let before = current.replace(value.clone());
            checks::may_follow(before.as_ref(), &value, self.setting, &self.caches);
        }
    }

    fn no_timer_for_what_is_held(&self) {
        for (server, cache) in self.caches.iter().enumerate() {
            for (kind, name) in self.protocol(server).timed() {
                assert!(!cache.holds(kind, name), "a timer runs for {kind} {name:?}, which is held");
            }
        }
    }
}

impl Link {
    fn make(&mut self, requests: Vec<Request>) {
        for request in requests {
            let newest = self.newest.of(request.kind);
            match &request.asks {
                Asks::All { .. } => assert_eq!(request.nonce, *newest, "the newest nonce, always"),
                Asks::Change { .. } => assert!(request.nonce.is_empty() || request.nonce == *newest, "{request:?}"),
            }
            self.outbox.push_back(request);
        }
    }
}
