//! CSDS (A40 A71 A88): every state and field, over sockets, and beside what `status()` says.
//!
//! The messages are decoded by Envoy's generated code. It does NOT make calls; a watch is enough to follow a target.

use crate::rig::{OurControlPlane, bootstrap, within};
use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        admin::v3::ClientResourceStatus::{self, Acked, DoesNotExist, Nacked, ReceivedError, Requested, Timeout},
        config::{cluster::v3::Cluster, core::v3::node::UserAgentVersionType},
        service::{
            discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, ResourceError,
                ResourceName,
                aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
            },
            status::v3::{
                ClientConfig, ClientStatusRequest, client_config::GenericXdsConfig,
                client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
            },
        },
    },
    google::{protobuf::Any, rpc},
};
use futures_util::{StreamExt, stream::BoxStream};
use mesh_xds::{
    Bootstrap, CsdsService, TargetName, TargetWatch, XdsClient,
    control_plane::{
        Resources,
        resources::{cluster_eds, endpoints, listener, pack, route_config, virtual_host},
    },
    resource::Kind,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, UNIX_EPOCH},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Channel};

const LDS: &str = Kind::Listener.type_url();
const RDS: &str = Kind::RouteConfig.type_url();
const CDS: &str = Kind::Cluster.type_url();
const EDS: &str = Kind::Endpoints.type_url();

/// One client, and the admin server of its user.
pub(crate) struct Admin {
    pub(crate) client: XdsClient,
    pub(crate) address: SocketAddr,
    pub(crate) channel: Channel,
    pub(crate) csds: ClientStatusDiscoveryServiceClient<Channel>,
    _watch: TargetWatch,
}

impl Admin {
    pub(crate) async fn of(bootstrap: Bootstrap) -> Self {
        let client = XdsClient::connect(bootstrap);
        let watch = client.watch(TargetName::new("greeter", "greeter"));
        let address = serve(tonic::service::Routes::new(CsdsService::new([&client]))).await;
        let channel = Channel::from_shared(format!("http://{address}")).expect("a URI").connect_lazy();
        let csds = ClientStatusDiscoveryServiceClient::new(channel.clone());
        Self { client, address, channel, csds, _watch: watch }
    }

    /// Follows our control plane.
    pub(crate) async fn following(node: &str, control_plane: &OurControlPlane) -> Self {
        Self::of(parsed(&bootstrap(node, control_plane.address))).await
    }

    pub(crate) async fn fetch(&self) -> Vec<ClientConfig> {
        fetch(&self.csds).await
    }

    async fn resource(&self, type_url: &str, name: &str) -> Option<GenericXdsConfig> {
        let configs = self.fetch().await.into_iter().flat_map(|config| config.generic_xds_configs);
        configs.into_iter().find(|resource| (resource.type_url.as_str(), resource.name.as_str()) == (type_url, name))
    }

    /// The resource, once it is in this state.
    pub(crate) async fn reaches(&self, type_url: &str, name: &str, state: ClientResourceStatus) -> GenericXdsConfig {
        let reached = async {
            loop {
                if let Some(resource) = self.resource(type_url, name).await
                    && resource.client_status() == state
                {
                    return resource;
                }
                tokio::task::yield_now().await;
            }
        };
        within(&format!("{name} {state:?}"), reached).await
    }
}

pub(crate) async fn fetch(csds: &ClientStatusDiscoveryServiceClient<Channel>) -> Vec<ClientConfig> {
    let mut csds = csds.clone();
    let answer = csds.fetch_client_status(ClientStatusRequest::default());
    within("an answer", answer).await.expect("answered").into_inner().config
}

pub(crate) fn parsed(bootstrap: &serde_json::Value) -> Bootstrap {
    Bootstrap::parse(&bootstrap.to_string()).expect("well-formed")
}

/// Serves until the test's runtime ends.
pub(crate) async fn serve(routes: tonic::service::Routes) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let server = tonic::transport::Server::builder().add_routes(routes);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

pub(crate) fn greeter(cluster: Cluster) -> Resources {
    Resources::default()
        .with(listener("greeter", "routes"))
        .with(route_config("routes", vec![virtual_host("*", "blue")]))
        .with(cluster)
        .with(endpoints("blue", &[SocketAddr::from((Ipv4Addr::LOCALHOST, 9))]))
}

pub(crate) fn refused_cluster() -> Cluster {
    Cluster { lb_policy: 77, ..cluster_eds("blue") }
}

fn since_epoch() -> Duration {
    #[expect(clippy::disallowed_types, reason = "compared with a time for people")]
    std::time::SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// A field that no version of the protocol has, at the end of a resource.
fn with_unknown_field(mut resource: Any) -> Any {
    resource.value.extend(b"\xa2\xc2\x0c\x05later");
    resource
}

// === States ===

#[tokio::test]
async fn accepted_resources_are_shown_byte_by_byte_with_version_and_time() {
    let control_plane = OurControlPlane::start().await;
    let mut resources = greeter(cluster_eds("blue"));
    let cluster = with_unknown_field(pack(cluster_eds("blue")));
    resources.insert_any(cluster.clone());
    control_plane.ads.set_unchecked(resources);
    let begin = since_epoch();
    let admin = Admin::following("csds-acked", &control_plane).await;
    for (type_url, name) in [(LDS, "greeter"), (RDS, "routes"), (CDS, "blue"), (EDS, "blue")] {
        let resource = admin.reaches(type_url, name, Acked).await;
        let shown = resource.xds_config.expect("the value in use");
        assert_eq!(shown.type_url, type_url);
        assert!(!resource.version_info.is_empty());
        assert_eq!((resource.error_state, resource.config_status), (None, 0));
        let updated = resource.last_updated.expect("a time");
        let updated = Duration::new(updated.seconds.unsigned_abs(), updated.nanos.unsigned_abs());
        // The wall clock is read twice, once on each side of a subtraction.
        assert!(updated + Duration::from_millis(1) >= begin && updated <= since_epoch(), "{updated:?} {begin:?}");
        if type_url == CDS {
            assert_eq!(Bytes::from(shown.value), Bytes::from(cluster.value.clone()), "as received");
        }
    }
}

#[tokio::test]
async fn the_node_is_shown_as_it_was_sent() {
    let control_plane = OurControlPlane::start().await;
    control_plane.ads.set_unchecked(greeter(cluster_eds("blue")));
    let mut json = bootstrap("csds-node", control_plane.address);
    json["node"]["metadata"] = serde_json::json!({ "INSTANCE_IPS": "10.0.0.7", "LABELS": { "app": "a" } });
    let admin = Admin::of(parsed(&json)).await;
    let [config] = admin.fetch().await.try_into().expect("one client, one target");
    let node = config.node.expect("a node");
    assert_eq!((node.id.as_str(), node.cluster.as_str()), ("csds-node", "wire-tests"));
    let locality = node.locality.expect("the bootstrap's");
    assert_eq!((locality.region.as_str(), locality.zone.as_str()), ("r", "z"));
    assert_eq!(node.user_agent_name, "mesh-xds");
    assert!(matches!(node.user_agent_version_type, Some(UserAgentVersionType::UserAgentVersion(_))));
    assert!(node.client_features.contains(&"xds.config.resource-in-sotw".to_owned()));
    let metadata = node.metadata.expect("the bootstrap's");
    assert_eq!(metadata.fields.len(), 2);
    assert!(metadata.fields.contains_key("INSTANCE_IPS") && metadata.fields.contains_key("LABELS"), "{metadata:?}");
    // The local API says the same.
    let local = admin.client.status().node;
    assert_eq!((local.id, local.cluster, local.locality), (node.id, node.cluster, ["r", "z", ""].map(str::to_owned)));
    assert_eq!(local.user_agent.0, node.user_agent_name);
    assert_eq!(local.client_features, node.client_features);
    assert!(local.metadata.contains(r#""INSTANCE_IPS":"10.0.0.7""#), "{}", local.metadata);
}

#[tokio::test]
async fn a_refused_update_is_shown_beside_the_value_in_use_until_a_good_one_comes() {
    let control_plane = OurControlPlane::start().await;
    control_plane.ads.set_unchecked(greeter(cluster_eds("blue")));
    let admin = Admin::following("csds-nacked", &control_plane).await;
    let good = admin.reaches(CDS, "blue", Acked).await;

    control_plane.ads.set_unchecked(greeter(refused_cluster()));
    let refused = admin.reaches(CDS, "blue", Nacked).await;
    assert_eq!((&refused.version_info, &refused.xds_config), (&good.version_info, &good.xds_config));
    assert!(refused.last_updated.is_some());
    let error = refused.error_state.expect("why");
    assert!(!error.version_info.is_empty() && error.version_info != good.version_info, "{}", error.version_info);
    assert!(error.details.contains("lb_policy") && error.details.contains("csds-nacked"), "{}", error.details);
    assert_eq!(error.failed_configuration, Some(pack(refused_cluster())));
    assert!(error.last_update_attempt.is_some());
    // One bad resource is one bad resource (A46).
    assert_eq!(admin.reaches(EDS, "blue", Acked).await.error_state, None);

    let better = Cluster { alt_stat_name: "blue-2".to_owned(), ..cluster_eds("blue") };
    control_plane.ads.set_unchecked(greeter(better.clone()));
    let resource = admin.reaches(CDS, "blue", Acked).await;
    assert_eq!((resource.error_state, resource.xds_config), (None, Some(pack(better))));
    assert_ne!(resource.version_info, good.version_info);
}

#[tokio::test]
async fn what_never_comes_is_requested_and_then_does_not_exist() {
    let control_plane = OurControlPlane::start().await;
    control_plane.ads.silent(true);
    let bootstrap = bootstrap("csds-requested", control_plane.address);
    let admin = Admin::of(parsed(&bootstrap).with_resource_timeout(Duration::from_secs(2))).await;
    let asked = admin.reaches(LDS, "greeter", Requested).await;
    assert_eq!((asked.version_info.as_str(), asked.xds_config, asked.last_updated), ("", None, None));
    assert_eq!(asked.error_state, None);
    let missing = admin.reaches(LDS, "greeter", DoesNotExist).await;
    assert_eq!((missing.version_info.as_str(), missing.xds_config, missing.last_updated), ("", None, None));
    let error = missing.error_state.expect("why");
    assert_eq!((error.version_info.as_str(), error.failed_configuration), ("", None));
    assert!(error.details.contains("greeter"), "{}", error.details);
}

#[tokio::test]
async fn a_timer_that_means_a_slow_server_is_a_timeout() {
    let control_plane = OurControlPlane::start().await;
    control_plane.ads.silent(true);
    let mut json = bootstrap("csds-timeout", control_plane.address);
    json["xds_servers"][0]["server_features"] = serde_json::json!(["resource_timer_is_transient_error"]);
    let admin = Admin::of(parsed(&json).with_resource_timeout(Duration::from_millis(100))).await;
    let late = admin.reaches(LDS, "greeter", Timeout).await;
    assert!(late.error_state.expect("why").details.contains("did not answer"));
}

#[tokio::test]
async fn a_deleted_resource_that_is_kept_does_not_exist_and_is_still_shown() {
    let control_plane = OurControlPlane::start().await;
    control_plane.ads.set_unchecked(greeter(cluster_eds("blue")));
    let admin = Admin::following("csds-deleted", &control_plane).await;
    let good = admin.reaches(CDS, "blue", Acked).await;
    let mut without = greeter(cluster_eds("blue"));
    without.remove(CDS, "blue");
    control_plane.ads.set_unchecked(without);
    let deleted = admin.reaches(CDS, "blue", DoesNotExist).await;
    assert_eq!((&deleted.version_info, &deleted.xds_config), (&good.version_info, &good.xds_config));
    let error = deleted.error_state.expect("why");
    assert!(error.details.contains("deleted"), "{}", error.details);
    assert!(!error.version_info.is_empty() && error.version_info != good.version_info);
    assert_eq!(error.failed_configuration, None);
}

/// A server that denies whatever is asked for (xRFC TP3).
struct Denying;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Denying {
    type StreamAggregatedResourcesStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let first = requests.into_inner().filter(|request| {
            let is_first = request.as_ref().is_ok_and(|request| request.response_nonce.is_empty());
            std::future::ready(is_first)
        });
        let denied = |request: DiscoveryRequest| DiscoveryResponse {
            version_info: "7".to_owned(),
            nonce: "1".to_owned(),
            resource_errors: request
                .resource_names
                .into_iter()
                .map(|name| ResourceError {
                    resource_name: Some(ResourceName { name, ..ResourceName::default() }),
                    error_detail: Some(rpc::Status { code: 7, message: "not yours".to_owned(), details: Vec::new() }),
                })
                .collect(),
            type_url: request.type_url,
            ..DiscoveryResponse::default()
        };
        Ok(Response::new(first.map(move |request| request.map(denied)).boxed()))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("SotW only"))
    }
}

#[tokio::test]
async fn an_error_that_the_server_reports_is_received_error() {
    let server = serve(tonic::service::Routes::new(AggregatedDiscoveryServiceServer::new(Denying))).await;
    let admin = Admin::of(parsed(&bootstrap("csds-denied", server))).await;
    let denied = admin.reaches(LDS, "greeter", ReceivedError).await;
    let error = denied.error_state.expect("why");
    assert!(error.details.contains("not yours") && error.details.contains("code 7"), "{}", error.details);
    assert_eq!(error.version_info, "7");
}
