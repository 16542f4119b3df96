//! Finding the bootstrap: environment, file, and patience with an agent that is still starting.
//!
//! In a pod the agent writes the file and opens its socket while the application is already starting
//! (istio's `holdApplicationUntilProxyStarts` is off by default), so absence is waited for, within a bound. What is
//! there and wrong is an error at once. It does NOT watch the file afterwards: a bootstrap is read once.

use super::{Bootstrap, BootstrapError, ServerAddress};
use crate::later::later;
use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// The path of a file; wins over the other.
pub(super) const PATH_VAR: &str = "GRPC_XDS_BOOTSTRAP";
/// The JSON itself.
pub(super) const INLINE_VAR: &str = "GRPC_XDS_BOOTSTRAP_CONFIG";

/// How often an absent file or socket is looked for.
const POLL: Duration = Duration::from_millis(100);

impl Bootstrap {
    /// Reads the bootstrap that the environment names, waiting up to [`Bootstrap::DEFAULT_WAIT`].
    ///
    /// # Errors
    /// As [`Bootstrap::from_env_within`].
    pub async fn from_env() -> Result<Self, BootstrapError> {
        Self::from_env_within(Self::DEFAULT_WAIT).await
    }

    /// Reads the file that `GRPC_XDS_BOOTSTRAP` names or else the JSON in `GRPC_XDS_BOOTSTRAP_CONFIG`.
    ///
    /// A file, or a Unix socket of the preferred server, that is not there yet is waited for up to `wait`. When the
    /// socket still is not there, the bootstrap is returned all the same: the client goes on dialling.
    ///
    /// # Errors
    /// Any [`BootstrapError`]; a malformed bootstrap without waiting.
    pub async fn from_env_within(wait: Duration) -> Result<Self, BootstrapError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        if let Some(path) = set(PATH_VAR) {
            return Self::from_file(PathBuf::from(path), wait).await;
        }
        let Some(json) = set(INLINE_VAR) else { return Err(BootstrapError::NotConfigured) };
        let bootstrap = Self::parse(&json.to_string_lossy())?;
        bootstrap.wait_for_socket(later(Instant::now(), wait)).await;
        Ok(bootstrap)
    }

    /// Reads a bootstrap file; waits for it and for the socket as [`Bootstrap::from_env_within`] does.
    ///
    /// # Errors
    /// [`BootstrapError::Missing`], [`BootstrapError::Unreadable`] or [`BootstrapError::Invalid`].
    pub async fn from_file(path: impl Into<PathBuf>, wait: Duration) -> Result<Self, BootstrapError> {
        let path = path.into();
        let deadline = later(Instant::now(), wait);
        let bootstrap = Self::parse(&read_when_there(&path, wait, deadline).await?)?;
        bootstrap.wait_for_socket(deadline).await;
        Ok(bootstrap)
    }

    async fn wait_for_socket(&self, deadline: Instant) {
        let Some(ServerAddress::Unix(path)) = self.servers().next().map(|(_, server)| &server.address) else { return };
        while !path.exists() {
            if Instant::now() >= deadline {
                tracing::warn!(socket = %path.display(), "xDS socket is not there yet; dialling goes on");
                return;
            }
            sleep(POLL).await;
        }
    }
}

/// An empty file is one that is about to be written.
async fn read_when_there(path: &Path, wait: Duration, deadline: Instant) -> Result<String, BootstrapError> {
    loop {
        match fs::read_to_string(path) {
            Ok(json) if !json.is_empty() => return Ok(json),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(BootstrapError::Unreadable { path: path.to_owned(), reason: error.to_string() });
            }
            Ok(_) | Err(_) if Instant::now() >= deadline => {
                return Err(BootstrapError::Missing { path: path.to_owned(), waited: wait });
            }
            Ok(_) | Err(_) => sleep(POLL).await,
        }
    }
}
