//! Load reports (LRS): asked of every client that offers them, kept by node, and told to whoever listens.
//!
//! A report says what happened since the one before. What a node said is added up, so that a reader may come at any time;
//! [`ControlPlane::load_reports`] has each report as it came. What follows from the load is NOT decided here.

use super::{ControlPlane, Missed, events::Event, server::lock};
use envoy_types::pb::{
    envoy::{
        config::endpoint::v3::{
            ClusterStats, EndpointLoadMetricStats, UnnamedEndpointLoadMetricStats, UpstreamLocalityStats,
        },
        service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse},
    },
    google::protobuf,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    codegen::{Body, BoxFuture, StdError, http},
    server::{Grpc, StreamingService},
};
use tonic_prost::ProstCodec;

pub(super) const PATH: &str = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats";

/// A report of 10,000 clusters in ten localities each fits well into this.
const MAX_REPORT: usize = 64 << 20;

/// Nodes that went away and whose load is still known; of more, the one that went first is forgotten.
const MAX_GONE: usize = 1024;

/// What a client said in one report.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Number of the LRS stream, from 1, never reused.
    pub stream: u64,
    /// Node id from the stream's first request.
    pub node: Arc<str>,
    /// The clusters with something to say.
    pub clusters: Vec<ClusterStats>,
}

/// Which clusters clients are to report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ReportedClusters {
    /// Each that has an `lrs_server` (`send_all_clusters`).
    #[default]
    All,
    /// Those with these names.
    Only(Vec<String>),
}

/// Receives [`LoadReport`]s from the moment it was made.
#[derive(Debug)]
pub struct LoadReportReceiver(broadcast::Receiver<Arc<LoadReport>>);

impl LoadReportReceiver {
    /// The next report.
    ///
    /// # Errors
    /// [`Missed`] when reports were lost, or when there will be none.
    pub async fn recv(&mut self) -> Result<Arc<LoadReport>, Missed> {
        self.0.recv().await.map_err(|error| match error {
            broadcast::error::RecvError::Lagged(count) => Missed::Behind(count),
            broadcast::error::RecvError::Closed => Missed::Closed,
        })
    }
}

impl ControlPlane {
    /// Says how often clients are to report their load, and of which clusters: those that do already, at once, and those
    /// to come. Unless this is called, every cluster is reported each 10 s.
    ///
    /// Only clusters with `lrs_server: {self: {}}` are reported at all.
    pub fn request_load(&self, interval: Duration, clusters: ReportedClusters) {
        self.loads().wanted.send_modify(|wanted| {
            (wanted.interval, wanted.clusters) = (interval, clusters);
        });
    }

    /// Every load report from now on.
    pub fn load_reports(&self) -> LoadReportReceiver {
        LoadReportReceiver(self.loads().reports.subscribe())
    }

    /// All that a node has reported of a cluster, added up, for each EDS service name that the cluster had: counts since
    /// the node was first heard of, and what was in progress at its last report.
    pub fn load(&self, node: &str, cluster: &str) -> Vec<ClusterStats> {
        let ledger = lock(&self.loads().ledger);
        let of_node = ledger.nodes.get(node).into_iter().flat_map(|node| &node.clusters);
        of_node.filter(|((name, _), _)| name == cluster).map(|(_, stats)| stats.clone()).collect()
    }

    /// The nodes that have reported load.
    pub fn load_nodes(&self) -> Vec<Arc<str>> {
        lock(&self.loads().ledger).nodes.keys().cloned().collect()
    }

    /// How many LRS streams are open.
    pub fn open_load_streams(&self) -> usize {
        lock(&self.loads().ledger).open.len()
    }

    /// How many LRS streams were ever opened.
    pub fn load_streams_opened(&self) -> u64 {
        lock(&self.loads().ledger).opened
    }

    /// Waits until exactly `count` LRS streams are open.
    pub async fn wait_for_load_streams(&self, count: usize) {
        self.wait_for_progress(|| self.open_load_streams() == count).await;
    }

    /// Waits until `enough` holds for what a node has reported of a cluster: see [`load`](Self::load).
    pub async fn wait_for_load(&self, node: &str, cluster: &str, enough: impl Fn(&[ClusterStats]) -> bool) {
        self.wait_for_progress(|| enough(&self.load(node, cluster))).await;
    }

    /// Ends every open LRS stream with UNAVAILABLE. Clients may open new ones at once.
    pub fn cut_load_streams(&self) {
        let opened = self.load_streams_opened();
        self.loads().wanted.send_modify(|wanted| wanted.cut = opened);
    }

    async fn wait_for_progress(&self, done: impl Fn() -> bool) {
        let mut progress = self.loads().progress.subscribe();
        while !done() {
            // Cannot be closed: `self` keeps the sender.
            let _ = progress.changed().await;
        }
    }
}

// === Loads ===

/// What the control plane knows of load: one part of its shared state.
pub(super) struct Loads {
    wanted: watch::Sender<Wanted>,
    /// Tells waiters that a report came, or that a stream opened or ended.
    progress: watch::Sender<()>,
    reports: broadcast::Sender<Arc<LoadReport>>,
    ledger: Mutex<Ledger>,
}

#[derive(Clone, Debug)]
struct Wanted {
    interval: Duration,
    clusters: ReportedClusters,
    /// Streams up to this number are to end.
    cut: u64,
}

#[derive(Debug, Default)]
struct Ledger {
    nodes: BTreeMap<Arc<str>, Node>,
    open: BTreeSet<u64>,
    opened: u64,
    /// Nodes without a stream, the one that went first in front. A node that came back may still be in it.
    gone: VecDeque<Arc<str>>,
}

#[derive(Debug, Default)]
struct Node {
    streams: usize,
    /// By cluster name and EDS service name.
    clusters: BTreeMap<(String, String), ClusterStats>,
}

impl Default for Loads {
    fn default() -> Self {
        let wanted = Wanted { interval: Duration::from_secs(10), clusters: ReportedClusters::All, cut: 0 };
        Self {
            wanted: watch::Sender::new(wanted),
            progress: watch::Sender::new(()),
            // 1,024 reports may wait for the slowest receiver, which loses the oldest ones after that.
            reports: broadcast::Sender::new(1024),
            ledger: Mutex::default(),
        }
    }
}

impl Ledger {
    fn arrived(&mut self, node: &Arc<str>) {
        self.nodes.entry(Arc::clone(node)).or_default().streams += 1;
    }

    fn left(&mut self, node: &Arc<str>) {
        let Some(known) = self.nodes.get_mut(node) else { return };
        known.streams -= 1;
        if known.streams > 0 {
            return;
        }
        self.gone.push_back(Arc::clone(node));
        if self.gone.len() > MAX_GONE
            && let Some(oldest) = self.gone.pop_front()
            && self.nodes.get(&oldest).is_some_and(|node| node.streams == 0)
        {
            self.nodes.remove(&oldest);
        }
    }

    fn add(&mut self, node: &Arc<str>, reported: &[ClusterStats]) {
        let clusters = &mut self.nodes.entry(Arc::clone(node)).or_default().clusters;
        // A level: who is not in the report has nothing in progress any more.
        for locality in clusters.values_mut().flat_map(|cluster| &mut cluster.upstream_locality_stats) {
            locality.total_requests_in_progress = 0;
        }
        for cluster in reported {
            let key = (cluster.cluster_name.clone(), cluster.cluster_service_name.clone());
            match clusters.get_mut(&key) {
                Some(known) => add_cluster(known, cluster),
                None => drop(clusters.insert(key, cluster.clone())),
            }
        }
    }
}

// === Sums ===

/// Clients may say any number.
fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

fn add_cluster(sum: &mut ClusterStats, more: &ClusterStats) {
    add(&mut sum.total_dropped_requests, more.total_dropped_requests);
    for dropped in &more.dropped_requests {
        match sum.dropped_requests.iter_mut().find(|known| known.category == dropped.category) {
            Some(known) => add(&mut known.dropped_count, dropped.dropped_count),
            None => sum.dropped_requests.push(dropped.clone()),
        }
    }
    for locality in &more.upstream_locality_stats {
        let same = |known: &&mut UpstreamLocalityStats| {
            (&known.locality, known.priority) == (&locality.locality, locality.priority)
        };
        match sum.upstream_locality_stats.iter_mut().find(same) {
            Some(known) => add_locality(known, locality),
            None => sum.upstream_locality_stats.push(locality.clone()),
        }
    }
    let elapsed = duration(sum.load_report_interval).saturating_add(duration(more.load_report_interval));
    sum.load_report_interval = Some(interval(elapsed));
}

fn add_locality(sum: &mut UpstreamLocalityStats, more: &UpstreamLocalityStats) {
    add(&mut sum.total_issued_requests, more.total_issued_requests);
    add(&mut sum.total_successful_requests, more.total_successful_requests);
    add(&mut sum.total_error_requests, more.total_error_requests);
    sum.total_requests_in_progress = more.total_requests_in_progress;
    for (sum, more) in [
        (&mut sum.cpu_utilization, more.cpu_utilization),
        (&mut sum.mem_utilization, more.mem_utilization),
        (&mut sum.application_utilization, more.application_utilization),
    ] {
        if let Some(more) = more {
            let known = sum.get_or_insert_with(UnnamedEndpointLoadMetricStats::default);
            add(&mut known.num_requests_finished_with_metric, more.num_requests_finished_with_metric);
            known.total_metric_value += more.total_metric_value;
        }
    }
    for metric in &more.load_metric_stats {
        let same = |known: &&mut EndpointLoadMetricStats| known.metric_name == metric.metric_name;
        match sum.load_metric_stats.iter_mut().find(same) {
            Some(known) => {
                add(&mut known.num_requests_finished_with_metric, metric.num_requests_finished_with_metric);
                known.total_metric_value += metric.total_metric_value;
            }
            None => sum.load_metric_stats.push(metric.clone()),
        }
    }
}

fn duration(interval: Option<protobuf::Duration>) -> Duration {
    let part = |part: i64| u64::try_from(part).unwrap_or_default();
    let interval = interval.unwrap_or_default();
    Duration::from_secs(part(interval.seconds)).saturating_add(Duration::from_nanos(part(interval.nanos.into())))
}

fn interval(duration: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        // Below 10^9.
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

// === The stream ===

/// Serves one call of `StreamLoadStats`.
pub(super) async fn serve<B>(
    control_plane: ControlPlane,
    request: http::Request<B>,
) -> http::Response<tonic::body::Body>
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    let codec = ProstCodec::<LoadStatsResponse, LoadStatsRequest>::default();
    Grpc::new(codec).max_decoding_message_size(MAX_REPORT).streaming(LoadReporting(control_plane), request).await
}

struct LoadReporting(ControlPlane);

impl StreamingService<LoadStatsRequest> for LoadReporting {
    type Response = LoadStatsResponse;
    type ResponseStream = ReceiverStream<Result<LoadStatsResponse, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<LoadStatsRequest>>) -> Self::Future {
        // Two: what is wanted, and a last word. Full means that the client does not read what it was told to do; the next
        // word waits in `wanted`. Closed by the transport when the stream is reset.
        let (responses, outgoing) = mpsc::channel(2);
        tokio::spawn(run(self.0.clone(), request.into_inner(), responses));
        Box::pin(async { Ok(Response::new(ReceiverStream::new(outgoing))) })
    }
}

/// A stream that is on the books, until this is dropped.
struct Open {
    control_plane: ControlPlane,
    number: u64,
    node: Arc<str>,
}

async fn run(
    control_plane: ControlPlane,
    mut requests: Streaming<LoadStatsRequest>,
    responses: mpsc::Sender<Result<LoadStatsResponse, Status>>,
) {
    // The first one says who reports, and later ones need not.
    let Ok(Some(first)) = requests.message().await else { return };
    let open = Open::new(control_plane, first.node.map(|node| node.id).unwrap_or_default().into());
    let mut wanted = open.control_plane.loads().wanted.subscribe();
    let mut told = None;
    loop {
        let now = wanted.borrow_and_update().clone();
        if open.number <= now.cut {
            // `try_send`: a client that does not read is cut too, without a last word.
            let _ = responses.try_send(Err(Status::unavailable("the control plane cut the stream")));
            return;
        }
        let news = Some(response(&now)).filter(|response| told.as_ref() != Some(response));
        tokio::select! {
            // What is wanted goes out before anything else is heard, so that it holds from the next report on.
            biased;
            permit = responses.reserve(), if news.is_some() => {
                let (Ok(permit), Some(news)) = (permit, news) else { return };
                permit.send(Ok(news.clone()));
                told = Some(news);
            }
            request = requests.message() => match request {
                Ok(Some(request)) => open.reported(request.cluster_stats),
                // The client has nothing more to say, or is gone.
                Ok(None) | Err(_) => return,
            },
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

fn response(wanted: &Wanted) -> LoadStatsResponse {
    let (send_all_clusters, clusters) = match &wanted.clusters {
        ReportedClusters::All => (true, Vec::new()),
        ReportedClusters::Only(clusters) => (false, clusters.clone()),
    };
    let load_reporting_interval = Some(interval(wanted.interval));
    LoadStatsResponse { clusters, send_all_clusters, load_reporting_interval, ..LoadStatsResponse::default() }
}

impl Open {
    fn new(control_plane: ControlPlane, node: Arc<str>) -> Self {
        let loads = control_plane.loads();
        let mut ledger = lock(&loads.ledger);
        ledger.opened += 1;
        let number = ledger.opened;
        ledger.open.insert(number);
        ledger.arrived(&node);
        drop(ledger);
        loads.progress.send_replace(());
        control_plane.emit(|| Event::LoadStreamOpened { stream: number, node: Arc::clone(&node) });
        Self { control_plane, number, node }
    }

    fn reported(&self, clusters: Vec<ClusterStats>) {
        let loads = self.control_plane.loads();
        lock(&loads.ledger).add(&self.node, &clusters);
        self.control_plane.emit(|| Event::LoadReport {
            stream: self.number,
            node: Arc::clone(&self.node),
            clusters: clusters.iter().map(|cluster| cluster.cluster_name.clone()).collect(),
        });
        if loads.reports.receiver_count() > 0 {
            // An error means that the last reader left meanwhile.
            let report = LoadReport { stream: self.number, node: Arc::clone(&self.node), clusters };
            let _ = loads.reports.send(Arc::new(report));
        }
        loads.progress.send_replace(());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let loads = self.control_plane.loads();
        let mut ledger = lock(&loads.ledger);
        ledger.open.remove(&self.number);
        ledger.left(&self.node);
        drop(ledger);
        loads.progress.send_replace(());
        self.control_plane.emit(|| Event::LoadStreamClosed { stream: self.number, node: Arc::clone(&self.node) });
    }
}
