//! `XdsClient`: the handle that a data plane holds, and the driver behind it.
//!
//! The driver is one task: an event or a command comes in, one turn of `core` runs through `ads`, `cache` and `assemble`, in
//! slices if it is long, and requests and new `Target`s go out. It awaits nothing but its inbox, so a slow
//! reader of targets can never stall ADS. The driver and its stream live on a thread of their own that lasts as long
//! as the process: dropping the runtime that happened to make a client hurts nobody. This file does NOT know
//! protobuf and does NOT decide about resources.

mod complaints;
mod core;
mod driver;
mod registry;
mod resource_watch;
mod servers;
mod watches;

pub use resource_watch::{ResourceUpdate, ResourceWatch};

use self::core::Core;
use crate::{
    Bootstrap, ServerId, XdsServer,
    assemble::{Found, Subject},
    bootstrap::Node,
    cache::Cache,
    load::LoadReports,
    name,
    resource::{DnsName, Kind, Watchable},
    snapshot::Target,
    status::{Clock, NodeStatus, ServerStatus, Status, StreamState},
};
use driver::{Command, Driver};
use parking_lot::{Mutex, MutexGuard};
use rustc_hash::FxHashSet;
use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use watches::{WatchId, Watcher};

/// A client of the bootstrap's control plane. Clones are the same client; it ends with the last clone and watch.
///
/// It never fails: what goes wrong is told to the watches concerned, as a [`Target`] or as a note in a cluster, and shown
/// by [`status`](Self::status). The stream is dialled while something is watched, after failures on A57's curve (1 s, x1.6
/// each time, 120 s at most, +-20 %), which starts over after a response. A stream that was answered is dialled again at
/// once; more than 5 of those within 10 s that lived less than 1 s are a failure, too, until one lives longer. A resource that does not come within 15 s of
/// its request does not exist (A57). PINGs every 5 min find a connection that hangs within 20 s more.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use mesh_xds::{Bootstrap, Target, TargetName, XdsClient};
/// let bootstrap = Bootstrap::from_env().await?;
/// let target = TargetName::new(bootstrap.listener_name("greeter.prod:8080"), "greeter.prod:8080");
/// let client = XdsClient::connect(bootstrap);
/// let mut watch = client.watch(target);
/// while let Ok(target) = watch.changed().await {
///     if let Target::Ready(snapshot) = target {
///         println!("{} clusters", snapshot.clusters.len());
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct XdsClient(Arc<Inner>);

/// What to watch: a Listener, and the authority that selects the virtual host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TargetName {
    listener: Arc<str>,
    authority: Arc<str>,
}

impl TargetName {
    /// `listener` is the resource's name ([`Bootstrap::listener_name`]); `authority` is matched against the domains
    /// of the virtual hosts (A28).
    pub fn new(listener: impl Into<Arc<str>>, authority: impl Into<Arc<str>>) -> Self {
        Self { listener: listener.into(), authority: authority.into() }
    }

    /// What is matched against the domains of the virtual hosts.
    pub fn authority(&self) -> &Arc<str> {
        &self.authority
    }

    fn subject(&self) -> Subject {
        let listener = name::canonical(&self.listener).into();
        Subject::Target { listener, authority: Arc::clone(&self.authority) }
    }
}

impl Subject {
    /// The target as gRPC writes it; none for a resource that is watched by itself.
    fn target(&self) -> Option<Arc<str>> {
        match self {
            Self::Target { listener, authority } => {
                Some(format!("xds://{}/{authority}", name::authority(listener).unwrap_or_default()).into())
            }
            Self::Resource(..) => None,
        }
    }
}

/// What the driver writes and `status()` reads. Held by the driver for one slice of a turn, never across an await.
///
/// Its lock is one that can be handed over. One of `std` goes to whoever comes first, and a reader that lets go of it and
/// takes it again, as `status()` does, comes before the driver that slept.
#[derive(Debug)]
struct Shared {
    core: Core,
    /// By server.
    caches: Vec<Cache>,
    streams: Vec<StreamState>,
    /// What more is ACKed of than was published.
    behind: FxHashSet<Subject>,
}

impl Shared {
    /// Nothing is known yet.
    fn new(bootstrap: &Arc<Bootstrap>, streams: &StreamState) -> Self {
        let cache = |server: &XdsServer| Cache::new(bootstrap.node_id(), &server.features);
        Self {
            core: Core::new(Arc::clone(bootstrap)),
            caches: bootstrap.servers().map(|(_, server)| cache(server)).collect(),
            streams: bootstrap.servers().map(|_| streams.clone()).collect(),
            behind: FxHashSet::default(),
        }
    }
}

struct Inner {
    bootstrap: Arc<Bootstrap>,
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Mutex<Shared>>,
    loads: LoadReports,
    next_watch: AtomicU64,
}

impl XdsClient {
    /// The client for a bootstrap. Equal bootstraps get the same one as long as it lives: one ADS stream per control
    /// plane and process (istio's agent closes all but the newest).
    ///
    /// Nothing is dialled before something is watched.
    ///
    /// # Panics
    /// When the system refuses the first client its thread, as `std::thread::spawn` does.
    pub fn connect(bootstrap: impl Into<Arc<Bootstrap>>) -> Self {
        registry::client(bootstrap.into())
    }

    /// A client of its own whose tasks run on `runtime`: for tests with a paused clock. Not shared.
    pub fn connect_on(runtime: &Handle, bootstrap: impl Into<Arc<Bootstrap>>) -> Self {
        let bootstrap: Arc<Bootstrap> = bootstrap.into();
        let shared = Arc::new(Mutex::new(Shared::new(&bootstrap, &StreamState::Idle)));
        // Unbounded: an entry for each watch made or dropped, which no driver can be too slow for; closed by the
        // last handle, which ends the driver.
        let (commands, inbox) = mpsc::unbounded_channel();
        let driver = Driver::new(Arc::clone(&bootstrap), Arc::clone(&shared), runtime.clone());
        runtime.spawn(driver.supervised(inbox));
        let loads = LoadReports::new(&bootstrap, runtime);
        Self(Arc::new(Inner { bootstrap, commands, shared, loads, next_watch: AtomicU64::new(0) }))
    }

    /// Watches a target. Watchers of the same target share its subscriptions and its assembly.
    pub fn watch(&self, target: TargetName) -> TargetWatch {
        let missing = format!("waiting for Listener {:?}", target.listener).into();
        let (sender, values) = watch::channel(Target::Pending { missing });
        let subject = target.subject();
        let id = self.start(subject.clone(), Watcher::Target(sender));
        TargetWatch { id, subject, values, client: self.clone() }
    }

    /// Watches one resource by itself, of any type: what it refers to is not followed.
    ///
    /// An `xdstp:` name is asked for at the servers of its authority; when the bootstrap has no such authority the
    /// resource has failed, and nobody is asked.
    pub fn watch_resource<T: Watchable>(&self, name: &str) -> ResourceWatch<T> {
        let (sender, values) = watch::channel(Found::Pending);
        let subject = Subject::Resource(T::kind(), name::canonical(name).into());
        ResourceWatch::new(self.start(subject, Watcher::Resource(sender)), values, self.clone())
    }

    fn start(&self, subject: Subject, watcher: Watcher) -> WatchId {
        let id = WatchId(self.0.next_watch.fetch_add(1, Ordering::Relaxed));
        self.0.tell(Command::Watch { id, subject, watcher });
        id
    }

    /// How each stream and every subscribed resource are.
    ///
    /// Of ten thousand resources that is some work, and the client goes on meanwhile: two resources may be told as they were
    /// at slightly different times.
    pub fn status(&self) -> Status {
        /// The client's thread waits for no more of them.
        const AT_ONCE: usize = 128;

        let clock = Clock::now();
        let servers: Vec<(ServerId, Arc<str>)> =
            self.0.bootstrap.servers().map(|(id, server)| (id, server.to_string().into())).collect();
        let mut shared = self.0.shared.lock();
        let states = shared.streams.clone();
        let known: Vec<Vec<_>> = shared.caches.iter().map(|cache| cache.names().collect()).collect();
        let mut resources = Vec::new();
        for ((index, (id, server)), known) in servers.iter().enumerate().zip(&known) {
            for some in known.chunks(AT_ONCE) {
                MutexGuard::bump(&mut shared);
                let one = |(kind, name): &(Kind, Arc<str>)| {
                    let mut resource = shared.caches.get(index)?.status(*kind, name, server, &clock)?;
                    let users = shared.core.users(*id, resource.kind, &resource.name);
                    resource.targets = users.filter_map(Subject::target).collect();
                    Some(resource)
                };
                resources.extend(some.iter().filter_map(one));
            }
        }
        drop(shared);
        resources.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        let state =
            |((_, name), state): (&(ServerId, Arc<str>), StreamState)| ServerStatus { server: name.to_string(), state };
        let servers = servers.iter().zip(states).map(state).collect();
        Status { node_id: self.node_id().to_owned(), node: NodeStatus::of(self.node()), servers, resources }
    }

    /// Where whoever carries calls counts them, for clusters that report their load (LRS).
    pub fn load_reports(&self) -> LoadReports {
        self.0.loads.clone()
    }

    /// The way for a data plane to have a name looked up again when its endpoint fails.
    pub fn name_failures(&self) -> NameFailures {
        NameFailures(Some(self.0.commands.downgrade()))
    }

    /// The node id of the bootstrap.
    pub fn node_id(&self) -> &str {
        self.0.bootstrap.node_id()
    }

    /// Every living client of this process that [`XdsClient::connect`] made.
    pub(crate) fn of_process() -> Vec<Self> {
        registry::clients()
    }

    pub(crate) fn downgrade(&self) -> WeakClient {
        WeakClient(Arc::downgrade(&self.0))
    }

    pub(crate) fn node(&self) -> &Node {
        &self.0.bootstrap.node
    }
}

/// A client that is not kept alive.
#[derive(Clone)]
pub(crate) struct WeakClient(Weak<Inner>);

impl WeakClient {
    pub(crate) fn upgrade(&self) -> Option<XdsClient> {
        self.0.upgrade().map(XdsClient)
    }
}

impl fmt::Debug for WeakClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakClient")
    }
}

/// Tells a client of endpoints behind DNS names that failed. It keeps no client alive.
#[derive(Clone, Debug, Default)]
pub struct NameFailures(Option<mpsc::WeakUnboundedSender<Command>>);

impl NameFailures {
    /// An endpoint behind this name cannot be reached, or was lost: the name is looked up again, no sooner after the
    /// last answer than [`Resolve::min_time_between`](crate::Resolve::min_time_between) says, as gRPC's resolver does.
    pub fn report(&self, name: &DnsName) {
        if let Some(commands) = self.0.as_ref().and_then(mpsc::WeakUnboundedSender::upgrade) {
            // A driver that is gone looks nothing up.
            let _ = commands.send(Command::EndpointFailed(name.clone()));
        }
    }
}

impl Inner {
    fn tell(&self, command: Command) {
        // The driver outlives its handles; it is gone only together with its runtime, and then watches are closed.
        let _ = self.commands.send(command);
    }
}

impl fmt::Debug for XdsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XdsClient").field("node_id", &self.node_id()).finish_non_exhaustive()
    }
}

/// A watched target. Dropping it unsubscribes.
///
/// ```no_run
/// # async fn run(client: mesh_xds::XdsClient) -> Result<(), mesh_xds::Closed> {
/// use mesh_xds::{Target, TargetName};
/// let mut watch = client.watch(TargetName::new("greeter.prod:8080", "greeter.prod:8080"));
/// match watch.changed().await? {
///     Target::Ready(snapshot) => println!("{} routes", snapshot.routes.virtual_hosts.len()),
///     Target::Failed(why) => println!("calls fail: {why}"),
///     Target::Pending { missing } => println!("{missing}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TargetWatch {
    id: WatchId,
    subject: Subject,
    values: watch::Receiver<Target>,
    client: XdsClient,
}

impl TargetWatch {
    /// The newest value.
    pub fn current(&self) -> Target {
        self.values.borrow().clone()
    }

    /// Whether a resource of this target is ACKed (as [`XdsClient::status`] shows) without being part of
    /// [`current`](Self::current): what it refers to is still missing, and what was complete before goes on.
    ///
    /// After `false`, `current` has everything that an earlier `status` showed.
    pub fn is_behind(&self) -> bool {
        let shared = self.client.0.shared.lock();
        shared.core.is_under_way() || shared.behind.contains(&self.subject)
    }

    /// Waits for a value that [`TargetWatch::changed`] has not returned yet; values in between may be skipped.
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Closed`] when the client's runtime is gone.
    pub async fn changed(&mut self) -> Result<Target, Closed> {
        self.values.changed().await.map_err(|_| Closed)?;
        Ok(self.values.borrow_and_update().clone())
    }
}

impl Drop for TargetWatch {
    fn drop(&mut self) {
        self.client.0.tell(Command::Unwatch { id: self.id });
    }
}

/// The client's tasks are gone, with the runtime they ran on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the xDS client has ended")]
pub struct Closed;
