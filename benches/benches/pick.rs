//! What a call pays to learn where it goes: load the table, match a route, pick a READY connection, take a stream slot
//! and give it back.
//!
//! Every endpoint is connected, over loopback. This does NOT send anything.

use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, request};
use mesh_client::{EndpointState, MeshChannel, testing::TestMesh};
use mesh_xds::control_plane::{
    Resources,
    resources::{cluster_eds, endpoints, listener, route_config, virtual_host, virtual_host_weighted},
};
use std::{
    hint::black_box,
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{net::TcpListener, runtime::Runtime, time::sleep};

fn pick(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("threads");
    let port = runtime.block_on(serve()).expect("a free port");
    let mut group = criterion.benchmark_group("route and pick");
    for count in [1_u16, 3, 1_000] {
        let assignment = endpoints("c0", &addresses(count.into(), port));
        let resources = service().with(cluster_eds("c0")).with(assignment);
        let resources = resources.with(route_config("pick", vec![virtual_host("*", "c0")]));
        measure(&mut group, &format!("{count} endpoints"), &runtime, resources, count.into());
    }
    let mut localities = endpoints("c0", &[]);
    for (number, address) in (1..).zip(addresses(3, port)) {
        let mut locality = endpoints("c0", &[address]).endpoints.remove(0);
        locality.locality.get_or_insert_default().zone = format!("z{number}");
        locality.load_balancing_weight = Some(envoy_types::pb::google::protobuf::UInt32Value { value: number });
        localities.endpoints.push(locality);
    }
    let resources = service().with(cluster_eds("c0")).with(localities);
    let resources = resources.with(route_config("pick", vec![virtual_host("*", "c0")]));
    measure(&mut group, "3 weighted localities", &runtime, resources, 3);
    let mut resources = service();
    for (number, address) in addresses(3, port).into_iter().enumerate() {
        let name = format!("c{number}");
        resources = resources.with(cluster_eds(&name)).with(endpoints(&name, &[address]));
    }
    let split = virtual_host_weighted("*", &[("c0", 80), ("c1", 15), ("c2", 5)]);
    let resources = resources.with(route_config("pick", vec![split]));
    measure(&mut group, "3 weighted clusters", &runtime, resources, 3);
    group.finish();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn measure(group: &mut Group<'_>, name: &str, runtime: &Runtime, resources: Resources, connections: usize) {
    let _inside = runtime.enter();
    let mesh = TestMesh::new(resources).expect("a valid bootstrap");
    let channel = mesh.mesh().channel("xds:///pick").expect("a valid target");
    runtime.block_on(connected(&channel, connections));
    let head = head();
    group.bench_function(name, |bencher| {
        bencher.iter(|| channel.destination(black_box(&head)).expect("no wait").expect("an endpoint"));
    });
}

async fn connected(channel: &MeshChannel, connections: usize) {
    channel.ready(Duration::from_secs(10)).await.expect("connected");
    loop {
        let status = channel.status();
        let endpoints = status.clusters.iter().flat_map(|cluster| &cluster.endpoints);
        if endpoints.filter(|endpoint| endpoint.state == EndpointState::Ready).count() == connections {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

fn head() -> request::Parts {
    let request = Request::post("/shop.Catalog/List").header("content-type", "application/grpc").body(());
    request.expect("valid").into_parts().0
}

fn service() -> Resources {
    Resources::default().with(listener("pick", "pick"))
}

fn addresses(count: u32, port: u16) -> Vec<SocketAddr> {
    (0..count).map(|n| (Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + n), port).into()).collect()
}

/// An HTTP/2 server on every loopback address, which never gets a call.
async fn serve() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                while connection.accept().await.is_some() {}
            });
        }
    });
    Ok(port)
}

criterion_group!(benches, pick);
criterion_main!(benches);
