//! An HTTP filter of your own: a limit of calls, configured by the control plane for all routes and for one of them.
//!
//! ```sh
//! cargo run -p examples --bin own_filter
//! ```
//!
//! Control plane, backend and client are in this program. A limit that is worth its name would count per second.

use bytes::Bytes;
use examples::backend::EchoBackend;
use http::{HeaderValue, Request, StatusCode, response};
use http_body_util::{BodyExt, Empty};
use mesh_client::{Bootstrap, Filter, FilterRequest, Mesh, Reply, Verdict};
use mesh_xds::{
    control_plane::{
        ControlPlane, Resources,
        proto::{envoy::config::route::v3::Route, google::protobuf::Any},
        resources::{cluster_static, http_filter, listener_with, route, route_config, to_cluster, virtual_host_with},
    },
    resource::{FilterConfig, Invalid},
};
use std::{
    collections::HashMap,
    error::Error,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// What the control plane says: how many calls may pass. On the wire it is a number as text; a protobuf would do as well.
#[derive(Debug, PartialEq)]
struct Limit(u32);

impl FilterConfig for Limit {
    const TYPE_URL: &'static str = "type.googleapis.com/example.Limit";

    fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let limit = std::str::from_utf8(bytes).ok().and_then(|limit| limit.parse().ok());
        limit.map(Self).ok_or_else(|| Invalid::new("not a number").within("limit"))
    }
}

/// What runs with the calls: one for each place that has a limit.
struct Limiter {
    left: AtomicU32,
}

impl Filter for Limiter {
    fn request<'a>(&'a self, _: &'a mut FilterRequest<'_>) -> Verdict<'a> {
        let one_less = |left: u32| left.checked_sub(1);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) {
            Ok(_) => Verdict::Continue,
            // gRPC calls would get RESOURCE_EXHAUSTED.
            Err(_) => Verdict::Reply(Reply::new(StatusCode::TOO_MANY_REQUESTS, "that was enough").with_grpc_status(8)),
        }
    }

    fn response(&self, _: &FilterRequest<'_>, response: &mut response::Parts) {
        response.headers.insert("x-left", HeaderValue::from(self.left.load(Ordering::Relaxed)));
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend = EchoBackend::start("a", Duration::ZERO).await?;
    let control_plane = ControlPlane::new();
    let own = Route {
        typed_per_filter_config: HashMap::from([("limit".to_owned(), limit("1"))]),
        ..route("/own", to_cluster("shop"))
    };
    let routes = vec![virtual_host_with("*", vec![own, route("/", to_cluster("shop"))])];
    control_plane.set_unchecked(
        Resources::default()
            .with(listener_with("shop:80", "shop-routes", vec![http_filter("limit", limit("2"))]))
            .with(route_config("shop-routes", routes))
            .with(cluster_static("shop", &[backend.address()])),
    );

    let bootstrap = Bootstrap::builder().node_id("example").server(control_plane.in_process()).build()?;
    let mesh = Mesh::builder(bootstrap).filter(|limit: &Limit| Limiter { left: limit.0.into() }).build();
    let client = mesh.http_client();
    for path in ["/items", "/items", "/items", "/own", "/own"] {
        let request = Request::get(format!("http://shop{path}")).body(Empty::<Bytes>::new())?;
        let (head, body) = client.request(request).await?.into_parts();
        let text = body.collect().await?.to_bytes();
        let left = head.headers.get("x-left").map_or("none", |left| left.to_str().unwrap_or_default());
        println!("{path}: {}, {left} left: {}", head.status, String::from_utf8_lossy(&text).trim());
    }
    Ok(())
}

fn limit(text: &str) -> Any {
    Any { type_url: Limit::TYPE_URL.to_owned(), value: text.as_bytes().to_vec() }
}
