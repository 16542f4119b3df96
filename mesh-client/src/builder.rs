//! Settings of a mesh and of a channel, named as tonic's `Endpoint` names them where it has them.

#[cfg(feature = "http1")]
use crate::channel::HttpVersion;
use crate::{
    channel::{CallOptions, MeshChannel},
    endpoint::{DialOptions, Keepalive, MAX_WINDOW},
    filter::{Filter, Makers},
    mesh::{ClusterSettings, Mesh, TargetError},
    retry::{RetryThrottling, Throttle},
};
use http::{HeaderValue, uri::Authority};
use mesh_xds::{Bootstrap, Resolve, TargetName, resource::FilterConfig, resource::OutlierDetection};
use std::{fmt, sync::Arc, time::Duration};
use tokio::runtime::Handle;

/// Builds a [`Mesh`] from a bootstrap that is in hand.
pub struct MeshBuilder {
    bootstrap: Bootstrap,
    filters: Makers,
    outlier_detection: Option<OutlierDetection>,
    runtime: Option<Handle>,
    keeps: Option<Box<dyn Send + Sync>>,
}

impl fmt::Debug for MeshBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshBuilder").field("bootstrap", &self.bootstrap).finish_non_exhaustive()
    }
}

impl MeshBuilder {
    pub(crate) fn new(bootstrap: Bootstrap) -> Self {
        Self { bootstrap, filters: Makers::default(), outlier_detection: None, runtime: None, keeps: None }
    }

    /// Where connections and workers of this mesh run; unset, the runtime that [`build`](Self::build) is called in.
    /// The xDS client has a thread of its own in either case.
    #[must_use]
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Who looks up the names of LOGICAL_DNS and STRICT_DNS clusters, in place of the system's resolver.
    #[must_use]
    pub fn resolver(mut self, resolver: impl Resolve) -> Self {
        self.bootstrap = self.bootstrap.with_resolver(resolver);
        self
    }

    /// Which endpoints get no calls for a while, for how their calls end, in clusters that do not say (`outlier_detection`,
    /// A50), for all channels of this mesh that do not say otherwise ([`ChannelBuilder::outlier_detection`]), those of
    /// [`Mesh::http_client`] too. Istio's control plane tells gRPC clients nothing of the kind.
    ///
    /// ```
    /// # use mesh_client::{MeshBuilder, outlier_detection::{Consecutive, OutlierDetection}};
    /// # fn build(builder: MeshBuilder) {
    /// let five_in_a_row = OutlierDetection { consecutive_5xx: Some(Consecutive::after(5)), ..OutlierDetection::default() };
    /// let mesh = builder.outlier_detection(five_in_a_row).build();
    /// # }
    /// ```
    #[must_use]
    pub fn outlier_detection(mut self, detection: OutlierDetection) -> Self {
        self.outlier_detection = Some(detection);
        self
    }

    /// An HTTP filter of your own: listeners may name it by the type URL of its configuration `C`, and routes may give it
    /// another one (A39). `make` is called for each configuration that comes; the filter stays in use while that stays.
    ///
    /// Meshes that understand different filters have ADS streams of their own.
    ///
    /// ```
    /// # use mesh_client::{Filter, FilterRequest, MeshBuilder, Reply, Verdict};
    /// # use mesh_xds::resource::{FilterConfig, Invalid};
    /// /// What our control plane sends: the one host that may be called.
    /// #[derive(Debug, PartialEq)]
    /// struct OnlyHost(String);
    ///
    /// impl FilterConfig for OnlyHost {
    ///     const TYPE_URL: &'static str = "type.googleapis.com/example.OnlyHost";
    ///
    ///     fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
    ///         String::from_utf8(bytes.to_vec()).map(Self).map_err(|error| Invalid::new(error.to_string()))
    ///     }
    /// }
    ///
    /// struct HostCheck(String);
    ///
    /// impl Filter for HostCheck {
    ///     fn request<'a>(&'a self, request: &'a mut FilterRequest<'_>) -> Verdict<'a> {
    ///         match request.head().uri.host() {
    ///             Some(host) if host == self.0 => Verdict::Continue,
    ///             _ => Verdict::Reply(Reply::new(http::StatusCode::FORBIDDEN, "another host")),
    ///         }
    ///     }
    /// }
    ///
    /// # fn build(builder: MeshBuilder) {
    /// let mesh = builder.filter(|config: &OnlyHost| HostCheck(config.0.clone())).build();
    /// # }
    /// ```
    #[must_use]
    pub fn filter<C, F>(mut self, make: impl Fn(&C) -> F + Send + Sync + 'static) -> Self
    where
        C: FilterConfig,
        F: Filter,
    {
        self.bootstrap = self.bootstrap.with_filter::<C>();
        self.filters.add(make);
        self
    }

    /// Something that lives as long as the mesh.
    #[cfg(feature = "testing")]
    pub(crate) fn keeping(mut self, keeps: impl Send + Sync + 'static) -> Self {
        self.keeps = Some(Box::new(keeps));
        self
    }

    /// Joins the mesh.
    ///
    /// # Panics
    /// When called outside a tokio runtime and without [`runtime`](Self::runtime).
    pub fn build(self) -> Mesh {
        let runtime = self.runtime.unwrap_or_else(Handle::current);
        Mesh::start(self.bootstrap, self.filters, self.outlier_detection.map(Arc::new), runtime, self.keeps)
    }
}

/// Builds a [`MeshChannel`]; made by [`Mesh::channel_builder`].
#[derive(Debug)]
pub struct ChannelBuilder {
    mesh: Mesh,
    target: String,
    authority: Option<String>,
    user_agent: Option<HeaderValue>,
    config_timeout: Duration,
    #[cfg(feature = "http1")]
    http_protocol: HttpVersion,
    max_pending: u32,
    outlier_detection: Option<Arc<OutlierDetection>>,
    retries: bool,
    retry_throttling: Option<RetryThrottling>,
    dial: DialOptions,
    keepalive: Keepalive,
    keepalive_interval: Option<Duration>,
}

impl ChannelBuilder {
    pub(crate) fn new(mesh: Mesh, target: String) -> Self {
        let outlier_detection = mesh.outlier_detection();
        Self {
            mesh,
            target,
            authority: None,
            user_agent: None,
            config_timeout: Duration::from_secs(30),
            #[cfg(feature = "http1")]
            http_protocol: HttpVersion::default(),
            max_pending: 1024,
            outlier_detection,
            retries: true,
            retry_throttling: None,
            dial: DialOptions::default(),
            keepalive: Keepalive {
                interval: Duration::MAX,
                // gRPC's default (A8).
                timeout: Duration::from_secs(20),
                while_idle: false,
            },
            keepalive_interval: None,
        }
    }

    /// `:authority` of every request without a [`CallAuthority`](crate::CallAuthority); unset, the target's name. Routing is not affected: the target's name chooses
    /// the virtual host.
    #[must_use]
    pub fn authority(mut self, authority: impl Into<String>) -> Self {
        self.authority = Some(authority.into());
        self
    }

    /// `user-agent` of gRPC calls that have none.
    #[must_use]
    pub fn user_agent(mut self, value: HeaderValue) -> Self {
        self.user_agent = Some(value);
        self
    }

    /// How long a call waits for the first configuration when neither an error nor its deadline ends the wait;
    /// 30 s unless set.
    #[must_use]
    pub fn config_timeout(mut self, timeout: Duration) -> Self {
        self.config_timeout = timeout;
        self
    }

    /// HTTP version of requests that are not gRPC, for clusters that do not say; HTTP/1.1 unless set, as in Envoy.
    #[cfg(feature = "http1")]
    #[must_use]
    pub fn http_protocol(mut self, version: HttpVersion) -> Self {
        self.http_protocol = version;
        self
    }

    /// How many calls to one cluster may wait for a connection at once, where the cluster does not say
    /// (`max_pending_requests`); 1024 unless set, as in Envoy. One more fails UNAVAILABLE.
    #[must_use]
    pub fn max_pending_requests(mut self, max: u32) -> Self {
        self.max_pending = max;
        self
    }

    /// Retry policies have no effect. Calls that no server has seen are still repeated (A6: transparent retries).
    #[must_use]
    pub fn disable_retries(mut self) -> Self {
        self.retries = false;
        self
    }

    /// Stops the retries of gRPC calls while too many of this channel's calls fail (A6); off unless set.
    #[must_use]
    pub fn retry_throttling(mut self, throttling: RetryThrottling) -> Self {
        self.retry_throttling = Some(throttling);
        self
    }

    /// Which endpoints get no calls for a while, for how their calls end, in clusters that do not say (`outlier_detection`,
    /// A50); unset, what [`MeshBuilder::outlier_detection`] says.
    #[must_use]
    pub fn outlier_detection(mut self, detection: OutlierDetection) -> Self {
        self.outlier_detection = Some(Arc::new(detection));
        self
    }

    /// How long a dial may take, HTTP/2 settings included; 20 s unless set. A cluster's own `connect_timeout` wins.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.dial.connect_timeout = timeout;
        self
    }

    /// Sends an HTTP/2 PING whenever this much time has passed; off unless set (A8). At least 10 s is advised: servers
    /// answer more frequent ones with GOAWAY (`too_many_pings`).
    #[must_use]
    pub fn http2_keep_alive_interval(mut self, interval: Duration) -> Self {
        self.keepalive_interval = Some(interval);
        self
    }

    /// How long the answer to a keepalive PING may take before the connection is given up; 20 s unless set.
    #[must_use]
    pub fn keep_alive_timeout(mut self, timeout: Duration) -> Self {
        self.keepalive.timeout = timeout;
        self
    }

    /// Whether keepalive PINGs are sent while no call is in flight; `false` unless set (A8).
    #[must_use]
    pub fn keep_alive_while_idle(mut self, enabled: bool) -> Self {
        self.keepalive.while_idle = enabled;
        self
    }

    /// HTTP/2 flow-control window of a stream, in bytes; 2 MiB unless set, and 2 GiB at most.
    #[must_use]
    pub fn initial_stream_window_size(mut self, bytes: u32) -> Self {
        self.dial.stream_window = bytes.min(MAX_WINDOW);
        self
    }

    /// HTTP/2 flow-control window of a connection, in bytes; 2 GiB, its maximum, unless set, so that slow readers slow
    /// down nobody else.
    #[must_use]
    pub fn initial_connection_window_size(mut self, bytes: u32) -> Self {
        self.dial.connection_window = bytes.min(MAX_WINDOW);
        self
    }

    /// Most bytes of response headers; 64 KiB unless set.
    #[must_use]
    pub fn http2_max_header_list_size(mut self, bytes: u32) -> Self {
        self.dial.max_header_list_size = bytes;
        self
    }

    /// Makes the channel. Nothing is waited for.
    ///
    /// # Errors
    /// When the target is neither `xds:///name`, or `xds:name`, nor `xds://authority/name` with an authority of the
    /// bootstrap (A47), or when the authority for requests is not one.
    pub fn build(self) -> Result<MeshChannel, TargetError> {
        let (xds_authority, name) = target_name(&self.target)?;
        let listener = self.mesh.listener_name(xds_authority, name);
        let listener = listener.ok_or_else(|| TargetError::Authority(self.target.clone()))?;
        let authority = match self.authority {
            Some(authority) => {
                Authority::try_from(authority.as_str()).map_err(|_| TargetError::InvalidAuthority(authority))?
            }
            None => Authority::try_from(percent_encoded(name))
                .map_err(|_| TargetError::InvalidAuthority(name.to_owned()))?,
        };
        let keepalive = self.keepalive_interval.map(|interval| Keepalive { interval, ..self.keepalive });
        let options = CallOptions {
            authority,
            config_timeout: self.config_timeout,
            #[cfg(feature = "http1")]
            http_protocol: self.http_protocol,
            user_agent: self
                .user_agent
                .unwrap_or(HeaderValue::from_static(concat!("grpc-rust-mesh/", env!("CARGO_PKG_VERSION")))),
            retries: self.retries,
            retry_throttle: self.retry_throttling.map(|throttling| Arc::new(Throttle::new(throttling))),
        };
        let settings = ClusterSettings {
            dial: DialOptions { keepalive, ..self.dial },
            max_pending: self.max_pending,
            outlier_detection: self.outlier_detection,
        };
        self.mesh.open(TargetName::new(listener, name), options, settings)
    }
}

/// Authority and name in `xds:///name` or `xds://authority/name`; without `//` there is no authority (RFC 3986).
fn target_name(target: &str) -> Result<(Option<&str>, &str), TargetError> {
    let scheme = || TargetError::Scheme(target.to_owned());
    let rest = target.strip_prefix("xds:").ok_or_else(scheme)?;
    let (authority, name) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_once('/').ok_or_else(scheme)?,
        // "If a gRPC client channel is created for `xds:server.example.com`" - A47.
        None => ("", rest.strip_prefix('/').unwrap_or(rest)),
    };
    if name.is_empty() { Err(scheme()) } else { Ok((Some(authority).filter(|it| !it.is_empty()), name)) }
}

/// A target's name as an authority: what RFC 3986 does not allow there is escaped, as gRPC does.
fn percent_encoded(name: &str) -> String {
    name.bytes().fold(String::with_capacity(name.len()), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => encoded.push(char::from(byte)),
            _ if b"-._~!$&'()*+,;=:[]@".contains(&byte) => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_xds_with_or_without_an_authority() {
        assert_eq!(target_name("xds:///echo.demo:7070"), Ok((None, "echo.demo:7070")));
        assert_eq!(target_name("xds:server.example.com"), Ok((None, "server.example.com")));
        assert_eq!(target_name("xds:/server.example.com"), Ok((None, "server.example.com")));
        assert_eq!(target_name("xds://other/a/b"), Ok((Some("other"), "a/b")));
        assert_eq!(target_name("dns:///x"), Err(TargetError::Scheme("dns:///x".into())));
        assert_eq!(target_name("xds:"), Err(TargetError::Scheme("xds:".into())));
        assert_eq!(target_name("xds:///"), Err(TargetError::Scheme("xds:///".into())));
        assert_eq!(target_name("xds://other"), Err(TargetError::Scheme("xds://other".into())));
    }

    #[test]
    fn names_that_are_no_authority_are_escaped() {
        assert_eq!(percent_encoded("echo.demo:7070"), "echo.demo:7070");
        assert_eq!(percent_encoded("a|b c"), "a%7Cb%20c");
    }
}
