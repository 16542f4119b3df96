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

use mesh_xds::control_plane::{ControlPlane, Inconsistent, Resources};
use std::{collections::BTreeMap, env, error::Error, net::SocketAddr};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

/// Services with their addresses.
type Services = BTreeMap<String, Vec<SocketAddr>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:18000".to_owned());
    let control_plane = ControlPlane::builder().node_hash(|node| node.cluster.clone()).build();
    let serving = control_plane.listen(address).await?;
    let server = format!(r#"{{"server_uri": "{}", "channel_creds": [{{"type": "insecure"}}]}}"#, serving.local_addr()?);
    let node = r#"{"id": "example", "cluster": "stable"}"#;
    println!(r#"GRPC_XDS_BOOTSTRAP_CONFIG={{"xds_servers": [{server}], "node": {node}}}"#);

    let mut groups = BTreeMap::new();
    let mut truth = BufReader::new(stdin()).lines();
    while let Some(line) = truth.next_line().await? {
        match learn(&mut groups, &line) {
            Ok(()) => serve(&control_plane, &groups)?,
            Err(error) => eprintln!("{line}: {error}"),
        }
    }
    // The source is gone; what it said last stays served.
    Ok(tokio::signal::ctrl_c().await?)
}

/// Reads what has become of one service: here, a line of `GROUP SERVICE ADDRESS...`.
fn learn(groups: &mut BTreeMap<String, Services>, line: &str) -> Result<(), Box<dyn Error>> {
    let mut words = line.split_whitespace();
    let group = words.next().ok_or("no group")?;
    let service = words.next().ok_or("no service")?;
    let addresses = words.map(str::parse).collect::<Result<_, _>>()?;
    groups.entry(group.to_owned()).or_default().insert(service.to_owned(), addresses);
    Ok(())
}

/// Everything, each time: equal content has equal versions, so that only what changed is sent.
fn serve(control_plane: &ControlPlane, groups: &BTreeMap<String, Services>) -> Result<(), Inconsistent> {
    let common = groups.get("*").cloned().unwrap_or_default();
    control_plane.set(resources(&common))?;
    for (group, own) in groups.iter().filter(|(group, _)| *group != "*") {
        let mut services = common.clone();
        services.extend(own.clone());
        control_plane.set_for(group, resources(&services))?;
    }
    Ok(())
}

fn resources(services: &Services) -> Resources {
    services.iter().fold(Resources::default(), |all, (name, addresses)| all.with_service(name, addresses))
}
