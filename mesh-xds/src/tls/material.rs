//! PEM ─► what rustls works with: an identity whose key fits its certificate, and roots to trust.
//!
//! A [`Material`] in hand is usable; whatever is wrong with a file ends here, with the file's name. It does NOT keep
//! anything between two reads but the bytes of the last good one.

use super::source::{Contents, Source};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use std::sync::Arc;

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sources {
    /// Certificate chain and private key: always both.
    pub(crate) identity: Option<(Source, Source)>,
    /// `None`: the peer is asked for nothing, as by a server without client certificates.
    pub(crate) roots: Option<Roots>,
}

/// Who vouches for the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    /// "system-wide root certs" - A65.
    System,
    /// A bundle of certificates.
    Pem(Source),
}

/// What was read, parsed and found to fit together.
#[derive(Clone, Debug)]
pub(crate) struct Material {
    pub(crate) identity: Option<Arc<CertifiedKey>>,
    /// Empty only where none were asked for.
    pub(crate) roots: Arc<RootCertStore>,
}

/// Reads [`Sources`] again and again.
pub(super) struct Reader {
    sources: Sources,
    provider: Arc<CryptoProvider>,
    /// Of the last good read.
    contents: Option<Contents>,
}

impl Reader {
    pub(super) fn new(sources: Sources, provider: Arc<CryptoProvider>) -> Self {
        Self { sources, provider, contents: None }
    }

    /// Reads; `None` when the bytes are those of the last good read ("unchanged bytes -> no update"). Blocks.
    ///
    /// # Errors
    /// What is wrong, and with which file.
    pub(super) fn read(&mut self) -> Result<Option<Material>, String> {
        let pair = self.sources.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        let bundle = match &self.sources.roots {
            Some(Roots::Pem(bundle)) => Some(bundle),
            Some(Roots::System) | None => None,
        };
        let contents = Contents::read(&pair.chain(bundle).collect::<Vec<_>>())?;
        if self.contents.as_ref() == Some(&contents) {
            return Ok(None);
        }
        let mut pieces = contents.clone().into_pieces();
        let mut next = || pieces.next().unwrap_or_default();
        let identity = match &self.sources.identity {
            None => None,
            Some(files) => Some(Arc::new(identity(files, &next(), &next(), &self.provider)?)),
        };
        let roots = match &self.sources.roots {
            None => RootCertStore::empty(),
            Some(Roots::System) => system_roots()?,
            Some(Roots::Pem(bundle)) => roots(bundle, &next())?,
        };
        self.contents = Some(contents);
        Ok(Some(Material { identity, roots: Arc::new(roots) }))
    }
}

fn identity(
    (chain_file, key_file): &(Source, Source),
    chain: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, String> {
    let chain = certificates(chain_file, chain)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("{key_file}: no private key: {error}"))?;
    // Loads the key and compares its public half with the leaf's.
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => format!("{key_file} is not the private key of {chain_file}"),
        error => format!("{key_file}: {error}"),
    })
}

/// A bundle may hold a certificate that nobody can use beside good ones, as bundles of distributions do.
fn roots(file: &Source, pem: &[u8]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    match store.add_parsable_certificates(certificates(file, pem)?) {
        (0, _) => Err(format!("{file}: no certificate that can be a trust anchor")),
        _ => Ok(store),
    }
}

fn certificates(file: &Source, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match all.map_err(|error| format!("{file}: {error}"))? {
        none if none.is_empty() => Err(format!("{file}: no certificate")),
        some => Ok(some),
    }
}

fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    match store.add_parsable_certificates(found.certs) {
        (0, _) => {
            let causes: String = found.errors.iter().map(|error| format!("; {error}")).collect();
            Err(format!("this system has no root certificates: name a CA file (ca_certificate_file){causes}"))
        }
        _ => Ok(store),
    }
}
