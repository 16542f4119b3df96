//! TLS and tokens with implementations that are not ours: C-core and grpc-go below our control plane, go-control-plane above
//! our client.
//!
//! The same bootstrap JSON must do the same everywhere. It does NOT repeat what ways to fail there are.

use crate::{
    certificates::Authority,
    mesh::{service, unary},
    rig::{backends, json_resources, within},
};
use interop_tests::peers::{ForeignClient, GoControlPlane, Grpc};
use mesh_client::{Bootstrap, Mesh};
use mesh_xds::control_plane::{ClientCertificates, ControlPlane, TlsServerConfig};
use serde_json::{Value, json};
use std::{
    fs,
    sync::{Arc, Mutex},
};
use tonic::Status;

const LOCALHOST: &str = "127.0.0.1";

/// Its `exp` is in the year 2286.
const TOKEN: &str = "e30.eyJleHAiOiAxMDAwMDAwMDAwMH0.c2ln";

/// A client that shows a certificate of `authority`, and a token.
fn bootstrap(authority: &Authority, server: impl ToString) -> Value {
    let (certificate, key, token) =
        (authority.path("client.pem"), authority.path("client.key"), authority.path("token"));
    authority.issue("client").write(&certificate, &key);
    fs::write(&token, TOKEN).expect("writable");
    json!({
        "xds_servers": [{
            "server_uri": server.to_string(),
            "channel_creds": [{ "type": "made_up" }, { "type": "tls", "config": {
                "ca_certificate_file": authority.file(),
                "certificate_file": certificate,
                "private_key_file": key,
                "refresh_interval": "600s",
            } }],
            "call_creds": [{ "type": "jwt_token_file", "config": { "jwt_token_file": token } }],
        }],
        "node": { "id": "among-peers" },
    })
}

async fn comes_with_certificate_and_token(implementation: Grpc) {
    let [backend] = backends(["a"]).await;
    let (authority, ads) = (Authority::new(), ControlPlane::new());
    ads.set(service("echo", &[backend.address()])).expect("consistent");
    let shown = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&shown);
    ads.check_callers(move |caller| {
        let token = caller.bearer_token().ok_or_else(|| Status::unauthenticated("no token"))?;
        seen.lock().expect("no panics").push((token.to_owned(), caller.certificates().len()));
        Ok(())
    });
    let identity = authority.issue(LOCALHOST);
    let config = TlsServerConfig::from_pem(identity.certificate, identity.key)
        .client_ca_pem(authority.pem(), ClientCertificates::Required);
    let serving = ads.listen_tls((LOCALHOST, 0), config).await.expect("good certificates");
    let bootstrap = bootstrap(&authority, serving.local_addr().expect("bound"));
    let mut client = ForeignClient::start(implementation, "xds:///echo", &bootstrap).await.expect("set up");
    let answers = client.call(10).await.expect("the client runs");
    assert_eq!(answers.get("a"), Some(&10), "{answers:?}");
    assert_eq!(shown.lock().expect("no panics").first(), Some(&(TOKEN.to_owned(), 1)));
}

#[tokio::test]
async fn c_core_comes_to_our_control_plane_with_certificate_and_token() {
    comes_with_certificate_and_token(Grpc::Core).await;
}

#[tokio::test]
async fn grpc_go_comes_to_our_control_plane_with_certificate_and_token() {
    comes_with_certificate_and_token(Grpc::Go).await;
}

#[tokio::test]
async fn our_client_comes_to_go_control_plane_with_its_certificate() {
    let [backend] = backends(["a"]).await;
    let authority = Authority::new();
    let (certificate, key) = (authority.path("server.pem"), authority.path("server.key"));
    authority.issue(LOCALHOST).write(&certificate, &key);
    let mut control_plane = GoControlPlane::start_mtls([&certificate, &key, &authority.file()]).await.expect("set up");
    control_plane.serve("1", &json_resources("echo", &[backend.address()])).await.expect("consistent");
    let bootstrap = bootstrap(&authority, control_plane.address());
    let mesh = Mesh::builder(Bootstrap::parse(&bootstrap.to_string()).expect("well-formed")).build();
    let channel = mesh.channel("xds:///echo").expect("a valid target");
    assert_eq!(within("a reply", unary(&channel)).await.expect("a reply"), "a");
}
