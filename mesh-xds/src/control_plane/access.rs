//! Who may open a stream: a check of the caller's own, asked once per call, before anything is read of it.
//!
//! Behind TLS it sees the certificates that the handshake has verified, and always the request's metadata, such as a
//! bearer token. What a good token is, is the check's to know and NOT this file's.

use super::{ControlPlane, server::lock, wire::Ads};
use http::{HeaderMap, header::AUTHORIZATION};
use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{
    Status,
    codegen::{Body, BoxFuture, Service, StdError},
};

/// Somebody who wants to open a stream.
#[derive(Debug)]
pub struct Caller<'a> {
    metadata: &'a HeaderMap,
    peer: &'a Peer,
}

impl Caller<'_> {
    /// The request's metadata.
    pub fn metadata(&self) -> &HeaderMap {
        self.metadata
    }

    /// The token of `authorization: Bearer <token>`.
    ///
    /// ```
    /// use mesh_xds::control_plane::ControlPlane;
    /// use tonic::Status;
    /// let control_plane = ControlPlane::new();
    /// control_plane.check_callers(|caller| match caller.bearer_token() {
    ///     Some("let me in") => Ok(()),
    ///     _ => Err(Status::unauthenticated("not without the word")),
    /// });
    /// ```
    pub fn bearer_token(&self) -> Option<&str> {
        let mut values = self.metadata.get_all(AUTHORIZATION).iter().filter_map(|value| value.to_str().ok());
        values.find_map(|value| value.strip_prefix("Bearer "))
    }

    /// The certificate chain that the client has shown, verified, as DER, the leaf first; empty without one.
    pub fn certificates(&self) -> &[Vec<u8>] {
        &self.peer.certificates
    }

    /// Whether the stream comes over TLS.
    pub fn is_encrypted(&self) -> bool {
        self.peer.is_encrypted
    }
}

/// What the connection tells of the client.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) is_encrypted: bool,
    pub(super) certificates: Vec<Vec<u8>>,
}

type Check = dyn Fn(&Caller<'_>) -> Result<(), Status> + Send + Sync;

/// The check that is asked, if there is one; shared by the clones of a control plane.
#[derive(Clone, Default)]
pub(super) struct Access(Arc<std::sync::Mutex<Option<Arc<Check>>>>);

impl Access {
    fn admits(&self, caller: &Caller<'_>) -> Result<(), Status> {
        let check = lock(&self.0).clone();
        check.map_or(Ok(()), |check| check(caller))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("is_checked", &lock(&self.0).is_some()).finish()
    }
}

impl ControlPlane {
    /// Asks `check` about everybody who opens a stream from now on, and refuses with the status that it returns:
    /// UNAUTHENTICATED for a bad token, say. Streams that are open stay.
    pub fn check_callers(&self, check: impl Fn(&Caller<'_>) -> Result<(), Status> + Send + Sync + 'static) {
        *lock(&self.access().0) = Some(Arc::new(check));
    }
}

/// The services of one connection, behind the check.
#[derive(Clone, Debug)]
pub(super) struct Guarded {
    pub(super) services: Ads,
    pub(super) access: Access,
    pub(super) peer: Arc<Peer>,
}

impl<B> Service<http::Request<B>> for Guarded
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<B>>::poll_ready(&mut self.services, cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        match self.access.admits(&Caller { metadata: request.headers(), peer: &self.peer }) {
            Ok(()) => self.services.call(request),
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}
