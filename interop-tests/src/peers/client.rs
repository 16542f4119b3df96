//! Foreign xDS clients (C-core, grpc-go and grpc-js) that call the interop suite's TestService on command.
//!
//! They exist to judge our control plane and our backends. They do NOT share code with each other; only their commands
//! are the same.

use super::{PeerError, Process, backend, setup};
use serde_json::Value;
use std::{collections::BTreeMap, net::SocketAddr};
use tokio::process::Command;

/// Which implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Grpc {
    /// C-core, through grpcio.
    Core,
    /// grpc-go.
    Go,
    /// grpc-js with grpc-js-xds.
    Js,
}

/// A running xDS client.
#[derive(Debug)]
pub struct ForeignClient {
    process: Process,
    csds: String,
}

impl ForeignClient {
    /// Starts a client for `target` (`xds:///name`) with this bootstrap.
    ///
    /// # Errors
    /// It could not be set up or started.
    pub async fn start(implementation: Grpc, target: &str, bootstrap: &Value) -> Result<Self, PeerError> {
        let (name, mut command) = match implementation {
            Grpc::Core => ("C-core xDS client", backend::script("xds_client.py").await?),
            Grpc::Go => {
                let mut command = Command::new(setup::go().await?);
                command.arg("client").env("GRPC_GO_LOG_SEVERITY_LEVEL", "warning");
                ("grpc-go xDS client", command)
            }
            Grpc::Js => {
                let mut command = Command::new("node");
                command.env("NODE_PATH", setup::node().await?).arg(setup::sources("node").join("xds_client.js"));
                command.env("SUITE_PROTOS", concat!(env!("CARGO_MANIFEST_DIR"), "/proto"));
                ("grpc-js xDS client", command)
            }
        };
        command.arg(target).env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string()).env_remove("GRPC_XDS_BOOTSTRAP");
        // A97 is still behind a switch there.
        command.env("GRPC_EXPERIMENTAL_XDS_BOOTSTRAP_CALL_CREDS", "true");
        let mut process = Process::start(name, command)?;
        let csds = process.said("ready").await?;
        Ok(Self { process, csds })
    }

    /// `host:port` of its CSDS, served by its own implementation.
    pub fn csds(&self) -> &str {
        &self.csds
    }

    /// Makes `calls` calls, one after the other: how many each hostname answered. Failures are under their message.
    ///
    /// # Errors
    /// The process has ended or hangs.
    pub async fn call(&mut self, calls: usize) -> Result<BTreeMap<String, u64>, PeerError> {
        self.process.tell(&calls.to_string()).await?;
        let pick = |line: &str| serde_json::from_str(line.strip_prefix("called ")?).ok();
        self.process.line("called {..}", pick).await
    }
}

/// What an implementation's messages make of the CSDS at `address`: JSON, with every resource unpacked, as operators'
/// tools print it.
///
/// # Errors
/// It could not be set up or started, was refused, or got what its JSON has no words for.
pub async fn read_csds(implementation: Grpc, address: SocketAddr) -> Result<Value, PeerError> {
    let mut command = match implementation {
        Grpc::Core => backend::script("csds.py").await?,
        Grpc::Go => {
            let mut command = Command::new(setup::go().await?);
            command.arg("csds");
            command
        }
        Grpc::Js => {
            let (step, reason) = ("reading CSDS".to_owned(), "nobody needed a reader for it yet".to_owned());
            return Err(PeerError::Setup { peer: "Node", step, reason });
        }
    };
    command.arg(address.to_string());
    let mut process = Process::start("CSDS reader", command)?;
    process.line("config {..}", |line| serde_json::from_str(line.strip_prefix("config ")?).ok()).await
}
