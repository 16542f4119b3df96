//! The process that the clients call: three echo backends and an xDS control plane, all on one core.
//!
//! It is a process of its own so that nothing of it shows in a client's CPU time or heap. On stdin each line asks for
//! the calls that each backend answered since the line before; the end of stdin ends the process. It does NOT measure.

use crate::{
    control_plane::ControlPlane,
    echo::EchoServer,
    machine,
    process::{self, BoxError, Peers},
};
use std::{
    io::BufRead,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

/// As many as the stacks with the most endpoints call.
const BACKENDS: usize = 3;

/// Serves until stdin ends.
pub(crate) fn main() -> Result<(), BoxError> {
    let core: Option<usize> = process::read(&mut std::io::stdin().lock())?;
    machine::pin(core)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let servers: Vec<_> = (0..BACKENDS).map(|_| EchoServer::default()).collect();
    let peers = runtime.block_on(serve(&servers))?;

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

async fn serve(servers: &[EchoServer]) -> Result<Peers, BoxError> {
    let mut backends = Vec::new();
    for server in servers {
        let (address, incoming) = listen().await?;
        tokio::spawn(Server::builder().add_service(server.clone()).serve_with_incoming(incoming));
        backends.push(address);
    }
    let (ads, incoming) = listen().await?;
    let control_plane = ControlPlane::new(&backends).into_service();
    tokio::spawn(Server::builder().add_service(control_plane).serve_with_incoming(incoming));
    Ok(Peers { backends, ads })
}

async fn listen() -> Result<(SocketAddr, TcpListenerStream), BoxError> {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    Ok((listener.local_addr()?, TcpListenerStream::new(listener)))
}
