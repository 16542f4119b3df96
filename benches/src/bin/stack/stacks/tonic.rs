//! The peers that speak tonic: its own channels, and the existing xDS channel for it.
//!
//! All run with their defaults. This file does NOT call.

use crate::process::{BoxError, Peers};
use serde_json::json;
use std::net::SocketAddr;
use tonic::transport::{Channel, Endpoint};
use tonic_xds::{BootstrapConfig, XdsChannelBuilder, XdsChannelConfig, XdsChannelGrpc, XdsUri};

pub(super) async fn plain(peers: &Peers) -> Result<Channel, BoxError> {
    Ok(endpoint(&peers.backends[0])?.connect().await?)
}

pub(super) fn balance(peers: &Peers) -> Result<Channel, BoxError> {
    let endpoints: Vec<_> = peers.backends.iter().map(endpoint).collect::<Result<_, _>>()?;
    Ok(Channel::balance_list(endpoints.into_iter()))
}

pub(super) fn tonic_xds(peers: &Peers) -> Result<XdsChannelGrpc, BoxError> {
    let bootstrap = json!({
        "xds_servers": [{"server_uri": format!("http://{}", peers.ads), "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "bench"},
    });
    let bootstrap = BootstrapConfig::from_json(&bootstrap.to_string())?;
    let config = XdsChannelConfig::new(XdsUri::parse("xds:///echo-3")?).with_bootstrap(bootstrap);
    Ok(XdsChannelBuilder::new(config).build_grpc_channel()?)
}

fn endpoint(backend: &SocketAddr) -> Result<Endpoint, BoxError> {
    Ok(Endpoint::from_shared(format!("http://{backend}"))?)
}
