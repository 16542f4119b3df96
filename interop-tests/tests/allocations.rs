//! What a feature costs a call in allocations: nothing, for load reports and for a fault filter that spares the call.
//!
//! Alone in its process, since it counts those of the whole process: callers, mesh and backend. It does NOT judge what a
//! feature does (the wire tests do), only that it was on.

use interop_tests::{
    backend::Backend,
    proto::testing::{SimpleRequest, test_service_client::TestServiceClient},
};
use mesh_client::testing::TestMesh;
use mesh_xds::control_plane::{
    ControlPlane, ReportedClusters, Resources,
    proto::{
        envoy::{
            config::{
                cluster::v3::Cluster,
                core::v3::{ConfigSource, SelfConfigSource, config_source::ConfigSourceSpecifier},
                endpoint::v3::ClusterStats,
            },
            extensions::filters::{
                common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
                http::fault::v3::HttpFault,
            },
            r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
        },
        google::protobuf as pb,
    },
    resources::{cluster_eds, http_filter, listener_with, pack, route_config, virtual_host},
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::{alloc::System, time::Duration};
use tokio::{sync::Mutex, time::timeout};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Whoever counts has the process for itself.
static TURN: Mutex<()> = Mutex::const_new(());

/// Calls that are counted, one after the other.
const CALLS: usize = 1000;

/// Calls before that: whatever a connection, a table or a buffer grows to, it has grown to then.
const BEFORE: usize = 500;

/// The longest wait for any event.
const PATIENCE: Duration = Duration::from_secs(60);

/// Not before the calls are counted.
const NEVER: Duration = Duration::from_secs(3600);

/// The service `echo` at a backend.
fn echo(backend: &Backend) -> Resources {
    Resources::default().with_service("echo", &[backend.address()])
}

/// A mesh with what is served to it, once a channel to `echo` is ready.
async fn ready(resources: Resources) -> (TestMesh, TestServiceClient<mesh_client::MeshChannel>) {
    let mesh = TestMesh::new(resources).expect("a valid bootstrap");
    let channel = mesh.mesh().channel("xds:///echo").expect("a valid target");
    channel.ready(PATIENCE).await.expect("configured and connected");
    (mesh, TestServiceClient::new(channel))
}

/// Heap allocations during [`CALLS`] calls.
async fn allocations(client: &mut TestServiceClient<mesh_client::MeshChannel>) -> usize {
    let mut call = async || drop(client.unary_call(SimpleRequest::default()).await.expect("a reply"));
    for _ in 0..BEFORE {
        call().await;
    }
    let region = Region::new(HEAP);
    for _ in 0..CALLS {
        call().await;
    }
    let change = region.change();
    change.allocations + change.reallocations
}

/// The least of three: a timer or a thread that wakes up in between adds to one of them, and takes from none.
async fn compare(feature: &str, without: impl AsyncFn() -> usize, with: impl AsyncFn() -> usize) {
    let (mut least_without, mut least_with) = (usize::MAX, usize::MAX);
    for _ in 0..3 {
        least_without = least_without.min(without().await);
        least_with = least_with.min(with().await);
    }
    println!("{CALLS} calls: {least_without} allocations, {least_with} with {feature}");
    // One allocation per hundred calls is noise; one per call is what this looks for.
    let most = least_without + CALLS / 100;
    assert!(least_with <= most, "{least_with} allocations, and {least_without} without {feature}");
}

#[tokio::test]
async fn a_reported_call_allocates_no_more_than_one_that_is_not() {
    let _turn = TURN.lock().await;
    let backend = Backend::start("a").await.expect("a free port");
    let run = async |lrs_server: Option<ConfigSource>| {
        let is_reported = lrs_server.is_some();
        let (mesh, mut client) = ready(echo(&backend).with(Cluster { lrs_server, ..cluster_eds("echo") })).await;
        let control_plane = mesh.control_plane();
        control_plane.request_load(NEVER, ReportedClusters::All);
        timeout(PATIENCE, control_plane.wait_for_load_streams(usize::from(is_reported))).await.expect("its LRS stream");
        let allocations = allocations(&mut client).await;
        if is_reported {
            all_are_reported(control_plane).await;
        }
        allocations
    };
    let to_itself = ConfigSourceSpecifier::Self_(SelfConfigSource::default());
    let to_itself = ConfigSource { config_source_specifier: Some(to_itself), ..ConfigSource::default() };
    compare("load reports", async || run(None).await, async || run(Some(to_itself.clone())).await).await;
}

async fn all_are_reported(control_plane: &ControlPlane) {
    control_plane.request_load(Duration::from_millis(100), ReportedClusters::All);
    let all = |stats: &[ClusterStats]| {
        let localities = stats.iter().flat_map(|cluster| &cluster.upstream_locality_stats);
        localities.map(|locality| locality.total_successful_requests).sum::<u64>() == (BEFORE + CALLS) as u64
    };
    timeout(PATIENCE, control_plane.wait_for_load("in-process", "echo", all)).await.expect("all in reports");
}

#[tokio::test]
async fn a_call_that_a_fault_filter_spares_allocates_no_more_than_one_without_filters() {
    let _turn = TURN.lock().await;
    let backend = Backend::start("a").await.expect("a free port");
    // The dice are thrown for each call, and hardly ever say so.
    let percentage = FractionalPercent { numerator: 1, denominator: DenominatorType::Million.into() };
    let millisecond = FaultDelaySecifier::FixedDelay(pb::Duration { seconds: 0, nanos: 1_000_000 });
    let delay = FaultDelay { fault_delay_secifier: Some(millisecond), percentage: Some(percentage) };
    let fault = http_filter("fault", pack(HttpFault { delay: Some(delay), ..HttpFault::default() }));
    let run = async |filters| {
        let routes = route_config("routes", vec![virtual_host("*", "echo")]);
        let listener = listener_with("echo", "routes", filters);
        let (_mesh, mut client) = ready(echo(&backend).with(listener).with(routes)).await;
        allocations(&mut client).await
    };
    compare("a fault filter", async || run(vec![]).await, async || run(vec![fault.clone()]).await).await;
}
