//! The driver: the task that carries events and commands into [`Core`], and requests and targets out of it.
//!
//! It awaits nothing but its inbox. It knows who watches which target; what a target is made of it does NOT know.

use super::{
    Shared, TargetName,
    core::{Core, Input},
    lock,
};
use crate::{
    Bootstrap,
    ads::{Event, Request, StreamTask},
    assemble::TargetId,
    log::Limiter,
    snapshot::Target,
    status::StreamState,
};
use rustc_hash::FxHashMap;
use std::sync::{Arc, Mutex};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

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
    core: Core,
    targets: Targets,
    /// One slot: the stream reads its next message when this one is being worked on.
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    stream: Option<StreamTask>,
    /// Whether anything is subscribed; the stream is dialled only then. Latest wins.
    wanted: watch::Sender<bool>,
    /// Leads to the stream that is up.
    requests: Option<mpsc::UnboundedSender<Request>>,
    applied: Limiter,
    connectivity: Limiter,
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

impl Driver {
    pub(super) fn new(bootstrap: Arc<Bootstrap>, shared: Arc<Mutex<Shared>>, runtime: Handle) -> Self {
        let core = Core::new(bootstrap.transport(), bootstrap.resource_timeout());
        Self {
            bootstrap,
            runtime,
            shared,
            core,
            targets: Targets::default(),
            events: mpsc::channel(1),
            stream: None,
            wanted: watch::Sender::new(false),
            requests: None,
            applied: Limiter::default(),
            connectivity: Limiter::default(),
        }
    }

    /// Runs until the last handle is dropped.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            let deadline = self.core.next_deadline();
            let timer = async move {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            // Not biased: neither a busy server nor a busy user may starve the other.
            let input = tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Watch { id, target, sender }) => self.watch(id, target, sender),
                    Some(Command::Unwatch { id }) => self.unwatch(id),
                    None => return,
                },
                Some(event) = self.events.1.recv() => self.event(event, Instant::now()),
                () = timer => Some(Input::TimerFired),
            };
            if let Some(input) = input {
                self.turn(input, Instant::now());
            }
        }
    }

    fn turn(&mut self, input: Input, now: Instant) {
        // Locked until the targets are out: nobody may see an ACK in `status()` and not what came of it.
        let shared = Arc::clone(&self.shared);
        let mut shared = lock(&shared);
        let published = self.core.turn(&mut shared.cache, input, now);
        for (id, target) in published {
            self.publish(id, target, now);
        }
        let behind = self.core.behind().filter_map(|id| self.targets.entries.get(&id));
        shared.behind = behind.map(|watched| watched.name.clone()).collect();
        drop(shared);
        let wanted = self.core.has_subscriptions();
        self.wanted.send_if_modified(|before| std::mem::replace(before, wanted) != wanted);
        if self.stream.is_none() && wanted {
            let (events, wanted, seed) = (self.events.0.clone(), self.wanted.subscribe(), fastrand::u64(..));
            self.stream = Some(StreamTask::spawn(&self.runtime, Arc::clone(&self.bootstrap), 0, events, wanted, seed));
        }
        for request in self.core.take_requests() {
            if let Some(requests) = &self.requests {
                // A stream that has just ended does not take it; its end is on the way to us.
                let _ = requests.send(request);
            }
        }
    }

    // === Watches ===

    /// The first watch of a target is news; later ones get what there is.
    fn watch(&mut self, id: WatchId, name: TargetName, sender: watch::Sender<Target>) -> Option<Input> {
        let known = self.targets.by_name.get(&name).copied();
        let target = known.unwrap_or_else(|| {
            self.targets.next += 1;
            TargetId(self.targets.next)
        });
        let watched = self.targets.entries.entry(target).or_insert_with(|| Watched {
            name: name.clone(),
            current: None,
            watchers: FxHashMap::default(),
        });
        if let Some(current) = &watched.current {
            sender.send_replace(current.clone());
        }
        watched.watchers.insert(id, sender);
        self.targets.by_watch.insert(id, target);
        if known.is_some() {
            return None;
        }
        self.targets.by_name.insert(name.clone(), target);
        Some(Input::Added(target, name))
    }

    fn unwatch(&mut self, id: WatchId) -> Option<Input> {
        let target = self.targets.by_watch.remove(&id)?;
        let watched = self.targets.entries.get_mut(&target)?;
        watched.watchers.remove(&id);
        if !watched.watchers.is_empty() {
            return None;
        }
        let watched = self.targets.entries.remove(&target)?;
        self.targets.by_name.remove(&watched.name);
        Some(Input::Removed(target))
    }

    fn publish(&mut self, id: TargetId, target: Target, now: Instant) {
        let Some(watched) = self.targets.entries.get_mut(&id) else { return };
        let listener = &watched.name.listener;
        if let Some(suppressed) = self.applied.permit(now) {
            match &target {
                // "Applied" is the data plane's to say, and to log.
                Target::Ready(snapshot) => tracing::debug!(
                    %listener,
                    generation = snapshot.generation,
                    clusters = snapshot.clusters.len(),
                    suppressed,
                    "xDS configuration complete"
                ),
                Target::Failed(error) => tracing::warn!(%listener, %error, suppressed, "xDS configuration unusable"),
                Target::Pending { missing } => {
                    tracing::debug!(%listener, %missing, suppressed, "xDS configuration pending");
                }
            }
        }
        for sender in watched.watchers.values() {
            sender.send_replace(target.clone());
        }
        watched.current = Some(target);
    }

    // === The stream ===

    fn event(&mut self, event: Event, now: Instant) -> Option<Input> {
        let mut shared = lock(&self.shared);
        match event {
            Event::Idle => {
                shared.stream = StreamState::Idle;
                Some(Input::Idle)
            }
            Event::Connecting => {
                if !matches!(shared.stream, StreamState::Unreachable { .. }) {
                    shared.stream = StreamState::Connecting;
                }
                None
            }
            Event::Connected(requests) => {
                if let Some(suppressed) = self.connectivity.permit(now) {
                    tracing::info!(server = %self.bootstrap.server_name(), suppressed, "ADS stream up");
                }
                shared.stream = StreamState::Connected;
                self.requests = Some(requests);
                Some(Input::Connected)
            }
            Event::Sent { kind, serial } => Some(Input::Sent { kind, serial }),
            Event::Response(response) => Some(Input::Received(response)),
            Event::Disconnected { cause } => {
                self.requests = None;
                let server = self.bootstrap.server_name();
                if let Some(suppressed) = self.connectivity.permit(now) {
                    match &cause {
                        Some(cause) => tracing::warn!(%server, %cause, suppressed, "ADS stream down"),
                        None => tracing::info!(%server, suppressed, "ADS stream ended by the server"),
                    }
                }
                shared.stream = match &cause {
                    Some(cause) => StreamState::Unreachable { cause: cause.clone() },
                    None => StreamState::Connecting,
                };
                let cause = cause.map(|cause| format!("the xDS control plane {server} cannot be reached: {cause}"));
                Some(Input::Disconnected { cause })
            }
        }
    }
}
