//! The `xds_interop_client` binary, as a harness starts and drives it, behind our control plane.

use crate::rig::{OurControlPlane, addresses, backends, bootstrap, free_port, within};
use envoy_types::pb::envoy::{
    admin::v3::ClientResourceStatus,
    service::status::v3::{
        ClientStatusRequest, client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
    },
};
use interop_tests::{
    peers::{Process, listening},
    proto::{
        channelz::{GetTopChannelsRequest, channelz_client::ChannelzClient},
        testing::{
            ClientConfigureRequest, LoadBalancerAccumulatedStatsRequest, LoadBalancerStatsRequest,
            LoadBalancerStatsResponse,
            client_configure_request::{Metadata, RpcType},
            load_balancer_stats_response::MetadataType,
            load_balancer_stats_service_client::LoadBalancerStatsServiceClient,
            xds_update_client_configure_service_client::XdsUpdateClientConfigureServiceClient,
        },
    },
};
use mesh_xds::control_plane::{
    Resources,
    resources::{cluster_eds, endpoints, listener, route_config, virtual_host},
};
use std::net::{Ipv4Addr, SocketAddr};
use tokio::process::Command;
use tonic::transport::Channel;

pub(crate) fn one_service(name: &str, addresses: &[SocketAddr]) -> Resources {
    Resources::default()
        .with(listener(name, "routes"))
        .with(route_config("routes", vec![virtual_host("*", "blue")]))
        .with(cluster_eds("blue"))
        .with(endpoints("blue", addresses))
}

/// The binary and a channel to its admin port.
pub(crate) struct Client {
    process: Process,
    admin: Channel,
}

impl Client {
    pub(crate) async fn start(control_plane: SocketAddr, flags: &[&str]) -> Self {
        let port = free_port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_xds_interop_client"));
        command.args(["--server=xds:///greeter", &format!("--stats_port={port}")]).args(flags);
        command.env_remove("GRPC_XDS_BOOTSTRAP");
        command.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap("interop-client", control_plane).to_string());
        let process = Process::start("xds_interop_client", command).expect("built by this test run");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        listening("xds_interop_client", address).await.expect("its admin port");
        let admin = Channel::from_shared(format!("http://{address}")).expect("a URI");
        Self { process, admin: admin.connect().await.expect("its admin port") }
    }

    pub(crate) async fn next(&self, num_rpcs: i32, metadata_keys: &[&str]) -> LoadBalancerStatsResponse {
        let metadata_keys = metadata_keys.iter().map(|&key| key.to_owned()).collect();
        let request = LoadBalancerStatsRequest { num_rpcs, timeout_sec: 30, metadata_keys };
        let mut service = LoadBalancerStatsServiceClient::new(self.admin.clone());
        service.get_client_stats(request).await.expect("answered").into_inner()
    }

    pub(crate) async fn configure(&self, types: &[RpcType], metadata: Vec<Metadata>) {
        let types = types.iter().map(|&rpc| rpc.into()).collect();
        let request = ClientConfigureRequest { types, metadata, timeout_sec: 0 };
        let mut service = XdsUpdateClientConfigureServiceClient::new(self.admin.clone());
        service.configure(request).await.expect("answered");
    }
}

#[tokio::test]
async fn it_tells_who_answered_and_follows_configure() {
    let [a, b] = backends(["a", "b"]).await;
    let control_plane = OurControlPlane::start().await;
    control_plane.ads.set_unchecked(one_service("greeter", &addresses([&a, &b])));
    let flags = ["--qps=100", "--num_channels=2", "--rpc=UnaryCall,EmptyCall", "--response_payload_size=10"];
    let client = Client::start(control_plane.address, &flags).await;

    // The first ones may wait for the configuration; none may fail.
    let first = client.next(100, &["hostname", "grpc-status"]).await;
    assert_eq!(first.num_failures, 0, "{}", client.process.log());
    assert_eq!(first.rpcs_by_peer.values().sum::<i32>(), 100);
    assert_eq!(first.rpcs_by_peer.len(), 2, "both answer: {:?}", first.rpcs_by_peer);
    assert_eq!(first.rpcs_by_method.len(), 2);
    let of_a = &first.metadatas_by_peer["a"].rpc_metadata;
    assert_eq!(of_a.len(), usize::try_from(first.rpcs_by_peer["a"]).expect("a count"));
    let kept = of_a[0].metadata.iter().map(|entry| (entry.key.as_str(), entry.value.as_str(), entry.r#type()));
    let kept: Vec<_> = kept.collect();
    assert_eq!(kept, [("hostname", "a", MetadataType::Initial), ("grpc-status", "0", MetadataType::Trailing)]);

    let fail = Metadata {
        r#type: RpcType::EmptyCall.into(),
        key: "rpc-behavior".to_owned(),
        value: "error-code-9".to_owned(),
    };
    client.configure(&[RpcType::EmptyCall], vec![fail]).await;
    assert_eq!(client.next(20, &[]).await.num_failures, 20);
    client.configure(&[RpcType::UnaryCall], Vec::new()).await;
    assert_eq!(client.next(20, &[]).await.num_failures, 0);

    let mut service = LoadBalancerStatsServiceClient::new(client.admin.clone());
    let all = service.get_client_accumulated_stats(LoadBalancerAccumulatedStatsRequest {}).await.expect("answered");
    let empty = &all.get_ref().stats_per_method["EMPTY_CALL"];
    assert!(empty.result[&9] >= 20, "{empty:?}");

    let top = ChannelzClient::new(client.admin.clone()).get_top_channels(GetTopChannelsRequest::default()).await;
    let top = top.expect("answered").into_inner().channel;
    assert_eq!(top.len(), 2);
    for data in top.into_iter().map(|channel| channel.data.expect("data")) {
        assert_eq!(data.target, "xds:///greeter");
        assert!(data.calls_started >= 50 && data.calls_succeeded > 0 && data.calls_failed > 0, "{data:?}");
    }
    let mut csds = ClientStatusDiscoveryServiceClient::new(client.admin.clone());
    let status = csds.fetch_client_status(ClientStatusRequest::default()).await.expect("answered").into_inner();
    let config = &status.config[0];
    assert_eq!(config.node.as_ref().expect("a node").id, "interop-client");
    assert_eq!(config.generic_xds_configs.len(), 4, "{:?}", config.generic_xds_configs);
    let acked = |status: i32| status == i32::from(ClientResourceStatus::Acked);
    assert!(config.generic_xds_configs.iter().all(|resource| acked(resource.client_status)));
}

#[tokio::test]
async fn its_admin_port_opens_while_the_control_plane_is_silent_and_sigterm_ends_it() {
    let control_plane = OurControlPlane::start().await;
    control_plane.ads.silent(true);
    let mut client = Client::start(control_plane.address, &["--qps=10", "--rpc_timeout_sec=1"]).await;
    let stats = client.next(1, &[]).await;
    assert_eq!(stats.num_failures, 1, "nobody answers");
    let id = client.process.id().expect("it runs").to_string();
    let sent = Command::new("kill").args(["-TERM", &id]).status().await.expect("kill exists");
    assert!(sent.success());
    assert_eq!(within("its end", client.process.ended()).await.expect("it ends"), Some(0));
}
