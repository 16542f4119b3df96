//! Our client under test: a mesh with its control plane in hand, and short words for calls and configuration.
//!
//! It does NOT assert anything.

use crate::rig::within;
use interop_tests::proto::testing::{SimpleRequest, test_service_client::TestServiceClient};
use mesh_client::{MeshChannel, testing::TestMesh};
use mesh_xds::{
    control_plane::{
        Resources,
        resources::{cluster_eds, endpoints, listener, route_config, virtual_host},
    },
    resource::Kind,
};
use std::{net::SocketAddr, time::Duration};
use tonic::Status;

/// One listener, one route configuration with one virtual host for everything, one EDS cluster.
pub(crate) fn service(name: &str, addresses: &[SocketAddr]) -> Resources {
    Resources::default()
        .with(listener(name, &format!("{name}-routes")))
        .with(route_config(&format!("{name}-routes"), vec![virtual_host("*", &format!("{name}-cluster"))]))
        .with(cluster_eds(&format!("{name}-cluster")))
        .with(endpoints(&format!("{name}-cluster"), addresses))
}

/// A mesh that follows `resources`.
pub(crate) fn mesh(resources: Resources) -> TestMesh {
    TestMesh::new(resources).expect("a valid bootstrap")
}

/// A channel that is configured and connected.
pub(crate) async fn ready(mesh: &TestMesh, name: &str) -> MeshChannel {
    let channel = mesh.mesh().channel(&format!("xds:///{name}")).expect("a valid target");
    channel.ready(Duration::from_secs(30)).await.expect("configured and connected");
    channel
}

/// One unary call; the hostname that answered.
pub(crate) async fn unary(channel: &MeshChannel) -> Result<String, Status> {
    let response = TestServiceClient::new(channel.clone()).unary_call(SimpleRequest::default()).await?;
    Ok(response.into_inner().hostname)
}

/// Waits until every channel of the mesh has applied what is served now: until the resource was ACKed at the version
/// served, and what was ACKed is what calls see.
pub(crate) async fn applied(mesh: &TestMesh, kind: Kind, name: &str) {
    within("the ACK", mesh.control_plane().wait_for_ack(kind.type_url(), name)).await;
    within("applied", async {
        while mesh.mesh().status().applied_version(kind, name).is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
