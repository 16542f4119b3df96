//! A client for many hosts, as hyper-util's: the request's `host:port` names the target.
//!
//! Channels are made on demand, shared by all clones, dropped when nobody used them for half an hour, and bounded in
//! number. A host that the mesh does not know is an error, as any other target without configuration. This file does
//! NOT route: each host is a [`MeshChannel`].

use crate::{
    call::ResponseBody,
    channel::{MeshChannel, ResponseFuture},
    error::{Cause, MeshError, ReplyForm},
    mesh::{Mesh, TargetError},
};
use http::{Request, Response, Uri};
use http_body::Body;
use rustc_hash::FxHashMap;
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;
use tower_service::Service;

/// After this much time without a call a host's channel is dropped (gRPC's channel idle timeout).
const IDLE: Duration = Duration::from_secs(30 * 60);

/// Most hosts at once; one more evicts the one that was used longest ago.
const MAX_HOSTS: usize = 4096;

/// An HTTP client of the mesh; made by [`Mesh::http_client`]. Cheap to clone.
///
/// The URI must be absolute; 80 or 443 is filled in where it has no port, and `http://catalog.prod:8080/items` calls
/// the target `xds:///catalog.prod:8080`. Failures are responses 503 or 504 with the [`MeshError`] as an extension.
#[derive(Clone)]
pub struct HttpClient {
    mesh: Mesh,
    hosts: Arc<Mutex<Hosts>>,
}

#[derive(Default)]
struct Hosts {
    channels: FxHashMap<String, Host>,
    swept: Option<Instant>,
}

struct Host {
    channel: MeshChannel,
    used: Instant,
}

impl HttpClient {
    pub(crate) fn new(mesh: Mesh) -> Self {
        Self { mesh, hosts: Arc::default() }
    }

    /// Sends a request; the response arrives with its headers, its body as it is read.
    ///
    /// # Errors
    /// [`Cause::InvalidRequest`] when the URI has no host, or one that cannot be a target. Every other failure is a
    /// response.
    pub async fn request<B>(&self, request: Request<B>) -> Result<Response<ResponseBody>, MeshError>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        self.send(request)?.await
    }

    fn send<B>(&self, request: Request<B>) -> Result<ResponseFuture, MeshError>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        let error = |cause| MeshError::new(cause, self.mesh.node_id().into());
        let target = target(request.uri()).map_err(|reason| error(Cause::InvalidRequest(reason)))?;
        match self.channel(target) {
            Ok(mut channel) => Ok(channel.call(request)),
            Err(TargetError::ShuttingDown) => {
                Ok(ResponseFuture::ready(error(Cause::ShuttingDown).into_response(ReplyForm::of(request.headers()))))
            }
            Err(invalid) => Err(error(Cause::InvalidRequest(invalid.to_string()))),
        }
    }

    fn channel(&self, target: String) -> Result<MeshChannel, TargetError> {
        let now = Instant::now();
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.sweep(now);
        if let Some(host) = hosts.channels.get_mut(&target) {
            host.used = now;
            return Ok(host.channel.clone());
        }
        let channel = self.mesh.channel(&format!("xds:///{target}"))?;
        hosts.channels.insert(target, Host { channel: channel.clone(), used: now });
        Ok(channel)
    }
}

impl Hosts {
    /// Drops channels that were not used for long; at most once a minute, unless there are too many.
    fn sweep(&mut self, now: Instant) {
        let due = self.swept.is_none_or(|swept| now - swept >= Duration::from_secs(60));
        if due {
            self.channels.retain(|_, host| now - host.used < IDLE);
            self.swept = Some(now);
        }
        if self.channels.len() >= MAX_HOSTS
            && let Some(oldest) = self.channels.iter().min_by_key(|(_, host)| host.used).map(|(name, _)| name.clone())
        {
            self.channels.remove(&oldest);
        }
    }
}

/// `host:port`, lower case.
fn target(uri: &Uri) -> Result<String, String> {
    let host = uri.host().ok_or_else(|| format!("{uri}: the URI must be absolute"))?;
    let port = match (uri.port_u16(), uri.scheme_str()) {
        (Some(port), _) => port,
        (None, Some("https")) => 443,
        (None, _) => 80,
    };
    Ok(format!("{}:{port}", host.to_ascii_lowercase()))
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for HttpClient
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: fmt::Display,
{
    type Response = Response<ResponseBody>;
    type Error = MeshError;
    type Future = ResponseFuture;

    /// Always ready, as [`MeshChannel`] is.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), MeshError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        self.send(request).unwrap_or_else(|error| ResponseFuture::ready(error.into_response(ReplyForm::Http)))
    }
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn a_uri_names_host_and_port() {
        let target = |uri: &str| target(&uri.parse().unwrap());
        assert_eq!(target("http://Catalog.prod:8080/items"), Ok("catalog.prod:8080".into()));
        assert_eq!(target("http://catalog.prod/items"), Ok("catalog.prod:80".into()));
        assert_eq!(target("https://catalog.prod"), Ok("catalog.prod:443".into()));
        assert!(target("/items").is_err());
    }
}
