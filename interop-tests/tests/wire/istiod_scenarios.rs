//! Every recorded istiod, served by our control plane with istiod's manners, through our client into snapshots.
//!
//! What a snapshot must hold is read from the recorded protobufs by a few lines here, not by the client's decoder. All
//! scenarios run in SotW and in delta, and lose their stream at the end. `istiod_replay` has what needs another istiod's
//! manners: full pushes under one version. It does NOT make calls.

use crate::rig::{OurControlPlane, bootstrap, within};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster,
        core::v3::{Locality, address::Address as AddressOf, socket_address::PortSpecifier},
        endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
        listener::v3::Listener,
        route::v3::{Route, RouteConfiguration, VirtualHost, route::Action, route_action::ClusterSpecifier},
    },
    extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, http_connection_manager::RouteSpecifier,
    },
};
use futures_util::FutureExt;
use interop_tests::recordings::{Configuration, configurations, scenarios};
use mesh_xds::{
    Bootstrap, Snapshot, Target, TargetName, TargetWatch, XdsClient,
    control_plane::{
        Event, EventReceiver, Resources, Verdict,
        resources::{pack, route_config, virtual_host_with},
    },
    resource::Kind,
};
use prost::{Message, Name};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

const ECHO: &str = "echo.demo.svc.cluster.local:7070";
const OTHER: &str = "other.demo.svc.cluster.local:7070";

/// The listeners that the recorded client asked for.
fn targets(scenario: &str) -> Vec<&'static str> {
    let any = "xds.istio.io/grpc/lds/inbound/0.0.0.0:17070";
    let one = "xds.istio.io/grpc/lds/inbound/127.0.0.2:17070";
    let second = "xds.istio.io/grpc/lds/inbound/0.0.0.0:18080";
    match &scenario[..2] {
        "09" => vec!["api.example.com:7070"],
        "22" => vec!["echo.demo.svc.cluster.local:8080"],
        "24" => vec!["echo.demo.svc.cluster.local", ECHO, "echo.demo.svc:7070", "echo.demo:7070", "echo:7070"],
        "25" => vec!["db.demo.svc.cluster.local:5432"],
        "30" => vec![
            any,
            second,
            "xds.istio.io/grpc/lds/inbound/0.0.0.0:9999",
            one,
            "xds.istio.io/grpc/lds/inbound/[::]:17070",
        ],
        "34" => vec![any, second],
        number if number.starts_with('3') || matches!(number, "40" | "41") => vec![any, one],
        "26" | "55" | "57" | "60" | "81" => vec![ECHO, OTHER],
        "56" => vec!["nowhere.demo.svc.cluster.local:7070", "echo.demo.svc.cluster.local:9"],
        // The Envoy dialect: listeners with sockets, which are no client's.
        "70" | "71" | "72" => vec!["0.0.0.0_7070", "0.0.0.0_8080", "virtualOutbound", "virtualInbound"],
        "80" => vec![ECHO, "echo.demo.svc.cluster.local:8080", "nowhere.demo.svc.cluster.local:7070"],
        _ => vec![ECHO],
    }
}

// === What a target must come to ===

/// The endpoints of a cluster: addresses with their weights, by priority and locality, with the locality's weight.
type Endpoints = BTreeMap<(usize, String), (u32, BTreeSet<(String, u32)>)>;

/// What a target is; nothing as long as calls would wait or fail.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plan {
    /// Which routes there are, in order, and what each leads to; none without a virtual host.
    routes: Vec<(String, Vec<(String, u32)>)>,
    /// `None` for a cluster that cannot be used.
    clusters: BTreeMap<String, Option<Endpoints>>,
}

fn message<M: Message + Name + Default>(configuration: &Configuration, kind: Kind, name: &str) -> Option<M> {
    let any = configuration.resources.get(&kind)?.get(name)?;
    Some(M::decode(any.value.as_slice()).expect("recorded"))
}

/// What `target` comes to under the last of these configurations. A listener or cluster that the istiod had once stays
/// what it was (A88); its routes and endpoints are still followed. What is not complete leaves the plan `before` in force.
fn expected(had: &[Configuration], target: &str, before: Option<&Plan>, is_delta: bool) -> Option<Plan> {
    plan(had, target, before, is_delta).or_else(|| before.cloned())
}

fn plan(configurations: &[Configuration], target: &str, before: Option<&Plan>, is_delta: bool) -> Option<Plan> {
    let configuration = configurations.last()?;
    let listener = configurations.iter().rev().find_map(|had| message::<Listener>(had, Kind::Listener, target))?;
    let manager = listener.api_listener?.api_listener?;
    let manager = HttpConnectionManager::decode(manager.value.as_slice()).expect("recorded");
    let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else { panic!("istiod names its routes") };
    let routes = message::<RouteConfiguration>(configuration, Kind::RouteConfig, &rds.route_config_name)?;
    let serves = |host: &VirtualHost| host.domains.iter().any(|domain| domain == target || domain == "*");
    let Some(host) = routes.virtual_hosts.into_iter().find(serves) else { return Some(Plan::default()) };
    let mut plan = Plan::default();
    for route in host.routes {
        if route.r#match.is_some_and(|matches| !matches.query_parameters.is_empty()) {
            continue;
        }
        let leads_to = match route.action {
            Some(Action::Route(action)) => match action.cluster_specifier {
                Some(ClusterSpecifier::Cluster(name)) => vec![(name, 1)],
                Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                    let clusters = weighted.clusters.into_iter();
                    clusters.map(|cluster| (cluster.name, cluster.weight.unwrap_or_default().value)).collect()
                }
                other => panic!("no such thing is recorded: {other:?}"),
            },
            _ => Vec::new(),
        };
        for (name, _) in &leads_to {
            let kept = before.and_then(|plan| plan.clusters.get(name)).cloned();
            // Delta tells at once that a cluster does not exist, which is an error for who has nothing yet; otherwise, and
            // in SotW, that is a matter of time.
            let told = is_delta && before.is_none();
            let endpoints = endpoints(configuration, name).or(kept).or_else(|| told.then_some(None))?;
            plan.clusters.insert(name.clone(), endpoints);
        }
        plan.routes.push((route.name, leads_to));
    }
    Some(plan)
}

/// The endpoints of a cluster that the istiod has.
fn endpoints(configuration: &Configuration, name: &str) -> Option<Option<Endpoints>> {
    let cluster = message::<Cluster>(configuration, Kind::Cluster, name)?;
    let config = cluster.eds_cluster_config.expect("istiod has EDS clusters only");
    let service = if config.service_name.is_empty() { cluster.name } else { config.service_name };
    let assignment = message::<ClusterLoadAssignment>(configuration, Kind::Endpoints, &service)?;
    let mut endpoints = Endpoints::new();
    for locality in assignment.endpoints {
        let weight = locality.load_balancing_weight.unwrap_or_default().value;
        // "Localities without weight, or of weight 0, get no calls" - A27.
        if weight == 0 {
            continue;
        }
        let Locality { region, zone, sub_zone } = locality.locality.unwrap_or_default();
        let addresses = locality.lb_endpoints.into_iter().map(|endpoint| {
            let weight = endpoint.load_balancing_weight.map_or(1, |weight| weight.value);
            let Some(HostIdentifier::Endpoint(host)) = endpoint.host_identifier else { panic!("no host") };
            let Some(AddressOf::SocketAddress(socket)) = host.address.and_then(|address| address.address) else {
                panic!("no socket address")
            };
            let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!("no port") };
            (format!("{}:{port}", socket.address), weight)
        });
        let place = (locality.priority as usize, format!("{region}/{zone}/{sub_zone}"));
        endpoints.insert(place, (weight, addresses.collect()));
    }
    Some(Some(endpoints))
}

/// The same of what the client assembled.
fn assembled(target: &Target) -> Option<Plan> {
    let Target::Ready(snapshot) = target else { return None };
    Some(Plan { routes: routes(snapshot), clusters: snapshot.clusters.iter().map(cluster).collect() })
}

fn routes(snapshot: &Snapshot) -> Vec<(String, Vec<(String, u32)>)> {
    use mesh_xds::resource::{ClusterSpecifier, RouteAction};
    let routes = snapshot.virtual_host.iter().flat_map(|host| &host.routes);
    let leads_to = |action: &RouteAction| match action {
        RouteAction::Forward(forward) => match &forward.cluster {
            ClusterSpecifier::Cluster(name) => vec![(name.to_string(), 1)],
            ClusterSpecifier::Weighted(clusters) => {
                clusters.iter().map(|cluster| (cluster.name.to_string(), cluster.weight)).collect()
            }
        },
        RouteAction::Unsupported(_) => Vec::new(),
    };
    routes.map(|route| (route.name.clone(), leads_to(&route.action))).collect()
}

fn cluster(
    (name, config): (&mesh_xds::resource::ClusterName, &Arc<mesh_xds::ClusterConfig>),
) -> (String, Option<Endpoints>) {
    let of_leaf = |leaf: &mesh_xds::ResolvedCluster| {
        let priorities = leaf.endpoints.priorities.iter().enumerate();
        let localities = priorities.flat_map(|(priority, localities)| localities.iter().map(move |l| (priority, l)));
        let endpoints = localities.map(|(priority, locality)| {
            let addresses = locality.endpoints.iter();
            let addresses = addresses.map(|endpoint| (endpoint.addresses.first.to_string(), endpoint.weight));
            ((priority, locality.id.to_string()), (locality.weight, addresses.collect()))
        });
        endpoints.collect()
    };
    (name.to_string(), config.state.as_ref().ok().map(|leaves| of_leaf(&leaves.first)))
}

// === The replay ===

struct Replay {
    control_plane: OurControlPlane,
    client: XdsClient,
    watches: Vec<(&'static str, TargetWatch, Option<Plan>)>,
    events: EventReceiver,
    is_delta: bool,
    /// How often something was sent that no istiod sends.
    refused: usize,
}

impl Replay {
    async fn of(scenario: &str, features: &[&str]) -> Self {
        let control_plane = OurControlPlane::start().await;
        control_plane.ads.like_istiod(true);
        let events = control_plane.ads.events();
        // istiod parses node ids; this one tells scenarios apart, so that each has a client of its own.
        let node = format!("sidecar~127.0.0.9~{scenario}-{}.demo~demo.svc.cluster.local", features.len());
        let mut json = bootstrap(&node, control_plane.address);
        json["xds_servers"][0]["server_features"] = json!(features);
        json["node"]["metadata"] = json!({ "GENERATOR": "grpc", "NAMESPACE": "demo", "PROXY_CONFIG": {} });
        let files = json!({ "certificate_file": "c", "private_key_file": "k", "ca_certificate_file": "r" });
        json["certificate_providers"] = json!({ "default": { "plugin_name": "file_watcher", "config": files } });
        let bootstrap = Bootstrap::parse(&json.to_string()).expect("well-formed");
        // What an istiod does not send, it does not say; nothing here waits for that.
        let client = XdsClient::connect(bootstrap.with_resource_timeout(Duration::from_secs(3600)));
        let watch = |target| (target, client.watch(TargetName::new(target, target)), None);
        let watches = targets(scenario).into_iter().map(watch).collect();
        Self { control_plane, client, watches, events, is_delta: features.contains(&"delta_ads"), refused: 0 }
    }

    /// The istiod's next configuration is in place.
    async fn serve(&mut self, configurations: &[Configuration]) {
        let configuration = configurations.last().expect("at least one");
        let mut resources = Resources::default();
        for any in configuration.resources.values().flat_map(BTreeMap::values) {
            resources.insert_any(any.clone());
        }
        self.control_plane.ads.set_unchecked(resources);
        self.settled(configuration).await;
        for (target, watch, before) in &mut self.watches {
            let expected = expected(configurations, target, before.as_ref(), self.is_delta);
            let found = assembled(&watch.current());
            assert_eq!(found, expected, "{target} at {}", configuration.version);
            *before = expected;
        }
    }

    /// Waits until what the client asks for is ACKed, and it asks for nothing more because of that.
    async fn settled(&self, configuration: &Configuration) {
        let settled = async {
            let mut judged = None;
            loop {
                let asked: BTreeSet<_> = self.client.status().resources.into_iter().map(|r| (r.kind, r.name)).collect();
                // A watch is asked for a moment after it was made.
                let is_complete =
                    self.watches.iter().all(|(target, ..)| asked.contains(&(Kind::Listener, (*target).to_owned())));
                if is_complete && judged.as_ref() == Some(&asked) {
                    return;
                }
                let all_acked = asked.iter().all(|(kind, name)| self.is_acked(configuration, *kind, name));
                judged = (is_complete && all_acked).then_some(asked);
                tokio::task::yield_now().await;
            }
        };
        within("the last ACK", settled).await;
    }

    /// Whether the client took what is served under this name, or heard that there is nothing.
    fn is_acked(&self, configuration: &Configuration, kind: Kind, name: &str) -> bool {
        let is_served = configuration.resources.get(&kind).is_some_and(|known| known.contains_key(name));
        // SotW has no way to say that routes or endpoints do not exist.
        let is_told = is_served || kind.is_full_state();
        !is_told || self.control_plane.ads.wait_for_ack(kind.type_url(), name).now_or_never().is_some()
    }

    /// The istiod sends routes that are refused, and takes no name from that NACK.
    async fn refuses_routes(&mut self) {
        let routes = "outbound|7070||echo.demo.svc.cluster.local";
        let bad = virtual_host_with("*", vec![Route::default()]);
        let bad = pack(route_config(routes, vec![bad]));
        self.control_plane.ads.send_raw(Kind::RouteConfig.type_url(), "bad", vec![bad]);
        let nack = within("the NACK", self.control_plane.ads.wait_for_nack(Kind::RouteConfig.type_url())).await;
        assert!(nack.contains("routes[0].match"), "{nack}");
        self.refused += 1;
    }

    /// The stream is lost and comes back: nothing is different, and nothing was said that an istiod misunderstands.
    async fn ends_well(mut self, configuration: &Configuration) {
        assert_eq!(self.control_plane.ads.streams_opened(), 1);
        let before: Vec<_> = self.watches.iter().map(|(_, watch, _)| watch.current()).collect();
        self.control_plane.ads.cut_streams();
        within("the next stream", async {
            while self.control_plane.ads.streams_opened() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        self.settled(configuration).await;
        for ((target, watch, _), before) in self.watches.iter().zip(before) {
            if let Target::Ready(before) = before {
                let now = watch.current();
                assert!(matches!(&now, Target::Ready(now) if Arc::ptr_eq(now, &before)), "{target}: {now:?}");
            }
        }
        let mut nacks = Vec::new();
        while let Some(event) = self.events.recv().now_or_never() {
            let Event::Request { type_url, names, verdict, .. } = event.expect("none is missed") else { continue };
            // "An empty LDS list becomes a wildcard"; a delta ACK has no names.
            let is_full_state = [Kind::Listener, Kind::Cluster].iter().any(|kind| kind.type_url() == type_url);
            assert!(self.is_delta || !is_full_state || !names.is_empty(), "an empty list of {type_url}");
            if let Verdict::Nack { message } = verdict {
                nacks.push(message);
            }
        }
        assert_eq!(nacks.len(), self.refused, "{nacks:#?}");
    }
}

/// Plays a scenario to its end; `between` happens between its configurations.
async fn replay(scenario: &str, features: &[&str], between: impl AsyncFn(&mut Replay)) {
    let configurations = configurations(scenario).expect("recorded");
    let mut replay = Replay::of(scenario, features).await;
    for until in 1..=configurations.len() {
        replay.serve(&configurations[..until]).await;
        if until < configurations.len() {
            between(&mut replay).await;
        }
    }
    // Servers, sidecars, and a wildcard that nobody followed further.
    let is_callable = !scenario.starts_with(['3', '4', '7']) && !scenario.starts_with("57");
    assert_eq!(replay.watches.iter().any(|(.., plan)| plan.is_some()), is_callable, "{scenario}");
    replay.ends_well(configurations.last().expect("at least one")).await;
}

/// All scenarios whose numbers begin with one of these digits.
async fn replay_all(digits: &[char], features: &[&str]) {
    for scenario in scenarios().expect("recorded").iter().filter(|scenario| scenario.starts_with(digits)) {
        replay(scenario, features, async |_| ()).await;
    }
}

#[tokio::test]
async fn clients_are_configured_as_recorded() {
    replay_all(&['0', '1', '2'], &["xds_v3"]).await;
}

#[tokio::test]
async fn clients_are_configured_as_recorded_in_delta() {
    replay_all(&['0', '1', '2'], &["xds_v3", "delta_ads"]).await;
}

#[tokio::test]
async fn listeners_of_servers_and_sidecars_are_accepted() {
    replay_all(&['3', '4', '7'], &["xds_v3"]).await;
}

#[tokio::test]
async fn listeners_of_servers_and_sidecars_are_accepted_in_delta() {
    replay_all(&['3', '4', '7'], &["xds_v3", "delta_ads"]).await;
}

#[tokio::test]
async fn changes_are_followed() {
    replay_all(&['5', '6', '8'], &["xds_v3"]).await;
}

#[tokio::test]
async fn changes_are_followed_in_delta() {
    replay_all(&['5', '6', '8'], &["xds_v3", "delta_ads"]).await;
}

#[tokio::test]
async fn a_nack_between_two_configurations_loses_no_name() {
    for scenario in ["50-config-update", "52-endpoints-change", "53-nack"] {
        for features in [&["xds_v3"][..], &["xds_v3", "delta_ads"]] {
            replay(scenario, features, async |replay| replay.refuses_routes().await).await;
        }
    }
}
