//! What a process gets however many meshes it makes: one ADS stream, which outlives the runtime that asked for it first,
//! and nothing left behind. And how it finds its control plane.
//!
//! Agents (istio's) close all ADS streams of a process but the newest, so a second one would be fatal. What callers are
//! told while things are missing is NOT tested here; `failures` does.

use crate::{
    alone::alone,
    mesh::{service, soak, unary},
    rig::{OurControlPlane, backends, bootstrap, within},
};
use interop_tests::backend::Backend;
use mesh_client::{Bootstrap, BootstrapError, Mesh, MeshChannel};
use mesh_xds::control_plane::{ControlPlane, Serving};
use std::{
    fs,
    future::{Future, poll_fn},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    pin::Pin,
    task::Poll,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinHandle,
};
use tonic::Code;

const NODE: &str = "process-node";

/// Longer than any test may take: a wait that should not happen becomes a failure.
const AN_HOUR: Duration = Duration::from_secs(3600);

fn parsed(node: &str, server: impl ToString) -> Bootstrap {
    Bootstrap::parse(&bootstrap(node, server).to_string()).expect("well-formed")
}

fn echo(mesh: &Mesh) -> MeshChannel {
    mesh.channel("xds:///echo").expect("a valid target")
}

async fn answer(channel: &MeshChannel) -> String {
    within("a reply", unary(channel)).await.expect("a reply")
}

/// One poll: whether it is done already.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

// === Bootstrap ===

/// Where the environment of [`alone`]'s child says that the bootstrap is.
fn file(directory: &Path) -> std::path::PathBuf {
    directory.join("bootstrap.json")
}

#[test]
fn two_meshes_from_the_environment_share_one_stream_and_wait_for_its_file() {
    let variables = |directory: &Path| vec![("GRPC_XDS_BOOTSTRAP", file(directory).into())];
    alone("process::two_meshes_from_the_environment_share_one_stream_and_wait_for_its_file", variables, async |dir| {
        let [a] = backends(["a"]).await;
        let control_plane = OurControlPlane::start().await;
        control_plane.ads.set_unchecked(service("echo", &[a.address()]));
        let mut first = Box::pin(Mesh::from_env());
        assert!(poll_once(first.as_mut()).await.is_none(), "the file is not there");
        // An empty file is one that is about to be written.
        fs::write(file(&dir), "").expect("written");
        assert!(poll_once(first.as_mut()).await.is_none(), "nothing is in it");
        fs::write(file(&dir), bootstrap(NODE, control_plane.address).to_string()).expect("written");
        let first = within("the first mesh", first).await.expect("a good file");
        let second = within("the second mesh", Mesh::from_env()).await.expect("a good file");
        for channel in [echo(&first), echo(&first), echo(&second)] {
            assert_eq!(answer(&channel).await, "a");
        }
        assert_eq!((control_plane.ads.streams_opened(), first.node_id()), (1, NODE));
    });
}

#[test]
fn the_path_wins_over_the_inline_bootstrap() {
    let test = "process::the_path_wins_over_the_inline_bootstrap";
    let variables = |directory: &Path| {
        fs::write(file(directory), bootstrap("from-the-file", "127.0.0.1:1").to_string()).expect("written");
        let inline = bootstrap("inline", "127.0.0.1:1").to_string();
        vec![("GRPC_XDS_BOOTSTRAP", file(directory).into()), ("GRPC_XDS_BOOTSTRAP_CONFIG", inline.into())]
    };
    alone(test, variables, async |_| {
        let mesh = Mesh::from_env().await.expect("a good file");
        assert_eq!(mesh.node_id(), "from-the-file");
    });
}

#[test]
fn the_inline_bootstrap_is_enough() {
    let inline = |_: &Path| vec![("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap("inline", "127.0.0.1:1").to_string().into())];
    alone("process::the_inline_bootstrap_is_enough", inline, async |_| {
        let mesh = Mesh::from_env().await.expect("good JSON");
        assert_eq!(mesh.node_id(), "inline");
    });
}

#[test]
fn without_either_variable_there_is_an_error_at_once() {
    alone(
        "process::without_either_variable_there_is_an_error_at_once",
        |_| Vec::new(),
        async |_| {
            let mut joining = Box::pin(Mesh::from_env());
            let joined = poll_once(joining.as_mut()).await.expect("nothing to wait for");
            assert_eq!(joined.map(drop), Err(BootstrapError::NotConfigured));
        },
    );
}

#[tokio::test]
async fn a_socket_that_appears_late_is_waited_for() {
    let [a] = backends(["a"]).await;
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("xds.sock");
    let json = bootstrap(NODE, format!("unix://{}", socket.display())).to_string();
    fs::write(file(directory.path()), json).expect("written");
    let mut reading = Box::pin(Bootstrap::from_file(file(directory.path()), AN_HOUR));
    assert!(poll_once(reading.as_mut()).await.is_none(), "nobody listens yet");
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &[a.address()]));
    let _serving = control_plane.serve_unix(&socket).await.expect("a new path");
    let mesh = Mesh::builder(within("the socket", reading).await.expect("a good file")).build();
    assert_eq!(answer(&echo(&mesh)).await, "a");
}

#[tokio::test]
async fn a_malformed_file_is_an_error_at_once_and_a_missing_one_after_the_wait() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(file(directory.path()), r#"{"xds_servers": 5}"#).expect("written");
    let mut reading = Box::pin(Bootstrap::from_file(file(directory.path()), AN_HOUR));
    let error = poll_once(reading.as_mut()).await.expect("nothing to wait for").expect_err("not a list");
    assert!(matches!(&error, BootstrapError::Invalid(_)) && error.to_string().contains("xds_servers"), "{error}");

    let wait = Duration::from_millis(1);
    let missing = within("the error", Bootstrap::from_file(directory.path().join("none"), wait)).await;
    assert!(matches!(missing, Err(BootstrapError::Missing { .. })), "{missing:?}");
}

// === One stream ===

/// An agent between the process and its control plane: closes every connection but the newest.
struct Agent {
    address: SocketAddr,
    accepted: watch::Receiver<u64>,
    accepting: JoinHandle<()>,
}

impl Agent {
    async fn start(control_plane: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (count, accepted) = watch::channel(0);
        let accepting = tokio::spawn(async move {
            let mut newest: Option<JoinHandle<()>> = None;
            while let Ok((mut client, _)) = listener.accept().await {
                let forward = async move {
                    if let Ok(mut server) = TcpStream::connect(control_plane).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                };
                if let Some(older) = newest.replace(tokio::spawn(forward)) {
                    older.abort();
                }
                count.send_modify(|count| *count += 1);
            }
        });
        Self { address, accepted, accepting }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[tokio::test]
async fn an_agent_that_closes_all_but_the_newest_stream_sees_one() {
    let [a, b] = backends(["a", "b"]).await;
    let control_plane = OurControlPlane::start().await;
    let mut both = service("echo", &[a.address()]);
    both.extend(service("other", &[b.address()]));
    control_plane.ads.set_unchecked(both);
    let agent = Agent::start(control_plane.address).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mesh = Mesh::builder(parsed("agent-node", agent.address)).build();
        for (target, hostname) in [("xds:///echo", "a"), ("xds:///other", "b"), ("xds:///echo", "a")] {
            let channel = mesh.channel(target).expect("a valid target");
            assert_eq!(answer(&channel).await, hostname);
            held.push((mesh.clone(), channel));
        }
    }
    assert_eq!((*agent.accepted.borrow(), control_plane.ads.streams_opened()), (1, 1));
    // Somebody else takes our place; we come back, once, and he does not.
    let stranger = TcpStream::connect(agent.address).await.expect("it listens");
    let again = async {
        while control_plane.ads.streams_opened() < 2 {
            tokio::task::yield_now().await;
        }
    };
    within("our second stream", again).await;
    assert_eq!(*agent.accepted.borrow(), 3, "the stranger, and one of us");
    drop(stranger);
    control_plane.ads.set_unchecked(service("echo", &[b.address()]));
    let moved = async { while answer(&held[0].1).await != "b" {} };
    within("an update through the second stream", moved).await;
    assert_eq!((*agent.accepted.borrow(), control_plane.ads.streams_opened()), (3, 2));
}

// === Runtimes ===

/// Control plane and backends on threads of their own, so that the meshes' runtimes can come and go.
struct Peers {
    runtime: Runtime,
    ads: ControlPlane,
    address: SocketAddr,
    backends: [Backend; 2],
    _serving: Serving,
}

impl Peers {
    fn start() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (ads, serving, backends) = runtime.block_on(async {
            let backends = backends(["a", "b"]).await;
            let ads = ControlPlane::new();
            ads.set_unchecked(service("echo", &[backends[0].address()]));
            let serving = ads.listen((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
            (ads, serving, backends)
        });
        let address = serving.local_addr().expect("bound");
        Self { runtime, ads, address, backends, _serving: serving }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn a_mesh_goes_on_when_the_runtime_that_made_the_first_one_is_gone() {
    let peers = Peers::start();
    let bootstrap = || parsed("runtimes-node", peers.address);
    let first_runtime = runtime();
    let (first, first_channel) = first_runtime.block_on(async {
        let mesh = Mesh::builder(bootstrap()).build();
        let channel = echo(&mesh);
        assert_eq!(answer(&channel).await, "a");
        (mesh, channel)
    });
    let second_runtime = runtime();
    let (second, channel) = second_runtime.block_on(async {
        let mesh = Mesh::builder(bootstrap()).build();
        let channel = echo(&mesh);
        assert_eq!(answer(&channel).await, "a");
        (mesh, channel)
    });
    drop(first_runtime);
    peers.ads.set_unchecked(service("echo", &[peers.backends[1].address()]));
    second_runtime.block_on(async {
        let moved = async { while answer(&channel).await != "b" {} };
        within("an update", moved).await;
        assert_eq!(answer(&echo(&second)).await, "b");
        // What ran on the other runtime says so, and does not hang: old channels and new ones.
        for orphan in [first_channel, echo(&first)] {
            let status = within("the failure", unary(&orphan)).await.expect_err("nobody can connect for it");
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(status.message().contains("runtime"), "{status}");
        }
        assert_eq!(peers.ads.streams_opened(), 1);
    });
}

#[test]
fn a_runtime_of_its_own_carries_a_mesh_for_others() {
    let peers = Peers::start();
    let own = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mesh = Mesh::builder(parsed("own-node", peers.address)).runtime(own.handle().clone()).build();
    for _ in 0..3 {
        assert_eq!(runtime().block_on(async { answer(&echo(&mesh)).await }), "a");
    }
    drop(mesh);
    peers.runtime.block_on(within("the end of the stream", peers.ads.wait_for_streams(0)));
}

// === Nothing is left ===

/// What the process holds: descriptors and threads.
#[cfg(target_os = "linux")]
fn held() -> [usize; 2] {
    ["/proc/self/fd", "/proc/self/task"].map(|directory| fs::read_dir(directory).expect("a Linux").count())
}

#[cfg(target_os = "linux")]
#[test]
fn meshes_that_come_and_go_leave_nothing_behind() {
    alone(
        "process::meshes_that_come_and_go_leave_nothing_behind",
        |_| Vec::new(),
        async |_| {
            let [a] = backends(["a"]).await;
            let control_plane = OurControlPlane::start().await;
            control_plane.ads.set_unchecked(service("echo", &[a.address()]));
            // The last few live on, so that some cycles share the stream and some end it.
            let cycle = async |number: u32| {
                let mesh = Mesh::builder(parsed("cycle-node", control_plane.address)).build();
                let channel = echo(&mesh);
                match number % 4 {
                    0 | 1 => assert_eq!(answer(&channel).await, "a"),
                    // Given up while it waits for whatever is missing then.
                    2 => drop(poll_once(Box::pin(unary(&channel)).as_mut()).await),
                    _ => drop(channel.clone()),
                }
                (mesh, channel)
            };
            let settled = async || {
                within("the end of the stream", control_plane.ads.wait_for_streams(0)).await;
                let closed = a.wait_for(|counters| counters.open_connections == 0).await;
                closed.expect("no connection is left");
            };
            let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
            for number in 0..8 {
                cycle(number).await;
            }
            settled().await;
            let before = (held(), tasks());
            let mut living = std::collections::VecDeque::new();
            let cycles = soak(1_000);
            for number in 0..cycles {
                living.push_back(cycle(number).await);
                if living.len() > 3 {
                    living.pop_front();
                }
                if number % 10 == 9 {
                    // The last one goes, and the stream with it.
                    living.clear();
                    settled().await;
                }
            }
            living.clear();
            settled().await;
            // Sockets are closed by tasks whose end nobody announces.
            let last = async {
                while (held(), tasks()) != before {
                    tokio::task::yield_now().await;
                }
            };
            if tokio::time::timeout(Duration::from_secs(30), last).await.is_err() {
                panic!("descriptors, threads and tasks: before {before:?}, after {:?}", (held(), tasks()));
            }
            assert!(control_plane.ads.streams_opened() >= u64::from(cycles / 10), "the stream came and went");
        },
    );
}
