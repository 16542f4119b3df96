//! Dials, addresses, silence and the end of it: what happens to connections and to the clients behind them.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_refusing_control_plane_is_dialled_on_the_curve() {
    let control_plane = ControlPlane::new();
    control_plane.refuse(true);
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let began = Instant::now();
    failure(&mut watch).await;
    assert_eq!(began.elapsed().as_secs(), 0);
    control_plane.set_unchecked(web("a", 1));
    // 1.0 s and 1.6 s +- 20 % later come the second and the third attempt.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    control_plane.refuse(false);
    snapshot(&mut watch, serves("a", 1)).await;
    let took = began.elapsed().as_secs_f64();
    assert!((2.28..2.93).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn the_curve_starts_over_after_a_response_and_not_after_a_connection() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    control_plane.silent(true);
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let cut = async || {
        soon(control_plane.wait_for_subscription(LDS, "web")).await;
        let cut = Instant::now();
        control_plane.cut_streams();
        soon(control_plane.wait_for_streams(0)).await;
        soon(control_plane.wait_for_streams(1)).await;
        cut.elapsed().as_secs_f64()
    };
    // "CP closes before answering, repeatedly: gaps 1.0, 1.6+-0.32, 2.56+-0.51" - A57. Each of them had a connection.
    for expected in [1.0, 1.6, 2.56] {
        let gap = cut().await;
        assert!((expected * 0.8 - 0.01..expected * 1.2 + 0.01).contains(&gap), "{gap} instead of {expected}");
    }
    control_plane.silent(false);
    snapshot(&mut watch, serves("a", 1)).await;
    control_plane.silent(true);
    let gap = cut().await;
    assert!(gap < 0.2, "at once after a response: {gap}");
    let gap = cut().await;
    assert!((0.99..1.01).contains(&gap), "the curve from its beginning: {gap}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_dialled_for_nobody() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    drop(watch);
    soon(control_plane.wait_for_unsubscription(RDS, "routes")).await;
    control_plane.cut_streams();
    soon(control_plane.wait_for_streams(0)).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(control_plane.streams_opened(), 1);
    assert_eq!(client.status().servers[0].state, StreamState::Idle);
    let mut watch = client.watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    assert_eq!(control_plane.streams_opened(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_nobody_watched_to_its_end_is_not_told_later() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    control_plane.refuse(true);
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    failure(&mut watch).await;
    drop(watch);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(client.status().servers[0].state, StreamState::Idle);
    control_plane.refuse(false);
    let mut watch = client.watch(target("web"));
    loop {
        match soon(watch.changed()).await.expect("the client lives") {
            Target::Failed(text) => panic!("{text}"),
            Target::Pending { .. } => {}
            Target::Ready(_) => break,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_control_plane_drops_a_client_that_vanished() {
    let (control_plane, _watch, frozen) = served_through_a_freezable_door().await;
    frozen.send_replace(true);
    let began = Instant::now();
    soon(control_plane.wait_for_streams(0)).await;
    assert!(began.elapsed() <= Duration::from_secs(51), "{:?}", began.elapsed());
}

// === Real sockets and threads ===

#[tokio::test]
async fn a_port_that_accepts_and_never_answers_is_a_connect_error() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let server = ServerAddress::Sockets(vec![silent.local_addr().expect("bound")]);
    let bootstrap = bootstrap(server.clone()).with_connect_timeout(Duration::from_millis(50));
    let client = XdsClient::connect_on(&Handle::current(), bootstrap);
    let error = failure(&mut client.watch(target("web"))).await;
    for part in [server.to_string().as_str(), "no HTTP/2 answer", "Listener \"web\"", NODE] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(client.status().resource(Kind::Listener, "web").map(|web| &web.failure), Some(&None));
}

#[tokio::test]
async fn a_name_is_looked_up_and_its_addresses_are_tried() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    // Where "localhost" is ::1 first, that one refuses.
    let serving = control_plane.listen("127.0.0.1:0").await.expect("a free port");
    let port = serving.local_addr().expect("TCP").port();
    let client = client(ServerAddress::parse(&format!("dns:///localhost:{port}")).expect("a name"));
    snapshot(&mut client.watch(target("web")), serves("a", 1)).await;
}

#[tokio::test]
async fn every_address_is_tried() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let serving = control_plane.listen("127.0.0.1:0").await.expect("a free port");
    let good = serving.local_addr().expect("TCP");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a free port");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let sockets = vec![closed, silent.local_addr().expect("bound"), good];
    let client = client(ServerAddress::Sockets(sockets));
    snapshot(&mut client.watch(target("web")), serves("a", 1)).await;
}

#[test]
fn equal_bootstraps_share_one_stream_that_outlives_the_runtime_of_its_maker() {
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    let servers = runtime();
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let serving = servers.block_on(control_plane.listen("127.0.0.1:0")).expect("a free port");
    let uri = format!("dns:///localhost:{}", serving.local_addr().expect("TCP").port());
    let connect = || XdsClient::connect(bootstrap(ServerAddress::parse(&uri).expect("a name")));

    let maker = runtime();
    let (first, mut watch) = maker.block_on(async {
        let client = connect();
        let mut watch = client.watch(target("web"));
        snapshot(&mut watch, serves("a", 1)).await;
        (client, watch)
    });
    drop(maker);
    runtime().block_on(async {
        let second = connect();
        let mut same = second.watch(target("web"));
        snapshot(&mut same, serves("a", 1)).await;
        control_plane.set_unchecked(web("a", 2));
        snapshot(&mut watch, serves("a", 2)).await;
        snapshot(&mut same, serves("a", 2)).await;
        assert_eq!((control_plane.open_streams(), control_plane.streams_opened()), (1, 1));
    });
    drop((first, watch));
    runtime().block_on(soon(control_plane.wait_for_streams(0)));
}

#[tokio::test]
async fn a_thousand_clients_leave_no_task_and_no_stream() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let door = control_plane.in_process();
    let tasks = || Handle::current().metrics().num_alive_tasks();
    idle().await;
    let before = tasks();
    for round in 0..1000 {
        let client = client(door.clone());
        let mut watch = client.watch(target("web"));
        // Some end in the middle of things.
        if round % 10 == 0 {
            snapshot(&mut watch, serves("a", 1)).await;
        } else if round % 3 == 0 {
            tokio::task::yield_now().await;
        }
    }
    soon(control_plane.wait_for_streams(0)).await;
    soon(async {
        while tasks() > before {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

// === Connections that go silent ===

/// A door to the control plane whose bytes stop when told to, as behind a proxy that hangs.
fn freezable(control_plane: &ControlPlane) -> (InProcess, watch::Sender<bool>) {
    let behind = control_plane.in_process();
    let (door, mut dials) = InProcess::new("freezable");
    let (frozen, is_frozen) = watch::channel(false);
    tokio::spawn(async move {
        while let Some(mut outside) = dials.recv().await {
            let (mut inside, mut is_frozen) = (behind.dial().expect("open"), is_frozen.clone());
            tokio::spawn(async move {
                let freezing = async { is_frozen.wait_for(|frozen| *frozen).await.is_ok() };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut outside, &mut inside) => {}
                    _ = freezing => {
                        // Both ends stay open and nothing passes.
                        std::future::pending::<()>().await;
                    }
                }
            });
        }
    });
    (door, frozen)
}

/// A target that is served through such a door, and acknowledged.
async fn served_through_a_freezable_door() -> (ControlPlane, TargetWatch, watch::Sender<bool>) {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let (door, frozen) = freezable(&control_plane);
    let mut watch = client(door).watch(target("web"));
    snapshot(&mut watch, serves("a", 1)).await;
    soon(control_plane.wait_for_ack(EDS, "a")).await;
    (control_plane, watch, frozen)
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_goes_silent_is_replaced_after_the_keepalive() {
    let (control_plane, mut watch, frozen) = served_through_a_freezable_door().await;
    frozen.send_replace(true);
    idle().await;
    frozen.send_replace(false);
    let began = Instant::now();
    control_plane.set_unchecked(web("a", 2));
    timeout(Duration::from_secs(1000), snapshot(&mut watch, serves("a", 2))).await.expect("a new connection");
    // "xDS channel keepalive: 5 min interval, 20 s timeout".
    assert!(began.elapsed() <= Duration::from_secs(5 * 60 + 20 + 1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_a_connect_error_after_twenty_seconds_and_no_missing_resource() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let (door, frozen) = freezable(&control_plane);
    frozen.send_replace(true);
    let client = client(door);
    let began = Instant::now();
    let mut watch = client.watch(target("web"));
    let error = failure(&mut watch).await;
    assert_eq!(began.elapsed().as_secs(), 20);
    assert!(error.contains("no HTTP/2 answer") && !error.contains("does not exist"), "{error}");
    frozen.send_replace(false);
    snapshot(&mut watch, serves("a", 1)).await;
    assert_eq!(began.elapsed().as_secs(), 21, "one backoff after recovery");
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_and_its_bootstrap_may_appear_late() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, socket) = (dir.path().join("bootstrap.json"), dir.path().join("XDS"));
    let reading = tokio::spawn(Bootstrap::from_file(path.clone(), Duration::from_secs(60)));
    tokio::task::yield_now().await;
    let json = format!(
        r#"{{"xds_servers":[{{"server_uri":"unix://{}","channel_creds":[{{"type":"insecure"}}]}}],"node":{{"id":"n"}}}}"#,
        socket.display()
    );
    std::fs::write(&path, json).expect("writable");
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(web("a", 1));
    let _serving = control_plane.serve_unix(&socket).await.expect("a free path");
    let bootstrap = soon(reading).await.expect("no panic").expect("it appeared");
    let client = XdsClient::connect_on(&Handle::current(), bootstrap);
    snapshot(&mut client.watch(target("web")), serves("a", 1)).await;
}
