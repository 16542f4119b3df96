//! Channel credentials between a client and its control plane, both ends ours: TLS, mTLS, and every way to fail.
//!
//! Nothing here may ever end in plaintext, or in a guess: a connection that is refused says why in `status()`. Rotation is
//! `rotation`'s subject, tokens are `tokens`', other implementations `credentials_among_peers`'; this module does NOT repeat them.

use crate::{
    alone::alone,
    certificates::{Authority, Identity},
    mesh::{service, unary},
    rig::{backends, until, within},
};
use interop_tests::backend::Backend;
use mesh_client::{Bootstrap, Mesh, MeshChannel};
use mesh_xds::{
    ServerAddress, StreamState, TlsConfig, XdsServer,
    control_plane::{ClientCertificates, ControlPlane, Serving, TlsServerConfig},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};
use std::{
    io::ErrorKind,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream, UnixListener},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

const LOCALHOST: &str = "127.0.0.1";

/// One backend, and a control plane over TLS that leads to it and remembers who came.
pub(crate) struct Secured {
    pub(crate) ads: ControlPlane,
    pub(crate) address: SocketAddr,
    /// Of each stream: the client's certificate.
    shown: Arc<Mutex<Vec<Option<Vec<u8>>>>>,
    _backend: Backend,
    _serving: Serving,
}

impl Secured {
    pub(crate) async fn start(tls: TlsServerConfig) -> Self {
        let [backend] = backends(["a"]).await;
        let ads = ControlPlane::new();
        ads.set(service("echo", &[backend.address()])).expect("consistent");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&shown);
        ads.check_callers(move |caller| {
            assert!(caller.is_encrypted());
            seen.lock().expect("no panics").push(caller.certificates().first().cloned());
            Ok(())
        });
        let serving = ads.listen_tls((LOCALHOST, 0), tls).await.expect("good certificates");
        let address = serving.local_addr().expect("bound");
        Self { ads, address, shown, _backend: backend, _serving: serving }
    }

    /// Certificates that clients showed, one per stream.
    pub(crate) fn shown(&self) -> Vec<Option<Vec<u8>>> {
        self.shown.lock().expect("no panics").clone()
    }
}

pub(crate) fn serving(identity: &Identity) -> TlsServerConfig {
    TlsServerConfig::from_pem(&identity.certificate, &identity.key)
}

/// A mesh with these channel credentials.
pub(crate) fn mesh(server: impl ToString, channel_creds: Value) -> Mesh {
    let server = json!({ "server_uri": server.to_string(), "channel_creds": channel_creds });
    let bootstrap = json!({ "xds_servers": [server], "node": { "id": "credentials" } });
    Mesh::builder(Bootstrap::parse(&bootstrap.to_string()).expect("well-formed")).build()
}

/// `tls` channel credentials.
pub(crate) fn tls(config: Value) -> Value {
    json!([{ "type": "tls", "config": config }])
}

/// Calls until there is an answer: while the control plane cannot be reached, calls fail at once. What is returned keeps the
/// stream open.
pub(crate) async fn answers(mesh: &Mesh) -> MeshChannel {
    let channel = mesh.channel("xds:///echo").expect("a valid target");
    let answer = async {
        loop {
            match unary(&channel).await {
                Ok(answer) => return answer,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    assert_eq!(within("a reply", answer).await, "a");
    channel
}

/// Why the control plane cannot be reached, once `status()` says that it cannot.
pub(crate) async fn unreachable(mesh: &Mesh) -> String {
    // Nothing is dialled until something is asked for.
    let _channel = mesh.channel("xds:///echo").expect("a valid target");
    let cause = || match &mesh.status().xds.servers[0].state {
        StreamState::Unreachable { cause } => Some(cause.clone()),
        _ => None,
    };
    until("the control plane is unreachable", || cause().is_some()).await;
    cause().unwrap_or_default()
}

#[tokio::test]
async fn tls_with_a_ca_file_by_address_and_by_name() {
    let authority = Authority::new();
    for (name, server) in
        [(LOCALHOST, LOCALHOST), ("localhost", "dns:///localhost"), ("localhost", "https://localhost")]
    {
        let control_plane = Secured::start(serving(&authority.issue(name))).await;
        let uri = format!("{server}:{}", control_plane.address.port());
        answers(&mesh(uri, tls(json!({ "ca_certificate_file": authority.file() })))).await;
        assert_eq!(control_plane.shown(), [None], "no certificate was asked for");
    }
}

#[tokio::test]
async fn the_first_supported_channel_credentials_win() {
    let authority = Authority::new();
    let control_plane = Secured::start(serving(&authority.issue(LOCALHOST))).await;
    let tls = json!({ "type": "tls", "config": { "ca_certificate_file": authority.file() } });
    let creds = json!([{ "type": "made_up" }, { "type": "google_default" }, tls, { "type": "insecure" }]);
    answers(&mesh(control_plane.address, creds)).await;
}

#[tokio::test]
async fn a_server_that_is_not_the_one_meant_is_refused_and_status_says_why() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for (identity, cause) in [
        (stranger.issue(LOCALHOST), "invalid peer certificate: UnknownIssuer"),
        (authority.issue("127.0.0.2"), "certificate not valid for name \"127.0.0.1\""),
        (authority.issue("localhost"), "certificate not valid for name \"127.0.0.1\""),
        (authority.issue_expired(LOCALHOST), "certificate expired"),
    ] {
        let control_plane = Secured::start(serving(&identity)).await;
        let mesh = mesh(control_plane.address, tls(json!({ "ca_certificate_file": authority.file() })));
        let said = unreachable(&mesh).await;
        assert!(said.contains(cause), "{cause}: {said}");
        assert_eq!(control_plane.ads.streams_opened(), 0, "{cause}");
    }
}

#[tokio::test]
async fn tls_to_a_plaintext_server_fails_and_plaintext_to_a_tls_server_too() {
    let authority = Authority::new();
    let plain = ControlPlane::new();
    let _serving = plain.listen((LOCALHOST, 0)).await.expect("a free port");
    let address = _serving.local_addr().expect("bound");
    let said = unreachable(&mesh(address, tls(json!({ "ca_certificate_file": authority.file() })))).await;
    assert!(said.contains("TLS: "), "{said}");

    let control_plane = Secured::start(serving(&authority.issue(LOCALHOST))).await;
    unreachable(&mesh(control_plane.address, json!([{ "type": "insecure" }]))).await;
    assert_eq!((plain.streams_opened(), control_plane.ads.streams_opened()), (0, 0));
}

#[tokio::test]
async fn nothing_but_tls_is_sent_where_tls_is_asked_for() {
    let authority = Authority::new();
    let listener = TcpListener::bind((LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mesh = mesh(address, tls(json!({ "ca_certificate_file": authority.file() })));
    let _channel = mesh.channel("xds:///echo").expect("a valid target");
    let (mut socket, _) = within("a dial", listener.accept()).await.expect("accepted");
    let mut record = [0; 6];
    within("a ClientHello", socket.read_exact(&mut record)).await.expect("six bytes");
    // RFC 8446: a handshake record, whose first message is client_hello.
    assert_eq!((record[0], record[1], record[5]), (22, 3, 1));
}

#[tokio::test]
async fn a_server_without_h2_is_refused() {
    let authority = Authority::new();
    let identity = authority.issue(LOCALHOST);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("a key");
    let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![identity.der.into()], key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a pair")));
    let listener = TcpListener::bind((LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let _server = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            // The client goes once it has seen what was agreed.
            drop(acceptor.accept(socket).await);
        }
    }));
    let said = unreachable(&mesh(address, tls(json!({ "ca_certificate_file": authority.file() })))).await;
    assert!(said.contains("did not agree on h2"), "{said}");
}

// === mTLS ===

/// The configuration of a client with this identity, in files of this name in `authority`'s directory.
pub(crate) fn mtls(authority: &Authority, name: &str, identity: &Identity) -> Value {
    let (certificate, key) = (authority.path(name), authority.path(&format!("{name}.key")));
    identity.write(&certificate, &key);
    json!({ "ca_certificate_file": authority.file(), "certificate_file": certificate, "private_key_file": key })
}

#[tokio::test]
async fn mtls_shows_the_clients_certificate_and_a_server_that_requires_one_refuses_others() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = serving(&authority.issue(LOCALHOST));
    let required = server.clone().client_ca_pem(authority.pem(), ClientCertificates::Required);
    let control_plane = Secured::start(required).await;
    let client = authority.issue("client");
    answers(&mesh(control_plane.address, tls(mtls(&authority, "client", &client)))).await;
    assert_eq!(control_plane.shown(), [Some(client.der.clone())]);

    let none = json!({ "ca_certificate_file": authority.file() });
    let others = mtls(&authority, "stranger", &stranger.issue("client"));
    for (config, cause) in [(&none, "CertificateRequired"), (&others, "UnknownCA")] {
        let said = unreachable(&mesh(control_plane.address, tls(config.clone()))).await;
        assert!(said.contains(cause), "{cause}: {said}");
    }
    assert_eq!(control_plane.ads.streams_opened(), 1);

    let optional = server.client_ca_pem(authority.pem(), ClientCertificates::Optional);
    let control_plane = Secured::start(optional).await;
    answers(&mesh(control_plane.address, tls(none))).await;
    let said = unreachable(&mesh(control_plane.address, tls(others))).await;
    assert!(said.contains("UnknownCA"), "one that is shown must be good: {said}");
    answers(&mesh(control_plane.address, tls(mtls(&authority, "client", &client)))).await;
    assert_eq!(control_plane.shown(), [None, Some(client.der)]);
}

#[tokio::test]
async fn a_server_does_not_start_with_files_that_are_not_good() {
    let (authority, ads) = (Authority::new(), ControlPlane::new());
    let pair = |certificate: &Identity, key: &Identity| TlsServerConfig::from_pem(&certificate.certificate, &key.key);
    let (a, b) = (authority.issue("a"), authority.issue("b"));
    for (config, reason) in [
        (TlsServerConfig::from_files("/nowhere/cert.pem", "/nowhere/key.pem"), "/nowhere/cert.pem: "),
        (pair(&a, &b), "is not the private key of"),
        (pair(&a, &a).client_ca_pem("", ClientCertificates::Required), "no certificate"),
    ] {
        let error = ads.listen_tls((LOCALHOST, 0), config).await.expect_err(reason);
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(reason), "{error}");
    }
}

// === Roots ===

#[test]
fn without_a_ca_the_systems_roots_are_trusted() {
    let test = "credentials::without_a_ca_the_systems_roots_are_trusted";
    let authority = Authority::new();
    let variables = |directory: &Path| {
        let (certificate, key) = (directory.join("server.pem"), directory.join("server.key"));
        authority.issue(LOCALHOST).write(&certificate, &key);
        vec![("SSL_CERT_FILE", authority.file().into())]
    };
    alone(test, variables, async |directory| {
        let files = TlsServerConfig::from_files(directory.join("server.pem"), directory.join("server.key"));
        answers(&mesh(Secured::start(files).await.address, tls(json!({})))).await;
        let stranger = Secured::start(serving(&Authority::new().issue(LOCALHOST))).await;
        assert!(unreachable(&mesh(stranger.address, tls(json!({})))).await.contains("UnknownIssuer"));
    });
}

#[test]
fn a_system_without_roots_is_said_and_nothing_weaker_is_tried() {
    let test = "credentials::a_system_without_roots_is_said_and_nothing_weaker_is_tried";
    alone(
        test,
        |_| vec![("SSL_CERT_FILE", "/dev/null".into()), ("SSL_CERT_DIR", "/nowhere".into())],
        async |_| {
            let control_plane = Secured::start(serving(&Authority::new().issue(LOCALHOST))).await;
            let said = unreachable(&mesh(control_plane.address, tls(json!({})))).await;
            assert!(said.contains("this system has no root certificates"), "{said}");
            assert_eq!(control_plane.ads.streams_opened(), 0);
        },
    );
}

// === In code ===

/// The same in code, with each crypto provider: both are built in, and neither is installed for the process.
#[tokio::test]
async fn the_same_in_code_with_either_crypto_provider() {
    use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};
    let authority = Authority::new();
    let client = authority.issue("client");
    for provider in [ring::default_provider(), aws_lc_rs::default_provider()].map(Arc::new) {
        let config = serving(&authority.issue(LOCALHOST))
            .client_ca_pem(authority.pem(), ClientCertificates::Required)
            .with_provider(Arc::clone(&provider));
        let control_plane = Secured::start(config).await;
        let tls = TlsConfig::new()
            .ca_certificate_pem(authority.pem())
            .identity_pem(&client.certificate, &client.key)
            .with_provider(provider);
        let server = XdsServer::new(ServerAddress::Sockets(vec![control_plane.address])).tls(tls);
        let bootstrap = Bootstrap::builder().node_id("in-code").server(server).build().expect("a server");
        answers(&Mesh::builder(bootstrap).build()).await;
        assert_eq!(control_plane.shown(), [Some(client.der.clone())]);
    }
    // And the one that is chosen where nobody says anything.
    let control_plane = Secured::start(serving(&authority.issue(LOCALHOST))).await;
    answers(&mesh(control_plane.address, tls(json!({ "ca_certificate_file": authority.file() })))).await;
    assert!(CryptoProvider::get_default().is_none(), "the process's own choice is left alone");
}

/// gRPC's authority of a Unix socket is `localhost`, and so is the name that a certificate must be for.
#[tokio::test]
async fn tls_over_a_unix_socket_is_for_localhost() {
    let authority = Authority::new();
    for (name, is_meant) in [("localhost", true), (LOCALHOST, false)] {
        let control_plane = Secured::start(serving(&authority.issue(name))).await;
        let path = authority.path(&format!("{name}.sock"));
        let (listener, address) = (UnixListener::bind(&path).expect("a new path"), control_plane.address);
        let _proxy = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok((mut local, _)) = listener.accept().await {
                let mut remote = TcpStream::connect(address).await.expect("it listens");
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut local, &mut remote).await });
            }
        }));
        let mesh = mesh(format!("unix://{}", path.display()), tls(json!({ "ca_certificate_file": authority.file() })));
        if is_meant {
            answers(&mesh).await;
        } else {
            assert!(unreachable(&mesh).await.contains("not valid for name \"localhost\""));
        }
    }
}
