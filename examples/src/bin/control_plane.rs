//! A small control plane: services and their addresses come in on standard input, clients follow.
//!
//! ```sh
//! $ cargo run -p examples --bin control_plane
//! GRPC_XDS_BOOTSTRAP_CONFIG={"xds_servers": ...
//! greeter.prod:8080 127.0.0.1:50051 127.0.0.1:50052
//! ```
//! A line replaces a service's addresses; without addresses, the service goes. It does NOT keep anything on disk: see
//! `ControlPlane::watch_dir` for that.

use mesh_xds::control_plane::{ControlPlane, Event, EventReceiver, Resources, Verdict};
use std::{collections::BTreeMap, env, error::Error, net::SocketAddr};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:18000".to_owned());
    let control_plane = ControlPlane::new();
    let serving = control_plane.listen(address).await?;
    let server = format!(r#"{{"server_uri": "{}", "channel_creds": [{{"type": "insecure"}}]}}"#, serving.local_addr()?);
    println!(r#"GRPC_XDS_BOOTSTRAP_CONFIG={{"xds_servers": [{server}], "node": {{"id": "example"}}}}"#);
    tokio::spawn(report(control_plane.events()));

    let mut services = BTreeMap::<String, Vec<SocketAddr>>::new();
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else { continue };
        match words.map(str::parse).collect::<Result<Vec<_>, _>>() {
            Ok(addresses) if addresses.is_empty() => drop(services.remove(name)),
            Ok(addresses) => drop(services.insert(name.to_owned(), addresses)),
            Err(error) => eprintln!("{line}: {error}"),
        }
        // Everything, each time: what did not change is not sent again.
        control_plane.set(
            services
                .iter()
                .fold(Resources::default(), |resources, (name, addresses)| resources.with_service(name, addresses)),
        )?;
    }
    // The input is over; clients may stay.
    Ok(tokio::signal::ctrl_c().await?)
}

/// Says what the clients do.
async fn report(mut events: EventReceiver) {
    while let Ok(event) = events.recv().await {
        match event {
            Event::StreamOpened { stream, .. } => println!("stream {stream} opened"),
            Event::Request { node, names, verdict: Verdict::Request, .. } => println!("{node} asks for {names:?}"),
            Event::Request { node, verdict: Verdict::Nack { message }, .. } => println!("{node} refuses: {message}"),
            Event::StreamClosed { stream, .. } => println!("stream {stream} closed"),
            _ => {}
        }
    }
}
