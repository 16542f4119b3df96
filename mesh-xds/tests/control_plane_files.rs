//! The directory loader: what is served follows the files, and mistakes are told without hurting what is served.
#![cfg(feature = "control-plane")]

use mesh_xds::control_plane::{ControlPlane, DirectoryLoader, LoadError, Resources, resources};
use std::{fs, path::Path, time::Duration};

fn cluster(name: &str) -> String {
    format!("- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: {name}\n  type: STATIC\n")
}

fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).expect("writable");
}

async fn reloaded(loader: &mut DirectoryLoader) -> Result<(), String> {
    let reloaded = tokio::time::timeout(Duration::from_secs(20), loader.reloaded()).await;
    reloaded.expect("should have happened by now").map_err(|error| error.to_string())
}

/// What a client of the control plane is told about clusters: names, sorted.
async fn served(control_plane: &ControlPlane) -> Vec<String> {
    use envoy_types::pb::envoy::{
        config::cluster::v3::Cluster,
        service::discovery::v3::{
            DiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    };
    use prost::{Message, Name};
    let serving = control_plane.listen("127.0.0.1:0").await.expect("a free port");
    let uri = format!("http://{}", serving.local_addr().expect("a TCP address"));
    let mut client = AggregatedDiscoveryServiceClient::connect(uri).await.expect("the server accepts");
    let request = DiscoveryRequest { type_url: Cluster::type_url(), ..Default::default() };
    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    requests.send(request).await.expect("open");
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut responses = client.stream_aggregated_resources(outgoing).await.expect("a stream").into_inner();
    let response = responses.message().await.expect("an answer").expect("an answer");
    let clusters = response.resources.iter().map(|any| Cluster::decode(any.value.as_slice()).expect("a cluster").name);
    clusters.collect()
}

#[tokio::test]
async fn a_directory_is_served_in_delta() {
    use envoy_types::pb::envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    };
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "a.yaml", &cluster("a"));
    let control_plane = ControlPlane::new();
    let mut loader = control_plane.watch_dir(folder.path()).expect("good files");
    let serving = control_plane.listen("127.0.0.1:0").await.expect("a free port");
    let uri = format!("http://{}", serving.local_addr().expect("a TCP address"));
    let mut client = AggregatedDiscoveryServiceClient::connect(uri).await.expect("the server accepts");
    let type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    requests.send(DeltaDiscoveryRequest { type_url, ..Default::default() }).await.expect("open");
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut responses = client.delta_aggregated_resources(outgoing).await.expect("a stream").into_inner();
    let first = responses.message().await.expect("an answer").expect("an answer");
    assert_eq!(first.resources.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["a"]);

    write(folder.path(), "b.yaml", &cluster("b"));
    reloaded(&mut loader).await.expect("a good file");
    let second = responses.message().await.expect("an answer").expect("an answer");
    assert_eq!(second.resources.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["b"]);
    fs::remove_file(folder.path().join("a.yaml")).expect("removed");
    reloaded(&mut loader).await.expect("good files");
    assert_eq!(responses.message().await.expect("an answer").expect("an answer").removed_resources, ["a"]);
}

#[tokio::test]
async fn a_directory_with_holes_is_not_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let dangling = "- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: a\n  type: EDS\n";
    write(folder.path(), "a.yaml", dangling);
    let error = ControlPlane::new().watch_dir(folder.path()).expect_err("no endpoints");
    let place = folder.path().display();
    assert_eq!(error.to_string(), format!("{place}: missing: ClusterLoadAssignment a (named by Cluster a)"));
}

#[tokio::test]
async fn changed_added_renamed_and_removed_files_are_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    write(path, "a.yaml", &cluster("a"));
    write(path, "ignored.txt", "no YAML: [");
    write(path, ".hidden.yaml", "no YAML: [");
    let control_plane = ControlPlane::new();
    let mut loader = control_plane.watch_dir(path).expect("good files");
    assert_eq!(served(&control_plane).await, ["a"]);

    write(path, "b.yml", &cluster("b"));
    reloaded(&mut loader).await.expect("a good file");
    assert_eq!(served(&control_plane).await, ["a", "b"]);

    // As editors and tools write: a new file is moved over the old one.
    write(path, ".new", "[{\"@type\": \"type.googleapis.com/envoy.config.cluster.v3.Cluster\", \"name\": \"c\"}]");
    fs::rename(path.join(".new"), path.join("c.json")).expect("renamed");
    reloaded(&mut loader).await.expect("a good file");
    fs::remove_file(path.join("a.yaml")).expect("removed");
    reloaded(&mut loader).await.expect("good files");
    assert_eq!(served(&control_plane).await, ["b", "c"]);
}

#[tokio::test]
async fn a_mistake_keeps_the_last_good_resources() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    write(path, "a.yaml", &cluster("a"));
    let control_plane = ControlPlane::new();
    let mut loader = control_plane.watch_dir(path).expect("good files");
    write(path, "b.yaml", &(cluster("b") + "  lb_policy: FASTEST\n"));
    let error = reloaded(&mut loader).await.expect_err("a mistake");
    assert_eq!(error, format!("{}: [0].lb_policy: unrecognized enum value 'FASTEST'", path.join("b.yaml").display()));
    assert_eq!(served(&control_plane).await, ["a"]);
    assert!(loader.state().is_err());

    write(path, "b.yaml", &cluster("b"));
    reloaded(&mut loader).await.expect("the mistake is gone");
    assert_eq!(served(&control_plane).await, ["a", "b"]);
    loader.state().expect("good files");
}

#[cfg(unix)]
#[tokio::test]
async fn a_swapped_symbolic_link_is_a_change() {
    // As kubelet updates a ConfigMap: files are links into `..data`, which is a link that is replaced.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    for (version, name) in [("..1", "old"), ("..2", "new")] {
        fs::create_dir(path.join(version)).expect("a folder");
        write(&path.join(version), "a.yaml", &cluster(name));
    }
    std::os::unix::fs::symlink("..1", path.join("..data")).expect("a link");
    std::os::unix::fs::symlink("..data/a.yaml", path.join("a.yaml")).expect("a link");
    let control_plane = ControlPlane::new();
    let mut loader = control_plane.watch_dir(path).expect("good files");
    assert_eq!(served(&control_plane).await, ["old"]);
    std::os::unix::fs::symlink("..2", path.join("..tmp")).expect("a link");
    fs::rename(path.join("..tmp"), path.join("..data")).expect("renamed");
    reloaded(&mut loader).await.expect("good files");
    assert_eq!(served(&control_plane).await, ["new"]);
}

#[tokio::test]
async fn a_directory_with_mistakes_is_not_served_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "a.yaml", &cluster("a"));
    write(folder.path(), "b.yaml", &cluster("a"));
    let LoadError { mistakes } = ControlPlane::new().watch_dir(folder.path()).expect_err("a mistake");
    let [mistake] = mistakes.try_into().expect("one mistake");
    assert_eq!(mistake.file, Some(folder.path().join("b.yaml")));
    assert_eq!((mistake.path.as_str(), mistake.reason.as_str()), ("[0]", "Cluster a is defined twice"));
    ControlPlane::new().watch_dir(folder.path().join("absent")).expect_err("nothing to watch");
}

/// YAML and the makers say the same, byte for byte.
#[test]
fn yaml_says_the_same_as_the_makers() {
    let made = Resources::default()
        .with(resources::listener("greeter:80", "routes"))
        .with(resources::route_config("routes", vec![resources::virtual_host_weighted("*", &[("a", 90), ("b", 10)])]))
        .with(resources::cluster_eds("a"))
        .with(resources::endpoints("a", &["127.0.0.1:5000".parse().expect("an address")]));
    let yaml = r#"
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: greeter:80
  api_listener:
    api_listener:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      rds: { route_config_name: routes, config_source: { ads: {}, resource_api_version: V3 } }
      http_filters:
      - name: router
        typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: routes
  virtual_hosts:
  - name: "*"
    domains: ["*"]
    routes:
    - match: { prefix: "" }
      route: { weighted_clusters: { clusters: [{ name: a, weight: 90 }, { name: b, weight: 10 }] } }
---
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: a
  type: EDS
  eds_cluster_config: { eds_config: { ads: {}, resource_api_version: V3 } }
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: a
  endpoints:
  - locality: {}
    load_balancing_weight: 1
    lb_endpoints:
    - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 5000 } } }
"#;
    assert_eq!(Resources::from_yaml(yaml), Ok(made));
}
