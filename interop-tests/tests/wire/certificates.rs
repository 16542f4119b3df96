//! Certificates for tests, made when they are needed: an authority, and what it signs.
//!
//! It does NOT serve or dial.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};
use tempfile::TempDir;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A certificate authority, and a directory for files.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

/// A certificate with its key.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) der: Vec<u8>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        // Authorities are told apart by their names, and from what they sign.
        let name = format!("authority {}", NEXT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
        let authority = Self { issuer, directory: TempDir::new().expect("a directory") };
        fs::write(authority.path("ca.pem"), authority.pem()).expect("writable");
        authority
    }

    /// The authority's own certificate.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A path in its directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file with the authority's own certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A certificate for a DNS name or an IP address.
    pub(crate) fn issue(&self, name: &str) -> Identity {
        self.sign(Self::params(name))
    }

    /// One that was valid once.
    pub(crate) fn issue_expired(&self, name: &str) -> Identity {
        let mut params = Self::params(name);
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        self.sign(params)
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    fn sign(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        Identity { certificate: certificate.pem(), key: key.serialize_pem(), der: certificate.der().to_vec() }
    }
}

impl Identity {
    /// Puts it where a configuration names it: each file is replaced at once, one after the other.
    pub(crate) fn write(&self, certificate: &Path, key: &Path) {
        for (path, content) in [(certificate, &self.certificate), (key, &self.key)] {
            let next = path.with_extension("next");
            fs::write(&next, content).expect("writable");
            fs::rename(next, path).expect("replaced");
        }
    }
}
