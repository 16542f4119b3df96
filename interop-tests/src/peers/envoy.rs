//! Envoy as an xDS client: it gets its listeners, routes, clusters and endpoints over one ADS stream, and
//! it reports its load (LRS) to the same server.
//!
//! It does NOT contain resources; the control plane under test has them.

use super::{PeerError, Process, setup};
use mesh_xds::control_plane::Dialect;
use serde_json::json;
use std::net::SocketAddr;
use tokio::process::Command;

/// A running Envoy; it ends with this value.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
}

impl Envoy {
    /// Starts one as `node`, with ADS in `dialect` at `control_plane`.
    ///
    /// # Errors
    /// It could not be set up or started.
    pub async fn start(node: &str, dialect: Dialect, control_plane: SocketAddr) -> Result<Self, PeerError> {
        let mut command = Command::new(&setup::python().await?.envoy);
        // Without hot restart there is no shared memory, and any number of Envoys can run side by side.
        command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "--config-yaml"]);
        command.arg(bootstrap(node, dialect, control_plane).to_string());
        Ok(Self { process: Process::start("Envoy", command)? })
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

fn bootstrap(node: &str, dialect: Dialect, control_plane: SocketAddr) -> serde_json::Value {
    let api_type = match dialect {
        Dialect::Sotw => "GRPC",
        Dialect::Delta => "DELTA_GRPC",
    };
    let over_ads = json!({ "resource_api_version": "V3", "ads": {} });
    let address = json!({ "address": control_plane.ip().to_string(), "port_value": control_plane.port() });
    let http2 = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    });
    json!({
        "node": { "id": node, "cluster": "wire-tests" },
        // Whoever serves ADS hears of the load, too.
        "cluster_manager": {
            "load_stats_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "ads" } }],
            },
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "ads" } }],
            },
            "lds_config": over_ads,
            "cds_config": over_ads,
        },
        "static_resources": {
            "clusters": [{
                "name": "ads",
                "type": "STATIC",
                "connect_timeout": "5s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2,
                },
                "load_assignment": {
                    "cluster_name": "ads",
                    "endpoints": [{
                        "lb_endpoints": [{ "endpoint": { "address": { "socket_address": address } } }],
                    }],
                },
            }],
        },
    })
}
