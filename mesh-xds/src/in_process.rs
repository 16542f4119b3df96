//! A control plane in this very process: dialled through a pipe, without a socket.
//!
//! Laptops and unit tests use the same YAML and the same ADS stream as production, only the transport is a pair
//! of in-memory pipes. This file does NOT speak ADS; it only carries bytes.

use std::{fmt, io, sync::Arc};
use tokio::{
    io::DuplexStream,
    sync::mpsc::{self, error::TrySendError},
};

/// Where to dial a control plane that runs in this process. Cheap to clone; equal when it is the same control plane.
#[derive(Clone)]
pub struct InProcess {
    name: Arc<str>,
    dials: mpsc::Sender<DuplexStream>,
}

impl InProcess {
    /// A dialling end and the accepting end for a server. `name` is for messages.
    pub fn new(name: impl Into<Arc<str>>) -> (Self, mpsc::Receiver<DuplexStream>) {
        // 16 dials may wait for the server's accept loop; one more is refused, as a full listen backlog would.
        let (dials, accepted) = mpsc::channel(16);
        (Self { name: name.into(), dials }, accepted)
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// `ConnectionRefused` when the server is gone or its backlog is full.
    pub fn dial(&self) -> io::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        match self.dials.try_send(theirs) {
            Ok(()) => Ok(ours),
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("in-process control plane {} refused", self.name),
            )),
        }
    }
}

impl PartialEq for InProcess {
    fn eq(&self, other: &Self) -> bool {
        self.dials.same_channel(&other.dials)
    }
}

impl Eq for InProcess {}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InProcess({})", self.name)
    }
}
