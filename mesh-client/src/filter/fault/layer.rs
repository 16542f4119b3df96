//! Fault injection on any HTTP service, without a control plane: the rules of the mesh, by the same code.
//!
//! A call that is spared costs the draws, and its future is the service's own. It does NOT retry what it aborts.

use super::{Active, FaultFilter, Turn};
use crate::{error::ReplyForm, filter::FilterRequest, reply::ReplyBody};
use bytes::Bytes;
use http::{Request, Response};
use mesh_xds::resource::HttpFault;
use pin_project_lite::pin_project;
use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::{Sleep, sleep};
use tower_layer::Layer;
use tower_service::Service;

/// Injects faults into the calls of a service: a tower layer.
///
/// ```
/// use http::{Request, Response, StatusCode};
/// use http_body_util::{BodyExt, Empty};
/// use mesh_client::fault::{AbortSource, FaultAbort, FaultLayer, FaultPercentage, HttpFault};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// // Every call fails, so that we see what becomes of ours.
/// let abort = FaultAbort {
///     source: AbortSource::Http(StatusCode::SERVICE_UNAVAILABLE),
///     percentage: FaultPercentage { numerator: 100, denominator: 100 },
///     text: None,
/// };
/// let service = ServiceBuilder::new()
///     .layer(FaultLayer::new(HttpFault { abort: Some(abort), ..HttpFault::default() }))
///     .service(service_fn(async |_: Request<Empty<bytes::Bytes>>| {
///         Ok::<_, std::convert::Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
///     }));
///
/// let response = service.oneshot(Request::new(Empty::new())).await.unwrap();
/// assert_eq!(response.status(), 503);
/// assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "fault filter abort");
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FaultLayer(Option<Arc<FaultFilter>>);

impl FaultLayer {
    /// A layer that injects these faults. `upstream_cluster` has no meaning here: with one, no call is meant.
    ///
    /// ```
    /// use http::HeaderName;
    /// use mesh_client::fault::{
    ///     DelaySource, FaultDelay, FaultLayer, FaultPercentage, HeaderField, HeaderMatch, HeaderValueMatch, HttpFault,
    ///     StringMatch,
    /// };
    /// use std::time::Duration;
    ///
    /// // Every tenth call of testers takes a second longer.
    /// let percentage = FaultPercentage { numerator: 10, denominator: 100 };
    /// let tester = StringMatch::Exact { value: "tester".to_owned(), ignore_case: true };
    /// let layer = FaultLayer::new(HttpFault {
    ///     delay: Some(FaultDelay { source: DelaySource::Fixed(Duration::from_secs(1)), percentage }),
    ///     headers: vec![HeaderMatch {
    ///         name: HeaderField::Header(HeaderName::from_static("x-role")),
    ///         value: HeaderValueMatch::String(tester),
    ///         invert: false,
    ///     }],
    ///     ..HttpFault::default()
    /// });
    /// # let _ = layer;
    /// ```
    pub fn new(fault: HttpFault) -> Self {
        Self(FaultFilter::new(&Arc::new(fault)).map(Arc::new))
    }
}

impl<S> Layer<S> for FaultLayer {
    type Service = Fault<S>;

    fn layer(&self, inner: S) -> Fault<S> {
        Fault { filter: self.0.clone(), inner }
    }
}

/// A service with faults; made by [`FaultLayer`].
#[derive(Clone, Debug)]
pub struct Fault<S> {
    filter: Option<Arc<FaultFilter>>,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Fault<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
{
    type Response = Response<ReplyBody<R>>;
    type Error = S::Error;
    type Future = FaultFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> FaultFuture<S, B> {
        let (mut head, body) = request.into_parts();
        let form = ReplyForm::of(&head.headers);
        let turn = self.filter.as_ref().and_then(|fault| fault.turn(&FilterRequest::new(&mut head, form, None)));
        let request = Request::from_parts(head, body);
        let state = match turn {
            None => State::Called { future: self.inner.call(request) },
            Some(Turn { active, delay, reply }) => {
                // The clone is not ready; what is ready is taken.
                let unready = self.inner.clone();
                let ready = mem::replace(&mut self.inner, unready);
                let then = match reply {
                    Some(reply) => Then::Reply(reply.into_response(form)),
                    None => Then::Call(ready, request),
                };
                State::Faulted {
                    wait: delay.map(|delay| Box::pin(sleep(delay))),
                    then: Some(then),
                    active: Some(active),
                }
            }
        };
        FaultFuture { state }
    }
}

// === FaultFuture ===

pin_project! {
    /// The future of a call.
    pub struct FaultFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<S, B>
    where
        S: Service<Request<B>>,
    {
        Called {
            #[pin]
            future: S::Future,
        },
        Faulted {
            wait: Option<Pin<Box<Sleep>>>,
            then: Option<Then<S, B>>,
            active: Option<Active>,
        },
    }
}

/// What follows a delay.
enum Then<S, B> {
    Call(S, Request<B>),
    Reply(Response<Bytes>),
}

impl<S, B, R> Future for FaultFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Output = Result<Response<ReplyBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                Projected::Called { future } => {
                    return future.poll(cx).map_ok(|response| response.map(ReplyBody::of_service));
                }
                Projected::Faulted { wait, then, active } => {
                    if let Some(wait) = wait {
                        ready!(wait.as_mut().poll(cx));
                    }
                    *active = None;
                    match then.take() {
                        Some(Then::Reply(response)) => return Poll::Ready(Ok(response.map(ReplyBody::of_reply))),
                        Some(Then::Call(mut service, request)) => {
                            let future = service.call(request);
                            state.set(State::Called { future });
                        }
                        // Polled again after the reply, as a future must not be.
                        None => return Poll::Pending,
                    }
                }
            }
        }
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for FaultFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultFuture").finish_non_exhaustive()
    }
}
