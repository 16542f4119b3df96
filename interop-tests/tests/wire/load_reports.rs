//! LRS: what our client reports is what happened, to the call (A27, A64, A85).
//!
//! Counts are compared exactly, in sums over reports, so that it does not matter where one interval ends. When a report
//! comes is NOT judged here: `mesh-xds` does that, with a clock in hand.

use crate::{
    mesh::{mesh, ready, service, unary},
    rig::{addresses, backends, within},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use interop_tests::proto::testing::{SimpleRequest, test_service_client::TestServiceClient};
use mesh_client::{MeshChannel, testing::TestMesh};
use mesh_xds::control_plane::{
    ControlPlane, ReportedClusters, Resources,
    proto::{
        envoy::{
            config::{
                cluster::v3::Cluster,
                core::v3::{ConfigSource, Locality, SelfConfigSource, config_source::ConfigSourceSpecifier},
                endpoint::v3::{
                    ClusterLoadAssignment, ClusterStats, LocalityLbEndpoints, UpstreamLocalityStats,
                    cluster_load_assignment::{Policy, policy::DropOverload},
                },
            },
            r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
        },
        google::protobuf::UInt32Value,
    },
    resources::{cluster_eds, endpoint, endpoints},
};
use std::{collections::HashMap, net::SocketAddr, time::Duration};
use tonic::{Code, Request, Status};
use tower_service::Service;

/// The node of a [`TestMesh`].
const NODE: &str = "in-process";
const CLUSTER: &str = "echo-cluster";

/// As often as our client does it.
const OFTEN: Duration = Duration::from_millis(100);

fn reporting(name: &str, metrics: &[&str]) -> Cluster {
    let to_itself = ConfigSourceSpecifier::Self_(SelfConfigSource::default());
    Cluster {
        lrs_server: Some(ConfigSource { config_source_specifier: Some(to_itself), ..ConfigSource::default() }),
        lrs_report_endpoint_metrics: metrics.iter().map(|metric| (*metric).to_owned()).collect(),
        ..cluster_eds(name)
    }
}

/// A service whose cluster reports its load.
fn reported(name: &str, addresses: &[SocketAddr], metrics: &[&str]) -> Resources {
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
type Counts = (u64, u64, u64, u64);

fn localities(stats: &[ClusterStats]) -> impl Iterator<Item = &UpstreamLocalityStats> {
    stats.iter().flat_map(|cluster| &cluster.upstream_locality_stats)
}

fn counts(stats: &[ClusterStats]) -> Counts {
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
    let zone = |zone: &str, addresses: &[SocketAddr]| LocalityLbEndpoints {
        locality: Some(Locality { zone: zone.to_owned(), ..Locality::default() }),
        lb_endpoints: addresses.iter().map(|address| endpoint(*address)).collect(),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        ..LocalityLbEndpoints::default()
    };
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
    let in_zone = |zone: &str| {
        let there = |it: &&UpstreamLocalityStats| it.locality.as_ref().is_some_and(|locality| locality.zone == zone);
        localities(&stats).filter(there).map(|it| it.total_issued_requests).sum::<u64>()
    };
    assert_eq!(in_zone("near"), a.counters().calls + b.counters().calls);
    assert_eq!(in_zone("far"), c.counters().calls);
}
