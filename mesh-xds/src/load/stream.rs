//! The task that keeps one LRS stream: dial, introduce ourselves, hear what is wanted, report, dial again.
//!
//! ```text
//!  ┌─► connect ──► node ──► the server's word ──► report each interval ──► last report, END_STREAM
//!  │      │ cause                 │ cause              │ stream ended         no cluster reports here any more
//!  │      ▼                       ▼                    ▼
//!  └── A57's backoff, which starts over after a response
//! ```
//!
//! The connection is its own: the one of ADS is given up with its stream, and then counts would wait for that, too. What
//! is counted, and what was reported of it, is NOT known here: `store` is asked.

use super::{
    Reporter,
    metrics::Sum,
    store::{ClusterReport, LocalityReport, Wanted},
};
use crate::{
    ads::{Again, Backoff, Dialer, describe, node_message},
    later::later,
    resource::LocalityId,
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3 as core,
            endpoint::v3::{
                ClusterStats, EndpointLoadMetricStats, UnnamedEndpointLoadMetricStats, UpstreamLocalityStats,
                cluster_stats::DroppedRequests,
            },
        },
        service::load_stats::v3::{
            LoadStatsRequest, LoadStatsResponse, load_reporting_service_client::LoadReportingServiceClient,
        },
    },
    google::protobuf,
};
use futures_util::{FutureExt, stream::poll_fn};
use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::Streaming;

/// "LRS shutdown flush: waits <= 1 s for a last report" - grpc-go.
const LAST_REPORT: Duration = Duration::from_secs(1);
/// A server that asks for less, or forgets to say, must not get a hot loop.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// Between a panic of the task and its next start.
const RESTART_DELAY: Duration = Duration::from_secs(1);
/// "client feature envoy.lrs.supports_send_all_clusters" (A27).
const SEND_ALL_CLUSTERS: &str = "envoy.lrs.supports_send_all_clusters";

/// What the server asked for last.
#[derive(Clone, Debug)]
struct Settings {
    interval: Duration,
    wanted: Wanted,
}

/// How a stream ended.
enum End {
    /// After at least one response.
    Answered { opened: Instant, cause: String },
    /// Before any.
    Failed(String),
    /// No cluster reports here any more.
    Idle,
}

/// Runs until no cluster reports to this server.
pub(super) async fn run(reporter: Arc<Reporter>) {
    // Unwind safety: a stream that panicked is dropped whole, and the books are whole after each of their steps.
    while AssertUnwindSafe(streams(&reporter)).catch_unwind().await.is_err() {
        tracing::error!("the LRS stream's task panicked and starts again");
        sleep(RESTART_DELAY).await;
    }
}

async fn streams(reporter: &Reporter) {
    let mut backoff = Backoff::default();
    let Some(server) = reporter.bootstrap.authorities.server(reporter.server) else { return };
    // Its own, as the connection is: who reports load for the first time may do so when ADS has no stream.
    let dialer = Dialer::new(server, &reporter.bootstrap.transport);
    loop {
        let (cause, delay) = match one_stream(reporter, &dialer).await {
            End::Idle if reporter.close() => return,
            // Somebody came just now.
            End::Idle => continue,
            End::Answered { opened, cause } => {
                let again = backoff.answered(opened, Instant::now(), fastrand::f64());
                let (Again::AtOnce(delay) | Again::Flapping(delay)) = again;
                (cause, delay)
            }
            End::Failed(cause) => (cause, backoff.failed(fastrand::f64())),
        };
        let server = reporter.bootstrap.server_name(reporter.server);
        tracing::info!(%server, %cause, ?delay, "LRS stream down: load is reported later");
        let pause = pin!(sleep(delay));
        // Counts are kept meanwhile. Whoever wants them flushed is not kept waiting: there is nowhere to send them.
        tokio::select! {
            () = idle(reporter) => {}
            () = refuse_flushes(reporter) => {}
            () = pause => {}
        }
    }
}

async fn one_stream(reporter: &Reporter, dialer: &Dialer) -> End {
    let connection = tokio::select! {
        () = idle(reporter) => return End::Idle,
        connection = dialer.dial() => match connection {
            Ok(connection) => connection,
            Err(cause) => return End::Failed(cause),
        },
    };
    // One: a report is made when the transport has room for it.
    let (to_wire, mut wire) = mpsc::channel(1);
    let messages = poll_fn(move |cx| wire.poll_recv(cx));
    let mut client = LoadReportingServiceClient::with_origin(connection, dialer.origin());
    let (settings, mut wanted) = watch::channel(None);
    let opened = Instant::now();
    let mut read = pin!(async {
        match client.stream_load_stats(messages).await {
            Ok(responses) => read(responses.into_inner(), &settings, opened).await,
            Err(status) => End::Failed(describe(&status)),
        }
    });
    tokio::select! {
        // The end first: a stream that is known to be over takes no report.
        biased;
        end = &mut read => end,
        () = write(reporter, &to_wire, &mut wanted) => {
            let goodbye = async {
                let settings = wanted.borrow().clone();
                if let Some(settings) = settings {
                    report(reporter, &to_wire, &settings).await;
                }
                drop(to_wire);
                // The server's own end says that it has read ours.
                read.await;
            };
            // Late is lost: who leaves does not wait for ever.
            let _ = timeout(LAST_REPORT, goodbye).await;
            End::Idle
        }
    }
}

/// Introduces us, then reports as often as the server wants; returns when no cluster reports here any more.
async fn write(
    reporter: &Reporter,
    wire: &mpsc::Sender<LoadStatsRequest>,
    wanted: &mut watch::Receiver<Option<Settings>>,
) {
    let mut node = node_message(&reporter.bootstrap.node);
    node.client_features.push(SEND_ALL_CLUSTERS.to_owned());
    // A wire that is closed is the reader's to report; here and below.
    let _ = wire.send(LoadStatsRequest { node: Some(node), cluster_stats: Vec::new() }).await;
    let mut last = Instant::now();
    loop {
        let settings = wanted.borrow_and_update().clone();
        let tick = async {
            match &settings {
                Some(settings) => sleep_until(later(last, settings.interval)).await,
                // "wait for the response": nothing is said before.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // 1. the end, which has a report of its own; 2. new words of the server hold from now on.
            biased;
            () = idle(reporter) => return,
            Ok(()) = wanted.changed() => {
                if settings.is_none() {
                    last = Instant::now();
                }
            }
            // Asked for before this report is made, so that it has everything that was counted by then.
            asked = flush_asked(reporter), if settings.is_some() => {
                if let Some(settings) = &settings {
                    report(reporter, wire, settings).await;
                }
                reporter.state.send_modify(|state| state.flushed = asked);
            }
            () = tick => {
                last = Instant::now();
                if let Some(settings) = &settings {
                    report(reporter, wire, settings).await;
                }
            }
        }
    }
}

/// Sends one report; what it says counts as reported once the transport has taken it.
async fn report(reporter: &Reporter, wire: &mpsc::Sender<LoadStatsRequest>, settings: &Settings) {
    let clusters = reporter.books().report(&settings.wanted, Instant::now());
    let request = LoadStatsRequest { node: None, cluster_stats: clusters.into_iter().map(cluster_stats).collect() };
    // The slot is free again when the transport, which obeys flow control, has taken the message.
    if wire.send(request).await.is_ok() && wire.reserve().await.is_ok() {
        reporter.books().taken();
    }
}

async fn read(
    mut responses: Streaming<LoadStatsResponse>,
    settings: &watch::Sender<Option<Settings>>,
    opened: Instant,
) -> End {
    let mut answered = false;
    loop {
        let end = |cause| if answered { End::Answered { opened, cause } } else { End::Failed(cause) };
        match responses.message().await {
            Ok(Some(response)) => settings.send_replace(Some(asked_for(response))),
            Ok(None) => return end("the server ended the stream".to_owned()),
            Err(status) => return end(describe(&status)),
        };
        answered = true;
    }
}

/// Resolves when no cluster reports to this server.
async fn idle(reporter: &Reporter) {
    // The reporter keeps the sender.
    let _ = reporter.state.subscribe().wait_for(|state| state.handles == 0).await;
}

/// Resolves when a flush is asked for, to its number.
async fn flush_asked(reporter: &Reporter) -> u64 {
    let mut state = reporter.state.subscribe();
    let asked = state.wait_for(|state| state.flush > state.flushed).await.map(|state| state.flush);
    match asked {
        Ok(asked) => asked,
        // The reporter keeps the sender.
        Err(_closed) => std::future::pending().await,
    }
}

/// Answers flushes without a report; never ends.
async fn refuse_flushes(reporter: &Reporter) {
    loop {
        let asked = flush_asked(reporter).await;
        reporter.state.send_modify(|state| state.flushed = asked);
    }
}

// === Protobuf ===

fn asked_for(response: LoadStatsResponse) -> Settings {
    let interval = response.load_reporting_interval.map(|interval| {
        // A negative part is no time.
        let part = |part: i64| u64::try_from(part).unwrap_or_default();
        Duration::from_secs(part(interval.seconds)).saturating_add(Duration::from_nanos(part(interval.nanos.into())))
    });
    let wanted = match response.send_all_clusters {
        true => Wanted::All,
        false => Wanted::Only(response.clusters.into_iter().collect()),
    };
    Settings { interval: interval.unwrap_or_default().max(SHORTEST_INTERVAL), wanted }
}

fn cluster_stats(report: ClusterReport) -> ClusterStats {
    let dropped =
        |(category, dropped_count): (Arc<str>, u64)| DroppedRequests { category: category.to_string(), dropped_count };
    ClusterStats {
        cluster_name: report.cluster.to_string(),
        cluster_service_name: report.service.map(|name| name.to_string()).unwrap_or_default(),
        upstream_locality_stats: report.localities.into_iter().map(locality_stats).collect(),
        total_dropped_requests: report.dropped.values().sum(),
        // What has no category is part of the total only (A32).
        dropped_requests: report.dropped.into_iter().filter(|(name, _)| !name.is_empty()).map(dropped).collect(),
        load_report_interval: Some(protobuf::Duration {
            seconds: i64::try_from(report.elapsed.as_secs()).unwrap_or(i64::MAX),
            // Below 10^9.
            nanos: i32::try_from(report.elapsed.subsec_nanos()).unwrap_or_default(),
        }),
    }
}

fn locality_stats((id, report): (LocalityId, LocalityReport)) -> UpstreamLocalityStats {
    let top_level = |sum: Sum| {
        (sum.count > 0).then_some(UnnamedEndpointLoadMetricStats {
            num_requests_finished_with_metric: sum.count,
            total_metric_value: sum.total,
        })
    };
    let named = |(name, sum): (Arc<str>, Sum)| EndpointLoadMetricStats {
        // "the LRS load report will include the data with that same string as the key" (A85, Envoy).
        metric_name: format!("named_metrics.{name}"),
        num_requests_finished_with_metric: sum.count,
        total_metric_value: sum.total,
    };
    UpstreamLocalityStats {
        locality: Some(core::Locality { region: id.region, zone: id.zone, sub_zone: id.sub_zone }),
        total_successful_requests: report.succeeded,
        total_requests_in_progress: report.in_progress,
        total_error_requests: report.failed,
        total_issued_requests: report.issued,
        cpu_utilization: top_level(report.metrics.cpu_utilization),
        mem_utilization: top_level(report.metrics.mem_utilization),
        application_utilization: top_level(report.metrics.application_utilization),
        load_metric_stats: report.metrics.named_metrics.into_iter().map(named).collect(),
        ..UpstreamLocalityStats::default()
    }
}
