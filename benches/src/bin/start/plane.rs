//! The control plane: a child process with one route for each cluster, which changes one assignment every 100 ms.
//!
//! It does NOT measure.

use crate::{BoxError, TARGET};
use mesh_xds::control_plane::{
    ControlPlane, Resources,
    resources::{cluster_eds, endpoints, listener, route, route_config, to_cluster, virtual_host_with},
};
use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::{runtime::Builder, time::sleep};

/// Endpoints of each assignment.
const ENDPOINTS: u32 = 10;

/// The child process. Dropping it ends it.
pub(crate) struct Plane {
    child: Child,
    address: SocketAddr,
}

impl Plane {
    pub(crate) fn start(count: usize) -> Result<Self, BoxError> {
        let command = [String::from("plane"), count.to_string()];
        let mut child = Command::new(std::env::current_exe()?).args(command).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("its stdout is piped")?).read_line(&mut line)?;
        Ok(Self { child, address: line.trim().parse()? })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs in the child.
pub(crate) fn serve(count: usize) -> Result<(), BoxError> {
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let control_plane = ControlPlane::new();
        let mut resources = Resources::default();
        let name = |n: usize| format!("cluster-{n}.prod.svc.cluster.local");
        let routes = (0..count).map(|n| route(&format!("/service-{n}/"), to_cluster(&name(n)))).collect();
        resources.insert(listener(TARGET, "routes"));
        resources.insert(route_config("routes", vec![virtual_host_with("*", routes)]));
        for n in 0..count {
            resources.insert(cluster_eds(&name(n)));
            resources.insert(endpoints(&name(n), &addresses(n, 0)));
        }
        control_plane.set_unchecked(resources.clone());
        let serving = control_plane.listen((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("{}", serving.local_addr()?);
        let mut version = 0;
        loop {
            sleep(Duration::from_millis(100)).await;
            let last = name(count - 1);
            // Changes begin when everything is out.
            control_plane.wait_for_ack(mesh_xds::resource::Kind::Endpoints.type_url(), &last).await;
            version += 1;
            resources.insert(endpoints(&name(count / 2), &addresses(count / 2, version)));
            control_plane.set_unchecked(resources.clone());
        }
    })
}

/// The endpoints of a cluster; the first one's port tells the version.
fn addresses(cluster: usize, version: u16) -> Vec<SocketAddr> {
    let host = |n: u32| Ipv4Addr::from(0x0a00_0000 + cluster as u32 * ENDPOINTS + n);
    (0..ENDPOINTS).map(|n| (host(n), if n == 0 { 8080 + version } else { 8080 }).into()).collect()
}
