//! Servers that answer and close, that speak no HTTP/2, that read nothing and say too much.
//!
//! The pipe's other end is the test's, byte by byte where that matters. None of them makes a hot loop, a panic or a
//! resource that "does not exist".

use super::*;
use mesh_xds::ResourceState;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};

/// The empty SETTINGS frame.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// A server that is played by the test: its door and the connections that come through it.
fn played() -> (InProcess, mpsc::Receiver<DuplexStream>) {
    InProcess::new("played")
}

async fn dialled(dials: &mut mpsc::Receiver<DuplexStream>) -> DuplexStream {
    soon(dials.recv()).await.expect("the client lives")
}

#[track_caller]
fn assert_on_the_curve(gap: f64, expected: f64) {
    assert!((expected * 0.8 - 0.01..expected * 1.2 + 0.01).contains(&gap), "{gap} instead of {expected}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_and_closes_is_dialled_on_the_curve_after_five_times() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    let gap = async || {
        soon(control_plane.wait_for_ack(EDS, "a")).await;
        let cut = Instant::now();
        control_plane.cut_streams();
        soon(control_plane.wait_for_streams(0)).await;
        soon(control_plane.wait_for_streams(1)).await;
        cut.elapsed().as_secs_f64()
    };
    for stream in 1..=5 {
        let gap = gap().await;
        assert!(gap < 0.2, "stream {stream} is forgiven: {gap}");
    }
    for expected in [1.0, 1.6, 2.56] {
        assert_on_the_curve(gap().await, expected);
    }
    // One that lives for a second ends it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(gap().await < 0.2);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_and_closes_is_a_connectivity_error() {
    let control_plane = ControlPlane::new();
    // Never complete: what is there is answered, and then the stream is cut.
    let mut part = web("a", 1);
    part.remove(RDS, "routes");
    control_plane.set_unchecked(part);
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let cutting = tokio::spawn(async move {
        loop {
            control_plane.wait_for_ack(LDS, "web").await;
            control_plane.cut_streams();
            control_plane.wait_for_streams(0).await;
        }
    });
    let error = failure(&mut watch).await;
    for part in ["answers and closes", "Unavailable", "RouteConfiguration \"routes\"", NODE] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(matches!(client.status().servers[0].state, StreamState::Unreachable { .. }));
    cutting.abort();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_the_transport_did_not_take_arms_no_timer() {
    let (door, mut dials) = played();
    let client = client(door);
    let mut watch = client.watch(target("web"));
    let mut server = dialled(&mut dials).await;
    // INITIAL_WINDOW_SIZE 0: the stream opens, and no byte of a message passes.
    server.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]).await.expect("open");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(client.status().servers[0].state, StreamState::Connected);
    assert_eq!(client.status().resource(Kind::Listener, "web").expect("subscribed").state, ResourceState::Requested);
    // WINDOW_UPDATE for its stream.
    let began = Instant::now();
    server.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 1, 0, 0]).await.expect("open");
    let error = failure(&mut watch).await;
    assert_eq!(began.elapsed().as_secs(), 15);
    assert!(error.contains("does not exist"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http2_is_a_connect_error_on_the_curve() {
    let garbage = [SETTINGS, &[0xff; 64]].concat();
    let pushed = [SETTINGS, &[0, 0, 4, 5, 4, 0, 0, 0, 1, 0, 0, 0, 2]].concat();
    let answers: [(&str, &[u8]); 7] = [
        ("nothing", b""),
        ("HTTP/1.1", b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        ("a TLS alert", &[21, 3, 3, 0, 2, 2, 70]),
        ("text", b"SSH-2.0-OpenSSH_9.9\r\n"),
        ("SETTINGS, then garbage", &garbage),
        ("SETTINGS, then a push that was forbidden", &pushed),
        ("half a frame", &SETTINGS[..5]),
    ];
    for (what, bytes) in answers {
        let (door, mut dials) = played();
        let client = client(door);
        let mut watch = client.watch(target("web"));
        let mut closed = None::<Instant>;
        for expected in [0.0, 1.0, 1.6] {
            let mut server = dialled(&mut dials).await;
            assert_on_the_curve(closed.map_or(0.0, |closed| closed.elapsed().as_secs_f64()), expected);
            // Who speaks another protocol has perhaps been left already.
            let _ = server.write_all(bytes).await;
            drop(server);
            closed = Some(Instant::now());
            let error = failure(&mut watch).await;
            assert!(error.contains("cannot be reached") && !error.contains("does not exist"), "{what}: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_reads_nothing_is_replaced_after_the_keepalive() {
    let (door, mut dials) = played();
    let client = client(door);
    let mut watch = client.watch(target("web"));
    let began = Instant::now();
    let mut server = dialled(&mut dials).await;
    server.write_all(SETTINGS).await.expect("open");
    let error = failure(&mut watch).await;
    assert_eq!(began.elapsed().as_secs(), 15, "the pipe took the request: {error}");
    let _next = dialled(&mut dials).await;
    assert!(began.elapsed() <= Duration::from_secs(5 * 60 + 20 + 2), "{:?}", began.elapsed());
    let mut rest = Vec::new();
    soon(server.read_to_end(&mut rest)).await.expect("closed by the client");
}

#[tokio::test(start_paused = true)]
async fn a_response_above_the_limit_names_itself_and_harms_nobody() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let bootstrap = bootstrap(control_plane.in_process()).with_max_message_size(2000);
    let client = XdsClient::connect_on(&Handle::current(), bootstrap);
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    let many: Vec<_> = (0..200).map(address).collect();
    control_plane.set_unchecked(web("a", 1).with(xds::endpoints("a", &many)));
    // Streams come and go, on the curve, and what was good serves.
    let noted = snapshot(&mut watch, |snapshot| {
        snapshot.clusters["a"].state.as_ref().is_ok_and(|leaves| leaves.first.note.is_some())
    })
    .await;
    let note = noted.clusters["a"].state.as_ref().expect("resolved").first.note.clone().expect("looked for");
    assert!(note.contains("answers and closes") && note.contains("2000 bytes"), "{note}");
    assert_eq!(cluster(&noted, "a"), Ok(vec![address(1)]));
    assert!(control_plane.streams_opened() <= 7, "{}", control_plane.streams_opened());
    control_plane.set_unchecked(web("a", 2));
    snapshot(&mut watch, serves("a", 2)).await;
}
