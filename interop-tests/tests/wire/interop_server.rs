//! The `xds_interop_server` binary, as a harness starts and drives it.

use crate::rig::free_port;
use interop_tests::{
    peers::{Process, listening},
    proto::{
        channelz::{GetServersRequest, channelz_client::ChannelzClient},
        testing::{
            Empty, SimpleRequest, test_service_client::TestServiceClient,
            xds_update_health_service_client::XdsUpdateHealthServiceClient,
        },
    },
};
use std::net::{Ipv4Addr, SocketAddr};
use tokio::process::Command;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

fn start(arguments: &[String]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xds_interop_server"));
    command.args(arguments);
    Process::start("xds_interop_server", command).expect("built by this test run")
}

async fn channel(port: u16) -> Channel {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    listening("xds_interop_server", address).await.expect("it serves");
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("a URI");
    endpoint.connect().await.expect("it serves")
}

async fn health(channel: Channel) -> ServingStatus {
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await.expect("answered");
    answer.into_inner().status()
}

#[tokio::test]
async fn a_plain_server_has_every_service_on_its_port() {
    let port = free_port();
    let _server = start(&[format!("--port={port}"), "--secure_mode=false".into(), "--server_id=7".into()]);
    let channel = channel(port).await;

    let mut client = TestServiceClient::new(channel.clone());
    let answer = client.unary_call(SimpleRequest::default()).await.expect("answered");
    let hostname = answer.metadata().get("hostname").expect("signed").clone();
    assert_eq!(answer.get_ref().server_id, "7");
    assert_eq!(hostname, answer.get_ref().hostname.as_str());

    let servers = ChannelzClient::new(channel.clone()).get_servers(GetServersRequest::default()).await;
    let servers = servers.expect("answered").into_inner();
    assert!(servers.end);
    let counts = servers.server[0].data.expect("counts");
    assert_eq!((counts.calls_started, counts.calls_succeeded), (2, 1), "the second is the asking call itself");
}

#[tokio::test]
async fn the_maintenance_port_switches_health_on_both_ports() {
    let (port, maintenance_port) = (free_port(), free_port());
    let _server = start(&[
        format!("--port={port}"),
        format!("--maintenance_port={maintenance_port}"),
        "--host_name_override=b".into(),
    ]);
    let maintenance = channel(maintenance_port).await;
    assert_eq!(health(maintenance.clone()).await, ServingStatus::Serving);
    let mut switch = XdsUpdateHealthServiceClient::new(maintenance.clone());
    switch.set_not_serving(Empty {}).await.expect("answered");
    assert_eq!(health(channel(port).await).await, ServingStatus::NotServing);
    switch.set_serving(Empty {}).await.expect("answered");
    assert_eq!(health(maintenance.clone()).await, ServingStatus::Serving);
    let status = TestServiceClient::new(maintenance).empty_call(Empty {}).await.expect_err("admin services only");
    assert_eq!(status.code(), tonic::Code::Unimplemented);
}

#[tokio::test]
async fn secure_mode_is_refused_with_a_reason() {
    let mut server = start(&["--secure_mode=true".into()]);
    assert_eq!(server.ended().await.expect("it ends"), Some(1));
    assert!(server.log().contains("--secure_mode: an xDS-managed server is not supported"), "{}", server.log());
}

#[tokio::test]
async fn sigterm_ends_it() {
    let port = free_port();
    let mut server = start(&[format!("--port={port}")]);
    channel(port).await;
    let id = server.id().expect("it runs").to_string();
    let sent = Command::new("kill").args(["-TERM", &id]).status().await.expect("kill exists");
    assert!(sent.success());
    assert_eq!(server.ended().await.expect("it ends"), Some(0));
}
