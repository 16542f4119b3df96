//! Call credentials between a client and its control plane: a JWT in a file (A97), and the way istiod takes it.
//!
//! The control plane sees each stream's token before it answers, so what is asserted is what was sent. What TLS does with a
//! stranger is `credentials`' subject and NOT this one's.

use crate::{
    certificates::Authority,
    credentials::{answers, tls, unreachable},
    load_reports::{OFTEN, counts, reported},
    mesh::{service, unary},
    rig::{backends, until, within},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use interop_tests::backend::Backend;
use mesh_client::{Bootstrap, Mesh};
use mesh_xds::control_plane::{
    ControlPlane, ReportedClusters, Resources, Serving, TlsServerConfig,
    proto::envoy::config::endpoint::v3::ClusterStats,
    resources::{cluster_eds, endpoints, listener, route_config, virtual_host},
};
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};
use tokio::net::TcpListener;
use tonic::Status;

const LOCALHOST: &str = "127.0.0.1";

/// So long ago that a token is read again for each call.
const EXPIRED: u64 = 1_000_000_000;
const NEVER: u64 = 10_000_000_000;

/// Seconds since 1970.
#[expect(clippy::disallowed_types, reason = "the expiry of a token is a wall-clock time")]
fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// A token for `subject`, signed by nobody: that is the server's to mind.
fn jwt(subject: &str, exp: u64) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let (header, claims) = (part(json!({ "alg": "RS256" })), part(json!({ "sub": subject, "exp": exp })));
    format!("{header}.{claims}.c2lnbmF0dXJl")
}

/// A control plane over TLS that lets in whoever has the right token.
struct Checked {
    ads: ControlPlane,
    address: SocketAddr,
    authority: Authority,
    accepted: Arc<Mutex<Vec<String>>>,
    /// What each caller had, let in or not.
    shown: Arc<Mutex<Vec<String>>>,
    backend: Backend,
    _serving: Serving,
}

impl Checked {
    async fn start(accepted: &[&str]) -> Self {
        let [backend] = backends(["a"]).await;
        let (authority, ads) = (Authority::new(), ControlPlane::new());
        ads.set(service("echo", &[backend.address()])).expect("consistent");
        let accepted = Arc::new(Mutex::new(accepted.iter().map(|&token| token.to_owned()).collect::<Vec<_>>()));
        let shown = Arc::default();
        let (known, seen) = (Arc::clone(&accepted), Arc::<Mutex<Vec<String>>>::clone(&shown));
        ads.check_callers(move |caller| {
            let token = caller.bearer_token().unwrap_or("no token").to_owned();
            let is_known = known.lock().expect("no panics").contains(&token);
            seen.lock().expect("no panics").push(token);
            if is_known { Ok(()) } else { Err(Status::unauthenticated("who are you?")) }
        });
        let identity = authority.issue(LOCALHOST);
        let config = TlsServerConfig::from_pem(&identity.certificate, &identity.key);
        let serving = ads.listen_tls((LOCALHOST, 0), config).await.expect("a good certificate");
        let address = serving.local_addr().expect("bound");
        Self { ads, address, authority, accepted, shown, backend, _serving: serving }
    }

    /// Where the client's token is.
    fn file(&self) -> PathBuf {
        self.authority.path("token")
    }

    fn write(&self, token: &str) {
        // Replaced at once, as kubelet does.
        fs::write(self.authority.path("token.next"), token).expect("writable");
        fs::rename(self.authority.path("token.next"), self.file()).expect("replaced");
    }

    fn mesh(&self) -> Mesh {
        mesh(self.address, tls(json!({ "ca_certificate_file": self.authority.file() })), &self.file())
    }

    fn shown(&self) -> Vec<String> {
        self.shown.lock().expect("no panics").clone()
    }

    /// Cuts the stream; what the next one came with.
    async fn reopened(&self) -> String {
        let before = self.shown().len();
        within("a stream", self.ads.wait_for_streams(1)).await;
        self.ads.cut_streams();
        until("the next stream", || self.shown().len() > before).await;
        self.shown()[before].clone()
    }
}

fn mesh(server: impl ToString, channel_creds: Value, token: &std::path::Path) -> Mesh {
    let server = json!({
        "server_uri": server.to_string(),
        "channel_creds": channel_creds,
        "call_creds": [
            { "type": "made_up", "config": 7 },
            { "type": "jwt_token_file", "config": { "jwt_token_file": token } },
        ],
    });
    let bootstrap = json!({ "xds_servers": [server], "node": { "id": "tokens" } });
    Mesh::builder(Bootstrap::parse(&bootstrap.to_string()).expect("well-formed")).build()
}

#[tokio::test]
async fn the_token_goes_with_every_stream() {
    let token = jwt("greeter", NEVER);
    let control_plane = Checked::start(&[&token]).await;
    control_plane.write(&format!("{token}\n"));
    let mesh = control_plane.mesh();
    let _channel = answers(&mesh).await;
    // A token that is good for long is not read again.
    control_plane.write("nonsense");
    assert_eq!(control_plane.reopened().await, token);
    assert_eq!(control_plane.shown(), [token.clone(), token]);
}

#[tokio::test]
async fn in_its_last_minute_a_token_is_read_again_beside_the_call_and_after_it_before_the_call() {
    let (late, expired, new) = (jwt("late", now() + 80), jwt("expired", EXPIRED), jwt("new", EXPIRED));
    let control_plane = Checked::start(&[&late, &expired, &new]).await;
    control_plane.write(&late);
    let mesh = control_plane.mesh();
    let _channel = answers(&mesh).await;
    control_plane.write(&expired);
    // 80 s less 30 s of skew: the old one is still good, and the new one on its way.
    assert_eq!(control_plane.reopened().await, late);
    let turns = async { while control_plane.reopened().await == late {} };
    within("the token that was read beside a call", turns).await;
    control_plane.write(&new);
    assert_eq!(control_plane.reopened().await, new, "an expired one is not used once more");
}

#[tokio::test]
async fn a_file_that_is_missing_or_no_token_opens_no_stream_until_it_is_one() {
    let token = jwt("greeter", EXPIRED);
    let control_plane = Checked::start(&[&token]).await;
    let mesh = control_plane.mesh();
    let said = unreachable(&mesh).await;
    assert!(said.contains("Unavailable: JWT token file") && said.contains("No such file"), "{said}");
    control_plane.write("not.a.token");
    let _channel = mesh.channel("xds:///echo").expect("a valid target");
    let cause = || format!("{:?}", mesh.status().xds.servers[0].state);
    until("the file is read", || cause().contains("Unauthenticated: JWT token file")).await;
    assert_eq!(control_plane.shown(), Vec::<String>::new(), "nothing was sent");
    control_plane.write(&token);
    answers(&mesh).await;
}

#[tokio::test]
async fn a_control_plane_that_refuses_the_token_is_named_with_its_reason_and_asked_again() {
    let token = jwt("greeter", NEVER);
    let control_plane = Checked::start(&[]).await;
    control_plane.write(&token);
    let mesh = control_plane.mesh();
    let said = unreachable(&mesh).await;
    assert!(said.contains("Unauthenticated: who are you?"), "{said}");
    assert_eq!(control_plane.ads.streams_opened(), 0);
    control_plane.accepted.lock().expect("no panics").push(token);
    answers(&mesh).await;
}

#[tokio::test]
async fn a_token_is_never_sent_in_plaintext() {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.expect("a free port");
    let directory = Authority::new();
    fs::write(directory.path("token"), jwt("secret", NEVER)).expect("writable");
    let address = listener.local_addr().expect("bound");
    let mesh = mesh(address, json!([{ "type": "insecure" }]), &directory.path("token"));
    let said = unreachable(&mesh).await;
    assert!(said.contains("never sent in plaintext"), "{said}");
    assert!(listener.accept().now_or_never().is_none(), "not even a connection is opened");
}

/// LRS has a connection of its own, which is no less guarded.
#[tokio::test]
async fn load_is_reported_over_tls_with_the_token() {
    let token = jwt("greeter", NEVER);
    let control_plane = Checked::start(&[&token]).await;
    control_plane.write(&token);
    control_plane.ads.request_load(OFTEN, ReportedClusters::All);
    control_plane.ads.set(reported("echo", &[control_plane.backend.address()], &[])).expect("consistent");
    let mesh = control_plane.mesh();
    let channel = answers(&mesh).await;
    within("the LRS stream", control_plane.ads.wait_for_load_streams(1)).await;
    unary(&channel).await.expect("a reply");
    let enough = |stats: &[ClusterStats]| counts(stats).1 > 1;
    within("the reports", control_plane.ads.wait_for_load("tokens", "echo-cluster", enough)).await;
    // One for the ADS stream, one for this.
    assert_eq!(control_plane.shown(), [token.clone(), token]);
}

/// A pod without istio's agent: istiod's TLS port, the CA of the cluster, the token of the service account, and a node as
/// istiod reads it.
#[tokio::test]
async fn an_agentless_client_of_istiod() {
    let token = jwt("system:serviceaccount:prod:greeter", now() + 12 * 3600);
    let control_plane = Checked::start(&[&token]).await;
    control_plane.write(&token);
    let identity = control_plane.authority.issue("localhost");
    let config = TlsServerConfig::from_pem(&identity.certificate, &identity.key);
    let istiod = control_plane.ads.listen_tls((LOCALHOST, 0), config).await.expect("a good certificate");
    let node = "sidecar~10.0.0.7~greeter-1.prod~prod.svc.cluster.local";
    let bootstrap = json!({
        "xds_servers": [{
            // istiod.istio-system.svc:15012 in a cluster.
            "server_uri": format!("localhost:{}", istiod.local_addr().expect("bound").port()),
            "channel_creds": [{ "type": "tls", "config": { "ca_certificate_file": control_plane.authority.file() } }],
            "call_creds": [{ "type": "jwt_token_file", "config": { "jwt_token_file": control_plane.file() } }],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": node,
            "metadata": { "GENERATOR": "grpc", "NAMESPACE": "prod", "INSTANCE_IPS": "10.0.0.7", "CLUSTER_ID": "Kubernetes" },
        },
    });
    let [backend] = backends(["a"]).await;
    // What this node alone is served, under the names that istiod gives.
    control_plane.ads.set_for(node, istio_service("echo", &backend)).expect("consistent");
    let mesh = Mesh::builder(Bootstrap::parse(&bootstrap.to_string()).expect("well-formed")).build();
    answers(&mesh).await;
    assert_eq!(control_plane.shown(), [token]);
}

fn istio_service(listener_name: &str, backend: &Backend) -> Resources {
    let (routes, cluster) =
        ("outbound|7070||echo.prod.svc.cluster.local", "outbound|7070||echo.prod.svc.cluster.local");
    Resources::default()
        .with(listener(listener_name, routes))
        .with(route_config(routes, vec![virtual_host("*", cluster)]))
        .with(cluster_eds(cluster))
        .with(endpoints(cluster, &[backend.address()]))
}
