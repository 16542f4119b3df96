//! The task that looks names up: it joins the schedule, the clock and the resolver.
//!
//! It does NOT keep answers.

use super::{Lookup, Resolved, Resolver, schedule::Schedule};
use crate::resource::DnsName;
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};

/// Lookups in flight at once: each occupies a thread of the system's resolver.
const MAX_LOOKUPS: usize = 32;

/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a lookup came to.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) name: DnsName,
    pub(crate) result: Result<Arc<[SocketAddr]>, Arc<str>>,
}

/// What the task is told.
#[derive(Debug)]
enum Command {
    Watch(DnsName),
    Unwatch(DnsName),
    EndpointFailed(DnsName),
}

/// The lookups of one client. Its task is started with the first name, and ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Lookups {
    runtime: Handle,
    resolver: Resolver,
    /// A few: whoever is slow to take answers has no use for more. Closed by this.
    answers: (mpsc::Sender<Answered>, mpsc::Receiver<Answered>),
    task: Option<Task>,
}

#[derive(Debug)]
struct Task {
    commands: mpsc::UnboundedSender<Command>,
    handle: AbortHandle,
}

impl Lookups {
    pub(crate) fn new(runtime: Handle, resolver: Resolver) -> Self {
        Self { runtime, resolver, answers: mpsc::channel(8), task: None }
    }

    /// Looks a name up, and again whenever that is due.
    pub(crate) fn watch(&mut self, name: DnsName) {
        let task = self.task.get_or_insert_with(|| {
            // Unbounded: as many entries as names come and go in the driver's turns, and endpoints' dials fail. Closed by
            // the handle.
            let (commands, inbox) = mpsc::unbounded_channel();
            let work = run(self.resolver.clone(), inbox, self.answers.0.clone());
            Task { commands, handle: self.runtime.spawn(work).abort_handle() }
        });
        task.tell(Command::Watch(name));
    }

    /// Not any more.
    pub(crate) fn unwatch(&self, name: DnsName) {
        self.tell(Command::Unwatch(name));
    }

    /// An endpoint behind a name cannot be reached, or was lost.
    pub(crate) fn endpoint_failed(&self, name: DnsName) {
        self.tell(Command::EndpointFailed(name));
    }

    /// What the next lookup came to. Cancel safe.
    pub(crate) async fn answered(&mut self) -> Answered {
        match self.answers.1.recv().await {
            Some(answered) => answered,
            // `answers.0` is here.
            None => std::future::pending().await,
        }
    }

    fn tell(&self, command: Command) {
        if let Some(task) = &self.task {
            task.tell(command);
        }
    }
}

impl Task {
    fn tell(&self, command: Command) {
        // It is gone only with its runtime, and then the driver is, too.
        let _ = self.commands.send(command);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

type Done = (DnsName, io::Result<Resolved>);

async fn run(resolver: Resolver, mut inbox: mpsc::UnboundedReceiver<Command>, answers: mpsc::Sender<Answered>) {
    let mut schedule = Schedule::new(resolver.min_time_between());
    let mut lookups: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>> = FuturesUnordered::new();
    loop {
        for name in schedule.start(Instant::now(), MAX_LOOKUPS - lookups.len()) {
            let lookup = resolver.lookup(&name);
            lookups.push(Box::pin(async move { (name, within_patience(lookup).await) }));
        }
        let deadline = schedule.next_deadline().filter(|_| lookups.len() < MAX_LOOKUPS);
        // Not biased: neither many names nor many answers may starve the other.
        tokio::select! {
            command = inbox.recv() => match command {
                Some(Command::Watch(name)) => schedule.watch(name, Instant::now()),
                Some(Command::Unwatch(name)) => schedule.unwatch(&name),
                Some(Command::EndpointFailed(name)) => schedule.endpoint_failed(&name, Instant::now()),
                None => return,
            },
            Some((name, found)) = lookups.next() => {
                if let Some(result) = take_in(&mut schedule, &name, found)
                    && answers.send(Answered { name, result }).await.is_err()
                {
                    return;
                }
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
        }
    }
}

async fn within_patience(lookup: Lookup) -> io::Result<Resolved> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {PATIENCE:?}"));
    timeout(PATIENCE, lookup).await.map_err(late)?
}

/// Notes when to look again. `None` if nobody needs the answer any more.
fn take_in(
    schedule: &mut Schedule,
    name: &DnsName,
    found: io::Result<Resolved>,
) -> Option<Result<Arc<[SocketAddr]>, Arc<str>>> {
    let now = Instant::now();
    match found {
        Ok(found) if !found.addresses.is_empty() => {
            schedule.answered(name, found.ttl, now).then(|| Ok(found.addresses.into()))
        }
        // Envoy takes zero addresses of a STRICT_DNS name as zero endpoints, gRPC as a failure. The system's resolver does
        // not tell "none" from "not now", so what was known goes on serving.
        Ok(_) => schedule.failed(name, fastrand::f64(), now).then(|| Err("it has no address".into())),
        Err(error) => schedule.failed(name, fastrand::f64(), now).then(|| Err(error.to_string().into())),
    }
}
