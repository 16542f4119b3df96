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
mod tests {
    use super::{Outlier, OutlierLayer};
    use bytes::Bytes;
    use futures_util::{FutureExt, future::poll_fn};
    use http::{Request, Response};
    use http_body_util::{BodyExt, Empty, Full};
    use mesh_xds::resource::{Consecutive, LocalOrigin, OutlierDetection, SuccessRate};
    use std::{convert::Infallible, time::Duration};
    use tokio::time::Instant;
    use tower::{Service, ServiceExt, layer::Layer, service_fn};

    fn config(failures: u32) -> OutlierDetection {
        OutlierDetection {
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_percent: 50,
            consecutive_5xx: Some(Consecutive { failures, enforcing: 100 }),
            ..OutlierDetection::default()
        }
    }

    type Call = Request<Empty<Bytes>>;

    /// A host that answers as the request's header `answer` says: a status, a gRPC status (`g14`), or an error (`e`).
    fn host(
        layer: &OutlierLayer,
    ) -> Outlier<impl Service<Call, Response = Response<Full<Bytes>>, Error = &'static str> + Clone> {
        layer.layer(service_fn(async |request: Call| {
            let answer = request.headers()["answer"].to_str().expect("text").to_owned();
            let response = Response::builder();
            match answer.as_bytes() {
                b"e" => Err("broken"),
                [b'g', ..] => Ok(response.header("grpc-status", &answer[1..]).body(Full::default()).expect("valid")),
                _ => Ok(response.status(answer.as_str()).body(Full::default()).expect("valid")),
            }
        }))
    }

    async fn call<S>(host: &mut Outlier<S>, answer: &str)
    where
        S: Service<Call, Response = Response<Full<Bytes>>, Error = &'static str>,
    {
        let form = if answer.starts_with('g') { "application/grpc" } else { "text/plain" };
        let request = Request::builder().header("answer", answer).header("content-type", form);
        let answered = host.ready().await.expect("ready").call(request.body(Empty::new()).expect("valid")).await;
        if let Ok(response) = answered {
            let _: Result<_, Infallible> = response.into_body().collect().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_fails_in_a_row_is_not_ready_until_it_is_back() {
        for answer in ["503", "g14", "e"] {
            let layer = OutlierLayer::new(config(3));
            let (mut bad, mut good) = (host(&layer), host(&layer));
            for _ in 0..2 {
                call(&mut bad, answer).await;
            }
            call(&mut bad, "200").await;
            for _ in 0..3 {
                assert!(!bad.is_ejected(), "{answer}: a success in between starts the row afresh");
                call(&mut bad, answer).await;
            }
            assert!(bad.is_ejected() && bad.clone().is_ejected(), "{answer}");
            call(&mut good, "200").await;
            let begin = Instant::now();
            poll_fn(|cx| bad.poll_ready(cx)).await.expect("ready again");
            // At the first sweep that is more than 30 s later.
            assert_eq!(begin.elapsed().as_secs(), 40, "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn errors_count_by_themselves_where_that_is_asked_for() {
        let rate = SuccessRate { request_volume: 10, ..SuccessRate::default() };
        let layer = OutlierLayer::new(OutlierDetection {
            local_origin: Some(LocalOrigin {
                consecutive_failure: None,
                success_rate: Some(rate),
                failure_percentage: None,
            }),
            max_ejection_time_jitter: Duration::from_secs(1000),
            ..config(100)
        });
        let mut hosts = [host(&layer), host(&layer), host(&layer), host(&layer), host(&layer)];
        for (answer, out) in [("503", false), ("e", true)] {
            let (bad, good) = hosts.split_first_mut().expect("five");
            for _ in 0..10 {
                call(bad, answer).await;
                for host in &mut *good {
                    call(host, "200").await;
                }
            }
            tokio::time::advance(Duration::from_secs(10)).await;
            call(&mut good[0], "200").await;
            assert_eq!(hosts.each_ref().map(Outlier::is_ejected), [out, false, false, false, false], "{answer}");
        }
        let begin = Instant::now();
        poll_fn(|cx| hosts[0].poll_ready(cx)).await.expect("ready again");
        let out = begin.elapsed().as_secs();
        assert!((30..=1040).contains(&out), "{out} s: 30 s, as many as 1000 more, and what is left of an interval");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_hosts_are_out_than_are_allowed() {
        let layer = OutlierLayer::new(config(1));
        let mut hosts = [host(&layer), host(&layer), host(&layer), host(&layer)];
        for host in &mut hosts {
            call(host, "500").await;
        }
        assert_eq!(hosts.iter().map(Outlier::is_ejected).collect::<Vec<_>>(), [true, true, false, false]);
        // Those that are gone are no hosts any more.
        let [_, _, mut third, fourth] = hosts;
        drop(fourth);
        call(&mut third, "500").await;
        assert!(!third.is_ejected(), "the only host that is left");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_an_ejected_host_holds_up_nobody() {
        let layer = OutlierLayer::new(config(1));
        let (mut bad, mut good) = (host(&layer), host(&layer));
        call(&mut bad, "500").await;
        assert!(poll_fn(|cx| bad.poll_ready(cx)).now_or_never().is_none());
        assert!(poll_fn(|cx| good.poll_ready(cx)).now_or_never().is_some());
    }
}
