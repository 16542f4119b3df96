//! A snapshot becomes running parts, make-before-break.
//!
//! ```text
//!  1 clusters: created, updated (by name; shared with the other channels of the mesh)
//!  2 every worker that runs has published the new configuration
//!  3 the routing table is built, from the compiled matcher of before if the virtual host did not change
//!  4 one pointer is stored: the new world begins. Clusters that only the old table held end with it.
//! ```
//!
//! ACKed is not applied: [`Table`] is what calls see, and `status()` reports it. This file does NOT fetch anything.

use crate::{
    channel::Shared,
    cluster::{Cluster, Update},
    deadline::Limits,
    mesh::Clusters,
    retry::Plan,
    route::{RouteMatcher, WeightedChoice},
};
use mesh_xds::{
    Limiter, Snapshot, Target, TargetWatch,
    resource::{ClusterName, ClusterSpecifier, RouteAction, VirtualHost},
};
use rustc_hash::FxHashMap;
use std::sync::Arc;
use tokio::time::Instant;

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

/// One immutable table per channel, built off the path.
#[derive(Debug)]
pub(crate) struct RoutingTable {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) clusters: FxHashMap<ClusterName, Arc<Cluster>>,
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
}

/// What a route does with a call.
#[derive(Debug)]
pub(crate) enum Action {
    Forward {
        destination: Destination,
        limits: Limits,
        retry: Option<Plan>,
    },
    /// The route's name, and the field.
    Unsupported(String, &'static str),
}

/// Where a route sends a call.
#[derive(Debug)]
pub(crate) enum Destination {
    One(Arc<Cluster>),
    Split(WeightedChoice, Box<[Arc<Cluster>]>),
}

impl CompiledHost {
    pub(crate) fn name(&self) -> &str {
        &self.source.name
    }
}

/// Follows a target for as long as its channel lives.
pub(crate) async fn run(mut watch: TargetWatch, shared: Arc<Shared>, clusters: Clusters) {
    let mut target = watch.current();
    let mut applied = Limiter::default();
    loop {
        match target {
            Target::Ready(snapshot) => {
                let (listener, generation) = (Arc::clone(&snapshot.listener_name), snapshot.generation);
                apply(snapshot, &shared, &clusters).await;
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

async fn apply(snapshot: Arc<Snapshot>, shared: &Shared, registry: &Clusters) {
    let before = Arc::clone(&shared.table());
    let before = match &*before {
        Table::Ready(table) => Some(table),
        _ => None,
    };
    let generation = snapshot.generation;
    let mut running = FxHashMap::with_capacity_and_hasher(snapshot.clusters.len(), Default::default());
    let mut changed = Vec::new();
    for (name, config) in &snapshot.clusters {
        let update = Update { generation, config: Arc::clone(config) };
        let held = before.and_then(|table| Some((table.snapshot.clusters.get(name)?, table.clusters.get(name)?)));
        // A cluster of that name from another server is another cluster (A71).
        let held = held.filter(|(before, _)| before.server == config.server);
        let cluster = match held {
            Some((_, cluster)) => Arc::clone(cluster),
            None => registry.obtain(&update),
        };
        let same = held.is_some_and(|(before, _)| Arc::ptr_eq(before, config));
        if !same {
            cluster.update(update);
            // Its dials start before the routes point at it, not at the first call; unless there was no call at all.
            shared.warm(&cluster);
            changed.push(Arc::clone(&cluster));
        }
        running.insert(name.clone(), cluster);
    }
    for cluster in changed {
        cluster.applied().await;
    }
    let host = snapshot.virtual_host.as_ref().map(|source| {
        let kept = before.filter(|table| same_parts(table, &snapshot, &running)).and_then(|table| table.host.as_ref());
        match kept {
            Some(host) if Arc::ptr_eq(&host.source, source) => Arc::clone(host),
            _ => Arc::new(compile(source, &snapshot, &running, before)),
        }
    });
    shared.publish(Table::Ready(RoutingTable { snapshot, clusters: running, host }));
}

/// Whether a compiled host of `before` still means the same: it holds limits and clusters.
fn same_parts(before: &RoutingTable, snapshot: &Snapshot, running: &FxHashMap<ClusterName, Arc<Cluster>>) -> bool {
    before.snapshot.http.max_stream_duration == snapshot.http.max_stream_duration
        && before.clusters.len() == running.len()
        && running
            .iter()
            .all(|(name, cluster)| before.clusters.get(name).is_some_and(|before| Arc::ptr_eq(before, cluster)))
}

fn compile(
    source: &Arc<VirtualHost>,
    snapshot: &Snapshot,
    clusters: &FxHashMap<ClusterName, Arc<Cluster>>,
    before: Option<&RoutingTable>,
) -> CompiledHost {
    let hcm_limit = snapshot.http.max_stream_duration;
    let actions = source.routes.iter().map(|route| match &route.action {
        RouteAction::Forward(forward) => match destination(&forward.cluster, clusters) {
            Some(destination) => Action::Forward {
                destination,
                limits: Limits::of(forward, hcm_limit),
                retry: forward.retry_policy.clone().map(Plan::new),
            },
            // The assembler lists every cluster of the virtual host: this is a bug there, and one route fails.
            None => Action::Unsupported(route.name.clone(), "cluster"),
        },
        RouteAction::Unsupported(action) => Action::Unsupported(route.name.clone(), action),
    });
    // Matchers depend on the virtual host alone: they stay when only clusters came or went.
    let compiled = before.and_then(|table| table.host.as_ref()).filter(|host| Arc::ptr_eq(&host.source, source));
    CompiledHost {
        source: Arc::clone(source),
        actions: actions.collect(),
        matcher: compiled.map_or_else(|| RouteMatcher::compile(&source.routes), |host| host.matcher.clone()),
    }
}

fn destination(specifier: &ClusterSpecifier, clusters: &FxHashMap<ClusterName, Arc<Cluster>>) -> Option<Destination> {
    let running = |name: &ClusterName| clusters.get(name).map(Arc::clone);
    match specifier {
        ClusterSpecifier::Cluster(name) => running(name).map(Destination::One),
        ClusterSpecifier::Weighted(weighted) => {
            let choice = WeightedChoice::compile(weighted.iter().map(|cluster| cluster.weight))?;
            let clusters: Option<Box<[_]>> = weighted.iter().map(|cluster| running(&cluster.name)).collect();
            Some(Destination::Split(choice, clusters?))
        }
    }
}
