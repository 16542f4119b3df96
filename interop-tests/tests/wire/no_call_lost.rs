//! No call is lost: an open loop of calls goes on while everything around it changes.
//!
//! Clusters are swapped, weights change, backends are restarted gracefully, refuse streams and run out of them, the
//! control plane goes away and comes back. Every call gets its answer, and who answered is who says so. It does NOT kill
//! anything: calls in flight on a connection that is reset are lost by right.

use crate::{
    load::{Load, Replies},
    mesh::{SocketMesh, all_are_ready, soak, unary},
    refuser::Refuser,
    rig::{addresses, backends, until, within},
};
use fastrand::Rng;
use interop_tests::backend::Backend;
use mesh_xds::{
    control_plane::{
        Dialect, Resources,
        resources::{cluster_eds, endpoints, listener, route_config, virtual_host, virtual_host_weighted},
    },
    resource::Kind,
};
use std::{
    env,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::task::JoinSet;

const PER_SECOND: u32 = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_while_clusters_are_swapped_and_weighted() {
    clusters_are_swapped_and_weighted(Dialect::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_while_clusters_are_swapped_and_weighted_in_delta() {
    clusters_are_swapped_and_weighted(Dialect::Delta).await;
}

async fn clusters_are_swapped_and_weighted(dialect: Dialect) {
    let [a, b, c, d] = backends(["a", "b", "c", "d"]).await;
    let colours = [addresses([&a, &b]), addresses([&c, &d])];
    let mesh = SocketMesh::start_in(dialect, split(&colours, 1)).await;
    let channel = mesh.ready("echo").await;
    let load = Load::start(channel, PER_SECOND);
    for round in 0..soak(50) {
        mesh.set(swapped(&colours, round));
        mesh.applied(Kind::RouteConfig, "routes").await;
    }
    for weight in 0..soak(20) {
        mesh.set(split(&colours, 1 + weight * 7 % 99));
        mesh.applied(Kind::RouteConfig, "routes").await;
    }
    load.stop().await.were_all_answered_by(&[&a, &b, &c, &d]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_while_backends_restart_gracefully() {
    // One of them has room for a single stream, which now and then a slow call takes.
    let narrow = Backend::builder("narrow").max_concurrent_streams(1).start().await.expect("a free port");
    let [mut a, mut b] = backends(["a", "b"]).await;
    let mesh = SocketMesh::start(one(&addresses([&a, &b, &narrow]))).await;
    let load = Load::start_with(mesh.ready("echo").await, PER_SECOND, |number| {
        (number % 300 == 0).then_some(("rpc-behavior", "hostname=narrow sleep-1".to_owned()))
    });
    for _ in 0..soak(2) {
        for backend in [&a, &b, &narrow] {
            let before = backend.counters().connections;
            restarted(backend, &load).await;
            backend.wait_for(|now| now.connections > before).await.expect("connected again");
        }
        for backend in [&mut a, &mut b] {
            // The port is closed for a while, too.
            let before = backend.counters().connections;
            backend.stop().await;
            load.goes_on(50).await;
            backend.revive().await.expect("its port");
            backend.wait_for(|now| now.connections > before).await.expect("connected again");
        }
    }
    load.stop().await.were_all_answered_by(&[&a, &b, &narrow]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_when_streams_are_refused_after_their_body_was_read() {
    let [a] = backends(["a"]).await;
    let refuser = Refuser::start("refuser").await;
    let mesh = SocketMesh::start(one(&[a.address(), refuser.address()])).await;
    let load = Load::start_with(mesh.ready("echo").await, PER_SECOND, |number| Some(("x-call", number.to_string())));
    load.goes_on(u64::from(soak(500))).await;
    let replies = load.stop().await;
    assert!(refuser.refused() > 0, "nothing was refused");
    replies.came_from("refuser", refuser.answered());
    replies.came_from("a", a.counters().succeeded);
    replies.were_all_answered();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_while_the_control_plane_is_away() {
    the_control_plane_is_away(Dialect::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_while_the_control_plane_is_away_in_delta() {
    the_control_plane_is_away(Dialect::Delta).await;
}

async fn the_control_plane_is_away(dialect: Dialect) {
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let mut mesh = SocketMesh::start_in(dialect, one(&addresses([&a, &b]))).await;
    let load = Load::start(mesh.ready("echo").await, PER_SECOND);
    // The stream breaks, and comes back at once.
    mesh.control_plane().cut_streams();
    load.goes_on(100).await;
    // It is refused for a while.
    mesh.control_plane().refuse(true);
    mesh.control_plane().cut_streams();
    load.goes_on(200).await;
    mesh.control_plane().refuse(false);
    // The process is gone, and another one takes its port.
    mesh.stop_serving();
    load.goes_on(400).await;
    mesh.set(one(&addresses([&b, &c])));
    mesh.serve_again().await;
    mesh.applied(Kind::Endpoints, "one").await;
    load.old_calls_end().await;
    let so_far = a.counters().calls;
    load.goes_on(100).await;
    assert_eq!(a.counters().calls, so_far, "a removed endpoint was called");
    load.stop().await.were_all_answered_by(&[&a, &b, &c]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_while_there_are_more_callers_than_streams() {
    let a = Backend::builder("a").max_concurrent_streams(1).start().await.expect("a free port");
    let b = Backend::builder("b").max_concurrent_streams(2).start().await.expect("a free port");
    let mesh = SocketMesh::start(one(&addresses([&a, &b]))).await;
    let channel = mesh.ready("echo").await;
    let (stop, progress) = (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; 128]));
    let mut callers = JoinSet::new();
    for caller in 0..progress.len() {
        let (channel, stop, progress) = (channel.clone(), Arc::clone(&stop), Arc::clone(&progress));
        callers.spawn(async move {
            let mut replies = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                replies.push(unary(&channel).await);
                progress[caller].fetch_add(1, Ordering::Relaxed);
            }
            replies
        });
    }
    for _ in 0..soak(2) {
        for backend in [&a, &b] {
            drained(backend).await;
            let before = progress.each_ref().map(|calls| calls.load(Ordering::Relaxed));
            let one_more = || progress.iter().zip(before).all(|(calls, before)| calls.load(Ordering::Relaxed) > before);
            until("a reply for each caller", one_more).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let replies = within("every reply", callers.join_all()).await;
    replies.into_iter().flatten().collect::<Replies>().were_all_answered_by(&[&a, &b]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_while_all_of_that_happens_at_once() {
    all_of_that_happens_at_once(Dialect::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_while_all_of_that_happens_at_once_in_delta() {
    all_of_that_happens_at_once(Dialect::Delta).await;
}

async fn all_of_that_happens_at_once(dialect: Dialect) {
    let seed = env::var("NO_CALL_LOST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("NO_CALL_LOST_SEED={seed}");
    let mut dice = Rng::with_seed(seed);
    let narrow = Backend::builder("d").max_concurrent_streams(2).start().await.expect("a free port");
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let colours = [addresses([&a, &b]), addresses([&c, &narrow])];
    let mut all = [a, b, c, narrow];
    let mut mesh = SocketMesh::start_in(dialect, split(&colours, 50)).await;
    let load = Load::start(mesh.ready("echo").await, PER_SECOND);
    for round in 0..soak(60) {
        match dice.u32(..7) {
            0 => mesh.set(swapped(&colours, round)),
            1 => mesh.set(split(&colours, dice.u32(1..100))),
            2 => mesh.set(one(&[colours[0][0], colours[1][0]])),
            3 => restarted(&all[dice.usize(..4)], &load).await,
            4 => {
                // One at a time: each cluster keeps an endpoint.
                let backend = &mut all[dice.usize(..4)];
                backend.stop().await;
                load.goes_on(20).await;
                backend.revive().await.expect("its port");
                all_are_ready(mesh.mesh()).await;
            }
            5 => mesh.control_plane().cut_streams(),
            _ => {
                mesh.stop_serving();
                load.goes_on(20).await;
                mesh.serve_again().await;
            }
        }
        load.goes_on(dice.u64(1..20)).await;
    }
    load.stop().await.were_all_answered_by(&all.each_ref());
}

/// Ends when no call can have anything to do with the restart any more: one that was sent into a connection that was
/// going away is sent again, but "once" (A6).
async fn restarted(backend: &Backend, load: &Load) {
    drained(backend).await;
    load.old_calls_end().await;
}

/// GOAWAY on each connection, until all of them are closed.
async fn drained(backend: &Backend) {
    let before = backend.counters().connections;
    backend.restart();
    backend.wait_for(|now| now.connections - now.open_connections >= before).await.expect("drained");
}

fn one(addresses: &[SocketAddr]) -> Resources {
    Resources::default()
        .with(listener("echo", "routes"))
        .with(route_config("routes", vec![virtual_host("*", "one")]))
        .with(cluster_eds("one"))
        .with(endpoints("one", addresses))
}

/// Two clusters that share the calls.
fn split(colours: &[[SocketAddr; 2]; 2], weight: u32) -> Resources {
    Resources::default()
        .with(listener("echo", "routes"))
        .with(route_config("routes", vec![virtual_host_weighted("*", &[("blue", weight), ("green", 100 - weight)])]))
        .with(cluster_eds("blue"))
        .with(endpoints("blue", &colours[0]))
        .with(cluster_eds("green"))
        .with(endpoints("green", &colours[1]))
}

/// A cluster that was not there before takes all calls.
fn swapped(colours: &[[SocketAddr; 2]; 2], round: u32) -> Resources {
    let name = format!("swap-{round}");
    Resources::default()
        .with(listener("echo", "routes"))
        .with(route_config("routes", vec![virtual_host("*", &name)]))
        .with(cluster_eds(&name))
        .with(endpoints(&name, &colours[round as usize % 2]))
}
