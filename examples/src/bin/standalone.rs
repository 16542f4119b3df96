//! mesh-xds alone: watches a target and prints what the control plane says of it, for a data plane of your own.
//!
//! ```sh
//! GRPC_XDS_BOOTSTRAP=bootstrap.json cargo run -p examples --bin standalone -- greeter.prod:8080
//! ```
//! It does NOT call anybody.

use mesh_xds::{Bootstrap, Snapshot, Target, TargetName, XdsClient};
use std::{env, error::Error};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [name] = env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "usage: NAME")?;
    let bootstrap = Bootstrap::from_env().await?;
    // The listener is what is asked for; the authority selects the virtual host in its routes.
    let target = TargetName::new(bootstrap.listener_name(&name), name);
    let mut watch = XdsClient::connect(bootstrap).watch(target);
    loop {
        match watch.changed().await? {
            Target::Pending { missing } => println!("{missing}"),
            Target::Failed(reason) => println!("calls would fail: {reason}"),
            Target::Ready(snapshot) => print(&snapshot),
        }
    }
}

/// A snapshot is complete and consistent: every cluster that a route names is in it, or the reason why not.
fn print(snapshot: &Snapshot) {
    let routes = snapshot.virtual_host.as_ref().map_or(0, |host| host.routes.len());
    println!("listener {}: {routes} routes, {} clusters", snapshot.listener_name, snapshot.clusters.len());
    for cluster in snapshot.clusters.values() {
        match &cluster.state {
            Ok(resolved) => {
                let endpoints = resolved.iter().flat_map(|leaf| leaf.endpoints.endpoints());
                let addresses = endpoints.map(|endpoint| endpoint.addresses.first.to_string());
                println!("  {}: {}", cluster.name.as_str(), addresses.collect::<Vec<_>>().join(" "));
            }
            Err(error) => println!("  {}: {error}", cluster.name.as_str()),
        }
    }
}
