//! A control plane of your own: a source of truth on one side, a snapshot for each group of nodes on the other.
//!
//! ```sh
//! $ cargo run -p examples --bin own_control_plane
//! GRPC_XDS_BOOTSTRAP_CONFIG={"xds_servers": ...
//! canary greeter.prod:8080 127.0.0.1:50052
//! ```
//! The source of truth here is standard input; it could be a database or a registry. A line gives a service its addresses
//! for the nodes of one cluster (`node.cluster` of their bootstraps), or, with `*`, for all that have no line of their
//! own. Clients choose between SotW and delta. It does NOT keep anything: see `ControlPlane::watch_dir` for files.

use mesh_xds::control_plane::{
    ControlPlane, Inconsistent, Resources,
    resources::{cluster_eds, endpoints, listener_inline, route_config, virtual_host},
};
use std::{collections::BTreeMap, env, error::Error, net::SocketAddr};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    sync::watch,
};

/// Services with their addresses, by group of nodes.
type World = BTreeMap<String, BTreeMap<String, Vec<SocketAddr>>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:18000".to_owned());
    let control_plane = ControlPlane::builder().node_hash(|node| node.cluster.clone()).build();
    let serving = control_plane.listen(address).await?;
    let server = format!(r#"{{"server_uri": "{}", "channel_creds": [{{"type": "insecure"}}]}}"#, serving.local_addr()?);
    let node = r#"{"id": "example", "cluster": "stable"}"#;
    println!(r#"GRPC_XDS_BOOTSTRAP_CONFIG={{"xds_servers": [{server}], "node": {node}}}"#);

    let mut truth = follow_truth();
    while truth.changed().await.is_ok() {
        let world = truth.borrow_and_update().clone();
        serve(&control_plane, &world)?;
        println!("served to {} streams", control_plane.open_streams());
    }
    // The source is gone; what it said last stays served.
    Ok(tokio::signal::ctrl_c().await?)
}

/// Everything, each time: equal content has equal versions, so that only what changed is sent.
fn serve(control_plane: &ControlPlane, world: &World) -> Result<(), Inconsistent> {
    let common = world.get("*").cloned().unwrap_or_default();
    control_plane.set(resources(&common))?;
    for (group, own) in world.iter().filter(|(group, _)| *group != "*") {
        let mut services = common.clone();
        services.extend(own.clone());
        control_plane.set_for(group, resources(&services))?;
    }
    Ok(())
}

fn resources(services: &BTreeMap<String, Vec<SocketAddr>>) -> Resources {
    services.iter().fold(Resources::default(), |resources, (name, addresses)| {
        resources
            .with(listener_inline(name, route_config(name, vec![virtual_host("*", name)])))
            .with(cluster_eds(name))
            .with(endpoints(name, addresses))
    })
}

/// Watches the source of truth: here, lines of `GROUP SERVICE ADDRESS...`.
fn follow_truth() -> watch::Receiver<World> {
    // Latest wins: whoever serves wants to know how things are.
    let (world, truth) = watch::channel(World::new());
    tokio::spawn(async move {
        let mut lines = BufReader::new(stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut words = line.split_whitespace();
            let (Some(group), Some(service)) = (words.next(), words.next()) else { continue };
            match words.map(str::parse).collect::<Result<Vec<_>, _>>() {
                Ok(addresses) => world.send_modify(|world| {
                    world.entry(group.to_owned()).or_default().insert(service.to_owned(), addresses);
                }),
                Err(error) => eprintln!("{line}: {error}"),
            }
        }
    });
    truth
}
