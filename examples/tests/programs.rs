//! The example programs, run as their users run them: as processes, against the example control plane.
//!
//! Also holds the quickstart's YAML to what it says. It does NOT run the quickstart, which takes its time: `.ci/run`
//! does.

use examples::{backend::EchoBackend, greeter::MyGreeter, proto::greeter::greeter_server::GreeterServer};
use mesh_xds::control_plane::Resources;
use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use tonic::transport::{Server, server::TcpIncoming};

/// The longest wait for a line or an end; long, because machines are busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running program. Killed when it is dropped.
struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    input: Option<ChildStdin>,
}

impl Program {
    fn start(binary: &str, arguments: &[&str], bootstrap: &str) -> Self {
        let mut child = Command::new(binary)
            .args(arguments)
            .env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap)
            .env_remove("GRPC_XDS_BOOTSTRAP")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("built by cargo");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let input = child.stdin.take();
        Self { child, lines, input }
    }

    /// The next line that contains this.
    async fn says(&mut self, wanted: &str) -> String {
        let mut said = String::new();
        let found = async {
            while let Some(line) = self.lines.next_line().await.expect("text") {
                if line.contains(wanted) {
                    return Some(line);
                }
                said += &format!("\n{line}");
            }
            None
        };
        let found = timeout(PATIENCE, found).await.ok().flatten();
        found.unwrap_or_else(|| panic!("never said {wanted:?}, but{said}"))
    }

    async fn hears(&mut self, line: &str) {
        let input = self.input.as_mut().expect("not closed");
        input.write_all(format!("{line}\n").as_bytes()).await.expect("it listens");
    }

    async fn succeeds(mut self) {
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("a status");
        assert!(status.success(), "{status}");
    }
}

/// The example control plane, and the bootstrap that it prints.
async fn control_plane() -> (Program, String) {
    let mut program = Program::start(env!("CARGO_BIN_EXE_control_plane"), &["127.0.0.1:0"], "");
    let line = program.says("GRPC_XDS_BOOTSTRAP_CONFIG=").await;
    let (_, bootstrap) = line.split_once('=').expect("as found");
    (program, bootstrap.to_owned())
}

fn greeter() -> SocketAddr {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let incoming = TcpIncoming::bind(address).expect("a free port").with_nodelay(Some(true));
    let address = incoming.local_addr().expect("bound");
    tokio::spawn(Server::builder().add_service(GreeterServer::new(MyGreeter)).serve_with_incoming(incoming));
    address
}

#[tokio::test]
async fn tonic_client_calls_what_the_control_plane_names() {
    let (mut control_plane, bootstrap) = control_plane().await;
    control_plane.hears(&format!("greeter.prod:8080 {}", greeter())).await;
    let arguments = ["xds:///greeter.prod:8080", "Ada"];
    let mut client = Program::start(env!("CARGO_BIN_EXE_tonic_client"), &arguments, &bootstrap);
    client.says("Hello, Ada!").await;
    client.succeeds().await;
    control_plane.says("closed").await;
}

#[tokio::test]
async fn http_client_calls_what_the_control_plane_names() {
    let (mut control_plane, bootstrap) = control_plane().await;
    let backend = EchoBackend::start("a", Duration::ZERO).await.expect("a free port");
    control_plane.hears(&format!("catalog.prod:8080 {}", backend.address())).await;
    let uri = ["http://catalog.prod:8080/items"];
    let mut client = Program::start(env!("CARGO_BIN_EXE_http_client"), &uri, &bootstrap);
    client.says("200 OK").await;
    client.succeeds().await;
}

#[tokio::test]
async fn standalone_prints_every_change() {
    let (mut control_plane, bootstrap) = control_plane().await;
    control_plane.hears("greeter.prod:8080 10.0.0.1:80").await;
    let mut watcher = Program::start(env!("CARGO_BIN_EXE_standalone"), &["greeter.prod:8080"], &bootstrap);
    watcher.says("listener greeter.prod:8080: 1 routes, 1 clusters").await;
    watcher.says("greeter.prod:8080: 10.0.0.1:80").await;
    control_plane.hears("greeter.prod:8080 10.0.0.1:80 10.0.0.2:80").await;
    watcher.says("greeter.prod:8080: 10.0.0.1:80 10.0.0.2:80").await;
}

#[tokio::test]
async fn a_control_plane_of_ones_own_tells_groups_of_nodes_different_things() {
    let mut control_plane = Program::start(env!("CARGO_BIN_EXE_own_control_plane"), &["127.0.0.1:0"], "");
    let line = control_plane.says("GRPC_XDS_BOOTSTRAP_CONFIG=").await;
    let (_, stable) = line.split_once('=').expect("as found");
    let canary = stable.replace(r#""cluster": "stable""#, r#""cluster": "canary""#);
    let delta = canary.replace(r#""channel_creds""#, r#""server_features": ["delta_ads"], "channel_creds""#);
    control_plane.hears("* greeter.prod:8080 10.0.0.1:80").await;
    control_plane.hears("canary greeter.prod:8080 10.0.0.2:80").await;
    let start = |bootstrap: &str| Program::start(env!("CARGO_BIN_EXE_standalone"), &["greeter.prod:8080"], bootstrap);
    let (mut stable, mut canary, mut delta) = (start(stable), start(&canary), start(&delta));
    stable.says("greeter.prod:8080: 10.0.0.1:80").await;
    canary.says("greeter.prod:8080: 10.0.0.2:80").await;
    delta.says("greeter.prod:8080: 10.0.0.2:80").await;
    control_plane.hears("canary greeter.prod:8080 10.0.0.3:80").await;
    canary.says("greeter.prod:8080: 10.0.0.3:80").await;
    delta.says("greeter.prod:8080: 10.0.0.3:80").await;
}

#[test]
fn the_quickstarts_directory_is_complete() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh");
    let resources = Resources::from_dir(directory).expect("no mistakes");
    assert_eq!(resources.len(), 6, "a listener, its routes, two clusters and their endpoints");
    resources.check().expect("no resource refers to one that is not there");
}

#[tokio::test]
async fn a_resource_type_of_ones_own_is_followed_and_a_bad_one_refused() {
    let mut program = Program::start(env!("CARGO_BIN_EXE_own_resource"), &[], "");
    program.says("shop=10: shop may make 10 calls").await;
    program.says("shop=20: shop may make 20 calls").await;
    let refused = program.says("shop=many: still 20").await;
    assert!(refused.contains("limit: not a number"), "{refused}");
    program.succeeds().await;
}

#[tokio::test]
async fn a_filter_of_ones_own_runs_where_the_control_plane_says() {
    let mut program = Program::start(env!("CARGO_BIN_EXE_own_filter"), &[], "");
    program.says("/items: 200 OK, 1 left").await;
    program.says("/items: 200 OK, 0 left").await;
    program.says("/items: 429 Too Many Requests, none left: that was enough").await;
    program.says("/own: 200 OK, 0 left").await;
    program.says("/own: 429 Too Many Requests, none left").await;
    program.succeeds().await;
}
