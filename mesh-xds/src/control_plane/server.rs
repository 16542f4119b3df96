//! [`ControlPlane`]: the handle, what it serves to whom, and its streams.
//!
//! One lock guards the books (snapshots, hooks, the list of streams) and is held for look-ups only; the work of a
//! stream happens in its own task under its own lock, so that no client waits for another. Sockets are NOT here.

use super::{
    access::Access,
    check::Inconsistent,
    events::{Dialect, Event, EventReceiver},
    hooks::Hooks,
    load::Loads,
    resources::Resources,
    session::{Manners, Raw, Session},
    snapshot::Snapshot,
    stream::Opened,
};
use crate::name::canonical;
use envoy_types::pb::{envoy::config::core::v3::Node, google::protobuf::Any};
use rustc_hash::FxHashMap;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{broadcast, watch};
use tonic::Status;

/// A control plane: resources in, ADS streams out. Cheap to clone; clones are the same control plane.
///
/// Everything that it does to its clients can be followed ([`events`](Self::events), the `wait_for_*` methods) and
/// disturbed ([`withhold`](Self::withhold), [`hold`](Self::hold), [`send_raw`](Self::send_raw),
/// [`cut_streams`](Self::cut_streams), [`refuse`](Self::refuse), [`silent`](Self::silent)), so that tests need no sleeps.
/// The `wait_for_*` methods wait as long as it takes: put a timeout around them.
///
/// ```
/// use mesh_xds::control_plane::{ControlPlane, Resources, resources};
/// let control_plane = ControlPlane::new();
/// let greeter = resources::cluster_static("greeter", &["127.0.0.1:50051".parse()?]);
/// control_plane.set(Resources::default().with(greeter))?;
/// control_plane.set_for("canary", Resources::default())?;
/// assert_eq!(control_plane.open_streams(), 0);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ControlPlane {
    shared: Arc<Shared>,
}

/// Settings of a control plane; [`ControlPlane::builder`] makes one.
pub struct ControlPlaneBuilder {
    node_hash: Box<NodeHash>,
}

type NodeHash = dyn Fn(&Node) -> String + Send + Sync;

struct Shared {
    node_hash: Box<NodeHash>,
    books: Mutex<Books>,
    access: Access,
    /// Held while a new snapshot is made of the previous one, so that the books are free meanwhile.
    setting: Mutex<()>,
    /// Tells streams that books changed.
    changes: watch::Sender<()>,
    /// Tells waiters that a stream got on.
    progress: watch::Sender<()>,
    events: broadcast::Sender<Event>,
    loads: Loads,
}

#[derive(Default)]
struct Books {
    default: Arc<Snapshot>,
    per_node: FxHashMap<String, Arc<Snapshot>>,
    hooks: Arc<Hooks>,
    streams: BTreeMap<u64, Arc<Mutex<Session>>>,
    opened: u64,
    /// Streams up to this number are to end.
    cut: u64,
}

impl Default for ControlPlane {
    fn default() -> Self {
        Self::new()
    }
}

impl ControlPlane {
    /// A control plane that serves nothing yet.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A control plane with other settings than [`new`](Self::new)'s.
    pub fn builder() -> ControlPlaneBuilder {
        ControlPlaneBuilder { node_hash: Box::new(|node| node.id.clone()) }
    }

    // === What is served ===

    /// Replaces what every node gets that has no snapshot of its own.
    ///
    /// Versions derive from the content: unchanged resources are not sent again, and a type in which nothing changed
    /// keeps its version, also when another process serves the same. Streams get what is new or changed in the order CDS,
    /// EDS, LDS, RDS, and lose what is gone after that.
    ///
    /// # Errors
    /// [`Inconsistent`] when resources name others that are not there, see [`Resources::check`]; what was served before is
    /// still served then. [`set_unchecked`](Self::set_unchecked) does not ask.
    pub fn set(&self, resources: Resources) -> Result<(), Inconsistent> {
        self.replace(None, &resources, Snapshot::check)
    }

    /// [`set`](Self::set) for resources that may have holes: because somebody else serves the rest, or on purpose.
    pub fn set_unchecked(&self, resources: Resources) {
        // Nothing is looked for, and so nothing found.
        let _ = self.replace(None, &resources, |_| Ok(()));
    }

    /// Replaces what one node gets, or all nodes that share a key (see [`ControlPlaneBuilder::node_hash`]); it wins over
    /// what [`set`](Self::set) says.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_for(&self, node: &str, resources: Resources) -> Result<(), Inconsistent> {
        self.replace(Some(node), &resources, Snapshot::check)
    }

    /// [`set_for`](Self::set_for) for resources that may have holes.
    pub fn set_for_unchecked(&self, node: &str, resources: Resources) {
        let _ = self.replace(Some(node), &resources, |_| Ok(()));
    }

    /// Takes a node's own snapshot away, so that it gets what all others get.
    pub fn clear_for(&self, node: &str) {
        self.change(|books| drop(books.per_node.remove(node)));
    }

    fn replace(
        &self,
        node: Option<&str>,
        resources: &Resources,
        check: impl FnOnce(&Snapshot) -> Result<(), Inconsistent>,
    ) -> Result<(), Inconsistent> {
        let _turn = lock(&self.shared.setting);
        let previous = match node {
            Some(node) => self.books().served_to(node).clone(),
            None => self.books().default.clone(),
        };
        let next = Snapshot::next(&previous, resources);
        check(&next)?;
        self.change(|books| match node {
            Some(node) => drop(books.per_node.insert(node.to_owned(), Arc::new(next))),
            None => books.default = Arc::new(next),
        });
        Ok(())
    }

    // === What happened ===

    /// Everything that happens on streams from now on.
    pub fn events(&self) -> EventReceiver {
        EventReceiver(self.shared.events.subscribe())
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> usize {
        self.books().streams.len()
    }

    /// The nodes of open streams, as their first requests described them; once for each stream.
    pub fn nodes(&self) -> Vec<Node> {
        let nodes = |books: &Books| {
            let sessions = books.streams.values();
            sessions.filter_map(|session| Some(lock(session).node()?.described.clone())).collect()
        };
        nodes(&self.books())
    }

    /// How many streams were ever opened. Refused ones do not count.
    pub fn streams_opened(&self) -> u64 {
        self.books().opened
    }

    /// Waits until exactly `count` streams are open.
    pub async fn wait_for_streams(&self, count: usize) {
        self.wait(|books| (books.streams.len() == count).then_some(())).await;
    }

    /// Waits until some stream has acknowledged what is served *now* under this name: its current content, or its
    /// absence. (An ACK says that the client validated it, not that it uses it.)
    pub async fn wait_for_ack(&self, type_url: &str, name: &str) {
        self.wait(|books| {
            books.streams.values().find_map(|session| {
                let session = lock(session);
                let current = books.served_to(&session.node()?.key).entry(type_url, name);
                session.has_acked(type_url, name, current).then_some(())
            })
        })
        .await;
    }

    /// Waits until the newest answer of this type on some stream stands refused; returns the client's reason.
    pub async fn wait_for_nack(&self, type_url: &str) -> String {
        self.wait(|books| books.streams.values().find_map(|session| lock(session).nack(type_url).map(str::to_owned)))
            .await
    }

    /// Waits until some stream is subscribed to this name.
    pub async fn wait_for_subscription(&self, type_url: &str, name: &str) {
        self.wait(|books| books.streams.values().find(|session| lock(session).wants(type_url, name)).map(drop)).await;
    }

    /// Waits until no stream is subscribed to this name.
    pub async fn wait_for_unsubscription(&self, type_url: &str, name: &str) {
        let unwanted = |books: &Books| books.streams.values().all(|session| !lock(session).wants(type_url, name));
        self.wait(|books| unwanted(books).then_some(())).await;
    }

    // === How to misbehave ===

    /// Leaves these names as each client knows them: never heard of, or frozen at the last version it was told.
    pub fn withhold<'a>(&self, type_url: &str, names: impl IntoIterator<Item = &'a str>) {
        let names = names.into_iter().map(|name| canonical(name).into_owned());
        self.change_hooks(|hooks| hooks.withheld.entry(type_url.to_owned()).or_default().extend(names));
    }

    /// Sends no response of this type until [`release`](Self::release): a delay that ends when the test says so.
    pub fn hold(&self, type_url: &str) {
        self.change_hooks(|hooks| {
            hooks.held.insert(type_url.to_owned());
        });
    }

    /// Ends [`hold`](Self::hold) and [`withhold`](Self::withhold) for this type, and sends what is due.
    pub fn release(&self, type_url: &str) {
        self.change_hooks(|hooks| {
            hooks.held.remove(type_url);
            hooks.withheld.remove(type_url);
        });
    }

    /// Sends a hand-made response on every open stream, subscribed or not, whatever is held.
    pub fn send_raw(&self, type_url: &str, version: &str, resources: Vec<Any>) {
        let raw = Raw { type_url: type_url.to_owned(), version: version.to_owned(), resources };
        self.change(|books| books.streams.values().for_each(|session| lock(session).push_raw(raw.clone())));
    }

    /// Ends every open stream with UNAVAILABLE. Clients may open new ones at once.
    pub fn cut_streams(&self) {
        self.change(|books| books.cut = books.opened);
    }

    /// Whether new streams are refused with UNAVAILABLE. Open ones stay.
    pub fn refuse(&self, refuse: bool) {
        self.change_hooks(|hooks| hooks.refuse = refuse);
    }

    /// Whether streams are accepted and requests read, but nothing answered.
    pub fn silent(&self, silent: bool) {
        self.change_hooks(|hooks| hooks.silent = silent);
    }

    /// Whether requests are taken as istiod takes them: a NACK does not change the names of a SotW subscription, and an
    /// empty list of listeners or clusters is a wildcard at any time, not only while nothing was named.
    pub fn like_istiod(&self, like_istiod: bool) {
        self.change_hooks(|hooks| hooks.manners = if like_istiod { Manners::Istiod } else { Manners::Specified });
    }

    // === For streams ===

    pub(super) fn open(&self, dialect: Dialect) -> Result<Opened, Status> {
        let mut books = self.books();
        if books.hooks.refuse {
            return Err(Status::unavailable("the control plane refuses streams"));
        }
        books.opened += 1;
        let number = books.opened;
        let session = Arc::new(Mutex::new(Session::new(number, dialect)));
        books.streams.insert(number, session.clone());
        drop(books);
        self.emit(|| Event::StreamOpened { stream: number, dialect });
        self.progressed();
        Ok(Opened { control_plane: self.clone(), number, session, changes: self.shared.changes.subscribe() })
    }

    pub(super) fn access(&self) -> &Access {
        &self.shared.access
    }

    pub(super) fn close(&self, number: u64) {
        self.books().streams.remove(&number);
        self.progressed();
    }

    pub(super) fn is_cut(&self, number: u64) -> bool {
        number <= self.books().cut
    }

    /// Which snapshot a node gets.
    pub(super) fn key_of(&self, node: &Node) -> String {
        (self.shared.node_hash)(node)
    }

    pub(super) fn served_to(&self, key: &str) -> (Arc<Snapshot>, Arc<Hooks>) {
        let books = self.books();
        (books.served_to(key).clone(), books.hooks.clone())
    }

    pub(super) fn manners(&self) -> Manners {
        self.books().hooks.manners
    }

    /// Whether events have a reader, so that they are worth making.
    pub(super) fn is_observed(&self) -> bool {
        self.shared.events.receiver_count() > 0
    }

    pub(super) fn emit(&self, event: impl FnOnce() -> Event) {
        if self.is_observed() {
            // An error means that the last reader left meanwhile.
            let _ = self.shared.events.send(event());
        }
    }

    /// What clients say of their load.
    pub(super) fn loads(&self) -> &Loads {
        &self.shared.loads
    }

    pub(super) fn progressed(&self) {
        self.shared.progress.send_replace(());
    }

    // === Inside ===

    fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.shared.books)
    }

    fn change(&self, change: impl FnOnce(&mut Books)) {
        change(&mut self.books());
        self.shared.changes.send_replace(());
        self.progressed();
    }

    fn change_hooks(&self, change: impl FnOnce(&mut Hooks)) {
        self.change(|books| {
            let mut hooks = Hooks::clone(&books.hooks);
            change(&mut hooks);
            books.hooks = Arc::new(hooks);
        });
    }

    async fn wait<T>(&self, mut ready: impl FnMut(&Books) -> Option<T>) -> T {
        let mut progress = self.shared.progress.subscribe();
        loop {
            if let Some(value) = ready(&self.books()) {
                return value;
            }
            // Cannot be closed: `self` keeps the sender.
            let _ = progress.changed().await;
        }
    }
}

impl ControlPlaneBuilder {
    /// Which nodes share a snapshot: those of the same key. The default is the node's id, so that each node may have its
    /// own. A node is asked once, by the first request of each stream.
    ///
    /// ```
    /// # use mesh_xds::control_plane::{ControlPlane, Resources};
    /// let control_plane = ControlPlane::builder().node_hash(|node| node.cluster.clone()).build();
    /// control_plane.set_for("canary", Resources::default())?;
    /// # Ok::<_, mesh_xds::control_plane::Inconsistent>(())
    /// ```
    #[must_use]
    pub fn node_hash(mut self, key: impl Fn(&Node) -> String + Send + Sync + 'static) -> Self {
        self.node_hash = Box::new(key);
        self
    }

    /// The control plane.
    pub fn build(self) -> ControlPlane {
        let shared = Shared {
            node_hash: self.node_hash,
            access: Access::default(),
            books: Mutex::default(),
            setting: Mutex::default(),
            changes: watch::Sender::new(()),
            progress: watch::Sender::new(()),
            // 4,096 events may wait for the slowest receiver, which loses the oldest ones after that.
            events: broadcast::Sender::new(4096),
            loads: Loads::default(),
        };
        ControlPlane { shared: Arc::new(shared) }
    }
}

impl fmt::Debug for ControlPlaneBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlaneBuilder").finish_non_exhaustive()
    }
}

impl Books {
    fn served_to(&self, key: &str) -> &Arc<Snapshot> {
        self.per_node.get(key).unwrap_or(&self.default)
    }
}

/// Nothing here panics while it holds a lock, and if it did, the books would still be whole: every change is one store.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let books = self.books();
        f.debug_struct("ControlPlane").field("open_streams", &books.streams.len()).finish_non_exhaustive()
    }
}
