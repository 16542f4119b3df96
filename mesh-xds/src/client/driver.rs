//! The driver: the task that carries events and commands into [`Core`], and requests and values out of it.
//!
//! It awaits nothing but its inbox, and the other tasks of the thread within a turn that is long. Should it panic (user code runs in it: the `PartialEq` of a resource type), it starts again
//! from its watches, which keep what they have until there is news. What a target is made of it does NOT know.

use super::{
    Shared,
    core::{Input, NameNeeds},
    servers::Servers,
    watches::{WatchId, Watcher, Watches},
};
use crate::{
    Bootstrap, ServerId,
    ads::Event,
    assemble::{Subject, TargetId, Value},
    dns::Lookups,
    log::Limiter,
    resource::DnsName,
    snapshot::Target,
    status::StreamState,
};
use futures_util::FutureExt;
use parking_lot::Mutex;
use std::{collections::VecDeque, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};

/// Between a panic of the driver and its next start.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// What handles ask for.
#[derive(Debug)]
pub(super) enum Command {
    Watch { id: WatchId, subject: Subject, watcher: Watcher },
    Unwatch { id: WatchId },
    EndpointFailed(DnsName),
}

pub(super) struct Driver {
    bootstrap: Arc<Bootstrap>,
    runtime: Handle,
    shared: Arc<Mutex<Shared>>,
    watches: Watches,
    servers: Servers,
    lookups: Lookups,
    /// Whether it has not been told of its watches yet.
    is_new: bool,
    applied: Limiter,
    connectivity: Limiter,
}

impl Driver {
    pub(super) fn new(bootstrap: Arc<Bootstrap>, shared: Arc<Mutex<Shared>>, runtime: Handle) -> Self {
        Self {
            lookups: Lookups::new(runtime.clone(), bootstrap.resolver.clone()),
            servers: Servers::new(Arc::clone(&bootstrap), runtime.clone()),
            bootstrap,
            runtime,
            is_new: true,
            shared,
            watches: Watches::default(),
            applied: Limiter::default(),
            connectivity: Limiter::default(),
        }
    }

    /// Runs until the last handle is dropped, also through panics.
    pub(super) async fn supervised(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        // Unwind safety: of what a panic has left only the watches are kept, and each of their methods is one step.
        while AssertUnwindSafe(self.run(&mut commands)).catch_unwind().await.is_err() {
            tracing::error!("the xDS client's driver panicked and starts again");
            self.begin_again();
            sleep(RESTART_DELAY).await;
        }
    }

    /// New streams, new books, the same watches.
    fn begin_again(&mut self) {
        let cause = "the xDS client's driver panicked and starts again".to_owned();
        let (bootstrap, runtime) = (Arc::clone(&self.bootstrap), self.runtime.clone());
        *self.shared.lock() = Shared::new(&bootstrap, &StreamState::Unreachable { cause });
        self.lookups = Lookups::new(runtime.clone(), bootstrap.resolver.clone());
        self.servers = Servers::new(bootstrap, runtime);
        self.is_new = true;
    }

    async fn run(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) {
        if std::mem::take(&mut self.is_new) {
            for (id, subject) in self.watches.all() {
                self.turn(Input::Added(id, subject), Instant::now()).await;
            }
        }
        loop {
            let deadline = self.shared.lock().core.next_deadline();
            let timer = async move {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            // Not biased: neither a busy server nor a busy user may starve the other.
            let input = tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Watch { id, subject, watcher }) => {
                        self.watches.add(id, subject.clone(), watcher).map(|id| Input::Added(id, subject))
                    }
                    Some(Command::Unwatch { id }) => self.watches.remove(id).map(Input::Removed),
                    Some(Command::EndpointFailed(name)) => {
                        self.lookups.endpoint_failed(name);
                        None
                    }
                    None => return,
                },
                (server, event) = self.servers.event() => self.event(server, event, Instant::now()),
                answered = self.lookups.answered() => Some(Input::Answered(answered)),
                () = timer => Some(Input::TimerFired),
            };
            if let Some(input) = input {
                self.turn(input, Instant::now()).await;
            }
        }
    }

    /// One turn, in as many slices as it takes. In between, the thread is the other tasks', while inputs wait: each begins
    /// with what the one before came to.
    async fn turn(&mut self, input: Input, now: Instant) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut end = self.slice(Some(input), now);
            while end.is_none() {
                yield_now().await;
                end = self.slice(None, now);
            }
            inputs.extend(end.into_iter().flatten());
        }
    }

    /// Begins a turn, or goes on with it. Returns, at its end, what has to follow.
    fn slice(&mut self, input: Option<Input>, now: Instant) -> Option<Vec<Input>> {
        // Locked until the values are out: nobody may see an ACK in `status()` and not what came of it. Between slices,
        // who asks is told that more is to come (`TargetWatch::is_behind`).
        let shared = Arc::clone(&self.shared);
        let mut shared = shared.lock();
        let Shared { core, caches, streams, behind } = &mut *shared;
        let values = match input {
            Some(input) => core.turn(caches, input, now),
            None => core.go_on(caches, now),
        };
        if core.is_under_way() {
            return None;
        }
        let NameNeeds { watch, unwatch } = core.take_names();
        watch.into_iter().for_each(|name| self.lookups.watch(name));
        unwatch.into_iter().for_each(|name| self.lookups.unwatch(name));
        for (id, value) in values {
            self.publish(id, value, now);
        }
        let mut follow = Vec::new();
        for server in self.servers.ids() {
            if self.servers.want(server, core.wants_stream(server)) {
                streams[server.index()] = StreamState::Idle;
                follow.extend([Input::Disconnected { server, cause: None }, Input::Idle(server)]);
            }
            for request in core.take_requests(server) {
                self.servers.send(server, request);
            }
        }
        *behind = core.behind().filter_map(|id| self.watches.subject(id)).cloned().collect();
        Some(follow)
    }

    fn publish(&mut self, id: TargetId, value: Value, now: Instant) {
        if let (Value::Target(target), Some(Subject::Target { listener, .. })) = (&value, self.watches.subject(id))
            && let Some(suppressed) = self.applied.permit(now)
        {
            match target {
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
        self.watches.publish(id, value);
    }

    fn event(&mut self, server: ServerId, event: Event, now: Instant) -> Option<Input> {
        let mut shared = self.shared.lock();
        let state = &mut shared.streams[server.index()];
        let name = self.bootstrap.server_name(server);
        match event {
            Event::Idle => {
                *state = StreamState::Idle;
                Some(Input::Idle(server))
            }
            Event::Connecting => {
                if !matches!(state, StreamState::Unreachable { .. }) {
                    *state = StreamState::Connecting;
                }
                None
            }
            Event::Connected(_) => {
                if let Some(suppressed) = self.connectivity.permit(now) {
                    tracing::info!(server = %name, suppressed, "ADS stream up");
                }
                *state = StreamState::Connected;
                Some(Input::Connected(server))
            }
            Event::Sent { kind, serial } => Some(Input::Sent { server, kind, serial }),
            Event::Response(response) => Some(Input::Received(server, response)),
            Event::Disconnected { cause } => {
                if let Some(suppressed) = self.connectivity.permit(now) {
                    match &cause {
                        Some(cause) => tracing::warn!(server = %name, %cause, suppressed, "ADS stream down"),
                        None => tracing::info!(server = %name, suppressed, "ADS stream ended by the server"),
                    }
                }
                *state = match &cause {
                    Some(cause) => StreamState::Unreachable { cause: cause.clone() },
                    None => StreamState::Connecting,
                };
                let cause = cause.map(|cause| format!("the xDS control plane {name} cannot be reached: {cause}"));
                Some(Input::Disconnected { server, cause })
            }
        }
    }
}
