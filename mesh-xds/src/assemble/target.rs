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
    budget::Budget,
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
    /// Clusters that changed, or that are of a plan that is new: to be [looked](TargetState::look) at.
    unseen: Vec<ClusterName>,
    /// Clusters of the plan that are not complete.
    missing: FxHashSet<ClusterName>,
    /// The others, for a plan that is not served: when none is missing, this is the next snapshot's.
    gathered: ClusterMap<Arc<ClusterConfig>>,
    /// Values newer than those that are served.
    newer: Vec<(ClusterName, Arc<ClusterConfig>)>,
    serving: Option<Serving>,
    /// What was last published, when that was no snapshot.
    told: Option<Arc<str>>,
    /// References taken and not given up.
    held_routes: BTreeSet<Arc<str>>,
    /// To clusters: those of these plans.
    held_clusters: Vec<Arc<FxHashSet<ClusterName>>>,
    /// Whether the stage or what is served changed, so that references must be looked at.
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
            unseen: Vec::new(),
            missing: FxHashSet::default(),
            gathered: ClusterMap::default(),
            newer: Vec::new(),
            serving: None,
            told: None,
            held_routes: BTreeSet::new(),
            held_clusters: Vec::new(),
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
            Stage::Planned(plan) => !self.serves(plan),
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
        let clusters: FxHashSet<_> = self.held_clusters.iter().flat_map(|clusters| clusters.iter().cloned()).collect();
        Released { routes: self.held_routes.into_iter().collect(), clusters: clusters.into_iter().collect() }
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
        if !same {
            self.missing.clear();
            self.gathered = ClusterMap::default();
        }
        if let (Stage::Planned(plan), false) = (&self.stage, same) {
            self.unseen.extend(plan.clusters.iter().cloned());
            if !self.held_clusters.iter().any(|held| Arc::ptr_eq(held, &plan.clusters)) {
                let is_held = |name: &ClusterName| self.held_clusters.iter().any(|held| held.contains(name));
                taken.clusters = plan.clusters.iter().filter(|name| !is_held(name)).cloned().collect();
                self.held_clusters.push(Arc::clone(&plan.clusters));
            }
        }
        taken
    }

    /// A cluster it refers to is different.
    pub(super) fn cluster_changed(&mut self, name: &ClusterName) {
        self.unseen.push(name.clone());
    }

    /// Looks at what became of the clusters, as far as the budget goes. Returns whether all were looked at, so that it is
    /// time to [publish](TargetState::publish).
    pub(super) fn look(&mut self, nodes: &FxHashMap<ClusterName, Node>, budget: &mut Budget) -> bool {
        while let Some(name) = self.unseen.pop() {
            if let Some(node) = nodes.get(&name) {
                self.look_at(name, node);
            }
            budget.spend();
            if budget.is_spent() {
                break;
            }
        }
        self.unseen.is_empty()
    }

    fn look_at(&mut self, name: ClusterName, node: &Node) {
        if let Some(serving) = &self.serving
            && let (Some(held), Some(new)) = (serving.snapshot.clusters.get(&name), node.config_or_unreachable())
            && !Arc::ptr_eq(held, new)
        {
            self.newer.push((name.clone(), Arc::clone(new)));
        }
        match &self.stage {
            Stage::Planned(plan) if plan.clusters.contains(&name) => match node.config() {
                Some(config) => {
                    self.missing.remove(&name);
                    if !self.serves(plan) {
                        drop(self.gathered.insert(name, Arc::clone(config)));
                    }
                }
                None => drop(self.missing.insert(name)),
            },
            _ => {}
        }
    }

    fn serves(&self, plan: &Arc<Plan>) -> bool {
        self.serving.as_ref().is_some_and(|serving| Arc::ptr_eq(&serving.plan, plan))
    }

    /// Makes a new value of what was read, if there is one, and gives up what is not needed any more.
    pub(super) fn publish(&mut self, nodes: &FxHashMap<ClusterName, Node>) -> (Option<Target>, Released) {
        let newer = mem::take(&mut self.newer);
        let value = match self.stage.clone() {
            Stage::Failed(text) => {
                self.serving = None;
                self.tell(text, Target::Failed)
            }
            // What was complete goes on: neither waiting nor an outage takes it away.
            Stage::Waiting(_) | Stage::Unreachable(_) if self.serving.is_some() => self.refresh(newer),
            Stage::Waiting(missing) => self.tell(missing, |missing| Target::Pending { missing }),
            Stage::Unreachable(text) => self.tell(text, Target::Failed),
            Stage::Planned(plan) if self.serves(&plan) => self.refresh(newer),
            // "publishes a complete XdsConfig only when every statically referenced cluster is resolved" - A74.
            Stage::Planned(plan) if self.missing.is_empty() => Some(self.serve(plan, nodes)),
            Stage::Planned(_) if self.serving.is_some() => self.refresh(newer),
            // Nothing is served yet and an outage is why: calls are told rather than left waiting.
            Stage::Planned(plan) if self.missing.iter().all(|name| is_unreachable(nodes, name)) => {
                Some(self.serve(plan, nodes))
            }
            Stage::Planned(_) => {
                let missing = self.describe_missing(nodes);
                self.tell(missing, |missing| Target::Pending { missing })
            }
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

    fn serve(&mut self, plan: Arc<Plan>, nodes: &FxHashMap<ClusterName, Node>) -> Target {
        let mut clusters = mem::take(&mut self.gathered);
        for name in &self.missing {
            if let Some(config) = nodes.get(name).and_then(Node::config_or_unreachable) {
                clusters.insert(name.clone(), Arc::clone(config));
            }
        }
        let snapshot = Arc::new(self.snapshot(&plan, clusters));
        self.serving = Some(Serving { plan, snapshot: Arc::clone(&snapshot) });
        self.told = None;
        self.moved = true;
        Target::Ready(snapshot)
    }

    /// What is served, with newer values of its clusters.
    fn refresh(&mut self, newer: Vec<(ClusterName, Arc<ClusterConfig>)>) -> Option<Target> {
        let serving = self.serving.as_ref().filter(|_| !newer.is_empty())?;
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
        let plans: Vec<_> = planned.into_iter().chain(self.serving.as_ref().map(|serving| &serving.plan)).collect();
        let needs_routes = |name: &Arc<str>| {
            self.routes.as_ref() == Some(name) || plans.iter().any(|plan| plan.routes_name.as_ref() == Some(name))
        };
        let routes: Vec<_> = self.held_routes.iter().filter(|name| !needs_routes(name)).cloned().collect();
        let is_of_plan = |held: &Arc<_>| plans.iter().any(|plan| Arc::ptr_eq(&plan.clusters, held));
        let (held, gone) = mem::take(&mut self.held_clusters).into_iter().partition(is_of_plan);
        self.held_clusters = held;
        let gone: Vec<Arc<FxHashSet<ClusterName>>> = gone;
        let is_held = |name: &&ClusterName| self.held_clusters.iter().any(|held| held.contains(*name));
        let clusters: FxHashSet<_> =
            gone.iter().flat_map(|gone| gone.iter().filter(|name| !is_held(name)).cloned()).collect();
        for name in &routes {
            self.held_routes.remove(name);
        }
        Released { routes, clusters: clusters.into_iter().collect() }
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
