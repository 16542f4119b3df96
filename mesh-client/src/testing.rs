//! The mesh on a laptop and in unit tests: the same YAML, the same code, no control plane to run.
//!
//! An embedded control plane serves the resources through a pipe inside the process. Only the calls themselves use
//! sockets. It does NOT fake any part of the client.

use crate::Mesh;
use mesh_xds::{
    Bootstrap, BootstrapError,
    control_plane::{ControlPlane, DirectoryLoader, LoadError, Resources},
};
use std::path::Path;

/// Why [`Mesh::from_resources`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResourcesError {
    /// A file has mistakes; names file, path and reason.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The bootstrap of the pipe is not valid.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
}

/// A mesh with its control plane in hand.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let test = mesh_client::testing::TestMesh::from_yaml(r#"
/// resources:
/// - "@type": type.googleapis.com/envoy.config.listener.v3.Listener
///   name: greeter:80
///   api_listener:
///     api_listener:
///       "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
///       route_config:
///         name: greeter
///         virtual_hosts:
///         - name: greeter
///           domains: ["*"]
///           routes: [{match: {prefix: ""}, route: {cluster: greeter}}]
///       http_filters:
///       - name: router
///         typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
/// - "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
///   name: greeter
///   type: STATIC
///   load_assignment:
///     cluster_name: greeter
///     endpoints:
///     - locality: {region: here}
///       load_balancing_weight: 1
///       lb_endpoints:
///       - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 50051}}}
/// "#)?;
/// let channel = test.mesh().channel("xds:///greeter:80")?;
/// # let _ = channel; Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct TestMesh {
    mesh: Mesh,
    control_plane: ControlPlane,
}

impl TestMesh {
    /// A mesh that follows the resources in `yaml`, written as [`Mesh::from_resources`]' files are.
    ///
    /// # Errors
    /// When the YAML has a mistake.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    pub fn from_yaml(yaml: &str) -> Result<Self, ResourcesError> {
        Self::new(Resources::from_yaml(yaml)?)
    }

    /// A mesh that follows `resources`, which may have holes.
    ///
    /// # Errors
    /// None in practice: the bootstrap is ours.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    pub fn new(resources: Resources) -> Result<Self, ResourcesError> {
        let control_plane = ControlPlane::new();
        control_plane.set_unchecked(resources);
        let mesh = Mesh::builder(bootstrap(&control_plane)?).keeping(control_plane.clone()).build();
        Ok(Self { mesh, control_plane })
    }

    /// The mesh.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Its control plane: pushes other resources, withholds some, cuts the stream.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }
}

impl Mesh {
    /// A mesh without a control plane: follows a directory of Envoy-format YAML or JSON, and reloads it on change.
    ///
    /// A mistake made later is logged, and the last good state stays in use.
    ///
    /// # Errors
    /// When the directory cannot be read, or has a mistake now: names file, path and reason.
    ///
    /// # Panics
    /// When called outside a tokio runtime.
    pub fn from_resources(directory: impl AsRef<Path>) -> Result<Self, ResourcesError> {
        let control_plane = ControlPlane::new();
        let loader: DirectoryLoader = control_plane.watch_dir(directory)?;
        Ok(Self::builder(bootstrap(&control_plane)?).keeping((control_plane, loader)).build())
    }
}

fn bootstrap(control_plane: &ControlPlane) -> Result<Bootstrap, BootstrapError> {
    Bootstrap::builder().node_id("in-process").server(control_plane.in_process()).build()
}
