//! What several modules of the wire tests need: bounded waits, ports, our control plane under observation.
//!
//! It does NOT assert anything about the mesh.

use interop_tests::backend::Backend;
use mesh_xds::control_plane::{ControlPlane, Event, Missed, Serving, Verdict};
use serde_json::{Value, json};
use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};
use tokio::{sync::mpsc, time};

/// The longest wait for any event; long, because peers share the machine with a build, which may make it ten times slower.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// Waits for an event, and names it if it does not come.
pub(crate) async fn within<T>(event: &str, future: impl Future<Output = T>) -> T {
    match time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{event}: not within {PATIENCE:?}"),
    }
}

/// Waits for a state that nobody reports.
pub(crate) async fn until(state: &str, holds: impl Fn() -> bool) {
    let turns = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    within(state, turns).await;
}

/// Backends with these hostnames.
pub(crate) async fn backends<const N: usize>(hostnames: [&str; N]) -> [Backend; N] {
    let mut backends = Vec::with_capacity(N);
    for hostname in hostnames {
        backends.push(Backend::start(hostname).await.expect("a free port"));
    }
    backends.try_into().expect("one for each hostname")
}

/// Where these backends listen.
pub(crate) fn addresses<const N: usize>(backends: [&Backend; N]) -> [SocketAddr; N] {
    backends.map(Backend::address)
}

/// The bootstrap of a proxyless gRPC client.
pub(crate) fn bootstrap(node: &str, control_plane: impl ToString) -> Value {
    json!({
        "xds_servers": [{
            "server_uri": control_plane.to_string(),
            "channel_creds": [{ "type": "insecure" }],
            "server_features": ["xds_v3"],
        }],
        "node": { "id": node, "cluster": "wire-tests", "locality": { "region": "r", "zone": "z" } },
    })
}

/// Our control plane on a socket, with every NACK kept.
pub(crate) struct OurControlPlane {
    pub(crate) ads: ControlPlane,
    pub(crate) address: SocketAddr,
    nacks: mpsc::UnboundedReceiver<String>,
    _serving: Serving,
}

impl OurControlPlane {
    pub(crate) async fn start() -> Self {
        let ads = ControlPlane::new();
        let serving = ads.listen((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = serving.local_addr().expect("bound");
        // Unbounded: a test has few NACKs, and none is to be lost. Closed when the control plane is gone.
        let (sender, nacks) = mpsc::unbounded_channel();
        let mut events = ads.events();
        tokio::spawn(async move {
            loop {
                let nack = match events.recv().await {
                    Ok(Event::Request { type_url, verdict: Verdict::Nack { message }, .. }) => {
                        format!("{type_url}: {message}")
                    }
                    Ok(_) => continue,
                    Err(Missed::Behind(count)) => format!("{count} events were missed"),
                    Err(_) => return,
                };
                if sender.send(nack).is_err() {
                    return;
                }
            }
        });
        Self { ads, address, nacks, _serving: serving }
    }

    /// What was NACKed so far.
    pub(crate) fn nacks(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.nacks.try_recv().ok()).collect()
    }
}

/// One service as protobuf JSON, for control planes that are not ours: listener, routes, cluster and endpoints.
pub(crate) fn json_resources(service: &str, addresses: &[SocketAddr]) -> [Value; 4] {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let manager =
        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let endpoint = |address: &SocketAddr| {
        let socket = json!({ "address": address.ip().to_string(), "port_value": address.port() });
        json!({ "endpoint": { "address": { "socket_address": socket } } })
    };
    let endpoints: Vec<_> = addresses.iter().map(endpoint).collect();
    let routes = format!("{service}-routes");
    [
        json!({
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": service,
            "api_listener": { "api_listener": {
                "@type": manager,
                "rds": { "config_source": ads, "route_config_name": routes },
                "http_filters": [{ "name": "router", "typed_config": { "@type": router } }],
            } },
        }),
        json!({
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": routes,
            "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "" }, "route": { "cluster": service } }],
            }],
        }),
        json!({
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": service,
            "type": "EDS",
            "eds_cluster_config": { "eds_config": ads },
        }),
        json!({
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": service,
            "endpoints": [{
                "locality": { "region": "r", "zone": "z" },
                "load_balancing_weight": 1,
                "lb_endpoints": endpoints,
            }],
        }),
    ]
}
