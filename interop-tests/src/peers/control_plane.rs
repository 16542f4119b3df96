//! go-control-plane: a snapshot cache that was not written here, serving ADS in SotW and delta.
//!
//! It does NOT make resources; they are given as protobuf JSON.

use super::{PeerError, Process, setup};
use serde_json::{Value, json};
use std::path::Path;
use tokio::process::Command;

/// A go-control-plane process. Every node gets its one snapshot.
#[derive(Debug)]
pub struct GoControlPlane {
    process: Process,
    address: String,
    /// What it said so far, oldest first.
    said: Vec<String>,
}

impl GoControlPlane {
    /// Starts one on a free port, with nothing to serve.
    ///
    /// # Errors
    /// It could not be set up or started.
    pub async fn start() -> Result<Self, PeerError> {
        Self::start_with([]).await
    }

    /// The same with mutual TLS: its certificate, its key, and the CA of its clients, as PEM files.
    ///
    /// # Errors
    /// It could not be set up or started.
    pub async fn start_mtls(files: [&Path; 3]) -> Result<Self, PeerError> {
        Self::start_with(files).await
    }

    async fn start_with<const N: usize>(arguments: [&Path; N]) -> Result<Self, PeerError> {
        let mut command = Command::new(setup::go().await?);
        command.arg("control-plane").args(arguments);
        let mut process = Process::start("go-control-plane", command)?;
        let address = process.said("ready").await?;
        Ok(Self { process, address, said: Vec::new() })
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
        let applied = format!("applied {version}");
        self.until(&applied, |line| (line == applied).then_some(())).await
    }

    /// Waits until a client has judged this version of a type; any NACK of the type counts as its verdict.
    ///
    /// # Errors
    /// It said nothing within 60 s; otherwise the client's NACK is the inner error.
    pub async fn verdict(&mut self, type_url: &str, version: &str) -> Result<Result<(), String>, PeerError> {
        let (ack, nack) = (format!("ack {type_url} {version}"), format!("nack {type_url} "));
        self.until(&ack, |line| match line.strip_prefix(&nack) {
            Some(message) => Some(Err(message.to_owned())),
            None => (line == ack).then_some(Ok(())),
        })
        .await
    }

    /// Waits until a delta response of this type took this name away.
    ///
    /// # Errors
    /// It said nothing within 60 s.
    pub async fn removal(&mut self, type_url: &str, name: &str) -> Result<(), PeerError> {
        let (delta, removed) = (format!("delta {type_url} "), format!("[{name}] removed"));
        let expected = format!("{delta}.. {removed}");
        self.until(&expected, |line| (line.starts_with(&delta) && line.ends_with(&removed)).then_some(())).await
    }

    /// What its delta responses had so far: a type, and how many resources. Those that it sent before what was last waited
    /// for are there.
    pub fn deltas(&self) -> Vec<(String, usize)> {
        let delta = |line: &String| {
            let (type_url, rest) = line.strip_prefix("delta ")?.split_once(' ')?;
            Some((type_url.to_owned(), rest.split(' ').next()?.parse().ok()?))
        };
        self.said.iter().filter_map(delta).collect()
    }

    /// The first line from which `pick` makes something, among those that were said already or will be.
    async fn until<T>(&mut self, expected: &str, pick: impl Fn(&str) -> Option<T>) -> Result<T, PeerError> {
        let mut heard = 0;
        loop {
            if let Some(picked) = self.said[heard..].iter().find_map(|line| pick(line)) {
                return Ok(picked);
            }
            heard = self.said.len();
            self.said.push(self.process.line(expected, |line| Some(line.to_owned())).await?);
        }
    }
}
