//! Outlier ejection on any HTTP services, without a control plane: the rules of the mesh, by the same code.
//!
//! There is no task: whoever asks whether a service is ready sweeps when it is time. A service's error counts as a
//! connection that broke. Which service a call goes to is NOT decided here.

use super::{Change, Detector, Ending, Stats, Trip};
use crate::error::ReplyForm;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use mesh_xds::resource::OutlierDetection;
use pin_project_lite::pin_project;
use rustc_hash::FxHashMap;
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
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

/// The services of one layer.
struct Group {
    config: OutlierDetection,
    hosts: Mutex<Hosts>,
}

struct Hosts {
    detector: Detector<u64>,
    /// Held weakly: a host leaves with the last of its services.
    known: FxHashMap<u64, Weak<Host>>,
    last: u64,
}

/// One service, with all its clones.
struct Host {
    id: u64,
    stats: Stats,
    ejected: AtomicBool,
}

impl OutlierLayer {
    /// A layer whose services are judged by these rules.
    pub fn new(config: OutlierDetection) -> Self {
        let detector = Detector::new(Arc::new(config.clone()), Instant::now());
        Self(Arc::new(Group { config, hosts: Mutex::new(Hosts { detector, known: FxHashMap::default(), last: 0 }) }))
    }
}

impl fmt::Debug for OutlierLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierLayer").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for OutlierLayer {
    type Service = Outlier<S>;

    fn layer(&self, inner: S) -> Outlier<S> {
        let mut hosts = self.0.hosts();
        hosts.last += 1;
        let host = Arc::new(Host { id: hosts.last, stats: Stats::default(), ejected: AtomicBool::new(false) });
        host.stats.watch(Some(&self.0.config));
        hosts.known.insert(host.id, Arc::downgrade(&host));
        Outlier { group: Arc::clone(&self.0), host, inner, out: None }
    }
}

impl Group {
    fn hosts(&self) -> MutexGuard<'_, Hosts> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sweeps, if it is time. Returns when it is time again.
    fn swept(&self, now: Instant) -> Instant {
        let mut hosts = self.hosts();
        if hosts.detector.next_sweep() > now {
            return hosts.detector.next_sweep();
        }
        let alive = hosts.alive();
        let tallies: Vec<_> = alive.iter().map(|host| (host.id, host.stats.take())).collect();
        let changes = hosts.detector.sweep(now, &tallies, &mut |below| fastrand::u32(..below));
        for host in &alive {
            // Those whom the cap has spared may try again.
            for streak in host.stats.tripped() {
                host.stats.rearm(streak);
            }
            if let Some((_, change)) = changes.iter().find(|(id, _)| *id == host.id) {
                host.ejected.store(*change == Change::Ejected, Ordering::Relaxed);
                host.stats.forgive();
            }
        }
        hosts.detector.next_sweep()
    }

    /// A host has failed too often in a row.
    fn tripped(&self, host: &Host, now: Instant) {
        let mut hosts = self.hosts();
        let count = hosts.alive().len();
        for streak in host.stats.tripped() {
            match hosts.detector.tripped(now, host.id, streak, count, &mut |below| fastrand::u32(..below)) {
                Trip::Ejected => host.ejected.store(true, Ordering::Relaxed),
                Trip::Spared => {}
                // Until the next sweep, which may make room.
                Trip::Capped => continue,
            }
            host.stats.rearm(streak);
        }
    }
}

impl Hosts {
    /// The hosts that are left; the others are forgotten.
    fn alive(&mut self) -> Vec<Arc<Host>> {
        let mut alive = Vec::with_capacity(self.known.len());
        self.known.retain(|_, host| {
            let host = host.upgrade();
            alive.extend(host.clone());
            host.is_some()
        });
        self.detector.retain(|id| self.known.contains_key(id));
        alive
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
        self.host.ejected.load(Ordering::Relaxed)
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
        let form = ReplyForm::of(request.headers());
        let watch = Watch { group: Arc::clone(&self.group), host: Arc::clone(&self.host), form, is_open: true };
        OutlierFuture { call: self.inner.call(request), watch: Some(watch) }
    }
}

// === Watch ===

/// One call, until it is known how it ended.
struct Watch {
    group: Arc<Group>,
    host: Arc<Host>,
    form: ReplyForm,
    is_open: bool,
}

impl Watch {
    fn tell(&mut self, ending: Ending) {
        self.is_open = false;
        if self.host.stats.count(ending) {
            self.group.tripped(&self.host, Instant::now());
        }
    }

    fn head(&mut self, status: StatusCode, headers: &HeaderMap, is_whole: bool) {
        match self.form {
            // Trailers-only: the head is the trailers.
            ReplyForm::Grpc if is_whole => self.trailers(headers),
            ReplyForm::Grpc => {}
            ReplyForm::Http => self.tell(Ending::of_http(status)),
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if self.form == ReplyForm::Grpc {
            self.tell(Ending::of_grpc(trailers));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.is_open {
            self.tell(Ending::Cancelled);
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
        if let Some(watch) = &mut watch {
            match &called {
                Ok(response) => watch.head(response.status(), response.headers(), response.body().is_end_stream()),
                Err(_) => watch.tell(Ending::Broken),
            }
        }
        let watch = watch.filter(|watch| watch.is_open);
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
        if let Some(watch) = this.watch {
            match &frame {
                Some(Ok(frame)) => frame.trailers_ref().into_iter().for_each(|trailers| watch.trailers(trailers)),
                Some(Err(_)) => watch.tell(Ending::Broken),
                // gRPC without trailers.
                None => watch.trailers(&HeaderMap::new()),
            }
            if !watch.is_open {
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
