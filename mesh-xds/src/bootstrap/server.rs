//! One entry of `xds_servers`: an address, and what the server is known to do.
//!
//! `server_uri` comes in many spellings (gRPC name syntax, plain `host:port`, URLs); all of them end up as one of
//! four kinds of address. Names stay names: they are looked up at every dial, NOT here.

use super::{CallCredentials, ChannelCredentials, TransportOptions};
use crate::{in_process::InProcess, resource::Invalid, tls::TlsConfig};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// A57's does-not-exist timer, and A88's for servers whose timer is transient.
const DOES_NOT_EXIST: Duration = Duration::from_secs(15);
const TRANSIENT: Duration = Duration::from_secs(30);

/// Of gRPC's names, whatever the credentials are.
const DEFAULT_PORT: u16 = 443;

/// One control plane: where it is, what it is known to do, and how to speak with it.
///
/// ```
/// use mesh_xds::{Bootstrap, ServerAddress, XdsServer};
/// let server = XdsServer::new(ServerAddress::parse("127.0.0.1:18000").unwrap()).delta().feature("fail_on_data_errors");
/// let bootstrap = Bootstrap::builder().server(server).build()?;
/// # Ok::<(), mesh_xds::BootstrapError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct XdsServer {
    pub(crate) address: ServerAddress,
    pub(crate) credentials: ChannelCredentials,
    pub(crate) call_credentials: Vec<CallCredentials>,
    pub(crate) features: Vec<Feature>,
}

impl XdsServer {
    /// A control plane at `address`, which speaks SotW ADS, in plaintext.
    pub fn new(address: impl Into<ServerAddress>) -> Self {
        Self {
            address: address.into(),
            credentials: ChannelCredentials::Insecure,
            call_credentials: Vec::new(),
            features: Vec::new(),
        }
    }

    /// Speaks delta (incremental) ADS with it. In a bootstrap file: `"server_features": ["delta_ads"]`.
    pub fn delta(self) -> Self {
        self.feature("delta_ads")
    }

    /// Dials it with TLS; [`TlsConfig`] says whom to trust and who we are. In a bootstrap file: `channel_creds` of type `tls`
    /// (A65).
    ///
    /// ```
    /// use mesh_xds::{ServerAddress, TlsConfig, XdsServer};
    /// // istiod without its agent.
    /// let address = ServerAddress::parse("istiod.istio-system.svc:15012").unwrap();
    /// let istiod = XdsServer::new(address)
    ///     .tls(TlsConfig::new().ca_certificate_file("/var/run/secrets/istio/root-cert.pem"))
    ///     .jwt_token_file("/var/run/secrets/tokens/istio-token");
    /// # let _ = istiod;
    /// ```
    pub fn tls(mut self, config: TlsConfig) -> Self {
        self.credentials = ChannelCredentials::Tls(config);
        self
    }

    /// Sends the JWT in this file with each stream, as `authorization: Bearer`. It is read again around its expiry, and
    /// never sent in plaintext: without [`tls`](Self::tls) nothing is dialled. In a bootstrap file: `call_creds` of type
    /// `jwt_token_file` (A97).
    pub fn jwt_token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.call_credentials.push(CallCredentials::JwtTokenFile(path.into()));
        self
    }

    /// A `server_features` entry. Those that mean nothing here are ignored, as in the JSON.
    pub fn feature(mut self, feature: &str) -> Self {
        self.features.extend(Feature::parse(feature).filter(|known| !self.features.contains(known)));
        self
    }

    /// Which variant of ADS it speaks.
    pub(crate) fn transport(&self) -> Transport {
        if self.features.contains(&Feature::DeltaAds) { Transport::Delta } else { Transport::Sotw }
    }

    /// Whether it may say under which authority endpoints are called (A81).
    pub(crate) fn is_trusted(&self) -> bool {
        self.features.contains(&Feature::TrustedXdsServer)
    }

    pub(crate) fn resource_timeout(&self, options: &TransportOptions) -> Duration {
        let transient = self.features.contains(&Feature::ResourceTimerIsTransient);
        let usual = if transient { TRANSIENT } else { DOES_NOT_EXIST };
        options.resource_timeout.unwrap_or(usual)
    }
}

impl<A: Into<ServerAddress>> From<A> for XdsServer {
    fn from(address: A) -> Self {
        Self::new(address)
    }
}

impl fmt::Display for XdsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// Names a server within one bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub(super) usize);

impl ServerId {
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

/// A variant of ADS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// State of the world: `StreamAggregatedResources`.
    Sotw,
    /// Incremental: `DeltaAggregatedResources`.
    Delta,
}

/// The `server_features` that change what the client does. The others (`xds_v3`, `ignore_resource_deletion`,
/// which is A88's default) mean nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    /// A88: a deletion or an invalid update drops what was good.
    FailOnDataErrors,
    /// A88: the does-not-exist timer is 30 s and means UNAVAILABLE.
    ResourceTimerIsTransient,
    /// A81: it may say under which authority endpoints are called.
    TrustedXdsServer,
    /// The server is asked by the incremental variant of ADS. The gRFCs have no word for it.
    DeltaAds,
}

impl Feature {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "delta_ads" => Some(Self::DeltaAds),
            "trusted_xds_server" => Some(Self::TrustedXdsServer),
            "fail_on_data_errors" => Some(Self::FailOnDataErrors),
            // The gRFC's text and the implementations disagree about the last word.
            "resource_timer_is_transient_error" | "resource_timer_is_transient_failure" => {
                Some(Self::ResourceTimerIsTransient)
            }
            _ => None,
        }
    }
}

/// Where a control plane is.
///
/// ```
/// use mesh_xds::ServerAddress;
/// let name = ServerAddress::Name { host: "istiod.istio-system.svc".to_owned(), port: 15010 };
/// assert_eq!(ServerAddress::parse("dns:///istiod.istio-system.svc:15010"), Ok(name));
/// assert_eq!(ServerAddress::parse("unix:///etc/istio/proxy/XDS"), Ok(ServerAddress::Unix("/etc/istio/proxy/XDS".into())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerAddress {
    /// A DNS name, looked up at every dial; all its addresses are tried.
    Name {
        /// Without brackets or port.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// Literal addresses, tried in order.
    Sockets(Vec<SocketAddr>),
    /// A Unix socket.
    Unix(PathBuf),
    /// A control plane in this process.
    InProcess(InProcess),
}

impl ServerAddress {
    /// Reads a `server_uri`: `host:port`, `http://host:port`, `dns:///host:port`, `ipv4:a.b.c.d:port`,
    /// `ipv6:[..]:port`, `unix:path`, `unix:///path`. Without a port it is 443, as in gRPC; with `http:` 80.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub fn parse(uri: &str) -> Result<Self, Invalid> {
        let refuse = |why: &str| Invalid::new(format!("{uri:?}: {why}"));
        if let Some(rest) = uri.strip_prefix("unix:") {
            // `unix://` must be followed by an absolute path (gRPC naming); `unix:` takes any.
            let path = rest.strip_prefix("//").unwrap_or(rest);
            return match path {
                "" => Err(refuse("no path")),
                path => Ok(Self::Unix(PathBuf::from(path))),
            };
        }
        if let Some(list) = uri.strip_prefix("ipv4:").or_else(|| uri.strip_prefix("ipv6:")) {
            let sockets: Option<Vec<SocketAddr>> = list.split(',').map(|text| socket(text, DEFAULT_PORT)).collect();
            return sockets.map(Self::Sockets).ok_or_else(|| refuse("must be addresses"));
        }
        if let Some(rest) = uri.strip_prefix("dns:") {
            // `dns://authority/name`: another resolver than the system's is not ours to ask.
            let name = match rest.strip_prefix("//") {
                Some(rest) => match rest.split_once('/') {
                    Some(("", name)) => name,
                    _ => return Err(refuse("a DNS server in the URI is not supported")),
                },
                None => rest,
            };
            return host_port(name, DEFAULT_PORT).ok_or_else(|| refuse("must be host:port"));
        }
        if let Some(rest) = uri.strip_prefix("http://") {
            return host_port(rest.trim_end_matches('/'), 80).ok_or_else(|| refuse("must be http://host:port"));
        }
        match uri.split_once("://") {
            // An address cannot say that TLS is meant, and plaintext is not.
            Some(("https", _)) => Err(refuse("https:// needs TLS credentials: `tls` channel_creds, or XdsServer::tls")),
            Some((scheme, _)) => Err(refuse(&format!("scheme {scheme:?} is not supported"))),
            None => host_port(uri, DEFAULT_PORT).ok_or_else(|| refuse("must be host:port")),
        }
    }
}

/// Literal addresses become sockets at once, so that they need no lookup.
fn host_port(text: &str, default_port: u16) -> Option<ServerAddress> {
    if let Some(socket) = socket(text, default_port) {
        return Some(ServerAddress::Sockets(vec![socket]));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (text, default_port),
    };
    let usable = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    usable.then(|| ServerAddress::Name { host: host.to_owned(), port })
}

/// An address with a port or without; with one, that of IPv6 is in brackets.
fn socket(text: &str, default_port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = || bare.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, default_port));
    text.parse().ok().or_else(address)
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Sockets(sockets) => {
                for (index, socket) in sockets.iter().enumerate() {
                    write!(f, "{}{socket}", if index == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::InProcess(server) => write!(f, "{server:?}"),
        }
    }
}

impl From<InProcess> for ServerAddress {
    fn from(server: InProcess) -> Self {
        Self::InProcess(server)
    }
}
