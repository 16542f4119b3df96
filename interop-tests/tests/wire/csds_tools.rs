//! CSDS as tools use it: requests, fields of our own, and the judgement of grpc-go's and C-core's CSDS.
//!
//! Foreign clients follow the same control plane, and say the same of the same resources. It does NOT test states one by
//! one; `csds` does.

use crate::{
    csds::{Admin, fetch, greeter, refused_cluster, serve},
    mesh::Plane,
    rig::{OurControlPlane, bootstrap, within},
};
use envoy_types::pb::envoy::{
    admin::v3::ClientResourceStatus::{Acked, Nacked, Requested},
    service::status::v3::{
        ClientConfig, ClientStatusRequest, client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
    },
    r#type::matcher::v3::NodeMatcher,
};
use interop_tests::{
    backend::Backend,
    peers::{ForeignClient, Grpc, read_csds},
};
use mesh_xds::{
    Bootstrap, CsdsService, TargetName,
    control_plane::resources::{cluster_eds, endpoints, listener, route_config, virtual_host_weighted},
    resource::{Cluster, Kind},
};
use prost::Message;
use std::collections::BTreeMap;
use tonic::{Code, Request, codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;

const CDS: &str = Kind::Cluster.type_url();
const EDS: &str = Kind::Endpoints.type_url();

// === Requests ===

#[tokio::test]
async fn node_matchers_are_refused_and_contents_are_left_out_on_request() {
    let control_plane = OurControlPlane::start().await;
    control_plane.ads.set_unchecked(greeter(cluster_eds("blue")));
    let admin = Admin::following("csds-requests", &control_plane).await;
    admin.reaches(CDS, "blue", Acked).await;

    let matching =
        ClientStatusRequest { node_matchers: vec![NodeMatcher::default()], ..ClientStatusRequest::default() };
    let refused = admin.csds.clone().fetch_client_status(matching.clone()).await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    // An answer for each request; a bad one ends the stream.
    let bare = ClientStatusRequest { exclude_resource_contents: true, ..ClientStatusRequest::default() };
    let requests = tokio_stream::iter([ClientStatusRequest::default(), bare, matching]);
    let mut answers = admin.csds.clone().stream_client_status(requests).await.expect("streams").into_inner();
    let mut next = async || within("an answer", answers.message()).await.map(|answer| answer.expect("not the end"));
    let contents = |mut config: Vec<ClientConfig>| {
        let resources = config.remove(0).generic_xds_configs;
        resources.iter().filter(|resource| resource.xds_config.is_some()).count()
    };
    assert_eq!(contents(next().await.expect("answered").config), 4);
    let bare = next().await.expect("answered").config;
    assert!(bare[0].generic_xds_configs.iter().all(|resource| !resource.version_info.is_empty()));
    assert_eq!(contents(bare), 0);
    assert_eq!(next().await.expect_err("refused").code(), Code::InvalidArgument);
}

/// What `GenericXdsConfig` has besides Envoy's fields, as a tool that knows it would declare it.
#[derive(Clone, PartialEq, Message)]
struct Extended {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "50001")]
    ignored_fields: Vec<Ignored>,
    #[prost(string, tag = "50002")]
    server: String,
}

#[derive(Clone, PartialEq, Message)]
struct Ignored {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(string, tag = "2")]
    reason: String,
}

#[derive(Clone, PartialEq, Message)]
struct ExtendedConfig {
    #[prost(message, repeated, tag = "3")]
    generic_xds_configs: Vec<Extended>,
}

#[derive(Clone, PartialEq, Message)]
struct ExtendedResponse {
    #[prost(message, repeated, tag = "1")]
    config: Vec<ExtendedConfig>,
}

#[tokio::test]
async fn fields_without_effect_and_the_server_are_told_beside_each_resource() {
    let control_plane = OurControlPlane::start().await;
    let mut cluster = cluster_eds("blue");
    cluster.alt_stat_name = "other".to_owned();
    cluster.close_connections_on_host_health_failure = true;
    control_plane.ads.set_unchecked(greeter(cluster));
    let admin = Admin::following("csds-ignored", &control_plane).await;
    admin.reaches(CDS, "blue", Acked).await;
    let mut grpc = tonic::client::Grpc::new(admin.channel.clone());
    within("the connection", grpc.ready()).await.expect("connected");
    let path = PathAndQuery::from_static("/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus");
    let codec = ProstCodec::<ClientStatusRequest, ExtendedResponse>::default();
    let answer = grpc.unary(Request::new(ClientStatusRequest::default()), path, codec).await.expect("answered");
    let mut configs = answer.into_inner().config;
    let told = configs.remove(0).generic_xds_configs;
    let status = admin.client.status();
    let told = told.iter().find(|told| told.name == "blue" && !told.ignored_fields.is_empty()).expect("the cluster");
    let local = status.resource(Kind::Cluster, "blue").expect("subscribed");
    let fields = |fields: &[Ignored]| fields.iter().map(|f| format!("{}: {}", f.path, f.reason)).collect::<Vec<_>>();
    let local_fields: Vec<_> = local.ignored.iter().map(ToString::to_string).collect();
    assert_eq!(fields(&told.ignored_fields), local_fields);
    assert!(local_fields.iter().any(|field| field.starts_with("close_connections_on_host_health_failure")));
    assert_eq!((told.server.as_str(), &*local.server), (&*control_plane.address.to_string(), &*told.server));
}

#[tokio::test]
async fn each_target_has_its_scope_with_all_that_it_uses() {
    let control_plane = OurControlPlane::start().await;
    let resources = greeter(cluster_eds("blue")).with(listener("other", "other-routes"));
    let both = virtual_host_weighted("*", &[("blue", 1), ("green", 1)]);
    let resources = resources.with(route_config("other-routes", vec![both])).with(cluster_eds("green"));
    control_plane.ads.set_unchecked(resources.with(endpoints("green", &[])).with(cluster_eds("alone")));
    let admin = Admin::following("csds-scopes", &control_plane).await;
    let _other = admin.client.watch(TargetName::new("other", "other"));
    let _alone = admin.client.watch_resource::<Cluster>("alone");
    for (type_url, name) in [(EDS, "blue"), (EDS, "green"), (CDS, "alone")] {
        admin.reaches(type_url, name, Acked).await;
    }
    let scopes = admin.fetch().await.into_iter().map(|config| {
        let names = config.generic_xds_configs.into_iter().map(|resource| resource.name);
        (config.client_scope, names.collect::<Vec<_>>().join(" "))
    });
    let scopes: Vec<_> = scopes.collect();
    let expected = [
        ("", "alone"),
        ("xds:///greeter", "greeter routes blue blue"),
        ("xds:///other", "other other-routes blue green blue green"),
    ];
    assert_eq!(scopes, expected.map(|(scope, names)| (scope.to_owned(), names.to_owned())));
    // Tools that take one ClientConfig get all of it once.
    let together = serve(tonic::service::Routes::new(CsdsService::new([&admin.client]).unscoped())).await;
    let answer = read_csds(Grpc::Go, together).await.expect("it can read it");
    let [config] = answer["config"].as_array().expect("configs").as_slice() else { panic!("{answer:#}") };
    let names = config["genericXdsConfigs"].as_array().expect("resources").iter().map(|it| it["name"].as_str());
    let mut names: Vec<_> = names.flatten().collect();
    names.sort_unstable();
    assert_eq!(
        (config.get("clientScope"), names.join(" ").as_str()),
        (None, "alone blue blue green green greeter other other-routes routes")
    );
    // The local API says the same.
    let status = admin.client.status();
    let targets = |name| status.resource(Kind::Cluster, name).expect("subscribed").targets.iter().map(|t| &**t);
    assert_eq!(targets("blue").collect::<Vec<_>>(), ["xds:///greeter", "xds:///other"]);
    assert_eq!(targets("alone").count(), 0);
}

/// In an outage `grpcdebug` is asked most, and takes one `ClientConfig` as ever.
#[tokio::test]
async fn a_target_that_falls_back_has_one_scope_with_what_it_has_of_both_servers() {
    let mut primary = Plane::start(greeter(cluster_eds("blue"))).await;
    let secondary = Plane::start(greeter(cluster_eds("blue"))).await;
    primary.control_plane().hold(CDS);
    let bootstrap = Bootstrap::builder().node_id("csds-fallback").server(primary.server()).server(secondary.server());
    let admin = Admin::of(bootstrap.build().expect("two servers")).await;
    primary.control_plane().wait_for_subscription(CDS, "blue").await;
    primary.stop();
    admin.reaches(EDS, "blue", Acked).await;
    let [config] = admin.fetch().await.try_into().expect("one target");
    assert_eq!(config.client_scope, "xds:///greeter");
    let resources = config.generic_xds_configs.iter().map(|it| (it.name.as_str(), it.client_status()));
    let both = [("greeter", Acked), ("greeter", Acked), ("routes", Acked), ("routes", Acked)];
    let clusters = [("blue", Requested), ("blue", Acked), ("blue", Acked)];
    assert_eq!(resources.collect::<Vec<_>>(), [&both[..], &clusters].concat());
    // What the local API says of them tells them apart.
    let status = admin.client.status();
    let listeners = status.resources.iter().filter(|it| it.kind == Kind::Listener).map(|it| &*it.server);
    assert_eq!(listeners.collect::<Vec<_>>(), [&primary, &secondary].map(|plane| plane.server().to_string()));
}

#[tokio::test]
async fn the_service_of_a_process_tells_of_each_client_while_it_lives() {
    let control_plane = OurControlPlane::start().await;
    control_plane.ads.set_unchecked(greeter(cluster_eds("blue")));
    let address = serve(tonic::service::Routes::new(CsdsService::of_process())).await;
    let channel = Endpoint::from_shared(format!("http://{address}")).expect("a URI").connect_lazy();
    let csds = ClientStatusDiscoveryServiceClient::new(channel);
    // Other tests of this process have clients, too.
    let ours = async |node: &str| {
        let is_ours = |config: &ClientConfig| config.node.as_ref().is_some_and(|told| told.id == node);
        fetch(&csds).await.iter().filter(|config| is_ours(config)).count()
    };
    assert_eq!(ours("csds-process-1").await, 0);
    let first = Admin::following("csds-process-1", &control_plane).await;
    let second = Admin::following("csds-process-2", &control_plane).await;
    assert_eq!((ours("csds-process-1").await, ours("csds-process-2").await), (1, 1));
    drop(first);
    assert_eq!((ours("csds-process-1").await, ours("csds-process-2").await), (0, 1));
    drop(second);
}

// === Others ===

#[tokio::test]
async fn operators_tools_can_read_it() {
    let control_plane = OurControlPlane::start().await;
    control_plane.ads.set_unchecked(greeter(cluster_eds("blue")));
    let admin = Admin::following("csds-tools", &control_plane).await;
    admin.reaches(EDS, "blue", Acked).await;
    control_plane.ads.set_unchecked(greeter(refused_cluster()));
    admin.reaches(CDS, "blue", Nacked).await;
    for implementation in [Grpc::Go, Grpc::Core] {
        let answer = read_csds(implementation, admin.address).await.expect("it can read it");
        let config = &answer["config"][0];
        assert_eq!(config["node"]["id"], "csds-tools", "{implementation:?}: {answer:#}");
        // `grpcdebug xds` is this, with columns: "Received unexpected number of ClientConfig" is what it says of others.
        assert_eq!(answer["config"].as_array().map(Vec::len), Some(1), "{implementation:?}: {answer:#}");
        let states = config["genericXdsConfigs"].as_array().expect("resources").iter().map(|resource| {
            assert!(resource["lastUpdated"].as_str().is_some_and(|time| time.ends_with('Z')), "{resource:#}");
            let unpacked = &resource["xdsConfig"];
            assert_eq!(unpacked["@type"], resource["typeUrl"]);
            // The name in the resource: it was unpacked.
            let name = unpacked.get("name").unwrap_or_else(|| &unpacked["clusterName"]);
            assert_eq!(name, &resource["name"]);
            (name.as_str().expect("a name"), resource["clientStatus"].as_str().expect("a state"))
        });
        let mut states: Vec<_> = states.collect();
        states.sort_unstable();
        assert_eq!(states, [("blue", "ACKED"), ("blue", "NACKED"), ("greeter", "ACKED"), ("routes", "ACKED")]);
    }
}

/// What a dump says of a resource that any client must say alike.
#[derive(Debug, PartialEq)]
struct Said {
    status: String,
    version: String,
    refused_version: Option<String>,
    bytes: Vec<u8>,
}

/// By scope, type and name.
fn said(configs: Vec<ClientConfig>) -> BTreeMap<[String; 3], Said> {
    let scoped = |config: ClientConfig| {
        // C-core leaves an empty authority out.
        let scope = config.client_scope.replace("xds:/greeter", "xds:///greeter");
        config.generic_xds_configs.into_iter().map(move |resource| (scope.clone(), resource))
    };
    let resources = configs.into_iter().flat_map(scoped).map(|(scope, resource)| {
        let said = Said {
            status: resource.client_status().as_str_name().to_owned(),
            version: resource.version_info,
            refused_version: resource.error_state.map(|error| error.version_info),
            bytes: resource.xds_config.unwrap_or_default().value,
        };
        ([scope, resource.type_url, resource.name], said)
    });
    resources.collect()
}

async fn says_what_ours_says(implementation: Grpc, node: &str) {
    let backend = Backend::start("a").await.expect("a free port");
    let control_plane = OurControlPlane::start().await;
    let serving = |cluster| greeter(cluster).with(endpoints("blue", &[backend.address()]));
    control_plane.ads.set_unchecked(serving(cluster_eds("blue")));
    let theirs = bootstrap(&format!("{node}-theirs"), control_plane.address);
    let mut theirs = ForeignClient::start(implementation, "xds:///greeter", &theirs).await.expect("set up");
    let ours = Admin::following(&format!("{node}-ours"), &control_plane).await;
    let channel = Endpoint::from_shared(format!("http://{}", theirs.csds())).expect("a URI").connect_lazy();
    let their_csds = ClientStatusDiscoveryServiceClient::new(channel);
    assert_eq!(theirs.call(1).await.expect("it runs"), BTreeMap::from([("a".to_owned(), 1)]));
    ours.reaches(EDS, "blue", Acked).await;
    assert_eq!(said(fetch(&their_csds).await), said(ours.fetch().await));

    control_plane.ads.set_unchecked(serving(refused_cluster()));
    ours.reaches(CDS, "blue", Nacked).await;
    let agree = async {
        while said(fetch(&their_csds).await) != said(ours.fetch().await) {
            tokio::task::yield_now().await;
        }
    };
    within("the same words about a refused cluster", agree).await;
}

#[tokio::test]
async fn c_core_says_the_same_of_the_same_resources() {
    says_what_ours_says(Grpc::Core, "csds-core").await;
}

#[tokio::test]
async fn grpc_go_says_the_same_of_the_same_resources() {
    says_what_ours_says(Grpc::Go, "csds-go").await;
}
