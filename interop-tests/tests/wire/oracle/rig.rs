//! The stage of the oracle: backends, our control plane, Envoy and a mesh that follow it, and cases played on both.
//!
//! Cases are played in rounds: each has its routes and clusters, which no other round knows, so that nothing is left of
//! what broke a circuit. It does NOT compare.

use super::{
    backend::Backend,
    case::{Call, Case, Got, Place, Seen, Stand, Upstream, http},
    script::{Answer, Stage},
    side::Side,
};
use crate::rig::{OurControlPlane, free_port, until, within};
use futures_util::{StreamExt, future::join, stream};
use interop_tests::peers::{Envoy, listening};
use mesh_client::{EndpointState, Mesh, MeshChannel};
use mesh_xds::{
    Bootstrap, ServerAddress,
    control_plane::{Dialect, Resources},
    resource::Kind,
};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{self, Instant},
};

const ENVOY: &str = "oracle-envoy";
const OURS: &str = "oracle-ours";
const SERVICE: &str = "oracle";
const BACKENDS: usize = 4;

/// Cases that are played at once: enough to wait for many timers together, few enough for 2 cores.
const AT_ONCE: usize = 40;

/// After this, a call that has not come to its gate is waiting for something else.
const SETTLED: Duration = Duration::from_millis(300);

/// Those of one side.
trait Cases<'a>: Iterator<Item = &'a Case> + Clone {}

impl<'a, I: Iterator<Item = &'a Case> + Clone> Cases<'a> for I {}

pub(super) struct Rig {
    stage: Stage,
    backends: Vec<Backend>,
    closed: u16,
    control_plane: OurControlPlane,
    envoy: Envoy,
    ingress: SocketAddr,
    mesh: Mesh,
    channel: MeshChannel,
    round: usize,
}

impl Rig {
    pub(super) async fn start() -> Self {
        let stage = Stage::default();
        let mut backends = Vec::with_capacity(BACKENDS);
        for number in 0..BACKENDS {
            backends.push(Backend::start(number, stage.clone()).await.expect("a free port"));
        }
        let control_plane = OurControlPlane::start().await;
        let ingress = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let envoy = Envoy::start(ENVOY, Dialect::Delta, control_plane.address).await.expect("set up");
        let server = ServerAddress::parse(&control_plane.address.to_string()).expect("an address");
        let bootstrap = Bootstrap::builder().node_id(OURS).server(server).build().expect("a server");
        let mesh = Mesh::builder(bootstrap).build();
        let channel = channel(&mesh);
        let closed = free_port();
        Self { stage, backends, closed, control_plane, envoy, ingress, mesh, channel, round: 0 }
    }

    /// Plays each pair, the first one through Envoy and the second one through us: what came of each call.
    pub(super) async fn play(&mut self, pairs: &[(Case, Case)]) -> Vec<(Vec<Seen>, Vec<Seen>)> {
        self.round += 1;
        // To be ready for what earlier calls have asked for would take connections that this round's calls do not need.
        self.channel = channel(&self.mesh);
        // Tells when a side has the round's routes and clusters, and is compared to nothing.
        let probe = Case::new("probe", []);
        let (envoys, ours): (Vec<_>, Vec<_>) = pairs.iter().map(|(envoys, ours)| (envoys, ours)).unzip();
        self.serve(envoys.into_iter().chain([&probe]), ours.into_iter().chain([&probe])).await;
        let sides = [Side::envoy(self.ingress).await, Side::Ours(self.channel.clone())];
        for side in &sides {
            within(&format!("{} has the routes: {}", side.name(), self.envoy.log()), self.probe(side, &probe)).await;
        }
        let [envoy, us] = &sides;
        let played = pairs.iter().map(|(envoys, ours)| join(self.play_one(envoy, envoys), self.play_one(us, ours)));
        let played = stream::iter(played).buffered(AT_ONCE).collect();
        let outcome = within("all cases are over", played).await;
        assert_eq!(self.control_plane.nacks(), Vec::<String>::new(), "both sides take every configuration");
        outcome
    }

    /// Until both sides have ACKed them, and our connections are up.
    async fn serve<'a>(&self, envoys: impl Cases<'a>, ours: impl Cases<'a>) {
        let ads = &self.control_plane.ads;
        ads.set_for_unchecked(ENVOY, self.resources(envoys, self.ingress_listener()));
        ads.set_for_unchecked(OURS, self.resources(ours, api_listener()));
        for kind in [Kind::Listener, Kind::RouteConfig] {
            let name = if kind == Kind::Listener { "ingress" } else { SERVICE };
            let acked = ads.wait_for_ack(kind.type_url(), name);
            within(&format!("Envoy ACKs {name}: {}", self.envoy.log()), acked).await;
        }
        listening("Envoy", self.ingress).await.expect("it has its listener");
        until("applied", || self.mesh.status().applied_version(Kind::RouteConfig, SERVICE).is_some()).await;
        self.channel.ready(Duration::from_secs(60)).await.expect("every cluster is known");
        // Both begin with all connections that there can be: ours picks only what is connected.
        let up = |cluster: &mesh_client::ClusterStatus| {
            let is_up = |endpoint: &mesh_client::EndpointReport| {
                endpoint.state == EndpointState::Ready
                    || endpoint.address.port() == self.closed
                    || endpoint.priority > 0
            };
            cluster.endpoints.iter().all(is_up)
        };
        until("our connections", || self.channel.status().clusters.iter().all(up)).await;
    }

    async fn probe(&self, side: &Side, probe: &Case) {
        let gate = watch::Sender::new(true);
        let call = http([Answer::status(200).after(0)]);
        for attempt in 0.. {
            let id = format!("{}.{}.probe.{attempt}", side.name(), self.round);
            self.stage.expect(&id, call.script.clone(), &gate);
            let got = side.clone().call(&self.path(probe), &id, &call, &self.stage).await;
            self.stage.hits(&id);
            if got.status == Some(200) {
                return;
            }
        }
    }

    // === Calls ===

    async fn play_one(&self, side: &Side, case: &Case) -> Vec<Seen> {
        let gate = watch::Sender::new(false);
        let mut under_way = Vec::with_capacity(case.together);
        let (together, in_turn) = case.calls.split_at(case.together);
        for (index, call) in together.iter().enumerate() {
            let mut running = self.begin(side, case, index, call, &gate);
            let stand = running.stand().await;
            under_way.push((running, stand));
        }
        gate.send_replace(true);
        let mut seen = Vec::with_capacity(case.calls.len());
        for (running, stand) in under_way {
            seen.push(Seen { stand: Some(stand), ..self.end(running).await });
        }
        for (index, call) in in_turn.iter().enumerate() {
            let running = self.begin(side, case, case.together + index, call, &gate);
            seen.push(self.end(running).await);
        }
        seen
    }

    fn begin(&self, side: &Side, case: &Case, index: usize, call: &Call, gate: &watch::Sender<bool>) -> Running {
        let id = format!("{}.{}.{}.{index}", side.name(), self.round, case.name);
        let held = self.stage.expect(&id, call.script.clone(), gate);
        // One slot: a call has one result.
        let (over, result) = watch::channel(None);
        let (mut side, path, call, begin) = (side.clone(), self.path(case), call.clone(), Instant::now());
        let (name, stage) = (id.clone(), self.stage.clone());
        tokio::spawn(async move {
            let got = side.call(&path, &name, &call, &stage).await;
            over.send_replace(Some((got, Instant::now())));
        });
        Running { id, begin, held, result }
    }

    async fn end(&self, mut running: Running) -> Seen {
        let result = within(&format!("the end of {}", running.id), running.result.wait_for(Option::is_some)).await;
        let (got, end) = result.expect("the call does not panic").clone().expect("as waited for");
        let hits = self.stage.hits(&running.id);
        let moments: Vec<_> = [running.begin].into_iter().chain(hits.iter().map(|hit| hit.at)).chain([end]).collect();
        let gaps = moments.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0])).collect();
        Seen { endpoints: hits.iter().map(|hit| hit.endpoint).collect(), gaps, stand: None, got }
    }

    // === Resources ===

    fn path(&self, case: &Case) -> String {
        format!("/{}/{}/", self.round, case.name)
    }

    fn resources<'a>(&self, cases: impl Cases<'a>, listener: Value) -> Resources {
        let routes: Vec<_> = cases.clone().map(|case| self.route(case)).collect();
        let routes = json!({
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": SERVICE,
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }],
        });
        let clusters = cases.map(|case| self.cluster(case));
        let resources: Vec<_> = [listener, routes].into_iter().chain(clusters).collect();
        let yaml = json!({ "resources": resources }).to_string();
        Resources::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}"))
    }

    fn cluster_name(&self, case: &Case) -> String {
        format!("{}-{}", case.name, self.round)
    }

    fn route(&self, case: &Case) -> Value {
        let mut action = case.route.clone();
        action["cluster"] = self.cluster_name(case).into();
        let mut route = json!({ "match": { "prefix": self.path(case) }, "route": action });
        if !case.fault.is_null() {
            let mut fault = case.fault.clone();
            fault["@type"] = FAULT.into();
            route["typed_per_filter_config"] = json!({ "fault": fault });
        }
        route
    }

    fn cluster(&self, case: &Case) -> Value {
        let name = self.cluster_name(case);
        let localities = case.endpoints.iter().enumerate().map(|(priority, places)| {
            let endpoints: Vec<_> = places.iter().map(|place| self.endpoint(*place)).collect();
            json!({
                "locality": { "region": priority.to_string() },
                "priority": priority,
                "load_balancing_weight": 1,
                "lb_endpoints": endpoints,
            })
        });
        let protocol = match case.upstream {
            Upstream::Http1 => "http_protocol_options",
            Upstream::Http2 => "http2_protocol_options",
        };
        let mut cluster = json!({
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": { "cluster_name": name, "endpoints": localities.collect::<Vec<_>>() },
            "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { protocol: {} },
            } },
        });
        for (field, value) in case.cluster.as_object().into_iter().flatten() {
            cluster[field] = value.clone();
        }
        cluster
    }

    fn endpoint(&self, place: Place) -> Value {
        let port = match place {
            Place::Up(number) => self.backends[number].address.port(),
            Place::Closed => self.closed,
        };
        json!({ "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } } } })
    }

    /// A proxy's listener: a socket.
    fn ingress_listener(&self) -> Value {
        let filter = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager() });
        json!({
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": "ingress",
            "address": { "socket_address": { "address": "127.0.0.1", "port_value": self.ingress.port() } },
            "filter_chains": [{ "filters": [filter] }],
        })
    }
}

fn channel(mesh: &Mesh) -> MeshChannel {
    mesh.channel(&format!("xds:///{SERVICE}")).expect("a valid target")
}

const FAULT: &str = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";

/// Ours has no socket; everything else is the same message.
fn api_listener() -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": SERVICE,
        "api_listener": { "api_listener": manager() },
    })
}

fn manager() -> Value {
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let filters = json!([
        { "name": "fault", "typed_config": { "@type": FAULT } },
        { "name": "router", "typed_config": { "@type": router } },
    ]);
    json!({
        "@type":
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "oracle",
        "rds": { "route_config_name": SERVICE, "config_source": { "ads": {}, "resource_api_version": "V3" } },
        "http_filters": filters,
    })
}

// === Running ===

/// A call on its way.
struct Running {
    id: String,
    begin: Instant,
    held: watch::Receiver<bool>,
    result: watch::Receiver<Option<(Got, Instant)>>,
}

impl Running {
    /// How it stands once it stays so.
    async fn stand(&mut self) -> Stand {
        tokio::select! {
            biased; // A call that is over is not at its gate any more.
            _ = self.result.wait_for(Option::is_some) => Stand::Over,
            _ = self.held.wait_for(|held| *held) => Stand::Held,
            () = time::sleep(SETTLED) => Stand::Waiting,
        }
    }
}
