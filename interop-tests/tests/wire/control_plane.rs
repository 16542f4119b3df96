//! Our control plane as a product, over TCP, with our client at the other end: who is served what, what is refused, what is
//! said again, and the same from a directory of YAML.
//!
//! Other clients are led by it in `foreign_clients_of_our_control_plane` and `envoy_client_of_our_control_plane`; its
//! sessions have tests of their own in `mesh-xds`. It does NOT test how to misbehave.

use crate::{
    mesh::{Plane, SocketMesh, service, unary},
    rig::{addresses, backends, within},
};
use mesh_client::{Mesh, MeshChannel};
use mesh_xds::{
    Authority, Bootstrap, XdsServer,
    control_plane::{
        Dialect, Event, EventReceiver, Resources,
        resources::{listener, route_config, virtual_host},
    },
    resource::Kind,
};
use std::{fs, net::SocketAddr, path::Path};
use tempfile::TempDir;

/// A mesh of this node.
fn mesh(node: &str, server: XdsServer) -> Mesh {
    Mesh::builder(Bootstrap::builder().node_id(node).server(server).build().expect("a server")).build()
}

fn echo(mesh: &Mesh) -> MeshChannel {
    mesh.channel("xds:///echo").expect("a valid target")
}

/// Calls until `backend` answers; none may fail.
async fn turns_to(channel: &MeshChannel, backend: &str) {
    within(backend, async { while unary(channel).await.expect("no call fails") != backend {} }).await;
}

/// Type and version of the next response, and the names in it.
async fn told(events: &mut EventReceiver) -> (String, String, Vec<String>) {
    let is_it = |event: &Event| matches!(event, Event::Response { .. });
    let event = within("a response", events.wait_for(is_it)).await.expect("nothing was missed");
    let Event::Response { type_url, version, names, .. } = event else { unreachable!("waited for") };
    (type_url, version, names)
}

#[tokio::test]
async fn a_node_has_a_snapshot_of_its_own_while_there_is_one() {
    let [a, b] = backends(["a", "b"]).await;
    let plane = Plane::start(service("echo", &addresses([&a]))).await;
    plane.control_plane().set_for("special", service("echo", &addresses([&b]))).expect("consistent");
    let (usual, special) = (mesh("usual", plane.server()), mesh("special", plane.server()));
    let (usual, special) = (echo(&usual), echo(&special));
    turns_to(&usual, "a").await;
    assert_eq!(unary(&special).await.expect("a reply"), "b");
    plane.control_plane().clear_for("special");
    turns_to(&special, "a").await;
    assert_eq!(unary(&usual).await.expect("a reply"), "a");
}

#[tokio::test]
async fn a_snapshot_with_a_hole_is_refused_and_the_one_before_is_served() {
    let [a, b] = backends(["a", "b"]).await;
    let plane = Plane::start(service("echo", &addresses([&a]))).await;
    let mut whole = service("echo", &addresses([&b]));
    assert!(whole.remove(Kind::Cluster.type_url(), "echo-cluster"));
    let refused = plane.control_plane().set(whole).expect_err("the routes name a cluster that is not there");
    assert_eq!((refused.missing[0].kind, refused.missing[0].name.as_str()), (Kind::Cluster, "echo-cluster"));
    assert_eq!(refused.missing[0].named_by, "RouteConfiguration echo-routes");
    let mesh = mesh("new", plane.server());
    assert_eq!(unary(&echo(&mesh)).await.expect("a reply"), "a");
}

#[tokio::test]
async fn versions_are_of_the_content_and_what_is_equal_is_not_said_again() {
    for dialect in [Dialect::Sotw, Dialect::Delta] {
        let [a, b] = backends(["a", "b"]).await;
        let (first, second) = (service("echo", &addresses([&a])), service("echo", &addresses([&b])));
        let mesh = SocketMesh::start_in(dialect, first.clone()).await;
        let mut events = mesh.control_plane().events();
        let channel = mesh.ready("echo").await;
        let assignment = async |events: &mut EventReceiver| {
            let (type_url, version, names) = told(events).await;
            assert_eq!(
                (type_url.as_str(), names.as_slice()),
                (Kind::Endpoints.type_url(), &["echo-cluster".to_owned()][..])
            );
            version
        };
        for _ in [Kind::Listener, Kind::RouteConfig, Kind::Cluster] {
            told(&mut events).await;
        }
        let before = assignment(&mut events).await;
        // Nothing is said of what is equal, so that the next response is of the next difference.
        mesh.set(first.clone());
        mesh.set(second);
        assert_ne!(assignment(&mut events).await, before);
        turns_to(&channel, "b").await;
        mesh.set(first);
        assert_eq!(assignment(&mut events).await, before);
        turns_to(&channel, "a").await;
    }
}

#[tokio::test]
async fn resources_of_several_authorities_are_served_side_by_side() {
    let [a, b] = backends(["a", "b"]).await;
    let name = "xdstp://other/envoy.config.listener.v3.Listener/echo";
    let mut resources = service("echo", &addresses([&a]));
    resources.extend(service("theirs", &addresses([&b])));
    let plane = Plane::start(Resources::default()).await;
    // Names are names, whatever the order of their parameters, and the check knows them.
    let routes = "xdstp://other/envoy.config.route.v3.RouteConfiguration/r";
    resources.insert(listener(&format!("{name}?b=2&a=1"), &format!("{routes}?y=2&x=1")));
    resources.insert(route_config(&format!("{routes}?x=1&y=2"), vec![virtual_host("*", "theirs-cluster")]));
    plane.control_plane().set(resources).expect("consistent");
    let other = Authority::default().listener_template("xdstp://other/envoy.config.listener.v3.Listener/%s?a=1&b=2");
    let bootstrap = Bootstrap::builder().node_id("n").server(plane.server()).authority("other", other);
    let mesh = Mesh::builder(bootstrap.build().expect("valid")).build();
    assert_eq!(unary(&echo(&mesh)).await.expect("a reply"), "a");
    let theirs = mesh.channel("xds://other/echo").expect("a valid target");
    assert_eq!(unary(&theirs).await.expect("a reply"), "b");
}

// === From files ===

fn write(folder: &Path, name: &str, text: &str) {
    // As tools write: moved over the old one at once.
    fs::write(folder.join(".next"), text).expect("writable");
    fs::rename(folder.join(".next"), folder.join(name)).expect("moved");
}

fn assignment(address: SocketAddr) -> String {
    format!(
        "- '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: echo-cluster
  endpoints:
  - locality: {{ zone: z }}
    load_balancing_weight: 1
    lb_endpoints:
    - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}
",
        address.ip(),
        address.port()
    )
}

/// The rest of the service.
const SERVICE: &str = "
- '@type': type.googleapis.com/envoy.config.listener.v3.Listener
  name: echo
  api_listener:
    api_listener:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      rds: { config_source: { ads: {}, resource_api_version: V3 }, route_config_name: echo-routes }
      http_filters:
      - name: router
        typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
- '@type': type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: echo-routes
  virtual_hosts: [{ name: all, domains: ['*'], routes: [{ match: { prefix: '' }, route: { cluster: echo-cluster } }] }]
- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: echo-cluster
  type: EDS
  eds_cluster_config: { eds_config: { ads: {}, resource_api_version: V3 } }
";

/// A folder with `echo` at this address, to be served.
fn folder(address: SocketAddr) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "service.yaml", SERVICE);
    write(folder.path(), "endpoints.yaml", &assignment(address));
    folder
}

async fn a_directory_is_served(dialect: Dialect) {
    let [a, b] = backends(["a", "b"]).await;
    let folder = folder(a.address());
    let mesh = SocketMesh::start_in(dialect, Resources::default()).await;
    let mut loader = mesh.control_plane().watch_dir(folder.path()).expect("good files");
    let channel = mesh.ready("echo").await;
    turns_to(&channel, "a").await;
    write(folder.path(), "endpoints.yaml", &assignment(b.address()));
    within("the change", loader.reloaded()).await.expect("a good file");
    turns_to(&channel, "b").await;
    // A mistake is told, and takes nothing away.
    write(folder.path(), "endpoints.yaml", "- '@type': type.googleapis.com/no.such.Type\n");
    within("the mistake", loader.reloaded()).await.expect_err("no such type");
    assert_eq!(unary(&channel).await.expect("as before"), "b");
}

#[tokio::test]
async fn a_directory_of_yaml_is_served() {
    a_directory_is_served(Dialect::Sotw).await;
}

#[tokio::test]
async fn a_directory_of_yaml_is_served_in_delta() {
    a_directory_is_served(Dialect::Delta).await;
}
