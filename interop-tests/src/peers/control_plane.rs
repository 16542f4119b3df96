//! go-control-plane: a snapshot cache that was not written here, serving SotW ADS.
//!
//! It does NOT make resources; they are given as protobuf JSON.

use super::{PeerError, Process, setup};
use serde_json::{Value, json};
use tokio::process::Command;

/// A go-control-plane process. Every node gets its one snapshot.
#[derive(Debug)]
pub struct GoControlPlane {
    process: Process,
    address: String,
}

impl GoControlPlane {
    /// Starts one on a free port, with nothing to serve.
    ///
    /// # Errors
    /// It could not be set up or started.
    pub async fn start() -> Result<Self, PeerError> {
        let mut command = Command::new(setup::go().await?);
        command.arg("control-plane");
        let mut process = Process::start("go-control-plane", command)?;
        let address = process.said("ready").await?;
        Ok(Self { process, address })
    }

    /// `host:port` of its ADS.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Serves this snapshot from now on. Each resource is protobuf JSON with its `@type`.
    ///
    /// # Errors
    /// It refused the snapshot: an inconsistent one, or a resource that does not parse.
    pub async fn serve(&mut self, version: &str, resources: &[Value]) -> Result<(), PeerError> {
        self.process.tell(&json!({ "version": version, "resources": resources }).to_string()).await?;
        // NACKs may arrive between command and answer; they are not this call's.
        let applied = format!("applied {version}");
        self.process.line(&applied, |line| (line == applied).then_some(())).await
    }

    /// Waits until a client has judged this version of a type.
    ///
    /// # Errors
    /// It said nothing within 60 s; otherwise the client's NACK is the inner error.
    pub async fn verdict(&mut self, type_url: &str, version: &str) -> Result<Result<(), String>, PeerError> {
        let (ack, nack) = (format!("ack {type_url} {version}"), format!("nack {type_url} "));
        self.process
            .line(&ack, |line| match line.strip_prefix(&nack) {
                Some(message) => Some(Err(message.to_owned())),
                None => (line == ack).then_some(Ok(())),
            })
            .await
    }
}
