//! The foreign peers with each other: go-control-plane, a C-core client and C-core backends.
//!
//! When a test with one of ours in the middle fails, this one says whether the peers themselves work on this machine. It
//! does NOT run any code of the mesh.

use crate::rig::{bootstrap, json_resources, within};
use interop_tests::peers::{CoreBackend, ForeignClient, GoControlPlane, Grpc};

const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

#[tokio::test]
async fn c_core_follows_go_control_plane_to_c_core() {
    let mut a = CoreBackend::start("a").await.expect("set up");
    let mut b = CoreBackend::start("b").await.expect("set up");
    let mut control_plane = GoControlPlane::start().await.expect("set up");
    control_plane.serve("1", &json_resources("greeter", &[a.address(), b.address()])).await.expect("consistent");
    let bootstrap = bootstrap("foreign-2", control_plane.address());
    let mut client = ForeignClient::start(Grpc::Core, "xds:///greeter", &bootstrap).await.expect("set up");

    let answers = client.call(100).await.expect("the client runs");
    let counts = [a.answered().await.expect("it runs"), b.answered().await.expect("it runs")];
    assert_eq!([answers["a"], answers["b"]], counts);
    assert_eq!(counts.iter().sum::<u64>(), 100);

    control_plane.serve("2", &json_resources("greeter", &[b.address()])).await.expect("consistent");
    control_plane.verdict(EDS, "2").await.expect("judged").expect("accepted");
    let alone = async { while !client.call(10).await.expect("the client runs").keys().eq(["b"]) {} };
    within("answers from b alone", alone).await;
    a.drain().await.expect("nobody is left");
}
