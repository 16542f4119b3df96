//! Timeouts on any HTTP service, without a control plane: the rules of the mesh, by the same code.
//!
//! It does NOT limit pauses, and where a route would be asked it has one configuration for all calls.

use super::{Deadline, GRPC_TIMEOUT, Limits, grpc_timeout, limit, own_limit};
use crate::{
    error::{Cause, ReplyForm},
    reply::{Reply, ReplyBody},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

type BoxError = Box<dyn Error + Send + Sync>;

/// How long calls may take, responses included. Unset and zero are no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// For requests that are not gRPC, as `RouteAction.timeout`; but from the begin of the call on, since a layer does not see
    /// where a request ends.
    pub timeout: Option<Duration>,
    /// For all calls, as `RouteAction.max_stream_duration.max_stream_duration` (A31): a call's own limit may be shorter.
    pub max_stream_duration: Option<Duration>,
    /// Wins over that for gRPC calls, as `RouteAction.max_stream_duration.grpc_timeout_header_max` (A31).
    pub grpc_timeout_header_max: Option<Duration>,
}

/// Ends the calls of a service that take too long: a tower layer (A31; Envoy's `timeout` for what is not gRPC).
///
/// A gRPC call ends DEADLINE_EXCEEDED, and the server is told its deadline; another request gets a response 504. A response
/// that has begun ends with trailers, or with an error of its body.
///
/// Above a [`RetryLayer`](crate::retry::RetryLayer) the limit is that of all attempts, and each of them is told what is left of
/// it; below, it is that of each attempt, or what is left of the call's own.
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Empty;
/// use mesh_client::timeout::{TimeoutLayer, Timeouts};
/// use std::time::Duration;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let timeouts = Timeouts { timeout: Some(Duration::from_millis(10)), ..Timeouts::default() };
/// let service = ServiceBuilder::new()
///     .layer(TimeoutLayer::new(timeouts))
///     .service(service_fn(async |_: Request<Empty<Bytes>>| {
///         std::future::pending::<Result<Response<Empty<Bytes>>, std::convert::Infallible>>().await
///     }));
///
/// assert_eq!(service.oneshot(Request::new(Empty::new())).await.unwrap().status(), 504);
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TimeoutLayer(Limits);

impl TimeoutLayer {
    /// A layer with these limits.
    pub fn new(timeouts: Timeouts) -> Self {
        Self(Limits {
            // Unset would be Envoy's 15 s.
            timeout: Some(timeouts.timeout.unwrap_or_default()),
            max_stream_duration: timeouts.max_stream_duration,
            grpc_timeout_header_max: timeouts.grpc_timeout_header_max,
            hcm_max_stream_duration: None,
        })
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Timeout<S> {
        Timeout { limits: self.0, inner }
    }
}

/// A service with timeouts; made by [`TimeoutLayer`].
#[derive(Clone, Debug)]
pub struct Timeout<S> {
    limits: Limits,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Timeout<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<ReplyBody<TimeoutBody<R>>>;
    type Error = S::Error;
    type Future = TimeoutFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> TimeoutFuture<S::Future> {
        let form = ReplyForm::of(request.headers());
        let limit = match form {
            ReplyForm::Grpc => limit(own_limit(request.headers()), &self.limits),
            ReplyForm::Http => self.limits.http().into_iter().chain(self.limits.http_stream()).min(),
        };
        if let (ReplyForm::Grpc, Some(limit)) = (form, limit) {
            request.headers_mut().insert(GRPC_TIMEOUT, grpc_timeout(limit));
        }
        let deadline = limit.map(|limit| Deadline::new(Instant::now(), limit));
        TimeoutFuture { call: self.inner.call(request), deadline, form }
    }
}

fn late(after: Duration) -> Cause {
    Cause::DeadlineExceeded { after, waiting_for: None }
}

pin_project! {
    /// The future of a call.
    #[derive(Debug)]
    pub struct TimeoutFuture<F> {
        #[pin]
        call: F,
        deadline: Option<Deadline>,
        form: ReplyForm,
    }
}

impl<F, R, E> Future for TimeoutFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<ReplyBody<TimeoutBody<R>>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let called = this.call.poll(cx);
        // A response counts, however late. An error does not: a service that obeys the `grpc-timeout` that it is told gives
        // up at the same time, as tonic's channel does, and says so in words of its own.
        let is_late = |deadline: &mut Deadline| deadline.poll(cx).is_ready();
        if let Poll::Ready(called) = called
            && (called.is_ok() || !this.deadline.as_mut().is_some_and(is_late))
        {
            let (deadline, form) = (this.deadline.take(), *this.form);
            let limited = |inner| ReplyBody::of_service(TimeoutBody { inner: Some(inner), deadline, form });
            return Poll::Ready(called.map(|response| response.map(limited)));
        }
        let Some(deadline) = this.deadline else { return Poll::Pending };
        let cause = late(ready!(deadline.poll(cx)));
        let response = Reply::of_cause(&cause, cause.to_string()).into_response(*this.form);
        Poll::Ready(Ok(response.map(ReplyBody::of_reply)))
    }
}

pin_project! {
    /// The service's response body, until the deadline.
    #[derive(Debug)]
    pub struct TimeoutBody<R> {
        // None once it is late.
        #[pin]
        inner: Option<R>,
        deadline: Option<Deadline>,
        form: ReplyForm,
    }
}

impl<R> Body for TimeoutBody<R>
where
    R: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    /// The body's error, or a text that says that the deadline passed.
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let Some(body) = this.inner.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let passed = || this.deadline.as_ref().and_then(Deadline::passed);
        let frame = body.poll_frame(cx);
        let after = match &frame {
            // A reader that is slower than its server never finds the body pending. The end counts, however late.
            Poll::Ready(Some(Ok(data))) if data.is_data() => passed(),
            Poll::Ready(_) => None,
            Poll::Pending => match this.deadline {
                Some(deadline) => Some(ready!(deadline.poll(cx))),
                None => None,
            },
        };
        let Some(after) = after else { return frame.map(|frame| frame.map(|frame| frame.map_err(Into::into))) };
        // Nothing comes after this; dropping the body ends the call.
        this.inner.set(None);
        let cause = late(after);
        Poll::Ready(Some(match this.form {
            ReplyForm::Grpc => Ok(Frame::trailers(cause.trailers(&cause.to_string()))),
            ReplyForm::Http => Err(cause.to_string().into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::{TimeoutLayer, Timeouts};
    use bytes::Bytes;
    use futures_util::stream::{self, Pending};
    use http::{Request, Response};
    use http_body::Frame;
    use http_body_util::{BodyExt, Empty, StreamBody};
    use std::{convert::Infallible, future::pending, time::Duration};
    use tokio::time::Instant;
    use tower::{Service, ServiceExt, layer::Layer, service_fn};

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn request(content_type: &str) -> Request<Empty<Bytes>> {
        Request::builder().header("content-type", content_type).body(Empty::new()).expect("valid")
    }

    type Never = StreamBody<Pending<Result<Frame<Bytes>, Infallible>>>;

    /// A body that never comes, on a response that does; or no response at all.
    fn silent(
        answers: bool,
    ) -> impl Service<Request<Empty<Bytes>>, Response = Response<Never>, Error = Infallible> + Clone {
        service_fn(move |request: Request<Empty<Bytes>>| async move {
            if !answers {
                pending::<()>().await;
            }
            let mut response = Response::new(StreamBody::new(stream::pending()));
            *response.headers_mut() = request.headers().clone();
            Ok(response)
        })
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_call_has_its_own_limit() {
        let timeouts =
            Timeouts { timeout: Some(S(3)), max_stream_duration: Some(S(9)), grpc_timeout_header_max: Some(S(5)) };
        for (content_type, status, code, seconds) in
            [("text/plain", 504, None, 3), ("application/grpc", 200, Some("4"), 5)]
        {
            let begin = Instant::now();
            let service = TimeoutLayer::new(timeouts).layer(silent(false));
            let response = service.oneshot(request(content_type)).await.expect("an answer");
            assert_eq!((response.status().as_u16(), begin.elapsed().as_secs()), (status, seconds));
            assert_eq!(response.headers().get("grpc-status").map(|it| it.to_str().expect("text")), code);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_has_begun_ends_in_its_own_words() {
        let timeouts = Timeouts { timeout: Some(S(3)), max_stream_duration: Some(S(3)), ..Timeouts::default() };
        let service = TimeoutLayer::new(timeouts).layer(silent(true));
        let response = service.clone().oneshot(request("application/grpc")).await.expect("an answer");
        assert_eq!(response.headers()["grpc-timeout"], "3000000u", "told to the server");
        let trailers = response.into_body().collect().await.expect("trailers are no error").trailers().cloned();
        assert_eq!(trailers.expect("trailers")["grpc-status"], "4");
        let response = service.oneshot(request("text/plain")).await.expect("an answer");
        let error = response.into_body().collect().await.expect_err("late");
        assert_eq!(error.to_string(), "deadline exceeded after 3s");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_a_call_may_take_for_ever() {
        let service = TimeoutLayer::new(Timeouts::default()).layer(silent(false));
        let call = tokio::time::timeout(S(1_000_000), service.oneshot(request("text/plain")));
        assert!(call.await.is_err());
    }
}
