//! A snapshot becomes running parts, make-before-break.
//!
//! ```text
//!  1 clusters that changed: created, updated (by name; shared with the other channels of the mesh)
//!  2 every worker that runs has published the new configuration
//!  3 the routing table is built, from the compiled matcher of before if the virtual host did not change
//!  4 one pointer is stored: the new world begins. Clusters that only the old table held end with it.
//! ```
//!
//! The threads here carry calls: 10,000 new clusters are made with other tasks in between, and a virtual host with as many
//! routes is compiled on a thread that waits for such work.
//!
//! ACKed is not applied: [`Table`] is what calls see, and `status()` reports it. This file does NOT fetch anything.

use crate::{
    channel::Shared,
    cluster::{Cluster, Update},
    deadline::Limits,
    filter::{Chain, Level, LevelBuilder, Makers},
    mesh::Clusters,
    retry::Plan,
    route::{RouteMatcher, WeightedChoice},
};
use mesh_xds::{
    ClusterMap, Limiter, Snapshot, Target, TargetWatch,
    resource::{ClusterName, ClusterSpecifier, RouteAction, VirtualHost},
};
use std::{panic::resume_unwind, sync::Arc, time::Duration};
use tokio::{
    task::{spawn_blocking, yield_now},
    time::Instant,
};

/// So many clusters are looked at before other tasks have their turn.
const YIELD: usize = 64;
/// Of so many routes, a virtual host is large: to compile 10,000 takes a dozen milliseconds.
const LARGE: usize = 512;

/// What the calls of a channel see of the configuration.
#[derive(Debug)]
pub(crate) enum Table {
    /// Nothing has arrived: calls wait. Says what is missing.
    Pending(Arc<str>),
    /// Nothing can be used: calls fail with this.
    Failed(Arc<str>),
    /// `Mesh::shutdown`.
    ShutDown,
    /// Calls are routed.
    Ready(RoutingTable),
}

impl Table {
    fn ready(&self) -> Option<&RoutingTable> {
        match self {
            Self::Ready(table) => Some(table),
            _ => None,
        }
    }
}

/// One immutable table per channel, built off the path.
#[derive(Debug)]
pub(crate) struct RoutingTable {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) clusters: ClusterMap<Arc<Cluster>>,
    /// `None` when no virtual host serves the target.
    pub(crate) host: Option<Arc<CompiledHost>>,
}

/// A virtual host, ready to be matched.
#[derive(Debug)]
pub(crate) struct CompiledHost {
    source: Arc<VirtualHost>,
    pub(crate) matcher: RouteMatcher,
    /// By route index.
    pub(crate) actions: Box<[Action]>,
    /// What filters run where, for the next configuration.
    filters: Vec<Arc<Level>>,
}

/// What a route does with a call.
#[derive(Debug)]
pub(crate) enum Action {
    Forward {
        destination: Destination,
        limits: Limits,
        idle_timeout: Option<Duration>,
        authority: AuthorityOf,
        retry: Option<Plan>,
    },
    /// The route's name, and the field.
    Unsupported(String, &'static str),
}

/// What a route puts into `:authority`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthorityOf {
    /// The service's name.
    Service,
    /// The endpoint's hostname, if it has one (A81).
    Endpoint,
}

/// Where a route sends a call.
#[derive(Debug)]
pub(crate) enum Destination {
    One(Way),
    Split(WeightedChoice, Box<[Way]>),
}

/// A cluster, and what is on the way to it.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) filters: Option<Arc<Chain>>,
}

impl CompiledHost {
    pub(crate) fn name(&self) -> &str {
        &self.source.name
    }
}

/// Follows a target for as long as its channel lives.
pub(crate) async fn run(mut watch: TargetWatch, shared: Arc<Shared>, clusters: Clusters, makers: Arc<Makers>) {
    let mut target = watch.current();
    let mut applied = Limiter::default();
    loop {
        match target {
            Target::Ready(snapshot) => {
                let (listener, generation) = (Arc::clone(&snapshot.listener_name), snapshot.generation);
                apply(snapshot, &shared, &clusters, &makers).await;
                if let Some(suppressed) = applied.permit(Instant::now()) {
                    tracing::info!(%listener, generation, suppressed, "configuration applied");
                }
            }
            Target::Pending { missing } => shared.publish(Table::Pending(missing)),
            Target::Failed(reason) => shared.publish(Table::Failed(reason)),
        }
        match watch.changed().await {
            Ok(next) => target = next,
            // The client is gone, which only a shutdown does: what was applied stays.
            Err(_closed) => return,
        }
    }
}

async fn apply(snapshot: Arc<Snapshot>, shared: &Shared, registry: &Clusters, makers: &Arc<Makers>) {
    let before = Arc::clone(&shared.table());
    let table = before.ready();
    let Running { clusters, updated, same } = clusters_of(&snapshot, table, shared, registry).await;
    for cluster in updated {
        cluster.applied().await;
    }
    // A compiled host holds limits, filters and clusters.
    let means_the_same = |table: &&RoutingTable| {
        let (http, routes) = (&table.snapshot.http, &table.snapshot.routes);
        same && http.max_stream_duration == snapshot.http.max_stream_duration
            && http.filters == snapshot.http.filters
            && routes.overrides == snapshot.routes.overrides
    };
    let host = match &snapshot.virtual_host {
        None => None,
        Some(source) => match table.filter(means_the_same).and_then(|table| table.host.as_ref()) {
            Some(host) if Arc::ptr_eq(&host.source, source) => Some(Arc::clone(host)),
            _ if source.routes.len() < LARGE => Some(Arc::new(compile(source, &snapshot, &clusters, makers, table))),
            _ => {
                let (source, snapshot, makers) = (Arc::clone(source), Arc::clone(&snapshot), Arc::clone(makers));
                let (clusters, before) = (clusters.clone(), Arc::clone(&before));
                let compile = move || compile(&source, &snapshot, &clusters, &makers, before.ready());
                Some(Arc::new(elsewhere(compile).await))
            }
        },
    };
    shared.publish(Table::Ready(RoutingTable { snapshot, clusters, host }));
}

/// Does work where no call waits for it.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            // As if it had panicked here: the task starts again.
            Ok(panic) => resume_unwind(panic),
            // The runtime is shutting down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// What a snapshot's clusters come to.
struct Running {
    clusters: ClusterMap<Arc<Cluster>>,
    /// Those with news.
    updated: Vec<Arc<Cluster>>,
    /// Whether they are the clusters of before, each of them.
    same: bool,
}

/// Creates and updates clusters. One that did not change is not even looked at.
async fn clusters_of(
    snapshot: &Snapshot,
    before: Option<&RoutingTable>,
    shared: &Shared,
    registry: &Clusters,
) -> Running {
    let nothing = ClusterMap::default();
    let (held, clusters) = match before {
        Some(table) => (&table.snapshot.clusters, table.clusters.clone()),
        None => (&nothing, ClusterMap::default()),
    };
    let mut running = Running { clusters, updated: Vec::new(), same: true };
    for (index, (name, held, config)) in snapshot.clusters.changes_since(held).enumerate() {
        if index % YIELD == YIELD - 1 {
            yield_now().await;
        }
        if held.is_some_and(|held| Arc::ptr_eq(held, config)) {
            continue;
        }
        let update = Update { generation: snapshot.generation, config: Arc::clone(config) };
        // A cluster of that name from another server is another cluster (A71).
        let same_server = held.is_some_and(|held| held.server == config.server);
        let cluster = match running.clusters.get(name).filter(|_| same_server) {
            Some(cluster) => Arc::clone(cluster),
            None => {
                let cluster = registry.obtain(&update);
                running.clusters.insert(name.clone(), Arc::clone(&cluster));
                running.same = false;
                cluster
            }
        };
        cluster.update(update);
        // Its dials start before the routes point at it, not at the first call; unless there was no call at all.
        shared.warm(&cluster);
        running.updated.push(cluster);
    }
    for (name, ..) in held.changes_since(&snapshot.clusters).filter(|(_, new, _)| new.is_none()) {
        running.clusters.remove(name);
        running.same = false;
    }
    running
}

fn compile(
    source: &Arc<VirtualHost>,
    snapshot: &Snapshot,
    clusters: &ClusterMap<Arc<Cluster>>,
    makers: &Makers,
    before: Option<&RoutingTable>,
) -> CompiledHost {
    let hcm_limit = snapshot.http.max_stream_duration;
    let before = before.and_then(|table| table.host.as_ref());
    let levels_before = before.map_or(&[][..], |host| &host.filters);
    let mut filters = LevelBuilder::new(&snapshot.http.filters, makers, levels_before);
    let listener = filters.root();
    let routes = filters.below(&listener, &snapshot.routes.overrides);
    let host = filters.below(&routes, &source.overrides);
    let actions = source.routes.iter().map(|route| match &route.action {
        RouteAction::Forward(forward) => {
            let level = filters.below(&host, &route.overrides);
            match destination(&forward.cluster, clusters, &level, &mut filters) {
                Some(destination) => Action::Forward {
                    destination,
                    limits: Limits::of(forward, hcm_limit),
                    idle_timeout: forward.idle_timeout.filter(|limit| !limit.is_zero()),
                    authority: if forward.auto_host_rewrite { AuthorityOf::Endpoint } else { AuthorityOf::Service },
                    retry: forward.retry_policy.clone().map(Plan::new),
                },
                // The assembler lists every cluster of the virtual host: this is a bug there, and one route fails.
                None => Action::Unsupported(route.name.clone(), "cluster"),
            }
        }
        RouteAction::Unsupported(action) => Action::Unsupported(route.name.clone(), action),
    });
    let actions = actions.collect();
    // Matchers depend on the virtual host alone: they stay when only clusters or filters came or went.
    let compiled = before.filter(|host| Arc::ptr_eq(&host.source, source));
    CompiledHost {
        source: Arc::clone(source),
        actions,
        matcher: compiled.map_or_else(|| RouteMatcher::compile(&source.routes), |host| host.matcher.clone()),
        filters: filters.finish(),
    }
}

fn destination(
    specifier: &ClusterSpecifier,
    clusters: &ClusterMap<Arc<Cluster>>,
    route: &Arc<Level>,
    filters: &mut LevelBuilder<'_>,
) -> Option<Destination> {
    let way = |name: &ClusterName, level: &Level| {
        let cluster = clusters.get(name).map(Arc::clone)?;
        Some(Way { cluster, filters: level.chain() })
    };
    match specifier {
        ClusterSpecifier::Cluster(name) => way(name, route).map(Destination::One),
        ClusterSpecifier::Weighted(weighted) => {
            let choice = WeightedChoice::compile(weighted.iter().map(|share| share.weight))?;
            let ways = weighted.iter().map(|share| way(&share.name, &filters.below(route, &share.overrides)));
            Some(Destination::Split(choice, ways.collect::<Option<_>>()?))
        }
    }
}
