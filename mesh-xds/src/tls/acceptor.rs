//! The server's half of a handshake: what a TLS server shows and asks for, and a socket ─► TLS from a client.
//!
//! The rustls configuration is made once per material, so that clients may resume their sessions until a rotation and
//! not across it. It does NOT listen, and does NOT decide what a client with a certificate may do.

use super::{ALPN, Provider, REFRESH_INTERVAL, Roots, Source, Sources, Store, material::Material};
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// TLS of a server: the certificate that it shows, and what it asks of its clients.
///
/// Files are read when serving begins, which fails if they are not good, and again every
/// [`refresh_interval`](Self::refresh_interval): new connections get what is new, and what cannot be read changes nothing.
///
/// ```
/// use mesh_xds::control_plane::{ClientCertificates, TlsServerConfig};
/// let mtls = TlsServerConfig::from_files("/etc/xds/tls.crt", "/etc/xds/tls.key")
///     .client_ca_file("/etc/xds/clients.crt", ClientCertificates::Required);
/// # let _ = mtls;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct TlsServerConfig {
    sources: Sources,
    client_certificates: ClientCertificates,
    refresh_interval: Duration,
    provider: Provider,
}

/// Whether a client may come without a certificate. One that is shown must be good either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// It is asked for one, and may have none.
    Optional,
    /// It must show one.
    Required,
}

impl TlsServerConfig {
    /// Shows the chain in the first PEM file, with the private key in the second.
    pub fn from_files(certificate: impl Into<PathBuf>, private_key: impl Into<PathBuf>) -> Self {
        Self::new(Source::File(certificate.into()), Source::File(private_key.into()))
    }

    /// Shows the chain in the first PEM, with the private key in the second.
    pub fn from_pem(certificate: impl AsRef<[u8]>, private_key: impl AsRef<[u8]>) -> Self {
        Self::new(Source::Pem(certificate.as_ref().into()), Source::Pem(private_key.as_ref().into()))
    }

    fn new(certificate: Source, private_key: Source) -> Self {
        Self {
            sources: Sources { identity: Some((certificate, private_key)), roots: None },
            client_certificates: ClientCertificates::Optional,
            refresh_interval: REFRESH_INTERVAL,
            provider: Provider::default(),
        }
    }

    /// Asks clients for a certificate that this PEM file vouches for.
    pub fn client_ca_file(self, path: impl Into<PathBuf>, certificates: ClientCertificates) -> Self {
        self.with_client_ca(Source::File(path.into()), certificates)
    }

    /// Asks clients for a certificate that this PEM vouches for.
    pub fn client_ca_pem(self, pem: impl AsRef<[u8]>, certificates: ClientCertificates) -> Self {
        self.with_client_ca(Source::Pem(pem.as_ref().into()), certificates)
    }

    fn with_client_ca(mut self, ca: Source, certificates: ClientCertificates) -> Self {
        self.sources.roots = Some(Roots::Pem(ca));
        self.client_certificates = certificates;
        self
    }

    /// How often files are read again; 10 minutes unless set.
    pub fn refresh_interval(mut self, interval: Duration) -> Self {
        self.refresh_interval = interval;
        self
    }

    /// Does the cryptography with this provider of rustls 0.23, instead of the one that the cargo features bring.
    pub fn with_provider(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.provider = provider.into();
        self
    }

    /// Reads the files.
    ///
    /// # Errors
    /// Without a crypto provider, or when a file is not good.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) async fn acceptor(&self) -> Result<Acceptor, String> {
        let provider = self.provider.resolve()?;
        let store = Store::spawn(self.sources.clone(), Arc::clone(&provider), self.refresh_interval);
        let asks = self.sources.roots.is_some().then_some(self.client_certificates);
        let acceptor = Acceptor { store, provider, asks, current: Mutex::default() };
        acceptor.config().await?;
        Ok(acceptor)
    }
}

/// Accepts TLS with what one store holds.
#[derive(Debug)]
pub(crate) struct Acceptor {
    store: Store,
    provider: Arc<CryptoProvider>,
    /// `None`: clients are not asked for certificates.
    asks: Option<ClientCertificates>,
    current: Mutex<Option<(Arc<Material>, Arc<ServerConfig>)>>,
}

impl Acceptor {
    /// Shakes hands. Without a time limit of its own.
    ///
    /// # Errors
    /// What rustls has against the peer, or the peer against us.
    pub(crate) async fn accept<T>(&self, io: T) -> Result<TlsStream<T>, String>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config().await?;
        match TlsAcceptor::from(config).accept(io).into_fallible().await {
            Ok(stream) => Ok(stream),
            Err((error, mut io)) => {
                // A client may have sent its first request by now. To close over that resets the connection, and takes
                // the alert away that says what was wrong. The caller's time limit bounds this.
                if io.shutdown().await.is_ok() {
                    let _ = tokio::io::copy(&mut io, &mut tokio::io::sink()).await;
                }
                Err(error.to_string())
            }
        }
    }

    async fn config(&self) -> Result<Arc<ServerConfig>, String> {
        let material = self.store.material().await.map_err(|cause| cause.to_string())?;
        // One thing is stored as a whole, so a panic would leave it whole.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_of, config)) = &*current
            && Arc::ptr_eq(made_of, &material)
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.make(&material)?);
        *current = Some((material, Arc::clone(&config)));
        Ok(config)
    }

    fn make(&self, material: &Material) -> Result<ServerConfig, String> {
        let identity = material.identity.clone().ok_or("a TLS server needs a certificate")?;
        let config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(self.verifier(material)?);
        let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }

    fn verifier(&self, material: &Material) -> Result<Arc<dyn ClientCertVerifier>, String> {
        let Some(asks) = self.asks else { return Ok(Arc::new(NoClientAuth)) };
        let (roots, provider) = (Arc::clone(&material.roots), Arc::clone(&self.provider));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
        let verifier = match asks {
            ClientCertificates::Optional => verifier.allow_unauthenticated(),
            ClientCertificates::Required => verifier,
        };
        verifier.build().map(|verifier| verifier as _).map_err(|error| error.to_string())
    }
}
