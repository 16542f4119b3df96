//! The process-wide handle: one xDS client, the clusters that channels share, and an orderly end.
//!
//! It does NOT carry calls: [`MeshChannel`] does.

use crate::{
    apply::{self, Table},
    builder::{ChannelBuilder, MeshBuilder},
    channel::{CallOptions, Inner, MeshChannel, Shared},
    cluster::{Cluster, ClusterOptions, Update},
    endpoint::DialOptions,
    filter::Makers,
    http_client::HttpClient,
    status::MeshStatus,
    task::{OnAbort, Tasks, supervised},
};
use mesh_xds::{
    Bootstrap, BootstrapError, ServerId, TargetName, XdsClient,
    resource::{ClusterName, OutlierDetection},
};
use rustc_hash::FxHashMap;
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{runtime::Handle, task::AbortHandle, time::timeout};

/// How long a shutdown waits for the last load report, beyond its deadline: "<= 1 s" - grpc-go.
const LAST_LOAD_REPORT: Duration = Duration::from_secs(1);

/// A process's membership in a service mesh.
///
/// Cheap to clone. Meshes with the same bootstrap share one ADS stream, however many there are; channels of one mesh
/// share clusters and connections.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let mesh = mesh_client::Mesh::from_env().await?;
/// let channel = mesh.channel("xds:///greeter.prod:8080")?;
/// // let mut rpc = GreeterClient::new(channel);   // tonic's generated client, unchanged
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Mesh {
    inner: Arc<MeshInner>,
}

pub(crate) struct MeshInner {
    xds: XdsClient,
    bootstrap: Arc<Bootstrap>,
    filters: Arc<Makers>,
    /// For channels, and clusters, that do not say.
    outlier_detection: Option<Arc<OutlierDetection>>,
    clusters: Mutex<FxHashMap<ClusterKey, Weak<Cluster>>>,
    channels: Mutex<Vec<Weak<Inner>>>,
    /// Workers and connections.
    tasks: Tasks,
    runtime: Handle,
    /// Whatever else must live as long as the mesh: an embedded control plane.
    _keeps: Option<Box<dyn Send + Sync>>,
}

/// Clusters are shared by channels that would run them in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ClusterKey {
    name: ClusterName,
    /// Two servers' clusters of one name are two clusters (A71).
    server: Option<ServerId>,
    settings: Arc<ClusterSettings>,
}

/// What a channel's builder says about the clusters behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClusterSettings {
    pub(crate) dial: DialOptions,
    pub(crate) max_pending: u32,
    pub(crate) outlier_detection: Option<Arc<OutlierDetection>>,
}

/// Why a channel could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Neither of the form `xds:///name` nor `xds://authority/name`.
    #[error("target {0:?}: expected xds:///name or xds://authority/name")]
    Scheme(String),
    /// `xds://authority/name` with an authority that the bootstrap does not have (A47).
    #[error("target {0:?}: the bootstrap has no such authority")]
    Authority(String),
    /// The authority of the builder is not one.
    #[error("authority {0:?} is not valid")]
    InvalidAuthority(String),
    /// The mesh was shut down.
    #[error("the mesh is shutting down")]
    ShuttingDown,
}

impl Mesh {
    /// Joins the mesh that `GRPC_XDS_BOOTSTRAP` (a file) or else `GRPC_XDS_BOOTSTRAP_CONFIG` (its text) names.
    ///
    /// # Errors
    /// When neither is set, when the file does not appear in time, or when the bootstrap is malformed.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    pub async fn from_env() -> Result<Self, BootstrapError> {
        Ok(Self::builder(Bootstrap::from_env().await?).build())
    }

    /// A mesh with settings of its own.
    pub fn builder(bootstrap: Bootstrap) -> MeshBuilder {
        MeshBuilder::new(bootstrap)
    }

    pub(crate) fn start(
        bootstrap: Bootstrap,
        filters: Makers,
        outlier_detection: Option<Arc<OutlierDetection>>,
        runtime: Handle,
        keeps: Option<Box<dyn Send + Sync>>,
    ) -> Self {
        let bootstrap = Arc::new(bootstrap);
        Self {
            inner: Arc::new(MeshInner {
                xds: XdsClient::connect(Arc::clone(&bootstrap)),
                bootstrap,
                filters: Arc::new(filters),
                outlier_detection,
                clusters: Mutex::default(),
                channels: Mutex::default(),
                tasks: Tasks::new(runtime.clone()),
                runtime,
                _keeps: keeps,
            }),
        }
    }

    /// A channel to `xds:///name`, or to `xds://authority/name` at the servers of that authority (A47), with default
    /// settings.
    ///
    /// Nothing is waited for: the first call waits for the configuration, or [`MeshChannel::ready`] does.
    ///
    /// # Errors
    /// When the target is not of that form, or the bootstrap does not have the authority.
    pub fn channel(&self, target: &str) -> Result<MeshChannel, TargetError> {
        self.channel_builder(target).build()
    }

    /// A channel with settings of its own; named as tonic's `Endpoint` names them where it has them.
    pub fn channel_builder(&self, target: &str) -> ChannelBuilder {
        ChannelBuilder::new(self.clone(), target.to_owned())
    }

    /// A client for many hosts, as hyper-util's: the request's `host:port` is the target.
    pub fn http_client(&self) -> HttpClient {
        HttpClient::new(self.clone())
    }

    /// The xDS node that this process is.
    pub fn node_id(&self) -> &str {
        self.inner.xds.node_id()
    }

    /// What was received and what is applied, with versions, errors and ignored fields.
    pub fn status(&self) -> MeshStatus {
        MeshStatus::of(&self.inner.xds, &self.live_channels())
    }

    /// Ends the mesh: new calls fail, calls in flight may finish until `deadline` from now, connections close.
    ///
    /// Returns whether everything had finished by then. What had not is cut off: no connection to an endpoint is left in
    /// either case. Load that was counted is reported, for which it may take a second more. The ADS stream, which other meshes may use, too, ends with the last handle.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        // Closed first: a channel that is being made meanwhile either sees that, or is among the living.
        self.inner.tasks.close();
        for channel in self.live_channels() {
            channel.shut_down();
        }
        let finished = timeout(deadline, self.inner.tasks.ended()).await.is_ok();
        if !finished {
            self.inner.tasks.abort();
            self.inner.tasks.ended().await;
        }
        // Late is lost: the control plane may be gone, and who leaves does not wait for it.
        let _ = timeout(LAST_LOAD_REPORT, self.inner.xds.load_reports().flush()).await;
        finished
    }

    fn live_channels(&self) -> Vec<Arc<Inner>> {
        lock(&self.inner.channels).iter().filter_map(Weak::upgrade).collect()
    }

    /// What channels do that do not say.
    pub(crate) fn outlier_detection(&self) -> Option<Arc<OutlierDetection>> {
        self.inner.outlier_detection.clone()
    }

    /// The Listener of a target; `None` for an authority that the bootstrap does not have.
    pub(crate) fn listener_name(&self, authority: Option<&str>, name: &str) -> Option<String> {
        match authority {
            None => Some(self.inner.bootstrap.listener_name(name)),
            Some(authority) => self.inner.bootstrap.listener_name_at(authority, name),
        }
    }

    pub(crate) fn open(
        &self,
        target: TargetName,
        options: CallOptions,
        settings: ClusterSettings,
    ) -> Result<MeshChannel, TargetError> {
        let name = Arc::clone(target.authority());
        let watch = self.inner.xds.watch(target.clone());
        let shared = Arc::new(Shared::new(&options));
        let clusters = Clusters { mesh: Arc::clone(&self.inner), settings: Arc::new(settings) };
        let follow = {
            let (shared, xds) = (Arc::clone(&shared), self.inner.xds.clone());
            let filters = Arc::clone(&self.inner.filters);
            move || apply::run(xds.watch(target.clone()), Arc::clone(&shared), clusters.clone(), Arc::clone(&filters))
        };
        let orphan = Arc::clone(&shared);
        // Nobody would tell those who wait for a configuration.
        let gone = || Table::Failed("the runtime that the mesh ran on has ended".into());
        let aborted = OnAbort::new(move || orphan.publish(gone()));
        let apply = async move {
            supervised("apply", follow).await;
            aborted.disarm();
        };
        let apply = self.inner.runtime.spawn(apply).abort_handle();
        let connected = Connected { apply, _mesh: self.clone() };
        let node = self.inner.xds.node_id().into();
        let inner = Arc::new(Inner::new(name, shared, options, node, watch, connected));
        let mut channels = lock(&self.inner.channels);
        channels.retain(|channel| channel.strong_count() > 0);
        channels.push(Arc::downgrade(&inner));
        drop(channels);
        if self.inner.tasks.is_closed() {
            // A shutdown that was faster may have missed this one.
            inner.shut_down();
            return Err(TargetError::ShuttingDown);
        }
        Ok(MeshChannel::new(inner))
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("node_id", &self.node_id()).finish_non_exhaustive()
    }
}

/// A channel's hold on its mesh: dropping it ends the channel's apply task.
pub(crate) struct Connected {
    apply: AbortHandle,
    _mesh: Mesh,
}

impl Connected {
    pub(crate) fn end(&self) {
        self.apply.abort();
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.end();
    }
}

impl Inner {
    fn shut_down(&self) {
        self.connected().end();
        self.shared.publish(Table::ShutDown);
    }
}

// === Clusters ===

/// The registry of running clusters, as one channel uses it.
#[derive(Clone)]
pub(crate) struct Clusters {
    mesh: Arc<MeshInner>,
    settings: Arc<ClusterSettings>,
}

impl Clusters {
    /// The cluster of that name: the one that another channel runs already, or a new one.
    pub(crate) fn obtain(&self, update: &Update) -> Arc<Cluster> {
        let key = ClusterKey {
            name: update.config.name.clone(),
            server: update.config.server,
            settings: Arc::clone(&self.settings),
        };
        let mut clusters = lock(&self.mesh.clusters);
        if let Some(cluster) = clusters.get(&key).and_then(Weak::upgrade) {
            return cluster;
        }
        if clusters.len() == clusters.capacity() {
            // About to grow: first forget what is gone.
            clusters.retain(|_, cluster| cluster.strong_count() > 0);
        }
        let options = ClusterOptions {
            dial: Arc::new(self.settings.dial.clone()),
            max_pending: self.settings.max_pending,
            outlier_detection: self.settings.outlier_detection.clone(),
            tasks: self.mesh.tasks.clone(),
            loads: self.mesh.xds.load_reports(),
            name_failures: self.mesh.xds.name_failures(),
            node: self.mesh.xds.node_id().into(),
        };
        let cluster = Arc::new(Cluster::new(update.clone(), options));
        clusters.insert(key, Arc::downgrade(&cluster));
        cluster
    }
}

/// Locks are held for a few instructions and never across a panic of ours; one that is poisoned is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
