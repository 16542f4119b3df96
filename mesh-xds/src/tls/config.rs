//! What a client asks of TLS to its control plane: the `tls` channel credentials (A65), as a value.
//!
//! Made by the bootstrap's parser and by code alike. Nothing is read before the first dial, so a `TlsConfig` says what was
//! asked for, NOT that the files are there.

use super::{Connector, Provider, REFRESH_INTERVAL, Roots, Source, Sources, Store};
use rustls::crypto::CryptoProvider;
use std::{path::PathBuf, sync::Arc, time::Duration};

/// TLS to a control plane: whom to trust, and who we are.
///
/// Without a CA the system's roots are trusted; the server's certificate must be valid for the host that is dialled
/// (its name or IP address; `localhost` on a Unix socket). With a certificate and its key, they are shown to a server
/// that asks for them (mTLS). Files are read at the first dial and again every [`refresh_interval`](Self::refresh_interval):
/// new dials use what is new, open connections stay. A file that cannot be read, or a key that does not fit its
/// certificate, is warned of, and the last good state stays in use; before there is a good one, dials fail and say why.
/// There is no fallback to plaintext.
///
/// ```
/// use mesh_xds::TlsConfig;
/// let tls = TlsConfig::new()
///     .ca_certificate_file("/var/run/secrets/istio/root-cert.pem")
///     .identity_files("/var/lib/istio/data/cert-chain.pem", "/var/lib/istio/data/key.pem");
/// # let _ = tls;
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct TlsConfig {
    sources: Sources,
    refresh_interval: Duration,
    provider: Provider,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl TlsConfig {
    /// The system's roots, no certificate of our own.
    pub fn new() -> Self {
        Self {
            sources: Sources { identity: None, roots: Some(Roots::System) },
            refresh_interval: REFRESH_INTERVAL,
            provider: Provider::default(),
        }
    }

    /// Trusts the certificates in this PEM file, and no others.
    pub fn ca_certificate_file(self, path: impl Into<PathBuf>) -> Self {
        self.with_roots(Source::File(path.into()))
    }

    /// Trusts the certificates in this PEM, and no others.
    pub fn ca_certificate_pem(self, pem: impl AsRef<[u8]>) -> Self {
        self.with_roots(Source::Pem(pem.as_ref().into()))
    }

    /// Shows the chain in the first PEM file, with the private key in the second.
    pub fn identity_files(self, certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        self.with_identity(Source::File(certificate.into()), Source::File(private_key.into()))
    }

    /// Shows the chain in the first PEM, with the private key in the second.
    pub fn identity_pem(self, certificate: impl AsRef<[u8]>, private_key: impl AsRef<[u8]>) -> Self {
        self.with_identity(Source::Pem(certificate.as_ref().into()), Source::Pem(private_key.as_ref().into()))
    }

    /// How often files are read again; 10 minutes unless set.
    pub fn refresh_interval(mut self, interval: Duration) -> Self {
        self.refresh_interval = interval;
        self
    }

    /// Does the cryptography with this provider of rustls 0.23, instead of the one that the cargo features `tls-ring`
    /// (which wins when both are on) and `tls-aws-lc` bring.
    pub fn with_provider(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.provider = provider.into();
        self
    }

    pub(crate) fn provider_unless_set(&mut self, provider: &Arc<CryptoProvider>) {
        if self.provider == Provider::default() {
            self.provider = Arc::clone(provider).into();
        }
    }

    fn with_roots(mut self, roots: Source) -> Self {
        self.sources.roots = Some(Roots::Pem(roots));
        self
    }

    fn with_identity(mut self, certificate: Source, private_key: Source) -> Self {
        self.sources.identity = Some((certificate, private_key));
        self
    }

    /// Starts reading.
    ///
    /// # Errors
    /// Without a crypto provider.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) fn connector(&self) -> Result<Connector, String> {
        let provider = self.provider.resolve()?;
        let store = Store::spawn(self.sources.clone(), Arc::clone(&provider), self.refresh_interval);
        Ok(Connector::new(store, provider))
    }
}
