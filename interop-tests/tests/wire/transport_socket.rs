//! A cluster that asks for what only TLS can give gets no connection at all, and never a byte in plaintext (A29).
//!
//! Until the data plane speaks TLS that is every `transport_socket` other than `raw_buffer`, and every
//! `transport_socket_matches`. How the fields are validated is NOT tested here; the NACK table does that.

use crate::{
    mesh::{applied, mesh, ready, service, unary},
    rig::{addresses, backends, within},
};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use interop_tests::{
    backend::Backend,
    proto::testing::{SimpleRequest, test_service_client::TestServiceClient},
};
use mesh_client::{MeshChannel, MeshError, WaitForReady};
use mesh_xds::{
    control_plane::{
        Resources,
        proto::envoy::{
            config::{
                cluster::v3::{Cluster, cluster::TransportSocketMatch},
                core::v3::{TransportSocket, transport_socket::ConfigType},
            },
            extensions::transport_sockets::{
                raw_buffer::v3::RawBuffer,
                tls::v3::{
                    CertificateValidationContext, CommonTlsContext, UpstreamTlsContext,
                    certificate_validation_context::SystemRootCerts, common_tls_context::ValidationContextType,
                },
            },
        },
        resources::{cluster_eds, endpoints, pack},
    },
    resource::Kind,
};
use std::time::Duration;
use tonic::Code;

/// TLS with the system's roots, which needs nothing of the bootstrap.
fn tls() -> TransportSocket {
    let roots = CertificateValidationContext {
        system_root_certs: Some(SystemRootCerts::default()),
        ..CertificateValidationContext::default()
    };
    let common = CommonTlsContext {
        validation_context_type: Some(ValidationContextType::ValidationContext(roots)),
        ..CommonTlsContext::default()
    };
    let context =
        UpstreamTlsContext { common_tls_context: Some(common), sni: "b.test".to_owned(), ..Default::default() };
    let typed = ConfigType::TypedConfig(pack(context));
    TransportSocket { name: "envoy.transport_sockets.tls".to_owned(), config_type: Some(typed) }
}

fn with_socket(socket: TransportSocket) -> Cluster {
    Cluster { transport_socket: Some(socket), ..cluster_eds("echo-cluster") }
}

fn with_matches() -> Cluster {
    let one = TransportSocketMatch { name: "tls".to_owned(), transport_socket: Some(tls()), ..Default::default() };
    Cluster { transport_socket_matches: vec![one], ..cluster_eds("echo-cluster") }
}

fn echo(backend: &Backend, cluster: Cluster) -> Resources {
    service("echo", &[backend.address()]).with(cluster)
}

/// The error of one call, which must be UNAVAILABLE and name cluster, field and node.
async fn refused(channel: &MeshChannel, field: &str) {
    let status = unary(channel).await.expect_err("no connection may be made");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    for part in ["echo-cluster", field, "in-process"] {
        assert!(status.message().contains(part), "{part} in {status}");
    }
}

async fn never_dialled(cluster: Cluster, field: &str) {
    let [a] = backends(["a"]).await;
    let mesh = mesh(echo(&a, cluster.clone()));
    let channel = mesh.mesh().channel("xds:///echo").expect("a valid target");
    for _ in 0..5 {
        refused(&channel, field).await;
    }
    let failing = channel.ready(Duration::from_secs(30)).await.expect("the cluster is known to fail");
    assert!(failing.iter().any(|failing| failing.reason.contains(field)), "{failing:?}");
    // New endpoints are no reason to dial, either.
    let [b] = backends(["b"]).await;
    mesh.control_plane().set_unchecked(echo(&a, cluster).with(endpoints("echo-cluster", &addresses([&a, &b]))));
    applied(&mesh, Kind::Endpoints, "echo-cluster").await;
    refused(&channel, field).await;
    assert_eq!([a.counters().connections, b.counters().connections], [0, 0]);
}

#[tokio::test]
async fn a_cluster_with_tls_is_never_dialled() {
    never_dialled(with_socket(tls()), "transport_socket: envoy.transport_sockets.tls").await;
}

#[tokio::test]
async fn a_cluster_with_transport_socket_matches_is_never_dialled() {
    never_dialled(with_matches(), "transport_socket_matches").await;
}

#[tokio::test]
async fn a_raw_buffer_is_plaintext() {
    let [a] = backends(["a"]).await;
    let raw = TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack(RawBuffer::default()))),
    };
    let mesh = mesh(echo(&a, with_socket(raw)));
    let channel = ready(&mesh, "echo").await;
    assert_eq!(unary(&channel).await.expect("a reply"), "a");
}

/// The field arrives while calls are made, and goes away again.
async fn live(cluster: Cluster, field: &str) {
    let [mut a] = backends(["a"]).await;
    let mesh = mesh(echo(&a, cluster_eds("echo-cluster")));
    let channel = ready(&mesh, "echo").await;
    unary(&channel).await.expect("plaintext so far");

    mesh.control_plane().set_unchecked(echo(&a, cluster));
    applied(&mesh, Kind::Cluster, "echo-cluster").await;
    let before = a.counters();
    for _ in 0..10 {
        refused(&channel, field).await;
    }
    let closed = a.wait_for(|counters| counters.open_connections == 0).await.expect("the connection is closed");
    assert_eq!((closed.calls, closed.connections), (before.calls, before.connections));
    // A restart is no chance to come in again.
    a.kill().await;
    a.revive().await.expect("its own port");
    refused(&channel, field).await;
    assert_eq!(a.counters().connections, before.connections);

    mesh.control_plane().set_unchecked(echo(&a, cluster_eds("echo-cluster")));
    applied(&mesh, Kind::Cluster, "echo-cluster").await;
    assert_eq!(unary(&channel).await.expect("plaintext again"), "a");
}

#[tokio::test]
async fn tls_in_an_update_ends_plaintext_until_it_is_gone() {
    live(with_socket(tls()), "transport_socket: envoy.transport_sockets.tls").await;
}

#[tokio::test]
async fn transport_socket_matches_in_an_update_end_plaintext_until_they_are_gone() {
    live(with_matches(), "transport_socket_matches").await;
}

#[tokio::test]
async fn plain_http_is_refused_until_the_field_is_gone() {
    let [a] = backends(["a"]).await;
    let of = |cluster: Cluster| {
        let cluster = Cluster { name: "echo:80-cluster".to_owned(), ..cluster };
        service("echo:80", &[a.address()]).with(cluster)
    };
    let mesh = mesh(of(with_socket(tls())));
    let http = mesh.mesh().http_client();
    let get = async || {
        let request = http::Request::get("http://echo/").body(Full::<Bytes>::default()).expect("valid");
        let response = http.request(request).await.expect("a response");
        let cause = response.extensions().get::<MeshError>().map(ToString::to_string);
        (response.status(), cause.unwrap_or_default())
    };
    let (status, cause) = get().await;
    assert_eq!((status, a.counters().connections), (StatusCode::SERVICE_UNAVAILABLE, 0));
    assert!(cause.contains("echo:80-cluster") && cause.contains("envoy.transport_sockets.tls"), "{cause}");

    mesh.control_plane().set_unchecked(of(cluster_eds("")));
    applied(&mesh, Kind::Cluster, "echo:80-cluster").await;
    assert_eq!(get().await.0, StatusCode::OK);
    mesh.control_plane().set_unchecked(of(with_matches()));
    applied(&mesh, Kind::Cluster, "echo:80-cluster").await;
    let calls = a.counters().calls;
    let (status, cause) = get().await;
    assert_eq!((status, a.counters().calls), (StatusCode::SERVICE_UNAVAILABLE, calls));
    assert!(cause.contains("transport_socket_matches"), "{cause}");
    a.wait_for(|counters| counters.open_connections == 0).await.expect("the connection is closed");
}

#[tokio::test]
async fn calls_that_wait_for_ready_go_through_once_the_field_is_gone() {
    let [a] = backends(["a"]).await;
    let mesh = mesh(echo(&a, with_socket(tls())));
    let channel = mesh.mesh().channel("xds:///echo").expect("a valid target");
    refused(&channel, "transport_socket").await;
    let mut request = tonic::Request::new(SimpleRequest::default());
    request.extensions_mut().insert(WaitForReady);
    let mut client = TestServiceClient::new(channel);
    let call = tokio::spawn(async move { client.unary_call(request).await });
    mesh.control_plane().set_unchecked(echo(&a, cluster_eds("echo-cluster")));
    let answer = within("the reply", call).await.expect("no panic").expect("a reply");
    assert_eq!(answer.into_inner().hostname, "a");
}
