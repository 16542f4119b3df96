//! This library's channel, with its defaults, configured over ADS.
//!
//! It does NOT call.

use crate::process::{BoxError, Peers};
use mesh_client::{Bootstrap, Mesh, MeshChannel};
use serde_json::json;
use std::time::Duration;

pub(super) async fn connect(peers: &Peers, target: &str) -> Result<MeshChannel, BoxError> {
    let bootstrap = json!({
        "xds_servers": [{"server_uri": peers.ads.to_string(), "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "bench"},
    });
    let mesh = Mesh::builder(Bootstrap::parse(&bootstrap.to_string())?).build();
    let channel = mesh.channel(target)?;
    channel.ready(Duration::from_secs(10)).await?;
    Ok(channel)
}
