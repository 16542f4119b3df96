//! C-core backends: grpcio servers with the interop suite's TestService.
//!
//! They do NOT know `rpc-behavior`; they are there because their HTTP/2 was not written here.

use super::{PeerError, Process, setup};
use std::net::SocketAddr;
use tokio::process::Command;

/// A running grpcio server.
#[derive(Debug)]
pub struct CoreBackend {
    process: Process,
    address: SocketAddr,
}

impl CoreBackend {
    /// Starts one that answers as `hostname`, on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// It could not be set up or started.
    pub async fn start(hostname: &str) -> Result<Self, PeerError> {
        let mut command = script("backend.py").await?;
        command.arg(hostname);
        let mut process = Process::start("C-core backend", command)?;
        let ready = |line: &str| line.strip_prefix("ready ")?.parse().ok();
        let address = process.line("ready ADDRESS", ready).await?;
        Ok(Self { process, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many calls it has answered.
    ///
    /// # Errors
    /// The process has ended or hangs.
    pub async fn answered(&mut self) -> Result<u64, PeerError> {
        self.process.tell("count").await?;
        self.process.line("count N", |line| line.strip_prefix("count ")?.parse().ok()).await
    }

    /// Stops it gracefully, as C-core does: GOAWAY, then the calls in flight end.
    ///
    /// # Errors
    /// The process has ended or hangs.
    pub async fn drain(&mut self) -> Result<(), PeerError> {
        self.process.tell("drain").await?;
        self.process.said("drained").await.map(drop)
    }
}

/// A script of `peers/python`, in the virtual environment.
pub(super) async fn script(name: &str) -> Result<Command, PeerError> {
    let mut command = Command::new(&setup::python().await?.interpreter);
    command.arg(setup::sources("python").join(name));
    command.env("SUITE_DESCRIPTORS", concat!(env!("OUT_DIR"), "/suite.bin")).env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(command)
}
