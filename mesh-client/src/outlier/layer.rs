//! Outlier ejection on any HTTP services, without a control plane: the rules of the mesh, by the same code.
//!
//! There is no task: whoever asks whether a service is ready sweeps when it is time. A service's error counts as a
//! connection that broke. Which service a call goes to is NOT decided here.

use super::{
    Course,
    group::{Group, Host},
};
use crate::{error::ReplyForm, reply::Refused};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use mesh_xds::resource::OutlierDetection;
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, Sleep, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

/// Takes services out for how their calls end: a tower layer (A50; Envoy's consecutive errors).
///
/// The services that one layer makes are the hosts of one cluster: each is judged beside the others, and no more of them are
/// out than `max_ejection_percent` allows. A service that is out is not ready, so that a balancer leaves it alone, and
/// callers of its own wait until it is back.
///
/// What a [`CircuitBreakerLayer`](crate::circuit_breaking::CircuitBreakerLayer) below refuses says nothing of the service and
/// is not counted. For where the layer stands among the others see [`RetryLayer`](crate::retry::RetryLayer#order).
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::Empty;
/// use mesh_client::outlier_detection::{Consecutive, OutlierDetection, OutlierLayer};
/// use tower::{Layer, Service, ServiceExt, service_fn};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = OutlierLayer::new(OutlierDetection {
///     consecutive_5xx: Some(Consecutive { failures: 3, enforcing: 100 }),
///     max_ejection_percent: 50,
///     ..OutlierDetection::default()
/// });
/// let host = |status: u16| {
///     layer.layer(service_fn(move |_: Request<Empty<Bytes>>| async move {
///         Response::builder().status(status).body(Empty::<Bytes>::new())
///     }))
/// };
/// let (mut bad, _good) = (host(503), host(200));
///
/// for _ in 0..3 {
///     bad.ready().await.unwrap().call(Request::new(Empty::new())).await.unwrap();
/// }
/// assert!(bad.is_ejected());
/// # }
/// ```
#[derive(Clone)]
pub struct OutlierLayer(Arc<Group>);

impl OutlierLayer {
    /// A layer whose services are judged by these rules.
    pub fn new(config: OutlierDetection) -> Self {
        Self(Arc::new(Group::new(config, Instant::now())))
    }
}

impl fmt::Debug for OutlierLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierLayer").field("config", self.0.config()).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for OutlierLayer {
    type Service = Outlier<S>;

    fn layer(&self, inner: S) -> Outlier<S> {
        let host = self.0.add_host();
        Outlier { group: Arc::clone(&self.0), host, inner, out: None }
    }
}

// === Outlier ===

/// A service that may be out; made by [`OutlierLayer`]. Its clones are the same host.
pub struct Outlier<S> {
    group: Arc<Group>,
    host: Arc<Host>,
    inner: S,
    /// While it is out: until the next sweep.
    out: Option<Pin<Box<Sleep>>>,
}

impl<S> Outlier<S> {
    /// Whether it is out.
    pub fn is_ejected(&self) -> bool {
        self.host.is_ejected()
    }
}

impl<S: Clone> Clone for Outlier<S> {
    fn clone(&self) -> Self {
        let (group, host) = (Arc::clone(&self.group), Arc::clone(&self.host));
        Self { group, host, inner: self.inner.clone(), out: None }
    }
}

impl<S: fmt::Debug> fmt::Debug for Outlier<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlier")
            .field("ejected", &self.is_ejected())
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for Outlier<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    type Response = Response<OutlierBody<R>>;
    type Error = S::Error;
    type Future = OutlierFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        loop {
            let next = self.group.swept(Instant::now());
            if !self.is_ejected() {
                self.out = None;
                return self.inner.poll_ready(cx);
            }
            let out = self.out.get_or_insert_with(|| Box::pin(sleep_until(next)));
            ready!(out.as_mut().poll(cx));
            self.out = None;
        }
    }

    fn call(&mut self, request: Request<B>) -> OutlierFuture<S::Future> {
        let course = Course::begin(ReplyForm::of(request.headers()));
        let watch = Watch { group: Arc::clone(&self.group), host: Arc::clone(&self.host), course };
        OutlierFuture { call: self.inner.call(request), watch: Some(watch) }
    }
}

// === Watch ===

/// One call, which is told when this is dropped.
struct Watch {
    group: Arc<Group>,
    host: Arc<Host>,
    course: Course,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(ending) = self.course.ending() {
            self.group.ended(&self.host, ending);
        }
    }
}

pin_project! {
    /// The future of a call.
    pub struct OutlierFuture<F> {
        #[pin]
        call: F,
        watch: Option<Watch>,
    }
}

impl<F, R, E> Future for OutlierFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body,
{
    type Output = Result<Response<OutlierBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let called = ready!(this.call.poll(cx));
        let mut watch = this.watch.take();
        let is_over = match (&called, &mut watch) {
            (Ok(response), Some(Watch { course, .. })) if Refused::is_in(response.extensions()) => {
                course.unreached();
                true
            }
            (Ok(response), Some(Watch { course, .. })) => {
                course.head(response.status(), response.headers());
                let is_whole = response.body().is_end_stream();
                if is_whole {
                    course.over();
                }
                is_whole
            }
            (Err(_), Some(Watch { course, .. })) => {
                course.broken();
                true
            }
            (_, None) => true,
        };
        let watch = watch.filter(|_| !is_over);
        Poll::Ready(called.map(|response| response.map(|inner| OutlierBody { inner, watch })))
    }
}

impl<F> fmt::Debug for OutlierFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierFuture").finish_non_exhaustive()
    }
}

pin_project! {
    /// The body of a response: the service's. How a gRPC call ended is known at its end.
    pub struct OutlierBody<R> {
        #[pin]
        inner: R,
        watch: Option<Watch>,
    }
}

impl<R: Body> Body for OutlierBody<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if let Some(Watch { course, .. }) = this.watch {
            let is_over = match &frame {
                Some(Ok(frame)) => {
                    let trailers = frame.trailers_ref();
                    trailers.into_iter().for_each(|trailers| course.trailers(trailers));
                    trailers.is_some()
                }
                Some(Err(_)) => {
                    course.broken();
                    true
                }
                None => {
                    course.over();
                    true
                }
            };
            if is_over {
                *this.watch = None;
            }
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

impl<R> fmt::Debug for OutlierBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierBody").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "layer_tests.rs"]
mod tests;
