//! The client's half of a handshake: a socket ─► TLS to the server that was meant.
//!
//! Each dial makes its rustls configuration of the newest material, so that no session that an older certificate
//! opened is resumed. The server is held to the ordinary rules: a chain to the roots, valid now, for the host that
//! was dialled. It does NOT open sockets, and does NOT set a time limit.

use super::{ALPN, Store, material::Material};
use rustls::{ClientConfig, crypto::CryptoProvider, pki_types::ServerName, sign::SingleCertAndKey};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Dials TLS with what one store holds.
#[derive(Debug)]
pub(crate) struct Connector {
    store: Store,
    provider: Arc<CryptoProvider>,
}

impl Connector {
    pub(super) fn new(store: Store, provider: Arc<CryptoProvider>) -> Self {
        Self { store, provider }
    }

    /// Shakes hands with the server that `host`, a DNS name or an IP address, must be.
    ///
    /// # Errors
    /// The cause, for people: no material, or what rustls has against the peer.
    pub(crate) async fn connect<T>(&self, host: &str, io: T) -> Result<TlsStream<T>, String>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let material = self.store.material().await.map_err(|cause| format!("TLS: {cause}"))?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("TLS: {host:?}: {error}"))?;
        let config = self.config(&material).map_err(|error| format!("TLS: {error}"))?;
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, io);
        let stream = connecting.await.map_err(|error| format!("TLS: {error}"))?;
        match stream.get_ref().1.alpn_protocol() {
            Some(ALPN) => Ok(stream),
            // gRPC does the same: whatever answers there, it has not agreed to speak HTTP/2.
            _ => Err("TLS: the server did not agree on h2 (ALPN)".to_owned()),
        }
    }

    fn config(&self, material: &Material) -> Result<ClientConfig, rustls::Error> {
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(Arc::clone(&material.roots));
        let mut config = match &material.identity {
            Some(identity) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(identity)))),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}
