//! The LRS stream by the clock: what is said first, when reports come, and what follows a stream that fails.
//!
//! The server is written here, over the generated service, so that each word of the client is seen. What is counted for
//! whom is NOT judged here: `load/` does that, and the wire tests with real calls.

use super::{Duration, Handle, Instant, NODE, client, idle, snapshot, soon, target, web, xds};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use mesh_xds::{
    InProcess,
    control_plane::{
        ControlPlane, ReportedClusters, Resources,
        proto::envoy::{
            config::{
                cluster::v3::Cluster,
                core::v3::{ConfigSource, SelfConfigSource, config_source::ConfigSourceSpecifier},
            },
            service::load_stats::v3::{
                LoadStatsRequest, LoadStatsResponse,
                load_reporting_service_server::{LoadReportingService, LoadReportingServiceServer},
            },
        },
    },
    load::{ClusterLoad, LoadReports},
    resource::LocalityId,
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// The resources of [`web`], with load reports of cluster `a`.
fn reporting() -> Resources {
    let to_itself = ConfigSourceSpecifier::Self_(SelfConfigSource::default());
    let lrs_server = Some(ConfigSource { config_source_specifier: Some(to_itself), ..ConfigSource::default() });
    web("a", 1).with(Cluster { lrs_server, ..xds::cluster_eds("a") })
}

/// A client whose cluster `a` reports its load.
async fn reported_by(control_plane: &ControlPlane) -> (LoadReports, ClusterLoad) {
    control_plane.set_unchecked(reporting());
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let snapshot = snapshot(&mut watch, super::serves("a", 1)).await;
    let leaves = snapshot.clusters["a"].state.as_ref().expect("resolved");
    let reports = client.load_reports();
    let load = reports.cluster(&leaves.first).expect("it has an lrs_server");
    (reports, load)
}

fn call(load: &ClusterLoad) {
    load.locality(&LocalityId::default()).start().succeeded(true);
}

#[tokio::test(start_paused = true)]
async fn reports_come_in_the_interval_that_was_asked_for() {
    let control_plane = ControlPlane::new();
    control_plane.request_load(Duration::from_secs(1), ReportedClusters::All);
    let mut reports = control_plane.load_reports();
    let (_reports, load) = reported_by(&control_plane).await;
    let mut came = Vec::new();
    for _ in 0..5 {
        call(&load);
        let report = soon(reports.recv()).await.expect("the control plane is here");
        assert_eq!(&*report.node, NODE);
        let interval = report.clusters[0].load_report_interval.expect("set");
        let told = Duration::new(interval.seconds.unsigned_abs(), interval.nanos.unsigned_abs());
        came.push((Instant::now(), told));
    }
    assert!(came[0].1 < Duration::from_secs(2), "the first interval began with the cluster: {:?}", came[0].1);
    for pair in came.windows(2) {
        let (spacing, told) = (pair[1].0 - pair[0].0, pair[1].1);
        for interval in [spacing, told] {
            assert!(interval.abs_diff(Duration::from_secs(1)) <= Duration::from_millis(100), "{came:?}");
        }
    }
}

// === A server that is seen word by word ===

/// One stream, at the server: requests as they come, and the way to answer.
struct Served {
    opened: Instant,
    requests: Streaming<LoadStatsRequest>,
    answers: mpsc::Sender<Result<LoadStatsResponse, Status>>,
}

#[derive(Clone)]
struct Server(mpsc::Sender<Served>);

#[tonic::async_trait]
impl LoadReportingService for Server {
    type StreamLoadStatsStream = ReceiverStream<Result<LoadStatsResponse, Status>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        // A few answers: each test gives fewer.
        let (answers, outgoing) = mpsc::channel(8);
        let served = Served { opened: Instant::now(), requests: request.into_inner(), answers };
        self.0.send(served).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// A client of which a cluster reports to a server of ours, and the streams that this one gets.
async fn seen() -> (LoadReports, ClusterLoad, mpsc::Receiver<Served>) {
    let (door, mut dials) = InProcess::new("lrs");
    let (server, streams) = mpsc::channel(1);
    let service = TowerToHyperService::new(LoadReportingServiceServer::new(Server(server)));
    Handle::current().spawn(async move {
        while let Some(io) = dials.recv().await {
            let service = service.clone();
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
                // The client leaves when it likes.
                let _ = builder.serve_connection(TokioIo::new(io), service).await;
            });
        }
    });
    // What the cluster is comes from a control plane; its load goes to the server that the bootstrap names.
    let (_, resolved) = resolved().await;
    let reports = client(door).load_reports();
    let load = reports.cluster(&resolved).expect("it has an lrs_server");
    (reports, load, streams)
}

async fn resolved() -> (ControlPlane, std::sync::Arc<mesh_xds::ResolvedCluster>) {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(reporting());
    let client = client(control_plane.in_process());
    let mut watch = client.watch(target("web"));
    let snapshot = snapshot(&mut watch, super::serves("a", 1)).await;
    let leaf = snapshot.clusters["a"].state.as_ref().expect("resolved").first.clone();
    (control_plane, leaf)
}

fn every(seconds: i64) -> LoadStatsResponse {
    let interval = mesh_xds::control_plane::proto::google::protobuf::Duration { seconds, nanos: 0 };
    LoadStatsResponse {
        send_all_clusters: true,
        load_reporting_interval: Some(interval),
        ..LoadStatsResponse::default()
    }
}

impl Served {
    async fn hears(&mut self) -> LoadStatsRequest {
        soon(self.requests.next()).await.expect("the stream is open").expect("a request")
    }

    async fn answers(&self, answer: Result<LoadStatsResponse, Status>) {
        self.answers.send(answer).await.expect("the stream is open");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_request_has_the_node_and_its_feature_and_nothing_else_is_said_unasked() {
    let (_reports, load, mut streams) = seen().await;
    call(&load);
    let mut stream = soon(streams.recv()).await.expect("a stream");
    let first = stream.hears().await;
    let node = first.node.expect("the node");
    assert_eq!((node.id.as_str(), first.cluster_stats.len()), (NODE, 0));
    let feature = "envoy.lrs.supports_send_all_clusters";
    assert!(node.client_features.iter().any(|it| it == feature), "{:?}", node.client_features);
    // An hour without an answer is an hour without a report.
    tokio::time::timeout(Duration::from_secs(3600), stream.requests.next()).await.expect_err("nothing was asked for");
    let asked = Instant::now();
    stream.answers(Ok(every(20))).await;
    let report = stream.hears().await;
    assert_eq!(asked.elapsed().as_secs(), 20);
    assert!(report.node.is_none());
    assert_eq!(report.cluster_stats[0].upstream_locality_stats[0].total_issued_requests, 1);
    // Another word in the middle of an interval holds from the last report on.
    tokio::time::sleep(Duration::from_secs(5)).await;
    stream.answers(Ok(every(8))).await;
    call(&load);
    stream.hears().await;
    assert_eq!(asked.elapsed().as_secs(), 28);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_is_tried_again_on_the_curve_and_keeps_its_counts() {
    let (_reports, load, mut streams) = seen().await;
    call(&load);
    let mut opened = Vec::new();
    for _ in 0..4 {
        let stream = soon(streams.recv()).await.expect("a stream");
        opened.push(stream.opened);
        stream.answers(Err(Status::unimplemented("no such service"))).await;
    }
    let waits: Vec<_> = opened.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    for (wait, expected) in waits.iter().zip([1.0, 1.6, 2.56]) {
        assert!((expected * 0.79..expected * 1.21).contains(wait), "A57's curve: {waits:?}");
    }
    let mut stream = soon(streams.recv()).await.expect("a stream");
    stream.answers(Ok(every(1))).await;
    stream.hears().await;
    let report = stream.hears().await;
    assert_eq!(report.cluster_stats[0].upstream_locality_stats[0].total_successful_requests, 1);
}

#[tokio::test(start_paused = true)]
async fn the_last_report_comes_with_the_end_and_is_not_waited_for_longer_than_a_second() {
    let (reports, load, mut streams) = seen().await;
    let mut stream = soon(streams.recv()).await.expect("a stream");
    stream.hears().await;
    stream.answers(Ok(every(3600))).await;
    // The client has read it, and so knows what to report.
    idle().await;
    call(&load);
    drop(load);
    let report = stream.hears().await;
    assert_eq!(report.cluster_stats[0].upstream_locality_stats[0].total_issued_requests, 1);
    assert!(soon(stream.requests.next()).await.is_none(), "the client has ended its half");
    // This server never ends its own half.
    let left = Instant::now();
    soon(reports.flush()).await;
    assert_eq!(left.elapsed().as_secs_f64().round(), 1.0);
    assert!(streams.try_recv().is_err(), "no other stream");
}
