//! Load reports cost a call no allocation: as many with an `lrs_server` as without.
//!
//! Alone in its process, since it counts those of the whole process: callers, mesh and backend. It does NOT judge what is
//! reported (`wire/load_reports.rs` does), only that it was.

use interop_tests::{
    backend::Backend,
    proto::testing::{SimpleRequest, test_service_client::TestServiceClient},
};
use mesh_client::testing::TestMesh;
use mesh_xds::control_plane::{
    ReportedClusters, Resources,
    proto::envoy::config::{
        cluster::v3::Cluster,
        core::v3::{ConfigSource, SelfConfigSource, config_source::ConfigSourceSpecifier},
        endpoint::v3::ClusterStats,
    },
    resources::cluster_eds,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::{alloc::System, time::Duration};
use tokio::time::timeout;

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Calls that are counted, one after the other.
const CALLS: usize = 1000;

/// Calls before that: whatever a connection, a table or a buffer grows to, it has grown to then.
const BEFORE: usize = 500;

/// The longest wait for any event.
const PATIENCE: Duration = Duration::from_secs(60);

/// Not before the calls are counted.
const NEVER: Duration = Duration::from_secs(3600);

/// Heap allocations during [`CALLS`] calls to a cluster.
async fn allocations(backend: &Backend, lrs_server: Option<ConfigSource>) -> usize {
    let is_reported = lrs_server.is_some();
    let cluster = Cluster { lrs_server, ..cluster_eds("echo") };
    let resources = Resources::default().with_service("echo", &[backend.address()]).with(cluster);
    let mesh = TestMesh::new(resources).expect("a valid bootstrap");
    let control_plane = mesh.control_plane();
    control_plane.request_load(NEVER, ReportedClusters::All);
    let channel = mesh.mesh().channel("xds:///echo").expect("a valid target");
    channel.ready(PATIENCE).await.expect("configured and connected");
    timeout(PATIENCE, control_plane.wait_for_load_streams(usize::from(is_reported))).await.expect("its LRS stream");

    let mut client = TestServiceClient::new(channel);
    let mut call = async || drop(client.unary_call(SimpleRequest::default()).await.expect("a reply"));
    for _ in 0..BEFORE {
        call().await;
    }
    let region = Region::new(HEAP);
    for _ in 0..CALLS {
        call().await;
    }
    let change = region.change();

    if is_reported {
        control_plane.request_load(Duration::from_millis(100), ReportedClusters::All);
        let all = |stats: &[ClusterStats]| {
            let localities = stats.iter().flat_map(|cluster| &cluster.upstream_locality_stats);
            localities.map(|locality| locality.total_successful_requests).sum::<u64>() == (BEFORE + CALLS) as u64
        };
        timeout(PATIENCE, control_plane.wait_for_load("in-process", "echo", all)).await.expect("all in reports");
    }
    change.allocations + change.reallocations
}

#[tokio::test]
async fn a_reported_call_allocates_no_more_than_one_that_is_not() {
    let backend = Backend::start("a").await.expect("a free port");
    let to_itself = ConfigSourceSpecifier::Self_(SelfConfigSource::default());
    let to_itself = ConfigSource { config_source_specifier: Some(to_itself), ..ConfigSource::default() };
    let (mut without, mut with) = (usize::MAX, usize::MAX);
    // The least of three: a timer or a thread that wakes up in between adds to one of them, and takes from none.
    for _ in 0..3 {
        without = without.min(allocations(&backend, None).await);
        with = with.min(allocations(&backend, Some(to_itself.clone())).await);
    }
    println!("{CALLS} calls: {without} allocations, {with} with load reports");
    // One allocation per hundred calls is noise; one per call is what this looks for.
    assert!(with <= without + CALLS / 100, "{with} allocations, and {without} without load reports");
}
