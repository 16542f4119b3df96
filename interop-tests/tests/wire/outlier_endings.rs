//! What the end of a call is to outlier detection, by script on the level of frames: a gRPC call that somebody answers who
//! does not speak gRPC, and a response that breaks off.
//!
//! Failures in gRPC's own words are NOT here; `outlier_detection` has them.

use crate::{
    mesh::mesh,
    rig::{until, within},
    servers_without_manners::dialled,
};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use interop_tests::raw::{RawConnection, RawServer, Reason};
use mesh_client::{
    HttpVersion, MeshChannel,
    outlier_detection::{Consecutive, OutlierDetection},
    testing::TestMesh,
};
use mesh_xds::control_plane::{
    Resources,
    resources::{RouteExt, cluster_eds, endpoints, listener, route, route_config, to_cluster, virtual_host_with},
};
use tokio::{sync::oneshot, task::JoinHandle};
use tower_service::Service;

/// One endpoint, which is out after two failures in a row.
struct World {
    server: RawServer,
    _mesh: TestMesh,
    channel: MeshChannel,
}

/// A call on its way.
struct Call {
    head: oneshot::Receiver<StatusCode>,
    /// Whether the response came to its end.
    whole: JoinHandle<bool>,
}

/// Only answers 502, 503 and 504 count.
fn gateway() -> OutlierDetection {
    OutlierDetection { consecutive_gateway_failure: Some(Consecutive::after(2)), ..nobody() }
}

fn any_5xx() -> OutlierDetection {
    OutlierDetection { consecutive_5xx: Some(Consecutive::after(2)), ..nobody() }
}

fn nobody() -> OutlierDetection {
    OutlierDetection { success_rate: None, max_ejection_percent: 100, ..OutlierDetection::default() }
}

impl World {
    async fn start(detection: OutlierDetection) -> Self {
        Self::repeating("cancelled", detection).await
    }

    /// With one retry on this.
    async fn repeating(retry_on: &str, detection: OutlierDetection) -> Self {
        let server = RawServer::start().await.expect("a free port");
        let routes = vec![route("", to_cluster("c")).with_retries(retry_on, 1)];
        let mesh = mesh(
            Resources::default()
                .with(listener("echo", "routes"))
                .with(route_config("routes", vec![virtual_host_with("*", routes)]))
                .with(cluster_eds("c"))
                .with(endpoints("c", &[server.address()])),
        );
        let builder = mesh.mesh().channel_builder("xds:///echo").http_protocol(HttpVersion::Http2);
        let channel = builder.outlier_detection(detection).build().expect("a valid target");
        Self { server, _mesh: mesh, channel }
    }

    async fn connection(&self) -> RawConnection {
        within("a connection", dialled(&self.server)).await
    }

    fn is_out(&self) -> bool {
        self.channel.status().clusters.iter().flat_map(|cluster| &cluster.endpoints).any(|endpoint| endpoint.ejected)
    }

    async fn goes_out(&self) {
        until("the endpoint is out", || self.is_out()).await;
    }

    /// Its caller reads all that comes.
    fn call(&self, content_type: &'static str) -> Call {
        let mut channel = self.channel.clone();
        let (begun, head) = oneshot::channel();
        let whole = tokio::spawn(async move {
            let request = Request::post("/").header("content-type", content_type).body(Empty::<Bytes>::new());
            let response = channel.call(request.expect("valid")).await.expect("never fails");
            let _ = begun.send(response.status());
            response.into_body().collect().await.is_ok()
        });
        Call { head, whole }
    }

    fn grpc(&self) -> Call {
        self.call("application/grpc")
    }

    fn http(&self) -> Call {
        self.call("text/plain")
    }
}

impl Call {
    async fn head(&mut self) -> u16 {
        within("the head", &mut self.head).await.expect("sent").as_u16()
    }

    /// Whether it came to its end.
    async fn read(self) -> bool {
        within("the end", self.whole).await.expect("no panic")
    }
}

/// Answers one attempt as a proxy does, with a text or without.
async fn refuse(connection: &mut RawConnection, status: &str, text: Option<&str>) {
    let attempt = connection.request().await.expect("an attempt");
    match text {
        None => connection.plain(attempt, status, &[("content-length", "0")]).await.expect("open"),
        Some(text) => {
            connection.plain_text(attempt, status, text).await.expect("open");
            connection.end(attempt).await.expect("open");
        }
    }
}

#[tokio::test]
async fn a_grpc_call_that_a_proxy_answers_counts_by_its_http_status() {
    for text in [None, Some("no healthy upstream")] {
        let world = World::start(gateway()).await;
        let call = world.grpc();
        let mut connection = world.connection().await;
        refuse(&mut connection, "503", text).await;
        call.read().await;
        // 404 is UNIMPLEMENTED, which would be 501.
        for status in ["404", "503", "502"] {
            assert!(!world.is_out(), "{text:?}: one in a row before {status}");
            let call = world.grpc();
            refuse(&mut connection, status, text).await;
            call.read().await;
        }
        world.goes_out().await;
    }
}

#[tokio::test]
async fn a_proxys_answer_counts_where_the_call_is_repeated() {
    let world = World::repeating("unavailable", gateway()).await;
    let mut call = world.grpc();
    let mut connection = world.connection().await;
    refuse(&mut connection, "503", Some("no healthy upstream")).await;
    refuse(&mut connection, "503", Some("no healthy upstream")).await;
    assert_eq!(call.head().await, 503);
    call.read().await;
    world.goes_out().await;
}

#[tokio::test]
async fn a_grpc_response_without_trailers_has_failed() {
    let world = World::start(any_5xx()).await;
    let calls = [world.grpc(), world.grpc()];
    let mut connection = world.connection().await;
    for call in calls {
        let attempt = connection.request().await.expect("an attempt");
        connection.headers(attempt, &[("content-type", "application/grpc")]).await.expect("open");
        connection.message(attempt, 0).await.expect("open");
        connection.end(attempt).await.expect("open");
        call.read().await;
    }
    world.goes_out().await;
}

/// Answers one call, and breaks the response off.
async fn break_off(world: &World, connection: &mut RawConnection, status: &str) {
    let mut call = world.http();
    let attempt = connection.request().await.expect("an attempt");
    connection.plain_text(attempt, status, "be").await.expect("open");
    // A reset that comes together with the head may overtake it.
    assert_eq!(call.head().await.to_string(), status);
    connection.reset(attempt, Reason::InternalError).await.expect("open");
    assert!(!call.read().await);
}

#[tokio::test]
async fn a_response_that_breaks_off_is_no_success() {
    let world = World::start(any_5xx()).await;
    let first = world.http();
    let mut connection = world.connection().await;
    refuse(&mut connection, "200", Some("all of it")).await;
    assert!(first.read().await);
    break_off(&world, &mut connection, "200").await;
    break_off(&world, &mut connection, "200").await;
    world.goes_out().await;
}

#[tokio::test]
async fn an_error_that_breaks_off_counts_once() {
    let world = World::start(any_5xx()).await;
    let first = world.http();
    let mut connection = world.connection().await;
    refuse(&mut connection, "200", None).await;
    assert!(first.read().await);
    for _ in 0..3 {
        break_off(&world, &mut connection, "500").await;
        let call = world.http();
        refuse(&mut connection, "200", None).await;
        assert!(call.read().await);
    }
    assert!(!world.is_out(), "one in a row each time");
    break_off(&world, &mut connection, "500").await;
    break_off(&world, &mut connection, "500").await;
    world.goes_out().await;
}
