//! Circuit breaking on any HTTP service, without a control plane: the rules of the mesh, by the same code.
//!
//! A call that is let through costs no allocation. Who may wait, and who may be retried, is NOT known to a layer: of the
//! limits only `max_requests` has an effect here.

use super::{Breaker, Full, Permit};
use crate::{
    error::ReplyForm,
    reply::{Refused, Reply, ReplyBody},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use mesh_xds::resource::CircuitBreakers;
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tower_layer::Layer;
use tower_service::Service;

/// Refuses calls to a service while too many are in flight: a tower layer.
///
/// A call is in flight until its response body has ended or was dropped. One that is refused gets UNAVAILABLE if it is
/// gRPC, else a response 503 with `x-envoy-overloaded`. All services of one layer count together.
///
/// # Order
/// In the mesh each attempt is counted by itself, before it goes to an endpoint: that is *below* a
/// [`RetryLayer`](crate::retry::RetryLayer), which never repeats what is refused here, and *above* an
/// [`OutlierLayer`](crate::outlier_detection::OutlierLayer). Above the `RetryLayer`, a call is counted once, with all its
/// attempts and the pauses between them.
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Empty;
/// use mesh_client::circuit_breaking::{CircuitBreakerLayer, CircuitBreakers};
/// use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = CircuitBreakerLayer::new(CircuitBreakers { max_requests: Some(1), ..CircuitBreakers::default() });
/// let mut service = ServiceBuilder::new().layer(layer.clone()).service(service_fn(async |_: Request<Empty<Bytes>>| {
///     Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
/// }));
///
/// let first = service.ready().await.unwrap().call(Request::new(Empty::new())).await.unwrap();
/// let second = service.ready().await.unwrap().call(Request::new(Empty::new())).await.unwrap();
/// assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 503));
/// assert_eq!((second.headers()["x-envoy-overloaded"].as_bytes(), layer.active_requests()), (&b"true"[..], 1));
///
/// drop(first); // with its body
/// assert_eq!(layer.active_requests(), 0);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CircuitBreakerLayer(Arc<Breaker>);

impl CircuitBreakerLayer {
    /// A layer with `max_requests` as its limit; 1024 unless set, as in the mesh. The other limits, `max_pending_requests`,
    /// `max_retries` and `retry_budget` among them, have no effect: who waits and who is repeated is not known here.
    pub fn new(limits: CircuitBreakers) -> Self {
        Self(Arc::new(Breaker::new(Arc::default(), limits)))
    }

    /// Calls in flight.
    pub fn active_requests(&self) -> u32 {
        self.0.counters.in_use().requests
    }
}

impl<S> Layer<S> for CircuitBreakerLayer {
    type Service = CircuitBreaker<S>;

    fn layer(&self, inner: S) -> CircuitBreaker<S> {
        CircuitBreaker { breaker: Arc::clone(&self.0), inner }
    }
}

/// A service with a limit; made by [`CircuitBreakerLayer`].
#[derive(Clone, Debug)]
pub struct CircuitBreaker<S> {
    breaker: Arc<Breaker>,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for CircuitBreaker<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<ReplyBody<CircuitBreakerBody<R>>>;
    type Error = S::Error;
    type Future = CircuitBreakerFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> CircuitBreakerFuture<S::Future> {
        let state = match self.breaker.enter() {
            Ok(permit) => State::Called { future: self.inner.call(request), permit: Some(permit) },
            Err(full) => State::Refused { response: Some(refusal(full, ReplyForm::of(request.headers()))) },
        };
        CircuitBreakerFuture { state }
    }
}

fn refusal(Full { max }: Full, form: ReplyForm) -> Response<Bytes> {
    let reply = Reply::new(StatusCode::SERVICE_UNAVAILABLE, format!("circuit open: {max} calls are in flight"));
    let mut response = reply.overloaded().into_response(form);
    response.extensions_mut().insert(Refused);
    response
}

// === CircuitBreakerFuture ===

pin_project! {
    /// The future of a call.
    pub struct CircuitBreakerFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<F> {
        Called {
            #[pin]
            future: F,
            permit: Option<Permit>,
        },
        Refused {
            response: Option<Response<Bytes>>,
        },
    }
}

impl<F, R, E> Future for CircuitBreakerFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<ReplyBody<CircuitBreakerBody<R>>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Called { future, permit } => {
                let result = ready!(future.poll(cx));
                // An error ends the call here.
                let permit = permit.take();
                let counted = |inner| ReplyBody::of_service(CircuitBreakerBody { inner, permit });
                Poll::Ready(result.map(|response| response.map(counted)))
            }
            Projected::Refused { response } => match response.take() {
                Some(response) => Poll::Ready(Ok(response.map(ReplyBody::of_reply))),
                // Polled again after the response, as a future must not be.
                None => Poll::Pending,
            },
        }
    }
}

impl<F> fmt::Debug for CircuitBreakerFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerFuture").finish_non_exhaustive()
    }
}

// === CircuitBreakerBody ===

pin_project! {
    /// The service's response body: in flight until its end.
    #[derive(Debug)]
    pub struct CircuitBreakerBody<R> {
        #[pin]
        inner: R,
        permit: Option<Permit>,
    }
}

impl<R: Body> Body for CircuitBreakerBody<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if !matches!(&frame, Some(Ok(frame)) if frame.is_data()) {
            // Trailers, an error, or no more.
            *this.permit = None;
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

#[cfg(test)]
mod tests {
    use super::*;
    use http::header;
    use http_body_util::{BodyExt, Empty, Full};
    use std::convert::Infallible;
    use tower::{ServiceExt, service_fn};

    fn limit(max: u32) -> CircuitBreakerLayer {
        CircuitBreakerLayer::new(CircuitBreakers { max_requests: Some(max), ..CircuitBreakers::default() })
    }

    fn grpc() -> Request<Empty<Bytes>> {
        let request = Request::post("/s/m").header(header::CONTENT_TYPE, "application/grpc");
        request.body(Empty::new()).expect("valid")
    }

    #[tokio::test]
    async fn a_refused_call_is_told_so_in_its_own_words_and_never_reaches_the_service() {
        let unreachable = service_fn(async |_: Request<Empty<Bytes>>| -> Result<Response<Empty<Bytes>>, Infallible> {
            panic!("it was let through")
        });
        let service = limit(0).layer(unreachable);
        let refused = service.clone().oneshot(grpc()).await.expect("a response");
        assert_eq!((refused.status(), refused.headers()["grpc-status"].as_bytes()), (StatusCode::OK, &b"14"[..]));
        let refused = service.oneshot(Request::new(Empty::new())).await.expect("a response");
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        let text = refused.into_body().collect().await.expect("a text").to_bytes();
        assert_eq!(text, "circuit open: 0 calls are in flight");
    }

    #[tokio::test]
    async fn calls_count_until_their_body_ends_or_they_fail_or_are_given_up() {
        let layer = limit(2);
        let echo = layer.layer(service_fn(async |request: Request<Empty<Bytes>>| match request.uri().path() {
            "/fails" => Err("as asked"),
            "/hangs" => std::future::pending().await,
            _ => Ok(Response::new(Full::new(Bytes::from_static(b"ok")))),
        }));
        let get = |path: &str| Request::get(path).body(Empty::new()).expect("valid");
        let response = echo.clone().oneshot(get("/")).await.expect("a response");
        assert_eq!(layer.active_requests(), 1);
        let mut body = response.into_body();
        while body.frame().await.is_some() {}
        assert_eq!(layer.active_requests(), 0, "its body has ended");
        assert_eq!(echo.clone().oneshot(get("/fails")).await.err(), Some("as asked"));
        assert_eq!(layer.active_requests(), 0);
        let mut hanging = Box::pin(echo.clone().oneshot(get("/hangs")));
        assert!(futures_util::poll!(&mut hanging).is_pending());
        assert_eq!(layer.active_requests(), 1);
        drop(hanging);
        assert_eq!(layer.active_requests(), 0);
    }
}
