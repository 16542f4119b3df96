//! Certificates that change while they are in use, on both ends of the way to the control plane.
//!
//! New connections show and trust what is new, open ones stay, and what cannot be read changes nothing. How a pair is read is
//! the unit tests' subject and NOT this one's.

use crate::{
    certificates::Authority,
    credentials::{Secured, answers, mesh, mtls, serving, tls, unreachable},
    mesh::unary,
    rig::{until, within},
};
use mesh_xds::control_plane::{ClientCertificates, TlsServerConfig};
use serde_json::json;
use std::time::Duration;

const LOCALHOST: &str = "127.0.0.1";

#[tokio::test]
async fn a_new_certificate_is_shown_on_new_connections_and_open_ones_stay() {
    let authority = Authority::new();
    let required = serving(&authority.issue(LOCALHOST)).client_ca_pem(authority.pem(), ClientCertificates::Required);
    let control_plane = Secured::start(required).await;
    let (first, second) = (authority.issue("first"), authority.issue("second"));
    let mut config = mtls(&authority, "client", &first);
    config["refresh_interval"] = json!("0.010s");
    let mesh = mesh(control_plane.address, tls(config));
    let channel = answers(&mesh).await;
    second.write(&authority.path("client"), &authority.path("client.key"));
    assert_eq!(within("a reply", unary(&channel)).await.expect("a reply"), "a");
    assert_eq!(control_plane.shown(), [Some(first.der)], "the stream is the one of before");
    redialled_until(&control_plane, &second.der).await;

    // Half a rotation is none: what was good last is shown.
    std::fs::write(authority.path("client.key"), authority.issue("third").key).expect("writable");
    for _ in 0..3 {
        assert_eq!(redialled(&control_plane).await, Some(second.der.clone()));
    }
}

/// Cuts the stream; what the client shows on the next one.
async fn redialled(control_plane: &Secured) -> Option<Vec<u8>> {
    let before = control_plane.ads.streams_opened();
    within("a stream", control_plane.ads.wait_for_streams(1)).await;
    control_plane.ads.cut_streams();
    until("the next stream", || control_plane.ads.streams_opened() > before).await;
    control_plane.shown().pop().flatten()
}

async fn redialled_until(control_plane: &Secured, certificate: &[u8]) {
    let turns = async { while redialled(control_plane).await.as_deref() != Some(certificate) {} };
    within("the new certificate", turns).await;
}

#[tokio::test]
async fn a_server_shows_its_new_certificate_and_trusts_its_new_clients() {
    let (old, new) = (Authority::new(), Authority::new());
    let (certificate, key) = (old.path("server.pem"), old.path("server.key"));
    old.issue(LOCALHOST).write(&certificate, &key);
    let files = TlsServerConfig::from_files(&certificate, &key).refresh_interval(Duration::from_millis(10));
    let control_plane = Secured::start(files.client_ca_file(old.file(), ClientCertificates::Required)).await;
    answers(&mesh(control_plane.address, tls(mtls(&old, "client", &old.issue("client"))))).await;

    let next = mesh(control_plane.address, tls(mtls(&new, "client", &new.issue("client"))));
    assert!(unreachable(&next).await.contains("UnknownIssuer"));
    new.issue(LOCALHOST).write(&certificate, &key);
    std::fs::write(old.file(), new.pem()).expect("writable");
    answers(&next).await;
}

#[tokio::test]
async fn without_good_files_there_is_no_connection_until_there_are() {
    let authority = Authority::new();
    let control_plane = Secured::start(serving(&authority.issue(LOCALHOST))).await;
    let late = authority.path("late.pem");
    let mesh = mesh(control_plane.address, tls(json!({ "ca_certificate_file": late })));
    let said = unreachable(&mesh).await;
    assert!(said.contains("late.pem: No such file"), "{said}");
    std::fs::write(&late, authority.pem()).expect("writable");
    answers(&mesh).await;
}
