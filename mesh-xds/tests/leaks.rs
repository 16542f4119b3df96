//! A thousand clients over TCP leave no descriptor and no stream behind. Alone in its process, since it counts.
#![cfg(all(feature = "control-plane", target_os = "linux"))]

use mesh_xds::{
    Bootstrap, ServerAddress, Target, TargetName, XdsClient,
    control_plane::{ControlPlane, Resources, resources as xds},
};
use std::time::Duration;
use tokio::time::timeout;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default()
}

#[tokio::test]
async fn a_thousand_clients_leave_no_descriptor_and_no_stream() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(
        Resources::default()
            .with(xds::listener_inline("web", xds::route_config("", vec![xds::virtual_host("*", "a")])))
            .with(xds::cluster_static("a", &[([127, 0, 0, 1], 80).into()])),
    );
    let serving = control_plane.listen("127.0.0.1:0").await.expect("a free port");
    let address = ServerAddress::Sockets(vec![serving.local_addr().expect("TCP")]);
    let bootstrap = Bootstrap::builder().server(address).node_id("n").build().expect("one server");
    let cycle = async |wait: bool| {
        let client = XdsClient::connect(bootstrap.clone());
        let mut watch = client.watch(TargetName::new("web", "web"));
        while wait && !matches!(watch.current(), Target::Ready(_)) {
            timeout(Duration::from_secs(20), watch.changed()).await.expect("no hang").expect("the client lives");
        }
    };
    // The first one starts the thread of all.
    cycle(true).await;
    timeout(Duration::from_secs(20), control_plane.wait_for_streams(0)).await.expect("the stream ends");
    let before = descriptors();
    for round in 0..1000 {
        cycle(round % 4 == 0).await;
    }
    timeout(Duration::from_secs(20), async {
        control_plane.wait_for_streams(0).await;
        while descriptors() > before {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("all descriptors are closed");
}
