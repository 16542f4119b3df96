//! HTTP filters of a user's own, sent by our control plane under the user's type URL (A39).
//!
//! The configuration is text, as small as can be; filters that are known to the library are tested beside this module, and
//! decoding is in `mesh-xds`.

use crate::{
    features::{check, fails, from, get, grpc},
    mesh::{applied_by, ready_in},
    rig::backends,
};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use interop_tests::backend::Backend;
use mesh_client::{Filter, FilterLayer, FilterRequest, Mesh, MeshChannel, Reply, Verdict};
use mesh_xds::{
    Bootstrap,
    control_plane::{
        ControlPlane, Resources,
        proto::{
            envoy::config::route::v3::{Route, RouteConfiguration},
            google::protobuf::{Any, Struct, Value, value::Kind as ValueKind},
        },
        resources::{
            RouteExt, cluster_static, http_filter, listener_with, route, route_config, to_cluster, virtual_host_with,
        },
    },
    resource::{FilterConfig, Invalid, Kind},
};
use prost::Message;
use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};
use tower::{ServiceBuilder, service_fn};

/// What a filter does, as text.
#[derive(Debug, PartialEq)]
struct Does(String);

impl FilterConfig for Does {
    const TYPE_URL: &'static str = "type.googleapis.com/example.Does";

    fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(Invalid::new("must not be empty").within("what")),
        }
    }

    fn decode_json(json: &str) -> Result<Self, Invalid> {
        Ok(Self(json.to_owned()))
    }
}

/// Does it, and counts.
struct Doer {
    what: String,
    /// Of this filter.
    requests: AtomicU32,
    /// Of all filters of the program.
    made: u32,
    release: Arc<Notify>,
}

impl Filter for Doer {
    fn request<'a>(&'a self, request: &'a mut FilterRequest<'_>) -> Verdict<'a> {
        let count = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let headers = &mut request.head_mut().headers;
        headers.insert("x-does", HeaderValue::try_from(self.what.as_str()).expect("plain text"));
        headers.insert("x-filter", HeaderValue::from(self.made));
        headers.insert("x-count", HeaderValue::from(count));
        match self.what.as_str() {
            "refuse" => Verdict::Reply(Reply::new(StatusCode::FORBIDDEN, "not you")),
            "rewrite" => {
                request.head_mut().uri = "http://svc:80/rewritten".parse().expect("valid");
                Verdict::Continue
            }
            "wait" => Verdict::Wait(Box::pin(async {
                self.release.notified().await;
                request.head_mut().headers.insert("x-waited", HeaderValue::from_static("yes"));
                Ok(())
            })),
            "panic" => panic!("a mistake of a user"),
            _ => Verdict::Continue,
        }
    }

    fn response(&self, request: &FilterRequest<'_>, response: &mut response::Parts) {
        if matches!(self.what.as_str(), "hide" | "look away") {
            // What was kept with the request is still there.
            let seen = request.head().headers.get("x-does").is_some_and(|does| does == "hide");
            let seen = seen && request.cluster().is_some_and(|cluster| cluster.as_str() == "a");
            response.status = if seen { StatusCode::IM_A_TEAPOT } else { StatusCode::OK };
        }
    }

    fn sees_responses(&self) -> bool {
        self.what != "look away"
    }
}

/// A mesh whose filters are counted, and its control plane.
struct World {
    a: Backend,
    control_plane: ControlPlane,
    bootstrap: Bootstrap,
    mesh: Mesh,
    channel: MeshChannel,
    release: Arc<Notify>,
}

fn does(what: &str) -> Any {
    Any { type_url: Does::TYPE_URL.to_owned(), value: what.as_bytes().to_vec() }
}

/// A route for each path, with what the filter `own` does there; `/` says nothing.
fn routes(overrides: &[(&str, Any)]) -> RouteConfiguration {
    let with = |(path, says): &(&str, Any)| Route {
        typed_per_filter_config: HashMap::from([("own".to_owned(), says.clone())]),
        ..route(path, to_cluster("a"))
    };
    let routes = overrides.iter().map(with).chain([route("/", to_cluster("a"))]).collect();
    route_config("routes", vec![virtual_host_with("*", routes)])
}

impl World {
    fn resources(&self, config: Any, overrides: &[(&str, Any)]) -> Resources {
        resources(self.a.address(), config, overrides)
    }

    async fn start(config: Any, overrides: &[(&str, Any)]) -> Self {
        let [a] = backends(["a"]).await;
        let control_plane = ControlPlane::new();
        control_plane.set_unchecked(resources(a.address(), config, overrides));
        let server = control_plane.in_process();
        let bootstrap = Bootstrap::builder().node_id("own-filters").server(server).build().expect("a server");
        let (made, release) = (AtomicU32::new(0), Arc::new(Notify::new()));
        let notified = Arc::clone(&release);
        let make = move |config: &Does| Doer {
            what: config.0.clone(),
            requests: AtomicU32::new(0),
            made: made.fetch_add(1, Ordering::Relaxed) + 1,
            release: Arc::clone(&notified),
        };
        let mesh = Mesh::builder(bootstrap.clone()).filter(make).build();
        let channel = ready_in(&mesh, "svc:80").await;
        Self { a, control_plane, bootstrap, mesh, channel, release }
    }

    async fn set(&self, config: Any, overrides: &[(&str, Any)]) {
        self.control_plane.set_unchecked(self.resources(config, overrides));
        applied_by(&self.mesh, &self.control_plane, Kind::Listener, "svc:80").await;
        applied_by(&self.mesh, &self.control_plane, Kind::RouteConfig, "routes").await;
    }

    /// What the backend saw of the last call: a header.
    fn saw(&self, name: &str) -> Option<String> {
        let head = self.a.last_call()?;
        Some(head.headers.get(name)?.to_str().expect("text").to_owned())
    }
}

fn resources(a: SocketAddr, config: Any, overrides: &[(&str, Any)]) -> Resources {
    Resources::default()
        .with(listener_with("svc:80", "routes", vec![http_filter("own", config)]))
        .with(routes(overrides))
        .with(cluster_static("a", &[a]))
}

fn expect(outcome: Result<(), String>) {
    outcome.unwrap_or_else(|failure| panic!("expected {failure}"));
}

#[tokio::test]
async fn a_filter_of_the_users_own_changes_answers_and_sees_what_comes_back() {
    let paths = ["refuse", "rewrite", "hide"].map(|what| (what, format!("/{what}")));
    let overrides = paths.each_ref().map(|(what, path)| (path.as_str(), does(what)));
    let world = World::start(does("mark"), &overrides).await;
    expect(from("a", get("/").on(&world.channel).await));
    assert_eq!(world.saw("x-does").as_deref(), Some("mark"));
    expect(fails("403", &["not you"], get("/refuse").on(&world.channel).await));
    assert_eq!(world.a.counters().calls, 1, "what is refused is not sent");
    expect(from("a", get("/rewrite").on(&world.channel).await));
    assert_eq!(world.a.last_call().map(|head| head.uri.path().to_owned()).as_deref(), Some("/rewritten"));
    expect(fails("418", &[], get("/hide").on(&world.channel).await));
    // gRPC has no use for a status 403.
    world.set(does("refuse"), &[]).await;
    expect(fails("PermissionDenied", &["not you"], grpc().on(&world.channel).await));
}

#[tokio::test]
async fn a_filter_that_sees_no_responses_is_not_asked_about_any() {
    let world = World::start(does("hide"), &[("/look-away", does("look away"))]).await;
    expect(fails("418", &[], get("/").on(&world.channel).await));
    let call = get("/look-away").header("rpc-behavior", "error-code-503");
    expect(fails("503", &[], call.on(&world.channel).await));
    assert_eq!(world.saw("x-does").as_deref(), Some("look away"), "it has seen the request");
}

#[tokio::test]
async fn a_filter_may_wait_and_the_deadline_covers_it() {
    let world = World::start(does("wait"), &[]).await;
    let call = tokio::spawn({
        let channel = world.channel.clone();
        async move { get("/").on(&channel).await }
    });
    world.release.notify_one();
    expect(from("a", call.await.expect("no panic")));
    assert_eq!(world.saw("x-waited").as_deref(), Some("yes"));
    let late = grpc().header("grpc-timeout", "50m").on(&world.channel).await;
    expect(fails("DeadlineExceeded", &["deadline exceeded after 50ms"], late));
    assert_eq!(world.a.counters().calls, 1);
}

#[tokio::test]
async fn filters_run_once_however_often_a_call_is_tried() {
    let world = World::start(does("mark"), &[]).await;
    let again = route("/", to_cluster("a")).with_retries("5xx", 3);
    let routes = route_config("routes", vec![virtual_host_with("*", vec![again])]);
    world.control_plane.set_unchecked(world.resources(does("mark"), &[]).with(routes));
    applied_by(&world.mesh, &world.control_plane, Kind::RouteConfig, "routes").await;
    for (count, calls) in [("1", 4), ("2", 8)] {
        let call = get("/").header("rpc-behavior", "error-code-503");
        expect(fails("503", &[], call.on(&world.channel).await));
        assert_eq!((world.saw("x-count").as_deref(), world.a.counters().calls), (Some(count), calls));
    }
}

/// An HTTP server, for as long as this is kept, which says what its filter has written into the request.
async fn server(what: &str) -> (SocketAddr, JoinSet<()>) {
    let filter = Doer { what: what.to_owned(), requests: AtomicU32::new(0), made: 0, release: Arc::default() };
    let says = service_fn(async |request: Request<Incoming>| {
        let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "0");
        let head = head.header("hostname", &request.headers()["x-does"]);
        Ok::<_, Infallible>(head.body(Empty::<Bytes>::new()).expect("valid"))
    });
    let service = ServiceBuilder::new().layer(FilterLayer::new(filter)).service(says);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut connections = JoinSet::new();
    connections.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            connections.spawn(async move {
                let connection = auto::Builder::new(TokioExecutor::new());
                // Its clients' sides are what the test looks at.
                let _ = connection.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn the_same_filter_runs_at_a_channel_and_at_a_server() {
    let world = World::start(does("mark"), &[("/hide", does("hide"))]).await;
    for (what, http, grpc_code) in [("serve", None, None), ("refuse", Some("403"), Some("PermissionDenied"))] {
        let (address, _serving) = server(what).await;
        world.control_plane.set_unchecked(resources(address, does("mark"), &[("/hide", does("hide"))]));
        applied_by(&world.mesh, &world.control_plane, Kind::Cluster, "a").await;
        for (wanted, call) in [(http, get("/")), (grpc_code, grpc())] {
            let answer = call.on(&world.channel).await;
            // The server's has the last word on the way there.
            expect(wanted.map_or_else(|| from(what, answer.clone()), |code| fails(code, &["not you"], answer.clone())));
        }
        // The channel's has it on the way back.
        expect(fails("418", &[], get("/hide").on(&world.channel).await));
    }
}

#[tokio::test]
async fn a_filter_that_panics_fails_its_calls_and_no_others() {
    let world = World::start(does("mark"), &[("/panic", does("panic"))]).await;
    for _ in 0..3 {
        expect(fails("500", &["HTTP filter \"own\" panicked"], get("/panic").on(&world.channel).await));
        expect(from("a", get("/").on(&world.channel).await));
    }
}

#[tokio::test]
async fn a_configuration_that_a_users_decoder_refuses_is_nacked_with_its_place() {
    let world = World::start(does("mark"), &[]).await;
    world.control_plane.set_unchecked(world.resources(does(""), &[]));
    let nack = world.control_plane.wait_for_nack(Kind::Listener.type_url()).await;
    let place = "api_listener.api_listener.http_filters[0].typed_config.what: must not be empty";
    assert!(nack.contains(place), "{nack}");
    expect(from("a", get("/").on(&world.channel).await));
    assert_eq!(world.saw("x-does").as_deref(), Some("mark"), "the last good one goes on");

    world.control_plane.set_unchecked(world.resources(does("mark"), &[("/x", does(""))]));
    let nack = world.control_plane.wait_for_nack(Kind::RouteConfig.type_url()).await;
    let place = "virtual_hosts[0].routes[0].typed_per_filter_config[\"own\"].what: must not be empty";
    assert!(nack.contains(place), "{nack}");
}

#[tokio::test]
async fn a_client_without_the_filter_refuses_it_and_has_a_stream_of_its_own() {
    let world = World::start(does("mark"), &[]).await;
    let without = Mesh::builder(world.bootstrap.clone()).build();
    let call = get("/").on(&without.channel("xds:///svc:80").expect("a valid target")).await;
    expect(fails("503", &["unknown required filter", Does::TYPE_URL], call));
    expect(from("a", get("/").on(&world.channel).await));
}

#[tokio::test]
async fn a_filter_is_kept_while_its_configuration_stays() {
    let world = World::start(does("mark"), &[("/x", does("other")), ("/y", does("other"))]).await;
    // Which filter a path meets, and how many calls it has seen.
    let meets = async |path: &str| {
        expect(from("a", get(path).on(&world.channel).await));
        (world.saw("x-filter").expect("passed one"), world.saw("x-count").expect("passed one"))
    };
    let (root, _) = meets("/").await;
    let (x, _) = meets("/x").await;
    let (y, first) = meets("/y").await;
    assert!(x != y && x != root && first == "1", "one for each override, equal or not");
    // Another route in front, and another override gone: what stayed goes on counting.
    world.set(does("mark"), &[("/new", does("new")), ("/x", does("other"))]).await;
    assert_eq!(meets("/").await, (root.clone(), "2".to_owned()));
    assert_eq!(meets("/x").await, (x.clone(), "2".to_owned()));
    assert_eq!(meets("/new").await.1, "1");
    // Its configuration changes: another filter. The override's stays.
    world.set(does("mark it"), &[("/x", does("other"))]).await;
    let (changed, count) = meets("/").await;
    assert!(changed != root && count == "1");
    assert_eq!(meets("/x").await, (x, "3".to_owned()));
}

#[tokio::test]
async fn a_filter_may_be_configured_by_a_typed_struct() {
    #[derive(Clone, PartialEq, Message)]
    struct TypedStruct {
        #[prost(string, tag = "1")]
        type_url: String,
        #[prost(message, optional, tag = "2")]
        value: Option<Struct>,
    }
    let field = ("what".to_owned(), Value { kind: Some(ValueKind::StringValue("mark".to_owned())) });
    let value = Some(Struct { fields: HashMap::from([field]) });
    let envelope = TypedStruct { type_url: Does::TYPE_URL.to_owned(), value };
    let config =
        Any { type_url: "type.googleapis.com/xds.type.v3.TypedStruct".to_owned(), value: envelope.encode_to_vec() };
    let world = World::start(config, &[]).await;
    expect(from("a", get("/").on(&world.channel).await));
    let seen = world.saw("x-does");
    expect(check(seen.as_deref() == Some(r#"{"what":"mark"}"#), format!("the struct as JSON, and not {seen:?}")));
}
