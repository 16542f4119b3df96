//! Our client under test: a mesh with its control plane in hand, and short words for calls and configuration.
//!
//! It does NOT assert anything.

use crate::rig::{until, within};
use interop_tests::proto::testing::{SimpleRequest, test_service_client::TestServiceClient};
use mesh_client::{ClusterStatus, EndpointReport, EndpointState, Mesh, MeshChannel, testing::TestMesh};
use mesh_xds::{
    Bootstrap, ServerAddress, XdsServer,
    control_plane::{
        ControlPlane, Dialect, Resources, Serving,
        resources::{cluster_eds, endpoints, listener, route_config, virtual_host},
    },
    resource::Kind,
};
use std::{net::SocketAddr, time::Duration};
use tokio::net::TcpSocket;
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
    ready_in(mesh.mesh(), name).await
}

/// The same of a mesh that is not a [`TestMesh`].
pub(crate) async fn ready_in(mesh: &Mesh, name: &str) -> MeshChannel {
    let channel = mesh.channel(&format!("xds:///{name}")).expect("a valid target");
    channel.ready(Duration::from_secs(30)).await.expect("configured and connected");
    channel
}

/// One unary call; the hostname that answered.
pub(crate) async fn unary(channel: &MeshChannel) -> Result<String, Status> {
    let response = TestServiceClient::new(channel.clone()).unary_call(SimpleRequest::default()).await?;
    Ok(response.into_inner().hostname)
}

/// Waits until every channel of the mesh has applied what is served now.
pub(crate) async fn applied(mesh: &TestMesh, kind: Kind, name: &str) {
    applied_by(mesh.mesh(), mesh.control_plane(), kind, name).await;
}

/// Until the resource was ACKed at the version served, and what was ACKed is what calls see.
pub(crate) async fn applied_by(mesh: &Mesh, control_plane: &ControlPlane, kind: Kind, name: &str) {
    within("the ACK", control_plane.wait_for_ack(kind.type_url(), name)).await;
    until("applied", || mesh.status().applied_version(kind, name).is_some()).await;
}

/// Until each endpoint that is configured has its connection.
pub(crate) async fn all_are_ready(mesh: &Mesh) {
    let is_ready = |endpoint: &EndpointReport| endpoint.state == EndpointState::Ready;
    let all_of = |cluster: &ClusterStatus| cluster.endpoints.iter().all(is_ready);
    until("every endpoint", || mesh.status().channels.iter().flat_map(|channel| &channel.clusters).all(all_of)).await;
}

/// `count`, times what `MESH_SOAK` says: .ci/soak runs the same tests for longer.
pub(crate) fn soak(count: u32) -> u32 {
    let factor = std::env::var("MESH_SOAK").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1.0);
    (f64::from(count) * factor).max(1.0) as u32
}

// === Plane ===

/// A control plane on a socket that can leave and come back to the same port.
pub(crate) struct Plane {
    control_plane: ControlPlane,
    address: SocketAddr,
    serving: Option<Serving>,
}

impl Plane {
    pub(crate) async fn start(resources: Resources) -> Self {
        let control_plane = ControlPlane::new();
        control_plane.set_unchecked(resources);
        let serving = control_plane.listen("127.0.0.1:0").await.expect("a free port");
        Self { control_plane, address: serving.local_addr().expect("bound"), serving: Some(serving) }
    }

    pub(crate) fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// For a bootstrap.
    pub(crate) fn server(&self) -> XdsServer {
        ServerAddress::parse(&self.address.to_string()).expect("an address").into()
    }

    /// It is gone: its port refuses.
    pub(crate) fn stop(&mut self) {
        self.serving = None;
    }

    /// It is back at the same port.
    pub(crate) async fn start_again(&mut self) {
        // Whoever had the port before may still be on its way out.
        let listener = within("its port", async {
            loop {
                let socket = TcpSocket::new_v4().expect("a socket");
                socket.set_reuseaddr(true).expect("a socket option");
                match socket.bind(self.address).and_then(|()| socket.listen(16)) {
                    Ok(listener) => return listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await;
        self.serving = Some(self.control_plane.serve(listener).await);
    }
}

// === SocketMesh ===

/// A mesh and its control plane on a socket.
pub(crate) struct SocketMesh {
    mesh: Mesh,
    plane: Plane,
}

impl SocketMesh {
    pub(crate) async fn start(resources: Resources) -> Self {
        Self::start_in(Dialect::Sotw, resources).await
    }

    /// With a mesh that speaks this variant of ADS.
    pub(crate) async fn start_in(dialect: Dialect, resources: Resources) -> Self {
        let plane = Plane::start(resources).await;
        let server = if dialect == Dialect::Delta { plane.server().delta() } else { plane.server() };
        let bootstrap = Bootstrap::builder().node_id("socket").server(server).build().expect("a server");
        Self { mesh: Mesh::builder(bootstrap).build(), plane }
    }

    pub(crate) fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    pub(crate) fn control_plane(&self) -> &ControlPlane {
        self.plane.control_plane()
    }

    pub(crate) async fn ready(&self, name: &str) -> MeshChannel {
        ready_in(&self.mesh, name).await
    }

    pub(crate) fn set(&self, resources: Resources) {
        self.control_plane().set_unchecked(resources);
    }

    pub(crate) async fn applied(&self, kind: Kind, name: &str) {
        applied_by(&self.mesh, self.control_plane(), kind, name).await;
    }

    /// The control plane is gone: its port refuses.
    pub(crate) fn stop_serving(&mut self) {
        self.plane.stop();
    }

    /// It is back at the same port.
    pub(crate) async fn serve_again(&mut self) {
        self.plane.start_again().await;
    }
}
