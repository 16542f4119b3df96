//! The bodies of a call through `RetryLayer`: the request's, which may be sent again, and the response's, whose end counts.
//!
//! They do NOT decide anything.

use super::Throttle;
use crate::upload::{BodyFailed, LentBody};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

type BoxError = Box<dyn Error + Send + Sync>;

// === RetryBody ===

pin_project! {
    /// The body of a response: the service's. Whether a gRPC call succeeded is known at its end.
    #[derive(Debug)]
    pub struct RetryBody<R> {
        #[pin]
        inner: R,
        // Of a gRPC call, where there is throttling.
        throttle: Option<Arc<Throttle>>,
    }
}

impl<R> RetryBody<R> {
    pub(super) fn new(inner: R, throttle: Option<Arc<Throttle>>) -> Self {
        Self { inner, throttle }
    }
}

impl<R: Body> Body for RetryBody<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
            && let Some(throttle) = this.throttle.take()
        {
            throttle.ended(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === ReplayBody ===

/// A request body that may be sent again.
#[derive(Debug)]
pub struct ReplayBody<B>(LentBody<B>);

impl<B> ReplayBody<B> {
    pub(super) fn new(lent: LentBody<B>) -> Self {
        Self(lent)
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body<Error: fmt::Display> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.0).poll_frame(cx).map_err(|error: BodyFailed| error.into())
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
