//! A client, its control planes, what lies between them, and what must hold at every step.

use super::{
    checks,
    script::{Setting, Step},
    servers::Server,
    world::{NAMES, World},
};
use crate::{
    Bootstrap, InProcess, XdsServer,
    ads::{Asks, Protocol, Request},
    assemble::{Subject, TargetId, Value},
    bootstrap::ServerId,
    cache::Cache,
    client::core::{Core, Input},
    resource::{ByKind, Kind, Received},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
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
    ids: Vec<ServerId>,
    now: Instant,
    next_id: u64,
    pub(super) subjects: BTreeMap<TargetId, (Subject, Option<Value>)>,
    pub(super) worlds: Vec<World>,
    pub(super) links: Vec<Option<Link>>,
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
        let servers = setting.servers.iter().take(setting.count).map(server);
        let builder = servers.fold(Bootstrap::builder().node_id("n"), |builder, server| builder.server(server));
        let bootstrap = builder.build().expect("a bootstrap with servers");
        let ids: Vec<_> = bootstrap.servers().map(|(id, _)| id).collect();
        let caches = bootstrap.servers().map(|(_, server)| Cache::new("n", &server.features));
        Self {
            setting,
            caches: caches.collect(),
            core: Core::new(Arc::new(bootstrap)),
            now: Instant::now(),
            next_id: 0,
            subjects: BTreeMap::new(),
            worlds: ids.iter().map(|_| World::new()).collect(),
            links: ids.iter().map(|_| None).collect(),
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
                self.watch(Subject::Target { listener: name.into(), authority: "any".into() });
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
            Step::Wait { seconds } => {
                self.now += Duration::from_secs(seconds);
                self.turn(Input::TimerFired);
            }
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

    fn tell(&mut self, server: usize, kind: Kind) {
        if let Some(link) = &mut self.links[server] {
            link.server.tells(kind, &self.worlds[server]);
        }
    }

    fn protocol(&self, server: usize) -> &Protocol {
        &self.core.protocols[server]
    }

    // === The wire ===

    /// Whether the server would be dialled now.
    fn is_wanted(&self, server: usize) -> bool {
        self.dials[server] && self.links[server].is_none() && self.core.wants_stream(self.ids[server])
    }

    fn dial(&mut self, server: usize) {
        if self.is_wanted(server) {
            self.links[server] = Some(Link {
                server: Server::new(self.setting.servers[server]),
                outbox: VecDeque::new(),
                taken: VecDeque::new(),
                inbox: VecDeque::new(),
                newest: ByKind::default(),
                answered: false,
            });
            self.turn(Input::Connected(self.ids[server]));
        }
    }

    fn refuse(&mut self, server: usize) {
        if self.is_wanted(server) {
            self.turn(Input::Disconnected { server: self.ids[server], cause: Some(OUTAGE.to_owned()) });
        }
    }

    fn cut(&mut self, server: usize, flapping: bool) {
        if let Some(link) = self.links[server].take() {
            let cause = (!link.answered || flapping).then(|| OUTAGE.to_owned());
            self.turn(Input::Disconnected { server: self.ids[server], cause });
        }
    }

    fn take(&mut self, server: usize) -> bool {
        let Some(link) = &mut self.links[server] else { return false };
        let Some(request) = link.outbox.pop_front() else { return false };
        link.taken.push_back((request.kind, request.serial));
        link.inbox.push_back(request);
        true
    }

    fn taken(&mut self, server: usize) -> bool {
        let Some((kind, serial)) = self.links[server].as_mut().and_then(|link| link.taken.pop_front()) else {
            return false;
        };
        self.turn(Input::Sent { server: self.ids[server], kind, serial });
        true
    }

    fn read(&mut self, server: usize) -> bool {
        let Some(link) = &mut self.links[server] else { return false };
        let Some(request) = link.inbox.pop_front() else { return false };
        link.server.hears(&request, &self.worlds[server]);
        true
    }

    fn deliver(&mut self, server: usize, nth: usize) -> bool {
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

    fn turn(&mut self, input: Input) {
        let values = self.core.turn(&mut self.caches, input, self.now);
        self.told(values);
        for (server, id) in self.ids.clone().into_iter().enumerate() {
            // As the driver does: a fallback that nothing needs any more is left.
            let wanted = self.core.wants_stream(id);
            if !wanted && server > 0 && std::mem::take(&mut self.dials[server]) {
                self.links[server] = None;
                for input in [Input::Disconnected { server: id, cause: None }, Input::Idle(id)] {
                    let values = self.core.turn(&mut self.caches, input, self.now);
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

    // === The end ===

    /// Everything arrives, and the timers of what does not exist fire.
    pub(super) fn come_to_rest(&mut self, reachable: [bool; 2]) {
        // Long enough for any chain of timers; who needs more goes round in circles.
        for _ in 0..100 {
            for (server, reachable) in reachable.into_iter().enumerate().take(self.ids.len()) {
                if reachable {
                    self.dial(server);
                } else {
                    self.cut(server, true);
                    self.refuse(server);
                }
            }
            let mut steps = 0;
            while (0..self.ids.len())
                .any(|server| self.take(server) || self.taken(server) || self.read(server) || self.deliver(server, 0))
            {
                steps += 1;
                assert!(steps < 10_000, "client and server talk for ever");
            }
            let is_wanted = (0..self.ids.len()).any(|server| reachable[server] && self.is_wanted(server));
            match self.core.next_deadline() {
                Some(deadline) => {
                    self.now = deadline;
                    self.turn(Input::TimerFired);
                }
                None if is_wanted => {}
                None => return self.is_at_rest(reachable),
            }
        }
        panic!("no rest");
    }

    fn is_at_rest(&self, reachable: [bool; 2]) {
        for (server, link) in self.links.iter().enumerate() {
            let Some(link) = link else { continue };
            assert!(reachable[server]);
            assert_eq!(link.server.unanswered, BTreeSet::new(), "every response is answered");
            for kind in Kind::ALL {
                let names = self.protocol(server).subscribed(kind);
                assert_eq!(link.server.names(kind), names, "no name is lost: {kind} at server {server}");
                for name in names {
                    checks::is_delivered(&self.caches[server], &self.worlds[server], kind, &name);
                }
            }
        }
        for (subject, value) in self.subjects.values() {
            checks::is_settled(subject, value.as_ref());
        }
    }

    /// Both control planes have this, whole and good.
    pub(super) fn all_is_well(&mut self, worlds: &[World]) {
        for (server, world) in worlds.iter().enumerate().take(self.ids.len()) {
            self.worlds[server].clone_from(world);
            for kind in Kind::ALL {
                self.tell(server, kind);
            }
        }
        self.come_to_rest([true; 2]);
    }

    /// Everybody is away, and back, and nothing has changed.
    pub(super) fn an_outage_passes(&mut self) {
        self.come_to_rest([false; 2]);
        self.come_to_rest([true; 2]);
    }

    /// What every subject came to.
    pub(super) fn outcomes(&self) -> BTreeMap<String, String> {
        let outcome =
            |(subject, value): &(Subject, Option<Value>)| (format!("{subject:?}"), checks::outcome(value.as_ref()));
        self.subjects.values().map(outcome).collect()
    }

    /// When nobody watches, nothing but lingering names is left.
    pub(super) fn ends_with_nothing(&mut self) {
        let all: Vec<_> = self.subjects.keys().copied().collect();
        all.into_iter().for_each(|id| self.unwatch(id));
        for kind in Kind::ALL {
            for server in 0..self.ids.len() {
                let left = self.protocol(server).subscribed(kind);
                assert!(left.len() <= usize::from(server == 0 && kind.is_full_state()), "server {server}: {left:?}");
                let held = NAMES.iter().filter(|name| self.caches[server].holds(kind, name)).count();
                assert!(held <= left.len(), "server {server}: {kind} is held by nobody");
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
