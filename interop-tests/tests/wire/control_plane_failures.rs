//! Control planes that refuse, break off, dribble, answer nonsense or go away for good: no configured call notices, and
//! calls without a configuration are told, with UNAVAILABLE, and heal by themselves (A53, A54, A57, A88).
//!
//! The server's words are the test's, one by one. What a single resource may do to its users is the business of
//! `data_errors`, and clients that start in an outage are in `failures`; this module does NOT look at resources.

use crate::{
    load::Load,
    mesh::{service, soak, unary},
    rig::{backends, until, within},
    servers_without_manners::dialled_with,
};
use interop_tests::{
    backend::Backend,
    proxy::Proxy,
    raw::{RawServer, Seen, Settings},
    scripted::{ScriptedServer, ScriptedStream},
};
use mesh_client::{Mesh, MeshChannel};
use mesh_xds::{
    Bootstrap, ServerAddress, StreamState,
    control_plane::{
        ControlPlane,
        proto::google::protobuf::Any,
        resources::{cluster_eds, endpoints, listener, pack, route_config, virtual_host},
    },
    resource::Kind,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use tonic::{Code, Status};

pub(crate) const NODE: &str = "outage-node";

const PER_SECOND: u32 = 300;

pub(crate) fn bootstrap(server: SocketAddr, features: &[&str]) -> Bootstrap {
    let builder = Bootstrap::builder().node_id(NODE).server(ServerAddress::Sockets(vec![server]));
    features.iter().fold(builder, |builder, feature| builder.server_feature(feature)).build().expect("a server")
}

fn mesh(server: SocketAddr) -> Mesh {
    Mesh::builder(bootstrap(server, &[])).build()
}

pub(crate) fn echo(mesh: &Mesh) -> MeshChannel {
    mesh.channel("xds:///echo").expect("a valid target")
}

pub(crate) async fn scripted() -> ScriptedServer {
    ScriptedServer::start().await.expect("a free port")
}

/// What "echo" is made of, in the order in which it is asked for.
pub(crate) fn config(addresses: &[SocketAddr]) -> [(Kind, Vec<Any>); 4] {
    [
        (Kind::Listener, vec![pack(listener("echo", "echo-routes"))]),
        (Kind::RouteConfig, vec![pack(route_config("echo-routes", vec![virtual_host("*", "echo-cluster")]))]),
        (Kind::Cluster, vec![pack(cluster_eds("echo-cluster"))]),
        (Kind::Endpoints, vec![pack(endpoints("echo-cluster", addresses))]),
    ]
}

/// Answers each type once, and waits for its ACK.
pub(crate) async fn leads(stream: &mut ScriptedStream, config: impl IntoIterator<Item = (Kind, Vec<Any>)>) {
    for (kind, resources) in config {
        stream.request(kind).await.expect("asked for");
        let nonce = stream.answer(kind, resources);
        let verdict = stream.verdict(kind, &nonce).await.expect("acknowledged");
        assert_eq!(verdict.error_detail, None);
    }
}

/// The next call of the client, answered in full.
async fn led(server: &mut ScriptedServer, config: impl IntoIterator<Item = (Kind, Vec<Any>)>) -> ScriptedStream {
    let mut stream = server.stream().await.expect("dialled");
    leads(&mut stream, config).await;
    stream
}

/// Calls until the failure names all of `parts`; each failure is UNAVAILABLE, from this node.
pub(crate) async fn fails(channel: &MeshChannel, parts: &[&str]) {
    let failing = async {
        loop {
            if let Err(status) = unary(channel).await {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                if parts.iter().chain([&NODE]).all(|part| status.message().contains(part)) {
                    return;
                }
            }
            tokio::task::yield_now().await;
        }
    };
    within(&format!("a failure that names {parts:?}"), failing).await;
}

/// Calls until one succeeds; those that fail are UNAVAILABLE.
pub(crate) async fn recovers(channel: &MeshChannel) {
    let calls = async {
        while let Err(status) = unary(channel).await {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            tokio::task::yield_now().await;
        }
    };
    within("a reply", calls).await;
}

/// Calls go through, one after the other.
pub(crate) async fn go_on(channel: &MeshChannel, calls: u32) {
    for _ in 0..calls {
        within("the reply", unary(channel)).await.expect("configured, and not to be disturbed");
    }
}

pub(crate) fn is_unreachable(mesh: &Mesh) -> bool {
    matches!(mesh.status().xds.servers[0].state, StreamState::Unreachable { .. })
}

// === Streams that end ===

/// What istiod, gateways and load balancers end streams with. None of these codes may reach a caller (A54).
fn endings() -> [Status; 8] {
    [
        Status::ok("the server is done"),
        Status::unavailable("warming"),
        Status::resource_exhausted("request rate limit exceeded"),
        Status::unauthenticated("no valid token"),
        Status::permission_denied("not yours"),
        Status::not_found("no such node"),
        Status::invalid_argument("invalid node id"),
        Status::internal("a bug"),
    ]
}

/// A server that says nothing but `status`, at first: in headers alone, or after headers.
async fn refuses_and_heals(status: Status, trailers_only: bool, backend: SocketAddr) {
    let mut server = scripted().await;
    let mesh = mesh(server.address());
    let channel = echo(&mesh);
    let early = tokio::spawn({
        let channel = channel.clone();
        async move { fails(&channel, &["Listener \"echo\"", "cannot be reached"]).await }
    });
    let call = server.call().await.expect("dialled");
    assert_eq!(call.metadata().get("grpc-accept-encoding"), None, "nothing compressed is asked for");
    if trailers_only {
        call.refuse(status.clone());
    } else {
        call.open().end(status.clone());
    }
    let words = if status.code() == Code::Ok { "without a response" } else { status.message() };
    fails(&channel, &[words]).await;
    within("the early call", early).await.expect("it failed as it should");
    // On the curve it comes back, a second later, and finds a server that works.
    let stream = led(&mut server, config(&[backend])).await;
    recovers(&channel).await;

    // The same, to a client that is configured: it dials at once, is refused, and serves on.
    stream.end(status.clone());
    let call = server.call().await.expect("dialled at once");
    if trailers_only {
        call.refuse(status);
    } else {
        call.open().end(status);
    }
    until("the outage is seen", || is_unreachable(&mesh)).await;
    go_on(&channel, 10).await;
    let mut stream = server.stream().await.expect("dialled on the curve");
    let resumed = stream.request(Kind::Endpoints).await.expect("asked for again");
    assert_eq!((&*resumed.version_info, &*resumed.response_nonce), ("4", ""));
    go_on(&channel, 10).await;
}

#[tokio::test]
async fn whatever_a_stream_is_refused_with_callers_read_unavailable_and_configured_ones_nothing() {
    let [a] = backends(["a"]).await;
    let mut clients = JoinSet::new();
    for status in endings() {
        for trailers_only in [true, false] {
            // A status that says OK has no headers-only form for a stream.
            if status.code() != Code::Ok || !trailers_only {
                clients.spawn(refuses_and_heals(status.clone(), trailers_only, a.address()));
            }
        }
    }
    while let Some(client) = clients.join_next().await {
        client.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_cut_every_half_hour_disturb_nothing() {
    let [a, b] = backends(["a", "b"]).await;
    let mut server = scripted().await;
    let mesh = mesh(server.address());
    let channel = echo(&mesh);
    let mut stream = led(&mut server, config(&[a.address()])).await;
    recovers(&channel).await;
    let load = Load::start(channel, PER_SECOND);
    load.goes_on(10).await;
    for (round, backend) in [&b, &a, &b, &a].into_iter().enumerate() {
        match round {
            // As grpc-go does for MaxConnectionAge: GOAWAY, and the stream has its grace period.
            0 => {
                server.go_away();
                let nonce = stream.answer(Kind::Endpoints, config(&[b.address(), a.address()])[3].1.clone());
                stream.verdict(Kind::Endpoints, &nonce).await.expect("still listening");
                stream.end(Status::ok("grace period over"));
            }
            1 => stream.end(Status::unavailable("max connection age")),
            2 => stream.end(Status::ok("good-bye")),
            // Both at once.
            _ => {
                server.go_away();
                stream.end(Status::unavailable("closing"));
            }
        }
        stream = server.stream().await.expect("dialled again, at once");
        let first = stream.request(Kind::Listener).await.expect("asked for again");
        assert!(first.node.is_some_and(|node| node.id == NODE), "the node is in the first request of each stream");
        assert!(!first.version_info.is_empty() && first.response_nonce.is_empty());
        let resumed = stream.request(Kind::Endpoints).await.expect("asked for again");
        assert!(resumed.node.is_none() && resumed.response_nonce.is_empty());
        let nonce = stream.answer(Kind::Endpoints, config(&[backend.address()])[3].1.clone());
        let verdict = stream.verdict(Kind::Endpoints, &nonce).await.expect("acknowledged");
        assert_eq!(verdict.error_detail, None);
        load.goes_on(10).await;
        assert!(!is_unreachable(&mesh), "no error: there had been a response");
    }
    load.stop().await.were_all_answered();
}

#[tokio::test]
async fn a_server_that_answers_and_closes_is_not_dialled_in_a_loop() {
    let [a] = backends(["a"]).await;
    let mut server = scripted().await;
    let mesh = mesh(server.address());
    let channel = echo(&mesh);
    let [first, rest @ ..] = config(&[a.address()]);
    for _ in 0..6 {
        let mut stream = server.stream().await.expect("dialled at once");
        stream.request(Kind::Listener).await.expect("asked for");
        stream.answer(Kind::Listener, first.1.clone());
        stream.end(Status::unavailable("over and over"));
    }
    fails(&channel, &["answers and closes", "over and over"]).await;
    // The sixth was one too many: the seventh is a second away. On a slow machine it may have come, the next may not.
    assert!(server.waiting() <= 1, "{} more calls", server.waiting());
    let _stream = led(&mut server, [first].into_iter().chain(rest)).await;
    recovers(&channel).await;
    until("no outage", || !is_unreachable(&mesh)).await;
}

// === Servers that do not speak as they should ===

#[tokio::test]
async fn a_control_plane_that_dribbles_is_understood() {
    let [a, b] = backends(["a", "b"]).await;
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &[a.address()]));
    let serving = control_plane.listen((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let proxy = Proxy::start(serving.local_addr().expect("bound")).await.expect("a free port");
    proxy.dribble();
    let mesh = mesh(proxy.address());
    let channel = echo(&mesh);
    assert_eq!(within("a reply", unary(&channel)).await.expect("byte by byte"), "a");
    control_plane.set_unchecked(service("echo", &[b.address()]));
    within("the ACK", control_plane.wait_for_ack(Kind::Endpoints.type_url(), "echo-cluster")).await;
    within("the other backend", async { while unary(&channel).await.expect("a reply") != "b" {} }).await;
    assert_eq!((proxy.connections(), control_plane.streams_opened()), (1, 1), "slow is not broken");
}

#[tokio::test]
async fn what_answers_in_http1_is_no_control_plane() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let mesh = mesh(listener.local_addr().expect("bound"));
    let channel = echo(&mesh);
    let (mut socket, _) = listener.accept().await.expect("dialled");
    socket.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.expect("open");
    fails(&channel, &["Listener \"echo\"", "cannot be reached"]).await;
    let mut said = Vec::new();
    within("the end", socket.read_to_end(&mut said)).await.expect("closed by the client");
    assert!(said.starts_with(b"PRI * HTTP/2.0"), "{said:?}");
}

#[tokio::test]
async fn a_message_that_is_compressed_without_being_asked_for_ends_the_stream() {
    let server = RawServer::start().await.expect("a free port");
    let mesh = mesh(server.address());
    let channel = echo(&mesh);
    let mut connection = dialled_with(&server, Settings::default()).await;
    let stream = connection.request().await.expect("a call");
    connection.headers(stream, &[("content-type", "application/grpc"), ("grpc-encoding", "gzip")]).await.expect("open");
    fails(&channel, &["Listener \"echo\"", "cannot be reached", "gzip"]).await;
    let closed = async { while !matches!(connection.next().await, Ok(Seen::Reset { .. } | Seen::Closed) | Err(_)) {} };
    within("its end", closed).await;
}

#[tokio::test]
async fn a_stream_without_a_word_is_cut_short_by_no_timer_of_a_resource_that_is_known() {
    let [a] = backends(["a"]).await;
    let mut server = scripted().await;
    let patience = Duration::from_millis(200);
    let mesh = Mesh::builder(bootstrap(server.address(), &[]).with_resource_timeout(patience)).build();
    let channel = echo(&mesh);
    led(&mut server, config(&[a.address()])).await.end(Status::ok("restart"));
    recovers(&channel).await;
    // On the next stream nothing is answered. What is not known fails when its timer fires; by then a timer of what is
    // known would have fired, too.
    let mut silent = server.stream().await.expect("dialled at once");
    silent.request(Kind::Endpoints).await.expect("asked for again");
    let other = mesh.channel("xds:///other").expect("a valid target");
    fails(&other, &["Listener \"other\"", "does not exist"]).await;
    for kind in Kind::ALL {
        let status = mesh.status().xds;
        let known = status.resources.iter().find(|resource| resource.kind == kind && resource.name != "other");
        assert_eq!(known.map(|known| &known.state), Some(&mesh_xds::ResourceState::Acked), "{kind}");
    }
    go_on(&channel, 10).await;
    // And it is heard when it speaks after all.
    let mut listeners = config(&[])[0].1.clone();
    listeners.push(pack(listener("other", "echo-routes")));
    silent.answer(Kind::Listener, listeners);
    recovers(&other).await;
}

// === Outages ===

#[tokio::test]
async fn with_all_backends_and_the_control_plane_gone_callers_read_of_both() {
    let [mut a] = backends(["a"]).await;
    let mut server = scripted().await;
    let mesh = mesh(server.address());
    let channel = echo(&mesh);
    let stream = led(&mut server, config(&[a.address()])).await;
    recovers(&channel).await;
    stream.end(Status::unavailable("leaving"));
    server.call().await.expect("dialled at once").refuse(Status::unavailable("gone to lunch"));
    until("the outage is seen", || is_unreachable(&mesh)).await;
    go_on(&channel, 10).await;
    a.stop().await;
    let parts = ["no endpoint can be reached", &a.address().to_string(), "gone to lunch", "control plane"];
    // However often it is dialled meanwhile.
    let refusing = async {
        while let Ok(call) = server.call().await {
            call.refuse(Status::unavailable("gone to lunch"));
        }
    };
    tokio::select! {
        () = fails(&channel, &parts) => {}
        () = refusing => unreachable!("the client dials as long as it lives"),
    }
}

/// One way for a control plane to be away, or to be no good.
#[derive(Clone, Copy, Debug)]
enum Outage {
    Cut,
    Refuse,
    Silent,
    BlackHole,
    Dribble,
}

const OUTAGES: [Outage; 5] = [Outage::Cut, Outage::Refuse, Outage::Silent, Outage::BlackHole, Outage::Dribble];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_in_outages_of_any_kind() {
    let [a, b] = backends(["a", "b"]).await;
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(service("echo", &[a.address(), b.address()]));
    let serving = control_plane.listen((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let proxy = Proxy::start(serving.local_addr().expect("bound")).await.expect("a free port");
    // What is known must not depend on timers, however short.
    let impatient = bootstrap(proxy.address(), &[]).with_resource_timeout(Duration::from_millis(100));
    let mesh = Mesh::builder(impatient).build();
    let channel = echo(&mesh);
    recovers(&channel).await;
    let load = Load::start(channel, PER_SECOND);
    for round in 0..soak(1) {
        for outage in OUTAGES {
            let begins = |on| match outage {
                Outage::Cut => {}
                Outage::Refuse => control_plane.refuse(on),
                Outage::Silent => control_plane.silent(on),
                Outage::BlackHole if on => proxy.silence(),
                Outage::Dribble if on => proxy.dribble(),
                Outage::BlackHole | Outage::Dribble => proxy.resume(),
            };
            begins(true);
            control_plane.cut_streams();
            load.goes_on(60).await;
            begins(false);
            // Once it is back, it leads: the endpoints of this round are taken.
            let now: &[&Backend] = if round % 2 == 0 { &[&a] } else { &[&a, &b] };
            let now: Vec<_> = now.iter().map(|backend| backend.address()).collect();
            control_plane.set_unchecked(service("echo", &now));
            let led = control_plane.wait_for_ack(Kind::Endpoints.type_url(), "echo-cluster");
            within(&format!("leading after {outage:?}"), led).await;
        }
    }
    load.stop().await.were_all_answered();
}
