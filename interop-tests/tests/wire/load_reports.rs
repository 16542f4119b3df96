//! LRS: what our client reports is what happened, to the call (A27, A64, A85).
//!
//! Counts are compared exactly, in sums over reports, so that it does not matter where one interval ends. When a report
//! comes is NOT judged here: `mesh-xds` does that, with a clock in hand.

use crate::{
    mesh::{applied, mesh, ready, service, unary},
    rig::{OurControlPlane, PATIENCE, addresses, backends, bootstrap, until, within},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use interop_tests::{
    peers::{ForeignClient, Grpc},
    proto::testing::{SimpleRequest, test_service_client::TestServiceClient},
};
use mesh_client::{Mesh, MeshChannel, testing::TestMesh};
use mesh_xds::{
    Bootstrap,
    control_plane::{
        ControlPlane, ReportedClusters, Resources,
        proto::{
            envoy::{
                config::{
                    cluster::v3::{
                        Cluster, LoadBalancingPolicy as Policies,
                        cluster::{ClusterDiscoveryType, CustomClusterType, DiscoveryType},
                        load_balancing_policy::Policy as LbPolicy,
                    },
                    core::v3::{
                        ConfigSource, Locality, SelfConfigSource, TypedExtensionConfig,
                        config_source::ConfigSourceSpecifier,
                    },
                    endpoint::v3::{
                        ClusterLoadAssignment, ClusterStats, LocalityLbEndpoints, UnnamedEndpointLoadMetricStats,
                        UpstreamLocalityStats,
                        cluster_load_assignment::{Policy, policy::DropOverload},
                    },
                },
                extensions::{
                    clusters::aggregate::v3::ClusterConfig as AggregateConfig,
                    load_balancing_policies::pick_first::v3::PickFirst,
                },
                r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
            },
            google::protobuf::{self, UInt32Value},
        },
        resources::{cluster_eds, endpoint, endpoints, pack},
    },
    resource::Kind,
};
use prost::Message;
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Duration,
};
use tokio::time;
use tonic::{
    Code, Request, Status,
    metadata::{Binary, MetadataValue},
};
use tower_service::Service;

/// The node of a [`TestMesh`].
const NODE: &str = "in-process";
const CLUSTER: &str = "echo-cluster";

/// As often as our client does it.
pub(crate) const OFTEN: Duration = Duration::from_millis(100);
/// Not before the test is over.
const NEVER: Duration = Duration::from_secs(3600);

pub(crate) fn reporting(name: &str, metrics: &[&str]) -> Cluster {
    let to_itself = ConfigSourceSpecifier::Self_(SelfConfigSource::default());
    Cluster {
        lrs_server: Some(ConfigSource { config_source_specifier: Some(to_itself), ..ConfigSource::default() }),
        lrs_report_endpoint_metrics: metrics.iter().map(|metric| (*metric).to_owned()).collect(),
        ..cluster_eds(name)
    }
}

/// A service whose cluster reports its load.
pub(crate) fn reported(name: &str, addresses: &[SocketAddr], metrics: &[&str]) -> Resources {
    service(name, addresses).with(reporting(&format!("{name}-cluster"), metrics))
}

/// A mesh with one such service, asked for reports that often.
fn reporting_mesh(resources: Resources, interval: Duration) -> TestMesh {
    let mesh = mesh(resources);
    mesh.control_plane().request_load(interval, ReportedClusters::All);
    mesh
}

/// A call with a header.
async fn call(channel: &MeshChannel, key: &'static str, value: &'static str) -> Result<(), Status> {
    let mut request = Request::new(SimpleRequest::default());
    request.metadata_mut().insert(key, value.parse().expect("a header value"));
    TestServiceClient::new(channel.clone()).unary_call(request).await.map(drop)
}

/// Issued, successful, failed and in progress, over all localities.
pub(crate) type Counts = (u64, u64, u64, u64);

fn localities(stats: &[ClusterStats]) -> impl Iterator<Item = &UpstreamLocalityStats> {
    stats.iter().flat_map(|cluster| &cluster.upstream_locality_stats)
}

pub(crate) fn counts(stats: &[ClusterStats]) -> Counts {
    localities(stats).fold(Counts::default(), |sum, locality| {
        (
            sum.0 + locality.total_issued_requests,
            sum.1 + locality.total_successful_requests,
            sum.2 + locality.total_error_requests,
            sum.3 + locality.total_requests_in_progress,
        )
    })
}

/// Waits until the reports add up to these, and no further.
async fn come_to(control_plane: &ControlPlane, cluster: &str, expected: Counts) {
    let enough = |stats: &[ClusterStats]| counts(stats) == expected;
    let event = format!("{expected:?}");
    let reported = within(&event, control_plane.wait_for_load(NODE, cluster, enough));
    tokio::select! {
        () = reported => {}
        () = too_much(control_plane, cluster, expected) => {
            panic!("{:?}, not {expected:?}", counts(&control_plane.load(NODE, cluster)));
        }
    }
}

/// Resolves once there is more than that, which no further report can take back.
async fn too_much(control_plane: &ControlPlane, cluster: &str, expected: Counts) {
    let beyond = |stats: &[ClusterStats]| {
        let (issued, succeeded, failed, _) = counts(stats);
        issued > expected.0 || succeeded > expected.1 || failed > expected.2
    };
    control_plane.wait_for_load(NODE, cluster, beyond).await;
}

fn zone(zone: &str, addresses: &[SocketAddr]) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        locality: Some(Locality { zone: zone.to_owned(), ..Locality::default() }),
        lb_endpoints: addresses.iter().map(|address| endpoint(*address)).collect(),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        ..LocalityLbEndpoints::default()
    }
}

/// Issued in that zone.
fn in_zone(stats: &[ClusterStats], zone: &str) -> u64 {
    let there = |it: &&UpstreamLocalityStats| it.locality.as_ref().is_some_and(|locality| locality.zone == zone);
    localities(stats).filter(there).map(|it| it.total_issued_requests).sum()
}

// === Counts ===

#[tokio::test]
async fn each_call_is_counted_once_and_what_is_open_in_every_report() {
    let [a] = backends(["a"]).await;
    let mesh = reporting_mesh(reported("echo", &addresses([&a]), &[]), OFTEN);
    let channel = ready(&mesh, "echo").await;
    for _ in 0..100 {
        unary(&channel).await.expect("a reply");
    }
    for _ in 0..50 {
        let status = call(&channel, "rpc-behavior", "error-code-14").await.expect_err("as asked");
        assert_eq!(status.code(), Code::Unavailable);
    }
    let open: Vec<_> = (0..3)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move { call(&channel, "rpc-behavior", "keep-open").await })
        })
        .collect();
    come_to(mesh.control_plane(), CLUSTER, (153, 100, 50, 3)).await;

    let mut reports = mesh.control_plane().load_reports();
    let quiet = within("a report without traffic", reports.recv()).await.expect("the control plane is here");
    assert_eq!(&*quiet.node, NODE);
    assert_eq!(counts(&quiet.clusters), (0, 0, 0, 3), "{quiet:?}");

    for call in open {
        call.abort();
    }
    // Who cancels counts as an error.
    come_to(mesh.control_plane(), CLUSTER, (153, 100, 53, 0)).await;
    let stats = mesh.control_plane().load(NODE, CLUSTER);
    let [cluster] = stats.as_slice() else { panic!("{stats:?}") };
    assert_eq!(cluster.cluster_service_name, "", "the Cluster has none");
    assert_eq!((cluster.total_dropped_requests, cluster.dropped_requests.len()), (0, 0));
}

#[tokio::test]
async fn drops_are_counted_by_category() {
    let [a] = backends(["a"]).await;
    let half = |category: &str| DropOverload {
        category: category.to_owned(),
        drop_percentage: Some(FractionalPercent { numerator: 50, denominator: DenominatorType::Hundred.into() }),
    };
    let dropping = ClusterLoadAssignment {
        policy: Some(Policy { drop_overloads: vec![half("a"), half("b")], ..Policy::default() }),
        ..endpoints(CLUSTER, &addresses([&a]))
    };
    let mesh = reporting_mesh(reported("echo", &[], &[]).with(dropping), OFTEN);
    let channel = ready(&mesh, "echo").await;
    let calls = 2_000;
    let mut unavailable = 0;
    for _ in 0..calls {
        if let Err(status) = unary(&channel).await {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            unavailable += 1;
        }
    }
    // Five standard deviations of 2,000 draws.
    let near = |count: u64, share: f64| {
        let (n, count) = (f64::from(calls), count as f64);
        (count - share * n).abs() < 5.0 * (n * share * (1.0 - share)).sqrt()
    };
    let issued = a.counters().calls;
    assert_eq!(u64::try_from(calls).expect("positive") - issued, unavailable, "a drop is never retried");
    assert!(near(unavailable, 0.75), "{unavailable}");
    come_to(mesh.control_plane(), CLUSTER, (issued, issued, 0, 0)).await;
    let all_drops =
        |stats: &[ClusterStats]| stats.iter().map(|it| it.total_dropped_requests).sum::<u64>() == unavailable;
    within("the drops", mesh.control_plane().wait_for_load(NODE, CLUSTER, all_drops)).await;
    let stats = mesh.control_plane().load(NODE, CLUSTER);
    let by_category: HashMap<_, _> =
        stats[0].dropped_requests.iter().map(|dropped| (dropped.category.as_str(), dropped.dropped_count)).collect();
    assert!(near(by_category["a"], 0.5) && near(by_category["b"], 0.25), "{by_category:?}");
    assert_eq!(by_category["a"] + by_category["b"], unavailable);
}

#[tokio::test]
async fn plain_http_succeeds_unless_the_server_fails() {
    let [a] = backends(["a"]).await;
    let mesh = reporting_mesh(reported("echo", &addresses([&a]), &[]), OFTEN);
    let mut channel = ready(&mesh, "echo").await;
    for (behavior, code) in
        [("sleep-0", 200), ("error-code-404", 404), ("error-code-500", 500), ("error-code-503", 503)]
    {
        let request = http::Request::get("/").header("rpc-behavior", behavior).body(Empty::<Bytes>::new());
        let response = channel.call(request.expect("a request")).await.expect("a response");
        assert_eq!(response.status(), code);
        response.into_body().collect().await.expect("a body");
    }
    come_to(mesh.control_plane(), CLUSTER, (4, 2, 2, 0)).await;
}

#[tokio::test]
async fn calls_are_counted_where_they_went() {
    let [a, b, c] = backends(["a", "b", "c"]).await;
    let assignment = ClusterLoadAssignment {
        cluster_name: CLUSTER.to_owned(),
        endpoints: vec![zone("near", &addresses([&a, &b])), zone("far", &addresses([&c]))],
        ..ClusterLoadAssignment::default()
    };
    let mesh = reporting_mesh(reported("echo", &[], &[]).with(assignment), OFTEN);
    let channel = ready(&mesh, "echo").await;
    for _ in 0..100 {
        unary(&channel).await.expect("a reply");
    }
    come_to(mesh.control_plane(), CLUSTER, (100, 100, 0, 0)).await;
    let stats = mesh.control_plane().load(NODE, CLUSTER);
    assert_eq!(in_zone(&stats, "near"), a.counters().calls + b.counters().calls);
    assert_eq!(in_zone(&stats, "far"), c.counters().calls);
}

#[tokio::test]
async fn pick_first_is_counted_where_it_connected() {
    let [a, b] = backends(["a", "b"]).await;
    let assignment = ClusterLoadAssignment {
        cluster_name: CLUSTER.to_owned(),
        endpoints: vec![zone("near", &addresses([&a])), zone("far", &addresses([&b]))],
        ..ClusterLoadAssignment::default()
    };
    let policy = Policies {
        policies: vec![LbPolicy {
            typed_extension_config: Some(TypedExtensionConfig {
                name: "pick_first".to_owned(),
                typed_config: Some(pack(PickFirst::default())),
            }),
        }],
    };
    let cluster = Cluster { load_balancing_policy: Some(policy), ..reporting(CLUSTER, &[]) };
    let mesh = reporting_mesh(service("echo", &[]).with(cluster).with(assignment), OFTEN);
    let channel = ready(&mesh, "echo").await;
    for _ in 0..10 {
        unary(&channel).await.expect("a reply");
    }
    come_to(mesh.control_plane(), CLUSTER, (10, 10, 0, 0)).await;
    let stats = mesh.control_plane().load(NODE, CLUSTER);
    assert_eq!((in_zone(&stats, "near"), in_zone(&stats, "far")), (a.counters().calls, b.counters().calls));
}

#[tokio::test]
async fn an_aggregate_reports_its_leaf() {
    let [a] = backends(["a"]).await;
    let aggregate = AggregateConfig { clusters: vec!["leaf".to_owned()] };
    let custom = CustomClusterType { name: "envoy.clusters.aggregate".to_owned(), typed_config: Some(pack(aggregate)) };
    let above = Cluster {
        name: CLUSTER.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(custom)),
        ..Cluster::default()
    };
    let leaf = reporting("leaf", &[]);
    let resources = service("echo", &[]).with(above).with(leaf).with(endpoints("leaf", &addresses([&a])));
    let mesh = reporting_mesh(resources, OFTEN);
    let channel = ready(&mesh, "echo").await;
    unary(&channel).await.expect("a reply");
    come_to(mesh.control_plane(), "leaf", (1, 1, 0, 0)).await;
    assert_eq!(mesh.control_plane().load(NODE, CLUSTER), []);
}

/// "LOGICAL_DNS reports under the empty locality" (A37), whatever the assignment says.
#[tokio::test]
async fn a_logical_dns_cluster_is_one_locality_without_a_name() {
    let [a] = backends(["a"]).await;
    let assignment = ClusterLoadAssignment {
        cluster_name: CLUSTER.to_owned(),
        endpoints: vec![zone("z", &addresses([&a]))],
        ..ClusterLoadAssignment::default()
    };
    let cluster = Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::LogicalDns.into())),
        eds_cluster_config: None,
        load_assignment: Some(assignment),
        ..reporting(CLUSTER, &[])
    };
    let mesh = reporting_mesh(service("echo", &[]).with(cluster), OFTEN);
    let channel = ready(&mesh, "echo").await;
    unary(&channel).await.expect("a reply");
    come_to(mesh.control_plane(), CLUSTER, (1, 1, 0, 0)).await;
    let stats = mesh.control_plane().load(NODE, CLUSTER);
    let names: Vec<_> = localities(&stats).map(|it| it.locality.clone().unwrap_or_default()).collect();
    assert_eq!(names, [Locality::default()]);
}

// === Metrics of backends ===

/// The report of a backend, to be asked for with a call.
fn orca(cpu: f64, named: &[(&str, f64)]) -> MetadataValue<Binary> {
    let named_metrics = named.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let report =
        OrcaLoadReport { cpu_utilization: cpu, mem_utilization: 0.5, application_utilization: 2.0, named_metrics };
    MetadataValue::from_bytes(&report.encode_to_vec())
}

/// `xds.data.orca.v3.OrcaLoadReport`, as far as these tests go.
#[derive(Clone, PartialEq, Message)]
struct OrcaLoadReport {
    #[prost(double, tag = "1")]
    cpu_utilization: f64,
    #[prost(double, tag = "2")]
    mem_utilization: f64,
    #[prost(map = "string, double", tag = "8")]
    named_metrics: HashMap<String, f64>,
    #[prost(double, tag = "9")]
    application_utilization: f64,
}

async fn call_with_report(channel: &MeshChannel, report: MetadataValue<Binary>) {
    let mut request = Request::new(SimpleRequest::default());
    request.metadata_mut().insert_bin("orca-report-bin", report);
    TestServiceClient::new(channel.clone()).unary_call(request).await.expect("a reply");
}

/// The three calls of A64's example, with `metrics` asked for; what came of them.
async fn three_calls(metrics: &[&str]) -> UpstreamLocalityStats {
    let [a] = backends(["a"]).await;
    let mesh = reporting_mesh(reported("echo", &addresses([&a]), metrics), OFTEN);
    let channel = ready(&mesh, "echo").await;
    for report in [orca(0.25, &[("k1", 1.0), ("k2", 2.0)]), orca(-1.0, &[("k2", 3.0), ("k3", 4.0)]), orca(1.5, &[])] {
        call_with_report(&channel, report).await;
    }
    come_to(mesh.control_plane(), CLUSTER, (3, 3, 0, 0)).await;
    // What was summed up is in one report, and not in the next.
    unary(&channel).await.expect("a reply");
    come_to(mesh.control_plane(), CLUSTER, (4, 4, 0, 0)).await;
    let stats = mesh.control_plane().load(NODE, CLUSTER);
    let all: Vec<_> = localities(&stats).cloned().collect();
    let [locality] = all.as_slice() else { panic!("{all:?}") };
    locality.clone()
}

fn named(locality: &UpstreamLocalityStats) -> Vec<(&str, u64, f64)> {
    let metrics = locality.load_metric_stats.iter();
    let mut all: Vec<_> = metrics
        .map(|it| (it.metric_name.as_str(), it.num_requests_finished_with_metric, it.total_metric_value))
        .collect();
    all.sort_by_key(|(name, ..)| *name);
    all
}

#[tokio::test]
async fn named_metrics_are_summed_up_by_name() {
    let locality = three_calls(&["named_metrics.*"]).await;
    let expected = [("named_metrics.k1", 1, 1.0), ("named_metrics.k2", 2, 5.0), ("named_metrics.k3", 1, 4.0)];
    assert_eq!(named(&locality), expected);
    assert_eq!((locality.cpu_utilization, locality.mem_utilization), (None, None));
}

#[tokio::test]
async fn only_metrics_that_are_listed_are_reported() {
    let locality =
        three_calls(&["cpu_utilization", "named_metrics.k2", "named_metrics.k9", "rps", "utilization.x"]).await;
    assert_eq!(named(&locality), [("named_metrics.k2", 2, 5.0)]);
    let cpu = locality.cpu_utilization.expect("it is listed");
    // -1 is out of range, and so no value; a CPU may be overcommitted.
    assert_eq!((cpu.num_requests_finished_with_metric, cpu.total_metric_value), (2, 1.75));
    assert_eq!((locality.mem_utilization, locality.application_utilization), (None, None));
}

#[tokio::test]
async fn memory_and_the_application_s_own_utilization_are_reported_where_they_are_listed() {
    let locality = three_calls(&["mem_utilization", "application_utilization"]).await;
    let sum = |it: Option<UnnamedEndpointLoadMetricStats>| {
        it.map(|it| (it.num_requests_finished_with_metric, it.total_metric_value))
    };
    assert_eq!(sum(locality.mem_utilization), Some((3, 1.5)));
    assert_eq!(sum(locality.application_utilization), Some((3, 6.0)));
    assert_eq!((locality.cpu_utilization, locality.load_metric_stats), (None, Vec::new()));
}

#[tokio::test]
async fn no_metric_is_reported_unless_it_is_listed() {
    let locality = three_calls(&[]).await;
    assert_eq!(named(&locality), []);
    let top_level = (locality.cpu_utilization, locality.mem_utilization, locality.application_utilization);
    assert_eq!(top_level, (None, None, None));
}

// === The stream ===

#[tokio::test]
async fn a_stream_that_breaks_loses_no_count() {
    let [a] = backends(["a"]).await;
    // Time enough from one report to the next for the client, which has a thread of its own, to see a break.
    let mesh = reporting_mesh(reported("echo", &addresses([&a]), &[]), Duration::from_secs(1));
    let (control_plane, channel) = (mesh.control_plane(), ready(&mesh, "echo").await);
    for round in 1..=4 {
        for _ in 0..25 {
            unary(&channel).await.expect("a reply");
        }
        // LRS has no ACK: what is on its way when a stream breaks is lost. So it breaks right behind a report.
        come_to(control_plane, CLUSTER, (50 * round - 25, 50 * round - 25, 0, 0)).await;
        control_plane.cut_load_streams();
        for _ in 0..25 {
            unary(&channel).await.expect("a reply");
        }
        let opened = || control_plane.load_streams_opened() > round;
        until("a new stream", opened).await;
    }
    come_to(control_plane, CLUSTER, (200, 200, 0, 0)).await;
}

#[tokio::test]
async fn channels_and_meshes_of_one_process_share_one_stream() {
    let [a] = backends(["a"]).await;
    let mut resources = reported("echo", &addresses([&a]), &[]);
    resources.extend(reported("other", &addresses([&a]), &[]));
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(resources);
    control_plane.request_load(OFTEN, ReportedClusters::All);
    let server = control_plane.in_process();
    let mesh = || {
        let bootstrap = Bootstrap::builder().node_id(NODE).server(server.clone()).build();
        Mesh::builder(bootstrap.expect("a server")).build()
    };
    let (first, second) = (mesh(), mesh());
    let open = |mesh: &Mesh, target: &str| mesh.channel(target).expect("a valid target");
    let (echo, other) = (open(&first, "xds:///echo"), open(&first, "xds:///other"));
    let again = open(&second, "xds:///echo");
    for channel in [&echo, &other, &again] {
        unary(channel).await.expect("a reply");
    }
    come_to(&control_plane, CLUSTER, (2, 2, 0, 0)).await;
    come_to(&control_plane, "other-cluster", (1, 1, 0, 0)).await;
    assert_eq!((control_plane.open_load_streams(), control_plane.load_streams_opened()), (1, 1));
    // One mesh less is no reason to end it.
    assert!(second.shutdown(Duration::from_secs(30)).await);
    drop(again);
    unary(&other).await.expect("a reply");
    come_to(&control_plane, "other-cluster", (2, 2, 0, 0)).await;
    assert_eq!((control_plane.open_load_streams(), control_plane.load_streams_opened()), (1, 1));
}

#[tokio::test]
async fn a_shutdown_reports_what_was_not_reported_yet() {
    let [a] = backends(["a"]).await;
    let mesh = reporting_mesh(reported("echo", &addresses([&a]), &[]), NEVER);
    let (control_plane, channel) = (mesh.control_plane(), ready(&mesh, "echo").await);
    within("the stream", control_plane.wait_for_load_streams(1)).await;
    for _ in 0..7 {
        unary(&channel).await.expect("a reply");
    }
    assert_eq!(control_plane.load(NODE, CLUSTER), []);
    assert!(mesh.mesh().shutdown(Duration::from_secs(30)).await);
    // Sent before the shutdown returned; read by the control plane in its own time.
    come_to(control_plane, CLUSTER, (7, 7, 0, 0)).await;
    within("its end", control_plane.wait_for_load_streams(0)).await;
}

#[tokio::test]
async fn the_stream_lasts_as_long_as_a_cluster_reports() {
    let [a] = backends(["a"]).await;
    let mesh = reporting_mesh(reported("echo", &addresses([&a]), &[]), NEVER);
    let (control_plane, channel) = (mesh.control_plane(), ready(&mesh, "echo").await);
    within("the stream", control_plane.wait_for_load_streams(1)).await;
    unary(&channel).await.expect("a reply");
    // Another Cluster with an equal `lrs_server`, and one that reports more: the same stream.
    let timeout = Some(protobuf::Duration { seconds: 3, nanos: 0 });
    for metrics in [&[][..], &["cpu_utilization"]] {
        let cluster = Cluster { connect_timeout: timeout, ..reporting(CLUSTER, metrics) };
        control_plane.set_unchecked(service("echo", &addresses([&a])).with(cluster));
        applied(&mesh, Kind::Cluster, CLUSTER).await;
        unary(&channel).await.expect("a reply");
    }
    assert_eq!((control_plane.open_load_streams(), control_plane.load_streams_opened()), (1, 1));

    control_plane.set_unchecked(service("echo", &addresses([&a])));
    applied(&mesh, Kind::Cluster, CLUSTER).await;
    within("its end", control_plane.wait_for_load_streams(0)).await;
    unary(&channel).await.expect("a reply");
    // What was counted until then came with the end.
    come_to(control_plane, CLUSTER, (3, 3, 0, 0)).await;
    assert_eq!(control_plane.load_streams_opened(), 1);
}

#[tokio::test]
async fn the_control_plane_says_which_clusters_and_how_often() {
    let [a] = backends(["a"]).await;
    let mut resources = reported("echo", &addresses([&a]), &[]);
    resources.extend(reported("other", &addresses([&a]), &[]));
    let mesh = mesh(resources);
    let control_plane = mesh.control_plane();
    control_plane.request_load(NEVER, ReportedClusters::Only(vec!["other-cluster".to_owned()]));
    let (echo, other) = (ready(&mesh, "echo").await, ready(&mesh, "other").await);
    within("the stream", control_plane.wait_for_load_streams(1)).await;
    unary(&echo).await.expect("a reply");
    unary(&other).await.expect("a reply");
    // In the middle of an interval: the new one holds from then on.
    control_plane.request_load(OFTEN, ReportedClusters::Only(vec!["other-cluster".to_owned()]));
    come_to(control_plane, "other-cluster", (1, 1, 0, 0)).await;
    assert_eq!(control_plane.load(NODE, CLUSTER), [], "not asked for");
    control_plane.request_load(OFTEN, ReportedClusters::All);
    // It counted on.
    come_to(control_plane, CLUSTER, (1, 1, 0, 0)).await;
    assert_eq!(control_plane.load_streams_opened(), 1);
}

// === Others ===

/// A client that is not ours tells our control plane what it did.
async fn reports_to_our_control_plane(implementation: Grpc) {
    let [a] = backends(["a"]).await;
    let control_plane = OurControlPlane::start().await;
    // No client of gRPC reports more often.
    control_plane.ads.request_load(Duration::from_secs(1), ReportedClusters::All);
    control_plane.ads.set_unchecked(reported("echo", &addresses([&a]), &[]));
    let bootstrap = bootstrap("foreign-lrs", control_plane.address);
    let mut client = ForeignClient::start(implementation, "xds:///echo", &bootstrap).await.expect("set up");
    let answers = client.call(20).await.expect("the client runs");
    assert_eq!(answers, BTreeMap::from([("a".to_owned(), 20)]));
    let all = |stats: &[ClusterStats]| counts(stats) == (20, 20, 0, 0);
    let reported = control_plane.ads.wait_for_load("foreign-lrs", CLUSTER, all);
    let came = || format!("20 calls, and not {:?}", control_plane.ads.load("foreign-lrs", CLUSTER));
    assert!(time::timeout(PATIENCE, reported).await.is_ok(), "{}", came());
    assert_eq!(control_plane.ads.open_load_streams(), 1);
}

#[tokio::test]
async fn c_core_reports_to_our_control_plane() {
    reports_to_our_control_plane(Grpc::Core).await;
}

#[tokio::test]
async fn grpc_go_reports_to_our_control_plane() {
    reports_to_our_control_plane(Grpc::Go).await;
}
