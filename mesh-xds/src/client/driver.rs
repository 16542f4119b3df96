//! The driver: one synchronous turn per event or command.
//!
//! ```text
//! event or command ─► protocol, cache ─► assembler.settle() ─► protocol.update() ─► requests
//!                                              └─► new Targets to their watchers
//! ```
//!
//! It joins the machines and logs; it decides nothing itself. It does NOT await anything inside a turn.

use super::{Shared, TargetName, lock};
use crate::{
    Bootstrap,
    ads::{Event, Protocol, Request, Response, StreamTask, Verdict},
    assemble::{Assembler, TargetId},
    bootstrap::Feature,
    cache::{Cache, Change},
    log::Limiter,
    resource::{Kind, Received},
    snapshot::Target,
    status::StreamState,
};
use rustc_hash::{FxHashMap, FxHashSet};
use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// A57's does-not-exist timer, and A88's for servers whose timer is transient.
const DOES_NOT_EXIST: Duration = Duration::from_secs(15);
const TRANSIENT: Duration = Duration::from_secs(30);
/// A NACK must fit into a request of any server.
const LONGEST_NACK: usize = 4096;

/// What handles ask for.
#[derive(Debug)]
pub(super) enum Command {
    Watch { id: WatchId, target: TargetName, sender: watch::Sender<Target> },
    Unwatch { id: WatchId },
}

/// Names a watch within one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WatchId(pub(super) u64);

pub(super) struct Driver {
    bootstrap: Arc<Bootstrap>,
    runtime: Handle,
    shared: Arc<Mutex<Shared>>,
    protocol: Protocol,
    assembler: Assembler,
    targets: Targets,
    /// One slot: see [`StreamTask`].
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    stream: Option<StreamTask>,
    /// Leads to the stream that is up.
    requests: Option<mpsc::UnboundedSender<Request>>,
    timeout: Duration,
    log: Limiter,
}

/// Who watches what.
#[derive(Debug, Default)]
struct Targets {
    by_name: FxHashMap<TargetName, TargetId>,
    by_watch: FxHashMap<WatchId, TargetId>,
    entries: FxHashMap<TargetId, Watched>,
    next: u64,
}

#[derive(Debug)]
struct Watched {
    name: TargetName,
    current: Option<Target>,
    watchers: FxHashMap<WatchId, watch::Sender<Target>>,
}

enum Input {
    Command(Command),
    Event(Event),
    TimerFired,
}

impl Driver {
    pub(super) fn new(bootstrap: Arc<Bootstrap>, shared: Arc<Mutex<Shared>>, runtime: Handle) -> Self {
        let features = bootstrap.servers.first().map(|server| server.features.as_slice()).unwrap_or_default();
        let transient = features.contains(&Feature::ResourceTimerIsTransient);
        let timeout = if transient { TRANSIENT } else { DOES_NOT_EXIST };
        Self {
            bootstrap,
            runtime,
            shared,
            protocol: Protocol::new(timeout),
            assembler: Assembler::default(),
            targets: Targets::default(),
            events: mpsc::channel(1),
            stream: None,
            requests: None,
            timeout,
            log: Limiter::default(),
        }
    }

    /// Runs until the last handle is dropped.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            let deadline = self.protocol.next_deadline();
            let timer = async move {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            // Not biased: neither a busy server nor a busy user may starve the other.
            let input = tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => Input::Command(command),
                    None => return,
                },
                Some(event) = self.events.1.recv() => Input::Event(event),
                () = timer => Input::TimerFired,
            };
            self.turn(input, Instant::now());
        }
    }

    fn turn(&mut self, input: Input, now: Instant) {
        let shared = Arc::clone(&self.shared);
        let mut shared = lock(&shared);
        match input {
            Input::Command(Command::Watch { id, target, sender }) => self.watch(id, target, sender),
            Input::Command(Command::Unwatch { id }) => self.unwatch(id),
            Input::Event(event) => self.event(event, &mut shared, now),
            Input::TimerFired => {
                for (kind, name) in self.protocol.expire(now) {
                    let change = shared.cache.timed_out(kind, &name, self.timeout);
                    self.changed(kind, &name, change, now);
                }
            }
        }
        let settled = self.assembler.settle(&shared.cache);
        for (kind, names) in &settled.watch {
            for name in names {
                shared.cache.requested(*kind, name);
            }
        }
        for kind in Kind::ALL {
            let of_kind = |all: &[(Kind, Vec<Arc<str>>)]| {
                all.iter().find(|(of, _)| *of == kind).map(|(_, names)| names.clone()).unwrap_or_default()
            };
            for name in self.protocol.update(kind, &of_kind(&settled.watch), &of_kind(&settled.unwatch)) {
                shared.cache.forget(kind, &name);
            }
        }
        drop(shared);
        for (id, target) in settled.publish {
            self.publish(id, target, now);
        }
        self.send();
    }

    fn send(&mut self) {
        if self.stream.is_none() && self.protocol.has_subscriptions() {
            let (events, seed) = (self.events.0.clone(), fastrand::u64(..));
            self.stream = Some(StreamTask::spawn(&self.runtime, Arc::clone(&self.bootstrap), 0, events, seed));
        }
        for request in self.protocol.take_requests() {
            if let Some(requests) = &self.requests {
                // A stream that has just ended does not take it; its end is on the way to us.
                let _ = requests.send(request);
            }
        }
    }

    // === Watches ===

    fn watch(&mut self, id: WatchId, name: TargetName, sender: watch::Sender<Target>) {
        let target = *self.targets.by_name.entry(name.clone()).or_insert_with(|| {
            self.targets.next += 1;
            let target = TargetId(self.targets.next);
            self.assembler.add(target, Arc::clone(&name.listener), Arc::clone(&name.authority));
            target
        });
        let watched = self.targets.entries.entry(target);
        let watched = watched.or_insert_with(|| Watched { name, current: None, watchers: FxHashMap::default() });
        if let Some(current) = &watched.current {
            sender.send_replace(current.clone());
        }
        watched.watchers.insert(id, sender);
        self.targets.by_watch.insert(id, target);
    }

    fn unwatch(&mut self, id: WatchId) {
        let Some(target) = self.targets.by_watch.remove(&id) else { return };
        let Some(watched) = self.targets.entries.get_mut(&target) else { return };
        watched.watchers.remove(&id);
        if watched.watchers.is_empty()
            && let Some(watched) = self.targets.entries.remove(&target)
        {
            self.targets.by_name.remove(&watched.name);
            self.assembler.remove(target);
        }
    }

    fn publish(&mut self, id: TargetId, target: Target, now: Instant) {
        let Some(watched) = self.targets.entries.get_mut(&id) else { return };
        let listener = &watched.name.listener;
        if let Some(suppressed) = self.log.permit(now) {
            match &target {
                Target::Ready(snapshot) => tracing::info!(
                    %listener,
                    generation = snapshot.generation,
                    clusters = snapshot.clusters.len(),
                    suppressed,
                    "xDS configuration complete"
                ),
                Target::Failed(error) => tracing::warn!(%listener, %error, suppressed, "xDS configuration unusable"),
                Target::Pending { missing } => tracing::debug!(%listener, %missing, suppressed, "xDS configuration"),
            }
        }
        for sender in watched.watchers.values() {
            sender.send_replace(target.clone());
        }
        watched.current = Some(target);
    }

    // === The stream ===

    fn event(&mut self, event: Event, shared: &mut Shared, now: Instant) {
        match event {
            Event::Connecting => {
                if !matches!(shared.stream, StreamState::Unreachable { .. }) {
                    shared.stream = StreamState::Connecting;
                }
            }
            Event::Connected(requests) => {
                tracing::info!(server = %self.server(), "ADS stream up");
                shared.stream = StreamState::Connected;
                self.requests = Some(requests);
                self.protocol.connected();
            }
            Event::Sent { kind, serial } => self.protocol.sent(kind, serial, now),
            Event::Response(response) => self.response(response, &mut shared.cache, now),
            Event::Disconnected { cause } => self.disconnected(cause, shared),
        }
    }

    fn disconnected(&mut self, cause: Option<String>, shared: &mut Shared) {
        self.requests = None;
        for (kind, name) in self.protocol.disconnected() {
            shared.cache.forget(kind, &name);
        }
        let Some(cause) = cause else {
            // "Stream ended after >= 1 response = not an error, no watcher call" - A57.
            tracing::info!(server = %self.server(), "ADS stream ended by the server");
            shared.stream = StreamState::Connecting;
            return;
        };
        let text = format!("the xDS control plane {} cannot be reached: {cause}", self.server());
        if shared.cache.unreachable(&text) {
            tracing::warn!(server = %self.server(), cause, "ADS stream down");
            self.assembler.all_changed();
        }
        shared.stream = StreamState::Unreachable { cause };
    }

    fn response(&mut self, response: Response, cache: &mut Cache, now: Instant) {
        let Response { kind, version, nonce, resources, errors } = response;
        if !self.protocol.asked(kind) {
            // "Response with a type URL never requested: neither ACK nor NACK" - grpc-go.
            return;
        }
        if cache.reachable() {
            self.assembler.all_changed();
        }
        let mut present = FxHashSet::default();
        let mut complaints = Complaints::default();
        for received in resources {
            let Received { name: Some(name), .. } = &received else {
                // "a resource that cannot be decoded has no name, .. and affects no watcher" - A46.
                complaints.nameless(kind, &received);
                continue;
            };
            if !self.protocol.is_subscribed(kind, name) {
                continue;
            }
            let name = name.clone();
            complaints.add(kind, &name, &received);
            self.protocol.answered(kind, &name);
            let change = cache.received(kind, &name, received, &version);
            self.changed(kind, &name, change, now);
            present.insert(name);
        }
        for error in errors {
            if !self.protocol.is_subscribed(kind, &error.name) {
                continue;
            }
            self.protocol.answered(kind, &error.name);
            let change = cache.reported(kind, &error);
            self.changed(kind, &error.name, change, now);
            present.insert(error.name);
        }
        // A resource without a name may be any of those that seem to be missing.
        if kind.is_full_state() && !complaints.any_nameless {
            for (name, change) in cache.omitted(kind, |name| present.contains(name)) {
                self.changed(kind, &name, change, now);
            }
        }
        self.protocol.acknowledge(kind, &version, &nonce, complaints.verdict());
    }

    fn changed(&mut self, kind: Kind, name: &str, change: Change, now: Instant) {
        if change.visible {
            self.assembler.changed(kind, name);
        }
        if let Some(error) = change.new_error
            && let Some(suppressed) = self.log.permit(now)
        {
            tracing::warn!(%kind, resource = name, %error, suppressed, "xDS resource error");
        }
        for field in change.newly_ignored {
            if let Some(suppressed) = self.log.permit(now) {
                let (path, reason) = (field.path, field.reason);
                tracing::info!(%kind, resource = name, path, reason, suppressed, "xDS field has no effect");
            }
        }
    }

    fn server(&self) -> String {
        self.bootstrap.servers.first().map(|server| server.address.to_string()).unwrap_or_default()
    }
}

/// The text of a NACK: each resource with the field, until it is too long for anybody.
#[derive(Default)]
struct Complaints {
    text: String,
    more: usize,
    any_nameless: bool,
}

impl Complaints {
    fn nameless(&mut self, kind: Kind, received: &Received) {
        self.any_nameless = true;
        if let Err(invalid) = &received.value {
            self.push(&format!("{kind} without a name: {invalid}"));
        }
    }

    fn add(&mut self, kind: Kind, name: &str, received: &Received) {
        if let Err(invalid) = &received.value {
            self.push(&format!("{kind} {name:?}: {invalid}"));
        }
    }

    fn push(&mut self, complaint: &str) {
        if !self.text.is_empty() && self.text.len() + complaint.len() > LONGEST_NACK {
            self.more += 1;
            return;
        }
        let separator = if self.text.is_empty() { "" } else { "; " };
        let _ = write!(self.text, "{separator}{complaint}");
    }

    fn verdict(mut self) -> Verdict {
        if self.more > 0 {
            let _ = write!(self.text, "; and {} more", self.more);
        }
        if self.text.is_empty() { Verdict::Ack } else { Verdict::Nack(self.text) }
    }
}
