//! One target of the graph: what it serves, and the plan that will replace it once it is complete.
//!
//! ```text
//!            plan incomplete            every cluster resolved
//! Pending ────────────────────► plan ─────────────────────────► serving ──┐ a newer plan completes
//!    │                            ▲                                │  ▲───┘ a cluster of it changes
//!    └─ listener or routes failed ┴── failed: no plan, no serving ─┘
//! ```
//!
//! It does NOT resolve clusters and does NOT fetch.

use super::Node;
use crate::{
    ClusterMap,
    cache::{Lookup, Sources},
    resource::{
        ClusterName, HttpConnectionManager, Kind, Listener, ListenerKind, Resource, RouteAction, RouteConfig,
        RouteSource, VirtualHost,
    },
    snapshot::{ClusterConfig, Snapshot, Target},
};
use rustc_hash::{FxHashMap, FxHashSet};
use std::{collections::BTreeSet, mem, sync::Arc};

#[derive(Debug)]
pub(super) struct TargetState {
    listener: Arc<str>,
    authority: Arc<str>,
    /// The listener as it was last read, with the identity of its connection manager.
    http: Option<(Arc<Listener>, Arc<HttpConnectionManager>)>,
    /// The RDS resource that the listener refers to now.
    routes: Option<Arc<str>>,
    stage: Stage,
    /// Clusters of the plan that are not complete.
    missing: FxHashSet<ClusterName>,
    /// Clusters that changed since the last [`TargetState::publish`].
    changed: Vec<ClusterName>,
    serving: Option<Serving>,
    /// What was last published, when that was no snapshot.
    told: Option<Arc<str>>,
    /// References taken and not given up.
    held_routes: BTreeSet<Arc<str>>,
    held_clusters: FxHashSet<ClusterName>,
    /// Whether the stage or what is served changed, so that counts and references must be looked at.
    moved: bool,
}

/// What listener and routes come to.
#[derive(Clone, Debug)]
enum Stage {
    /// Something above the clusters is missing.
    Waiting(Arc<str>),
    /// Something above the clusters is missing, because the control plane cannot be reached, or said too early that it
    /// does not exist: an error for who serves nothing.
    Unreachable(Arc<str>),
    /// There is no usable listener or no usable routes.
    Failed(Arc<str>),
    Planned(Arc<Plan>),
}

/// Everything but the clusters' contents.
#[derive(Debug)]
struct Plan {
    http: Arc<HttpConnectionManager>,
    routes: Arc<RouteConfig>,
    /// The RDS resource, unless the routes are in line.
    routes_name: Option<Arc<str>>,
    virtual_host: Option<Arc<VirtualHost>>,
    clusters: Arc<FxHashSet<ClusterName>>,
}

#[derive(Debug)]
struct Serving {
    plan: Arc<Plan>,
    snapshot: Arc<Snapshot>,
}

/// References that a new plan takes.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) routes: Option<Arc<str>>,
    pub(super) clusters: Vec<ClusterName>,
}

/// References that are not needed any more.
#[derive(Debug, Default)]
pub(super) struct Released {
    pub(super) routes: Vec<Arc<str>>,
    pub(super) clusters: Vec<ClusterName>,
}

impl TargetState {
    pub(super) fn new(listener: Arc<str>, authority: Arc<str>) -> Self {
        let stage = Stage::Waiting(waiting_for(Kind::Listener, &listener));
        Self {
            listener,
            authority,
            http: None,
            routes: None,
            stage,
            missing: FxHashSet::default(),
            changed: Vec::new(),
            serving: None,
            told: None,
            held_routes: BTreeSet::new(),
            held_clusters: FxHashSet::default(),
            moved: true,
        }
    }

    pub(super) fn listener(&self) -> &Arc<str> {
        &self.listener
    }

    /// Whether something that was read is not served yet, because a part that it refers to is missing.
    pub(super) fn is_behind(&self) -> bool {
        match &self.stage {
            Stage::Failed(_) => false,
            Stage::Waiting(_) | Stage::Unreachable(_) => self.http.is_some(),
            Stage::Planned(plan) => !self.serving.as_ref().is_some_and(|serving| Arc::ptr_eq(&serving.plan, plan)),
        }
    }

    /// Whether listener, routes and clusters are what they are by the control plane's word.
    pub(super) fn is_decided(&self) -> bool {
        match &self.stage {
            Stage::Failed(_) => true,
            Stage::Waiting(_) | Stage::Unreachable(_) => false,
            Stage::Planned(_) => self.missing.is_empty() && !self.is_behind(),
        }
    }

    /// Clusters of the plan that are not complete.
    pub(super) fn missing(&self) -> impl Iterator<Item = &ClusterName> {
        self.missing.iter()
    }

    /// What is missing above the clusters: either resource may be.
    pub(super) fn waits_for(&self) -> Vec<(Kind, Arc<str>)> {
        let routes = self.routes.iter().map(|name| (Kind::RouteConfig, Arc::clone(name)));
        match &self.stage {
            Stage::Waiting(_) | Stage::Unreachable(_) => {
                routes.chain([(Kind::Listener, Arc::clone(&self.listener))]).collect()
            }
            Stage::Failed(_) | Stage::Planned(_) => Vec::new(),
        }
    }

    /// Everything it refers to below the listener, to be given up.
    pub(super) fn into_references(self) -> Released {
        let (routes, clusters) = (self.held_routes, self.held_clusters);
        Released { routes: routes.into_iter().collect(), clusters: clusters.into_iter().collect() }
    }

    /// Reads listener and routes again.
    pub(super) fn plan(&mut self, cache: &Sources<'_>) -> Taken {
        let stage = self.read(cache);
        let same = matches!((&stage, &self.stage), (Stage::Planned(new), Stage::Planned(old)) if Arc::ptr_eq(new, old));
        self.moved |= !same;
        self.stage = stage;
        let mut taken = Taken::default();
        if let Some(routes) = &self.routes
            && self.held_routes.insert(Arc::clone(routes))
        {
            taken.routes = Some(Arc::clone(routes));
        }
        if let (Stage::Planned(plan), false) = (&self.stage, same) {
            taken.clusters = plan.clusters.difference(&self.held_clusters).cloned().collect();
            self.held_clusters.extend(taken.clusters.iter().cloned());
        }
        taken
    }

    /// A cluster it refers to is different.
    pub(super) fn cluster_changed(&mut self, name: &ClusterName) {
        self.changed.push(name.clone());
    }

    /// Makes a new value of what was read, if there is one, and gives up what is not needed any more.
    pub(super) fn publish(&mut self, nodes: &FxHashMap<ClusterName, Node>) -> (Option<Target>, Released) {
        let changed = mem::take(&mut self.changed);
        self.count_missing(nodes, &changed);
        let value = match self.stage.clone() {
            Stage::Failed(text) => {
                self.serving = None;
                self.tell(text, Target::Failed)
            }
            // What was complete goes on: neither waiting nor an outage takes it away.
            Stage::Waiting(_) | Stage::Unreachable(_) if self.serving.is_some() => self.refresh(nodes, &changed),
            Stage::Waiting(missing) => self.tell(missing, |missing| Target::Pending { missing }),
            Stage::Unreachable(text) => self.tell(text, Target::Failed),
            Stage::Planned(plan) => match &self.serving {
                Some(serving) if Arc::ptr_eq(&serving.plan, &plan) => self.refresh(nodes, &changed),
                // "publishes a complete XdsConfig only when every statically referenced cluster is resolved" - A74.
                _ if self.missing.is_empty() => Some(self.serve(plan, nodes)),
                Some(_) => self.refresh(nodes, &changed),
                // Nothing is served yet and an outage is why: calls are told rather than left waiting.
                None if self.missing.iter().all(|name| is_unreachable(nodes, name)) => Some(self.serve(plan, nodes)),
                None => {
                    let missing = self.describe_missing(nodes);
                    self.tell(missing, |missing| Target::Pending { missing })
                }
            },
        };
        let released = if mem::take(&mut self.moved) { self.release() } else { Released::default() };
        (value, released)
    }

    fn read(&mut self, cache: &Sources<'_>) -> Stage {
        let listener = match cache.lookup(Kind::Listener, &self.listener) {
            Lookup::Usable { value: Resource::Listener(listener), .. } => listener,
            Lookup::Usable { .. } | Lookup::Pending => {
                return Stage::Waiting(waiting_for(Kind::Listener, &self.listener));
            }
            Lookup::Failed(text) => return Stage::Failed(text),
            Lookup::Unreachable(text) | Lookup::Absent(text) => return Stage::Unreachable(text),
        };
        let ListenerKind::Api(http) = &listener.kind else {
            self.routes = None;
            let why = "is a listener with sockets, for servers; a client needs an api_listener";
            return Stage::Failed(cache.text(Kind::Listener, &self.listener, why));
        };
        let http = match self.http.take() {
            Some((read, held)) if Arc::ptr_eq(&read, listener) || *held == *http => held,
            _ => Arc::new(http.clone()),
        };
        self.http = Some((Arc::clone(listener), Arc::clone(&http)));
        let routes = match &http.routes {
            RouteSource::Inline(routes) => {
                self.routes = None;
                Arc::clone(routes)
            }
            RouteSource::Rds(name) => {
                self.routes = Some(name.as_str().into());
                match cache.lookup(Kind::RouteConfig, name) {
                    Lookup::Usable { value: Resource::RouteConfig(routes), .. } => Arc::clone(routes),
                    Lookup::Usable { .. } | Lookup::Pending => {
                        return Stage::Waiting(waiting_for(Kind::RouteConfig, name));
                    }
                    Lookup::Failed(text) => return Stage::Failed(text),
                    Lookup::Unreachable(text) | Lookup::Absent(text) => return Stage::Unreachable(text),
                }
            }
        };
        Stage::Planned(self.plan_for(http, routes))
    }

    /// The plan at hand if nothing changed; else a new one that shares what did not.
    fn plan_for(&self, http: Arc<HttpConnectionManager>, routes: Arc<RouteConfig>) -> Arc<Plan> {
        let held = match (&self.stage, &self.serving) {
            (Stage::Planned(plan), _) => Some(plan),
            (_, serving) => serving.as_ref().map(|serving| &serving.plan),
        };
        if let Some(plan) = held
            && Arc::ptr_eq(&plan.http, &http)
            && Arc::ptr_eq(&plan.routes, &routes)
        {
            return Arc::clone(plan);
        }
        let virtual_host = routes.virtual_host(&self.authority).cloned();
        let clusters = match (held.map(|plan| (&plan.virtual_host, &plan.clusters)), &virtual_host) {
            (Some((Some(held), clusters)), Some(new)) if Arc::ptr_eq(held, new) => Arc::clone(clusters),
            (_, new) => Arc::new(new.iter().flat_map(|host| cluster_names(host)).cloned().collect()),
        };
        Arc::new(Plan { http, routes, routes_name: self.routes.clone(), virtual_host, clusters })
    }

    fn count_missing(&mut self, nodes: &FxHashMap<ClusterName, Node>, changed: &[ClusterName]) {
        let is_complete = |name: &ClusterName| nodes.get(name).is_some_and(|node| node.config().is_some());
        match &self.stage {
            Stage::Planned(plan) if self.moved => {
                self.missing = plan.clusters.iter().filter(|name| !is_complete(name)).cloned().collect();
            }
            Stage::Planned(_) => {
                for name in changed.iter().filter(|name| is_complete(name)) {
                    self.missing.remove(name);
                }
            }
            _ => self.missing.clear(),
        }
    }

    fn serve(&mut self, plan: Arc<Plan>, nodes: &FxHashMap<ClusterName, Node>) -> Target {
        let config = |name: &ClusterName| Some((name.clone(), Arc::clone(nodes.get(name)?.config_or_unreachable()?)));
        let snapshot = Arc::new(self.snapshot(&plan, plan.clusters.iter().filter_map(config).collect()));
        self.serving = Some(Serving { plan, snapshot: Arc::clone(&snapshot) });
        self.told = None;
        self.moved = true;
        Target::Ready(snapshot)
    }

    /// What is served, with the newest value of each of its clusters.
    fn refresh(&mut self, nodes: &FxHashMap<ClusterName, Node>, changed: &[ClusterName]) -> Option<Target> {
        let serving = self.serving.as_ref()?;
        let newer = |name: &ClusterName| {
            let (held, new) = (serving.snapshot.clusters.get(name)?, nodes.get(name)?.config_or_unreachable()?);
            (!Arc::ptr_eq(held, new)).then(|| (name.clone(), Arc::clone(new)))
        };
        let newer: Vec<_> = changed.iter().filter_map(newer).collect();
        if newer.is_empty() {
            return None;
        }
        let plan = Arc::clone(&serving.plan);
        let mut clusters = serving.snapshot.clusters.clone();
        for (name, config) in newer {
            clusters.insert(name, config);
        }
        let snapshot = Arc::new(self.snapshot(&plan, clusters));
        self.serving = Some(Serving { plan, snapshot: Arc::clone(&snapshot) });
        Some(Target::Ready(snapshot))
    }

    fn snapshot(&self, plan: &Plan, clusters: ClusterMap<Arc<ClusterConfig>>) -> Snapshot {
        Snapshot {
            generation: Snapshot::next_generation(),
            listener_name: Arc::clone(&self.listener),
            http: Arc::clone(&plan.http),
            routes: Arc::clone(&plan.routes),
            virtual_host: plan.virtual_host.clone(),
            clusters,
        }
    }

    fn tell(&mut self, text: Arc<str>, value: fn(Arc<str>) -> Target) -> Option<Target> {
        if self.told.as_ref() == Some(&text) {
            return None;
        }
        self.told = Some(Arc::clone(&text));
        Some(value(text))
    }

    fn describe_missing(&self, nodes: &FxHashMap<ClusterName, Node>) -> Arc<str> {
        let first = self.missing.iter().next().and_then(|name| Some(nodes.get(name)?.describe_missing(name)));
        let first = first.unwrap_or_default();
        match self.missing.len() {
            0 | 1 => first.into(),
            count => format!("{first}, and {} more clusters", count - 1).into(),
        }
    }

    fn release(&mut self) -> Released {
        let planned = if let Stage::Planned(plan) = &self.stage { Some(plan) } else { None };
        let plans = [planned, self.serving.as_ref().map(|serving| &serving.plan)];
        let needs_cluster = |name: &ClusterName| plans.iter().flatten().any(|plan| plan.clusters.contains(name));
        let needs_routes = |name: &Arc<str>| {
            self.routes.as_ref() == Some(name)
                || plans.iter().flatten().any(|plan| plan.routes_name.as_ref() == Some(name))
        };
        let released = Released {
            routes: self.held_routes.iter().filter(|name| !needs_routes(name)).cloned().collect(),
            clusters: self.held_clusters.iter().filter(|name| !needs_cluster(name)).cloned().collect(),
        };
        for name in &released.routes {
            self.held_routes.remove(name);
        }
        for name in &released.clusters {
            self.held_clusters.remove(name);
        }
        released
    }
}

fn waiting_for(kind: Kind, name: &str) -> Arc<str> {
    format!("waiting for {kind} {name:?}").into()
}

fn is_unreachable(nodes: &FxHashMap<ClusterName, Node>, name: &ClusterName) -> bool {
    nodes.get(name).is_some_and(|node| node.config_or_unreachable().is_some())
}

fn cluster_names(host: &VirtualHost) -> impl Iterator<Item = &ClusterName> {
    host.routes.iter().flat_map(|route| match &route.action {
        RouteAction::Forward(forward) => Some(forward.cluster.names()).into_iter().flatten(),
        RouteAction::Unsupported(_) => None.into_iter().flatten(),
    })
}
