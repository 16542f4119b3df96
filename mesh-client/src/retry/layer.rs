//! Retries on any HTTP service, without a control plane: the rules of the mesh, by the same code.
//!
//! What a service's error means is not known here: it is taken for a broken connection. Endpoints are not known either, so
//! that a policy's hosts and priorities have no effect, nor has its `per_try_idle_timeout`.

use super::{
    Failure, Plan, Retries, RetryThrottling, Throttle, Verdict,
    body::{ReplayBody, RetryBody},
};
use crate::{
    deadline::{CallTime, Deadline, own_limit, until},
    error::{Cause, ReplyForm},
    reply::{Refused, Reply, ReplyBody},
    route::RequestHead,
    upload::{Lent, Upload, lend},
};
use http::{HeaderValue, Request, Response, request};
use http_body::Body;
use mesh_xds::resource::RetryPolicy;
use std::{
    error::Error,
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tower_layer::Layer;
use tower_service::Service;

type BoxError = Box<dyn Error + Send + Sync>;

/// How much of a request body is kept: refcounted DATA, no copies. What is larger is sent once.
const KEPT: usize = 256 * 1024;

/// Repeats the calls of a service as a policy says: a tower layer (A6, A44; Envoy's `retry_on` for what is not gRPC).
///
/// The service's error counts as a connection that broke: `unavailable` for gRPC, `reset` (and so `5xx` and `gateway-error`)
/// for other requests.
///
/// What a [`CircuitBreakerLayer`](crate::circuit_breaking::CircuitBreakerLayer) below refuses is never repeated, nor what a
/// [`MeshChannel`](crate::MeshChannel) drops or refuses: the caller gets it. A backend's own 503 is another matter.
///
/// A gRPC call's own `grpc-timeout` covers all attempts and the pauses between them: later attempts tell the service what is
/// left of it, or the policy's `per_try_timeout` if that is less, and when nothing is left the call ends DEADLINE_EXCEEDED.
/// That holds until a response begins; for what follows there is [`TimeoutLayer`](crate::timeout::TimeoutLayer).
///
/// # Order
/// As in the mesh, outermost first: [`TimeoutLayer`](crate::timeout::TimeoutLayer), whose time is that of all attempts;
/// [`FaultLayer`](crate::fault::FaultLayer), whose aborts are not repeated; `RetryLayer`; and for each attempt
/// [`CircuitBreakerLayer`](crate::circuit_breaking::CircuitBreakerLayer) and
/// [`OutlierLayer`](crate::outlier_detection::OutlierLayer). Two others have a meaning: a `TimeoutLayer` below limits each
/// attempt, and a `FaultLayer` below fails attempts, which tries out the policy.
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Empty;
/// use mesh_client::retry::{ReplayBody, RetryCondition, RetryLayer, RetryPolicy};
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// static CALLS: AtomicU32 = AtomicU32::new(0);
/// let policy = RetryPolicy { num_retries: 3, ..RetryPolicy::on([RetryCondition::GatewayError]) };
/// let service = ServiceBuilder::new()
///     .layer(RetryLayer::new(policy))
///     .service(service_fn(async |_: Request<ReplayBody<Empty<Bytes>>>| {
///         // The first two calls fail.
///         let status = if CALLS.fetch_add(1, Ordering::Relaxed) < 2 { 503 } else { 200 };
///         Response::builder().status(status).body(Empty::<Bytes>::new())
///     }));
///
/// let response = service.oneshot(Request::new(Empty::new())).await.unwrap();
/// assert_eq!((response.status().as_u16(), CALLS.load(Ordering::Relaxed)), (200, 3));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RetryLayer {
    plan: Plan,
    throttle: Option<Arc<Throttle>>,
}

impl RetryLayer {
    /// A layer that repeats calls by this policy. What it says of hosts and priorities has no effect, since a layer does not
    /// know them, nor has `per_try_idle_timeout`. `per_try_timeout` begins with the attempt.
    ///
    /// ```
    /// use http::HeaderName;
    /// use mesh_client::retry::{
    ///     HeaderField, HeaderMatch, HeaderValueMatch, PseudoHeader, RetryCondition, RetryLayer, RetryPolicy, StringMatch,
    /// };
    ///
    /// // Reads are repeated when the server says `x-stale: ...`.
    /// let get = StringMatch::Exact { value: "GET".to_owned(), ignore_case: false };
    /// let layer = RetryLayer::new(RetryPolicy {
    ///     retriable_headers: vec![HeaderMatch {
    ///         name: HeaderField::Header(HeaderName::from_static("x-stale")),
    ///         value: HeaderValueMatch::Present(true),
    ///         invert: false,
    ///     }],
    ///     retriable_request_headers: vec![HeaderMatch {
    ///         name: HeaderField::Pseudo(PseudoHeader::Method),
    ///         value: HeaderValueMatch::String(get),
    ///         invert: false,
    ///     }],
    ///     ..RetryPolicy::on([RetryCondition::RetriableHeaders])
    /// });
    /// # let _ = layer;
    /// ```
    pub fn new(policy: RetryPolicy) -> Self {
        Self { plan: Plan::new(Arc::new(policy)), throttle: None }
    }

    /// Stops the retries of gRPC calls while too many of them fail (A6). All services that this layer makes are counted
    /// together. A call counts as a success once its response was read to its end, and that is `grpc-status: 0`.
    #[must_use]
    pub fn throttling(mut self, throttling: RetryThrottling) -> Self {
        self.throttle = Some(Arc::new(Throttle::new(throttling)));
        self
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry { layer: self.clone(), inner }
    }
}

/// A service with retries; made by [`RetryLayer`].
#[derive(Clone, Debug)]
pub struct Retry<S> {
    layer: RetryLayer,
    inner: S,
}

/// The last attempt took longer than the policy's `per_try_timeout`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no response within per_try_timeout, {after:?}")]
#[non_exhaustive]
pub struct TryTimeoutElapsed {
    /// The limit.
    pub after: Duration,
}

impl<S, B, R> Service<Request<B>> for Retry<S>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>, Error: Into<BoxError> + Send> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: fmt::Display> + Send + Unpin + 'static,
    R: Body + Send + 'static,
{
    type Response = Response<ReplyBody<RetryBody<R>>>;
    /// The service's error, or [`TryTimeoutElapsed`].
    type Error = BoxError;
    type Future = RetryFuture<R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> RetryFuture<R> {
        // The clone is not ready; what is ready is taken.
        let unready = self.inner.clone();
        let ready = mem::replace(&mut self.inner, unready);
        RetryFuture(Box::pin(self.layer.clone().run(ready, request)))
    }
}

/// What became of an attempt.
enum Ended<R> {
    Answered(Response<R>),
    Failed(Failure, BoxError),
}

impl RetryLayer {
    async fn run<S, B, R>(self, inner: S, request: Request<B>) -> Called<R>
    where
        S: Service<Request<ReplayBody<B>>, Response = Response<R>, Error: Into<BoxError>>,
        B: Body<Error: fmt::Display> + Unpin,
        R: Body,
    {
        let form = ReplyForm::of(request.headers());
        match self.attempts(inner, request, form).await {
            Ok(Ended::Answered(response)) => Ok(self.counted(form, response).map(ReplyBody::of_service)),
            Ok(Ended::Failed(_, error)) => Err(error),
            Err(late) => Ok(Reply::of_cause(&late, late.to_string()).into_response(form).map(ReplyBody::of_reply)),
        }
    }

    /// The end of the last one, unless the call's own deadline comes first.
    async fn attempts<S, B, R>(&self, mut inner: S, request: Request<B>, form: ReplyForm) -> Result<Ended<R>, Cause>
    where
        S: Service<Request<ReplayBody<B>>, Response = Response<R>, Error: Into<BoxError>>,
        B: Body<Error: fmt::Display> + Unpin,
        R: Body,
    {
        let (mut head, body) = request.into_parts();
        let mut time = CallTime::begin(form, own_limit(&head.headers));
        let mut upload = Some(Upload::new(body, KEPT));
        let mut retries = Retries::default();
        loop {
            time.check()?;
            let (ended, lent) = self.attempt(&mut inner, &mut head, &mut upload, &mut time).await?;
            let (verdict, ended) = self.judge(&mut retries, &head, form, ended);
            let can_replay = match &lent {
                Some(lent) => lent.can_replay(),
                None => upload.as_ref().is_some_and(Upload::can_replay),
            };
            let backoff = match verdict {
                Verdict::Retry(backoff) if can_replay && self.may_retry(form) => Some(backoff),
                Verdict::Transparent if can_replay => None,
                verdict => {
                    if verdict == Verdict::Spent {
                        self.may_retry(form);
                    }
                    return Ok(ended);
                }
            };
            if let Some(lent) = lent {
                upload = lent.recall();
            }
            // Gone if more than is kept has been sent just now.
            let Some(again) = &mut upload else { return Ok(ended) };
            again.rewind();
            drop(ended);
            if let Some(backoff) = backoff {
                time.within(sleep(backoff)).await?;
            }
            if form == ReplyForm::Grpc {
                head.headers.insert("grpc-previous-rpc-attempts", HeaderValue::from(retries.made()));
            }
            if let Err(error) = time.within(std::future::poll_fn(|cx| inner.poll_ready(cx))).await? {
                return Ok(Ended::Failed(Failure::Lost, error.into()));
            }
        }
    }

    /// One attempt, until its response headers; and its request, if that goes on.
    async fn attempt<S, B, R>(
        &self,
        inner: &mut S,
        head: &mut request::Parts,
        upload: &mut Option<Upload<B>>,
        time: &mut CallTime,
    ) -> Result<(Ended<R>, Option<Lent<B>>), Cause>
    where
        S: Service<Request<ReplayBody<B>>, Response = Response<R>, Error: Into<BoxError>>,
        B: Body<Error: fmt::Display> + Unpin,
    {
        let limit = self.plan.per_try_timeout();
        time.tell(&mut head.headers, limit);
        let (loan, body) = lend(upload);
        let mut per_try = limit.map(|limit| Deadline::new(Instant::now(), limit));
        let attempt = inner.call(Request::from_parts(head.clone(), ReplayBody::new(body)));
        let too_long = |after| Ended::Failed(Failure::TryTimeout, TryTimeoutElapsed { after }.into());
        let ended = match time.within(until(&mut per_try, attempt)).await? {
            Ok(Ok(response)) => return Ok((Ended::Answered(response), loan.settle())),
            Ok(Err(error)) => {
                // A service that obeys the `grpc-timeout` that it is told gives up at the same time, as tonic's channel does,
                // and says so in words of its own.
                time.check()?;
                match per_try.as_ref().and_then(Deadline::passed) {
                    Some(after) => too_long(after),
                    None => Ended::Failed(Failure::Lost, error.into()),
                }
            }
            Err(after) => too_long(after),
        };
        Ok((ended, None))
    }

    fn judge<R: Body>(
        &self,
        retries: &mut Retries,
        head: &request::Parts,
        form: ReplyForm,
        ended: Ended<R>,
    ) -> (Verdict, Ended<R>) {
        let request = || RequestHead::of(head, form == ReplyForm::Grpc);
        match ended {
            Ended::Answered(response) => {
                if Refused::is_in(response.extensions()) {
                    // "LB result DROP → never retried" (A6), and whoever is refused for there being too many.
                    return (Verdict::Final, Ended::Answered(response));
                }
                let (head, body) = response.into_parts();
                let answer = (&head, body.is_end_stream());
                let verdict = retries.answered(&self.plan, form, answer, request, fastrand::f64, super::time_of_day);
                (verdict, Ended::Answered(Response::from_parts(head, body)))
            }
            Ended::Failed(failure, error) => {
                let verdict = retries.failed(Some(&self.plan), form, failure, request, fastrand::f64);
                (verdict, Ended::Failed(failure, error))
            }
        }
    }

    /// What the caller gets counts where it ends: here, or with its body.
    fn counted<R: Body>(&self, form: ReplyForm, response: Response<R>) -> Response<RetryBody<R>> {
        let mut throttle = self.throttle.clone().filter(|_| form == ReplyForm::Grpc);
        if response.body().is_end_stream()
            && let Some(throttle) = throttle.take()
        {
            // Trailers-only: the head is the trailers.
            throttle.ended(response.headers());
        }
        response.map(|body| RetryBody::new(body, throttle))
    }

    fn may_retry(&self, form: ReplyForm) -> bool {
        form == ReplyForm::Http || self.throttle.as_ref().is_none_or(|throttle| throttle.failed())
    }
}

// === RetryFuture ===

/// The future of a call.
pub struct RetryFuture<R>(Pin<Box<dyn Future<Output = Called<R>> + Send>>);

/// A response, the service's error, or [`TryTimeoutElapsed`].
type Called<R> = Result<Response<ReplyBody<RetryBody<R>>>, BoxError>;

impl<R> Future for RetryFuture<R> {
    type Output = Called<R>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<R> fmt::Debug for RetryFuture<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "layer_time_tests.rs"]
mod time_tests;
