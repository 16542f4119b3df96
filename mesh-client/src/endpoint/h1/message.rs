//! What goes over a connection of the pool, in HTTP/1.1's forms: the request, its body, and the body of the response.
//!
//! hyper parses and frames. This file does NOT know where connections come from; it gives them back.

use super::{
    super::{RecvFailure, SendFailure},
    pool::{Pooled, Shared},
};
use crate::upload::{BodyFailed, Head};
use bytes::Bytes;
use http::{HeaderValue, Request, Uri, Version, header, uri::PathAndQuery};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    fmt, mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

/// The request in HTTP/1.1's form: origin-form target, and the authority as `host`.
pub(super) fn request(head: &mut Head) -> Result<Request<()>, SendFailure> {
    let mut request = head.give();
    *request.version_mut() = Version::HTTP_11;
    let uri = mem::take(request.uri_mut()).into_parts();
    if let Some(authority) = uri.authority {
        let host = HeaderValue::try_from(authority.as_str());
        let host = host.map_err(|error| SendFailure::Invalid(error.to_string()))?;
        request.headers_mut().insert(header::HOST, host);
    }
    *request.uri_mut() = Uri::from(uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Ok(request)
}

/// The request body as hyper takes it: one type for every caller's, because a pooled connection serves them all.
pub(super) struct ErasedBody(Pin<Box<dyn Body<Data = Bytes, Error = BodyFailed> + Send>>);

impl ErasedBody {
    pub(super) fn new(body: impl Body<Data = Bytes, Error = BodyFailed> + Send + 'static) -> Self {
        Self(Box::pin(body))
    }
}

impl Body for ErasedBody {
    type Data = Bytes;
    type Error = BodyFailed;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailed>>> {
        self.0.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

// === RecvBody ===

/// A response body with the connection that it is read from.
pub(crate) struct RecvBody {
    body: Incoming,
    lease: Option<Lease>,
    ended: bool,
}

/// The connection, until the response is over.
pub(super) struct Lease {
    pub(super) connection: Box<Pooled>,
    /// hyper has let go of the request body: all of it was written, or the server wants no more.
    pub(super) written: Arc<AtomicBool>,
    pub(super) pool: Arc<Shared>,
}

impl fmt::Debug for RecvBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("h1::RecvBody").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl RecvBody {
    pub(super) fn new(body: Incoming, lease: Lease) -> Self {
        Self { body, lease: Some(lease), ended: false }
    }

    pub(in super::super) fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    pub(in super::super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    pub(in super::super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RecvFailure>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.ended = true;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| RecvFailure::Io(error.to_string()))))
    }
}

impl Drop for RecvBody {
    fn drop(&mut self) {
        // Only a connection on which nothing is left to do can be used again. An upload that goes on after its response
        // ends with it, as over HTTP/2.
        if let Some(Lease { connection, written, pool }) = self.lease.take()
            && self.is_end_stream()
            && written.load(Ordering::Acquire)
        {
            pool.give_back(connection);
        }
    }
}
