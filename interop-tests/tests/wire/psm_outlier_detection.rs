//! The PSM suite's test of outlier detection, with its two binaries behind our control plane (A50).
//!
//! It counts calls, and asserts no time: client and sweeps share a clock, so that an interval is so many calls. What the
//! binaries do besides is NOT tested here; `interop_client` and `interop_server` do.

use crate::{
    interop_client::{Client, one_service},
    rig::{OurControlPlane, free_port},
};
use interop_tests::{
    peers::{Process, listening},
    proto::testing::{
        LoadBalancerStatsResponse,
        client_configure_request::{Metadata, RpcType},
    },
};
use mesh_xds::control_plane::{
    Resources,
    proto::{
        envoy::config::cluster::v3::{Cluster, OutlierDetection},
        google::protobuf::{Duration, UInt32Value},
    },
    resources::cluster_eds,
};
use std::net::{Ipv4Addr, SocketAddr};
use tokio::process::Command;

/// Calls that the client begins in an interval: 100 a second, for two seconds.
const INTERVAL: i32 = 200;

const HOSTNAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The server binary, answering as `hostname`.
async fn server(hostname: &str) -> (Process, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_xds_interop_server"));
    command.args([format!("--port={}", address.port()), format!("--host_name_override={hostname}")]);
    command.arg("--secure_mode=false");
    let process = Process::start("xds_interop_server", command).expect("built by this test run");
    listening("xds_interop_server", address).await.expect("its port");
    (process, address)
}

/// "interval 2 s, volume 20"; an ejection lasts over the two batches that are looked at meanwhile.
fn detecting(addresses: &[SocketAddr]) -> Resources {
    let seconds = |seconds| Some(Duration { seconds, nanos: 0 });
    let detection = OutlierDetection {
        interval: seconds(2),
        base_ejection_time: seconds(5),
        success_rate_request_volume: Some(UInt32Value { value: 20 }),
        ..OutlierDetection::default()
    };
    one_service("greeter", addresses).with(Cluster { outlier_detection: Some(detection), ..cluster_eds("blue") })
}

fn peers(batch: &LoadBalancerStatsResponse) -> Vec<&str> {
    let mut peers: Vec<_> = batch.rpcs_by_peer.keys().map(String::as_str).collect();
    peers.sort_unstable();
    peers
}

#[tokio::test]
async fn the_one_of_five_that_fails_gets_no_calls_until_it_has_mended_its_ways() {
    let mut servers = Vec::with_capacity(HOSTNAMES.len());
    for hostname in HOSTNAMES {
        servers.push(server(hostname).await);
    }
    let addresses: Vec<_> = servers.iter().map(|(_, address)| *address).collect();
    let control_plane = OurControlPlane::start().await;
    control_plane.ads.set_unchecked(detecting(&addresses));
    let client = Client::start(control_plane.address, &["--qps=100"]).await;
    while peers(&client.next(50, &[]).await) != HOSTNAMES {}

    let bad = Metadata {
        r#type: RpcType::UnaryCall.into(),
        key: "rpc-behavior".to_owned(),
        value: "hostname=a error-code-14".to_owned(),
    };
    client.configure(&[RpcType::UnaryCall], vec![bad]).await;
    let (mut failed, mut made) = (0, 0);
    loop {
        let batch = client.next(50, &[]).await;
        (failed, made) = (failed + batch.num_failures, made + 50);
        if batch.num_failures == 0 {
            break;
        }
        // By the second sweep: the first may come when too few calls have failed. Batches overlap intervals.
        assert!(made <= 3 * INTERVAL, "{failed} of {made} calls have failed, and go on");
    }
    assert!(failed > 0, "it never failed");
    let without = client.next(INTERVAL, &[]).await;
    assert_eq!((peers(&without), without.num_failures), (HOSTNAMES[1..].to_vec(), 0));
    // In turn: a quarter each, but for those that others overtook on their way.
    let even = |calls: &i32| (INTERVAL / 4 - 5..=INTERVAL / 4 + 5).contains(calls);
    assert!(without.rpcs_by_peer.values().all(even), "{:?}", without.rpcs_by_peer);

    client.configure(&[RpcType::UnaryCall], Vec::new()).await;
    loop {
        let batch = client.next(50, &[]).await;
        assert_eq!(batch.num_failures, 0);
        if peers(&batch) == HOSTNAMES {
            break;
        }
        made += 50;
        // Two intervals and a half after it was ejected, at the sweep after that; long before it is found out again.
        assert!(made <= 10 * INTERVAL, "it does not return");
    }
}
