//! The endpoints: a child process that answers on every address of 127.0.0.0/8, and the resources that name them.
//!
//! It does NOT serve calls; a connection is enough.

use crate::BoxError;
use envoy_types::pb::google::protobuf::UInt32Value;
use mesh_client::EndpointReport;
use mesh_xds::control_plane::{
    Resources,
    resources::{cluster_eds, endpoints, listener, route_config, virtual_host},
};
use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
};
use tokio::net::TcpListener;

/// What the endpoints are to their cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One serves; all others have the next priority.
    Spare,
    /// All serve.
    Live,
}

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spare => "spare",
            Self::Live => "live",
        }
    }
}

/// The child process, and what the control plane says of it.
pub(crate) struct Endpoints {
    shape: Shape,
    first: SocketAddr,
    addresses: Vec<SocketAddr>,
    next: u32,
    /// Of the one in the middle.
    weight: u32,
    child: Child,
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Endpoints {
    pub(crate) fn start(shape: Shape, count: usize) -> Result<Self, BoxError> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("endpoints")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("its stdout is piped")?).read_line(&mut line)?;
        let port = line.trim().parse()?;
        let mut endpoints =
            Self { shape, first: (Ipv4Addr::LOCALHOST, port).into(), addresses: Vec::new(), next: 1, weight: 1, child };
        for _ in 0..count {
            let address = endpoints.another();
            endpoints.addresses.push(address);
        }
        Ok(endpoints)
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn count(&self) -> usize {
        self.addresses.len()
    }

    pub(crate) fn expected_connections(&self) -> usize {
        match self.shape {
            Shape::Spare => 1,
            Shape::Live => self.addresses.len() + 1,
        }
    }

    /// Whether a status shows what the resources say.
    pub(crate) fn are(&self, reports: &[EndpointReport]) -> bool {
        let newest = self.addresses.iter().max();
        reports.len() == self.addresses.len() + 1
            && reports.iter().map(|report| &report.address).max() == newest.max(Some(&self.first))
    }

    // === Changes ===

    pub(crate) fn change_one(&mut self) {
        let middle = self.addresses.len() / 2;
        self.addresses[middle] = self.another();
    }

    pub(crate) fn reweigh_one(&mut self) {
        self.weight += 1;
    }

    pub(crate) fn remove_one(&mut self) {
        self.addresses.remove(self.addresses.len() / 2);
    }

    /// An address that none has had yet, above all others.
    fn another(&mut self) -> SocketAddr {
        self.next += 1;
        (Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + self.next), self.first.port()).into()
    }

    // === Resources ===

    pub(crate) fn only_one(&self) -> Resources {
        Self::service().with(endpoints("scale", &[self.first]))
    }

    pub(crate) fn resources(&self) -> Resources {
        Self::service().with(self.assignment())
    }

    fn service() -> Resources {
        Resources::default()
            .with(listener("scale", "scale"))
            .with(route_config("scale", vec![virtual_host("*", "scale")]))
            .with(cluster_eds("scale"))
    }

    fn assignment(&self) -> envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment {
        let mut all = endpoints("scale", &[&[self.first][..], &self.addresses].concat());
        if self.shape == Shape::Spare {
            let mut spare = endpoints("scale", &self.addresses).endpoints;
            for locality in &mut spare {
                locality.priority = 1;
            }
            all.endpoints = endpoints("scale", &[self.first]).endpoints;
            all.endpoints.extend(spare);
        }
        let middle = self.addresses.len() / 2;
        if let Some(endpoint) = all.endpoints.last_mut().and_then(|most| most.lb_endpoints.get_mut(middle)) {
            endpoint.load_balancing_weight = Some(UInt32Value { value: self.weight });
        }
        all
    }
}

/// The child: holds every connection that is made to it, until its stdin ends.
pub(crate) fn serve() -> Result<(), BoxError> {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        println!("{}", listener.local_addr()?.port());
        loop {
            let (socket, _) = listener.accept().await?;
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                while connection.accept().await.is_some() {}
            });
        }
    })
}
