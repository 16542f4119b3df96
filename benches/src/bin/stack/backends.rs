//! The process that the clients call: three echo backends and an xDS control plane, all on one core.
//!
//! It is a process of its own so that nothing of it shows in a client's CPU time or heap. On stdin each line asks for
//! the calls that each backend answered since the line before; the end of stdin ends the process. It does NOT measure.

use crate::{
    echo::EchoServer,
    machine,
    process::{self, BoxError, Peers},
};
use mesh_xds::control_plane::{
    ControlPlane, Resources, Serving,
    resources::{cluster_eds, endpoints, listener, route_config, virtual_host},
};
use std::{
    io::BufRead,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};

/// As many as the stacks with the most endpoints call.
const BACKENDS: usize = 3;

/// Any free port, not reachable from outside.
const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// Serves until stdin ends.
pub(crate) fn main() -> Result<(), BoxError> {
    let core: Option<usize> = process::read(&mut std::io::stdin().lock())?;
    machine::pin(core)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let servers: Vec<_> = (0..BACKENDS).map(|_| EchoServer::default()).collect();
    let (peers, _serving) = runtime.block_on(serve(&servers))?;

    process::write(&peers)?;
    // Answers from a thread, because the runtime owns this one. At the end of stdin the parent is gone or has finished.
    std::thread::spawn(move || {
        for _ in std::io::stdin().lock().lines().map_while(Result::ok) {
            let counts: Vec<u64> = servers.iter().map(|server| server.calls.swap(0, Relaxed)).collect();
            if process::write(&counts).is_err() {
                break;
            }
        }
        std::process::exit(0);
    });
    runtime.block_on(std::future::pending())
}

/// Starts everything. The control plane serves as long as the returned `Serving` lives.
async fn serve(servers: &[EchoServer]) -> Result<(Peers, Serving), BoxError> {
    let mut backends = Vec::new();
    for server in servers {
        let listener = TcpListener::bind(LOOPBACK).await?;
        backends.push(listener.local_addr()?);
        // As `serve(address)` does. With Nagle's algorithm a response waits for the ACK of the one before, or does not.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(Server::builder().add_service(server.clone()).serve_with_incoming(incoming));
    }
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(resources(&backends)?);
    let serving = control_plane.listen(LOOPBACK).await?;
    Ok((Peers { backends, ads: serving.local_addr()? }, serving))
}

/// A listener for each number of backends: `echo-1` leads to the first, `echo-3` to all of them; and `echo-armed` to the first.
fn resources(backends: &[SocketAddr]) -> Result<Resources, BoxError> {
    let armed = Resources::from_yaml(include_str!("armed.yaml")).map_err(|error| error.to_string())?;
    let mut resources = armed.with(endpoints("echo-armed", &backends[..1]));
    for (name, backends) in [("echo-1", &backends[..1]), ("echo-3", backends)] {
        resources = resources
            .with(listener(name, name))
            .with(route_config(name, vec![virtual_host("*", name)]))
            .with(cluster_eds(name))
            .with(endpoints(name, backends));
    }
    Ok(resources)
}
