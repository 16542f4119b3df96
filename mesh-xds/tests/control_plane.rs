//! The control plane over real connections, watched by the generated ADS client: nothing of this crate's client side.
#![cfg(feature = "control-plane")]

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::{protobuf::Any, rpc},
};
use hyper_util::rt::TokioIo;
use mesh_xds::{
    InProcess,
    control_plane::{ControlPlane, Dialect, Event, Resources, Serving, Verdict, resources},
    resource::Kind,
};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming, transport::Endpoint};

const LDS: &str = Kind::Listener.type_url();
const CDS: &str = Kind::Cluster.type_url();
const EDS: &str = Kind::Endpoints.type_url();

/// One ADS stream, driven by hand.
struct Ads {
    node: &'static str,
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

async fn dial(door: &InProcess) -> AggregatedDiscoveryServiceClient<tonic::transport::Channel> {
    let door = door.clone();
    let connector = tower::service_fn(move |_| {
        let dialled = door.dial();
        async move { dialled.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://control-plane").connect_with_connector(connector).await;
    AggregatedDiscoveryServiceClient::new(channel.expect("the control plane accepts"))
        .max_decoding_message_size(usize::MAX)
}

impl Ads {
    async fn open(door: &InProcess, node: &'static str) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(8);
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let responses = dial(door).await.stream_aggregated_resources(outgoing).await?.into_inner();
        Ok(Self { node, requests, responses })
    }

    async fn sends(&self, type_url: &str, names: &[&str], nonce: &str, error: Option<&str>) {
        let request = DiscoveryRequest {
            node: Some(Node { id: self.node.into(), ..Default::default() }),
            type_url: type_url.into(),
            resource_names: names.iter().map(|name| (*name).into()).collect(),
            response_nonce: nonce.into(),
            error_detail: error.map(|message| rpc::Status { message: message.into(), ..Default::default() }),
            ..Default::default()
        };
        self.requests.send(request).await.expect("the stream is open");
    }

    async fn asks(&self, type_url: &str, names: &[&str]) {
        self.sends(type_url, names, "", None).await;
    }

    async fn acks(&self, response: &DiscoveryResponse, names: &[&str]) {
        self.sends(&response.type_url, names, &response.nonce, None).await;
    }

    async fn nacks(&self, response: &DiscoveryResponse, names: &[&str], reason: &str) {
        self.sends(&response.type_url, names, &response.nonce, Some(reason)).await;
    }

    async fn receives(&mut self) -> DiscoveryResponse {
        soon(self.responses.message()).await.expect("the stream is open").expect("the stream goes on")
    }
}

/// Fails instead of hanging.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("should have happened by now")
}

fn clusters(names: &[&str]) -> Resources {
    names.iter().fold(Resources::default(), |all, name| all.with(resources::cluster_eds(name)))
}

#[tokio::test]
async fn acks_and_nacks_are_told_apart() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(clusters(&["a"]));
    let mut events = control_plane.events();
    let mut ads = Ads::open(&control_plane.in_process(), "node").await.expect("a stream");
    ads.asks(CDS, &["a"]).await;
    let first = ads.receives().await;
    assert_eq!(first.resources, [resources::pack(resources::cluster_eds("a"))]);
    ads.acks(&first, &["a"]).await;
    soon(control_plane.wait_for_ack(CDS, "a")).await;
    control_plane.send_raw(CDS, "bad", vec![Any { type_url: CDS.into(), value: vec![0xff] }]);
    let bad = ads.receives().await;
    assert_eq!(bad.version_info, "bad");
    ads.nacks(&bad, &["a"], "no such wire type").await;
    assert_eq!(soon(control_plane.wait_for_nack(CDS)).await, "no such wire type");

    let mut seen = vec![];
    for _ in 0..6 {
        seen.push(match soon(events.recv()).await.expect("an event") {
            Event::StreamOpened { stream, .. } => format!("opened {stream}"),
            Event::Request { node, verdict, nonce, names, .. } => format!("{node} {verdict:?} {nonce} {names:?}"),
            Event::Response { nonce, names, .. } => format!("response {nonce} {names:?}"),
            other => format!("{other:?}"),
        });
    }
    let nack = Verdict::Nack { message: "no such wire type".into() };
    assert_eq!(
        seen,
        [
            "opened 1".to_owned(),
            r#"node Request  ["a"]"#.into(),
            r#"response 1 ["a"]"#.into(),
            r#"node Ack 1 ["a"]"#.into(),
            "response 2 []".into(),
            format!(r#"node {nack:?} 2 ["a"]"#),
        ]
    );
}

#[tokio::test]
async fn only_what_changed_is_pushed_and_versions_follow_the_content() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(clusters(&["a"]));
    let mut ads = Ads::open(&control_plane.in_process(), "node").await.expect("a stream");
    ads.asks(CDS, &["a", "b"]).await;
    let first = ads.receives().await;
    ads.acks(&first, &["a", "b"]).await;
    soon(control_plane.wait_for_ack(CDS, "a")).await;
    // The same content is no change: the next response is about the one after it.
    control_plane.set_unchecked(clusters(&["a"]));
    control_plane.set_unchecked(clusters(&["a", "b"]));
    let second = ads.receives().await;
    assert_eq!((second.nonce.as_str(), second.resources.len()), ("2", 2));
    assert_ne!(first.version_info, second.version_info);
    ads.acks(&second, &["a", "b"]).await;
    control_plane.set_unchecked(clusters(&["a"]));
    assert_eq!(ads.receives().await.version_info, first.version_info);
}

#[tokio::test]
async fn a_node_gets_its_own_snapshot() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(clusters(&["all"]));
    control_plane.set_for_unchecked("special", clusters(&["own"]));
    let door = control_plane.in_process();
    for (node, name) in [("special", "own"), ("other", "all")] {
        let mut ads = Ads::open(&door, node).await.expect("a stream");
        ads.asks(CDS, &[]).await;
        assert_eq!(ads.receives().await.resources, [resources::pack(resources::cluster_eds(name))]);
    }
    let mut ads = Ads::open(&door, "special").await.expect("a stream");
    ads.asks(CDS, &[]).await;
    ads.receives().await;
    control_plane.clear_for("special");
    // Made before the other is broken.
    assert_eq!(ads.receives().await.resources.len(), 2);
    assert_eq!(ads.receives().await.resources, [resources::pack(resources::cluster_eds("all"))]);
}

#[tokio::test]
async fn nodes_of_one_key_share_a_snapshot() {
    let control_plane = ControlPlane::builder().node_hash(|node| node.id[..1].to_owned()).build();
    control_plane.set_for_unchecked("a", clusters(&["of a"]));
    let door = control_plane.in_process();
    for (node, name) in [("a1", Some("of a")), ("a2", Some("of a")), ("b1", None)] {
        let mut ads = Ads::open(&door, node).await.expect("a stream");
        ads.asks(CDS, &[]).await;
        let expected: Vec<_> = name.into_iter().map(|name| resources::pack(resources::cluster_eds(name))).collect();
        assert_eq!(ads.receives().await.resources, expected);
        assert!(control_plane.nodes().iter().any(|known| known.id == node));
    }
}

#[tokio::test]
async fn a_snapshot_with_holes_is_refused_and_the_last_one_served() {
    let control_plane = ControlPlane::new();
    let good = || clusters(&["a"]).with(resources::endpoints("a", &[]));
    control_plane.set(good()).expect("complete");
    let refused = control_plane.set(good().with(resources::listener("l", "r"))).expect_err("no routes");
    assert_eq!(refused.to_string(), "missing: RouteConfiguration r (named by Listener l)");
    control_plane.set_for("node", clusters(&["b"])).expect_err("no endpoints");
    let mut ads = Ads::open(&control_plane.in_process(), "node").await.expect("a stream");
    ads.asks(CDS, &[]).await;
    assert_eq!(ads.receives().await.resources, [resources::pack(resources::cluster_eds("a"))]);
    ads.asks(LDS, &["l"]).await;
    assert_eq!(ads.receives().await.resources, []);
}

#[tokio::test]
async fn several_authorities_are_served_side_by_side() {
    let control_plane = ControlPlane::new();
    let [east, west] = ["east", "west"]
        .map(|authority| (format!("xdstp://{authority}/envoy.config.cluster.v3.Cluster/web?a=1&b=2"), authority));
    control_plane.set_unchecked(clusters(&[&east.0, &west.0, "web"]));
    let turned_round = |name: &str| name.replace("a=1&b=2", "b=2&a=1");

    let mut ads = Ads::open(&control_plane.in_process(), "node").await.expect("a stream");
    ads.asks(CDS, &[&turned_round(&west.0), "web"]).await;
    let response = ads.receives().await;
    let packed = |name: &str| resources::pack(resources::cluster_eds(name));
    assert_eq!(response.resources, [packed("web"), packed(&west.0)]);
    ads.acks(&response, &[&west.0, "web"]).await;
    soon(control_plane.wait_for_ack(CDS, &turned_round(&west.0))).await;

    let mut delta = Delta::open(&control_plane.in_process()).await;
    delta.subscribes(CDS, &[&turned_round(&east.0)], &[]).await;
    let told = delta.receives().await;
    assert_eq!(told.resources.iter().map(|resource| &resource.name).collect::<Vec<_>>(), [&east.0]);
}

#[tokio::test]
async fn what_is_held_arrives_after_its_release() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(clusters(&["a", "b"]).with(resources::listener("l", "r")));
    control_plane.hold(CDS);
    control_plane.withhold(LDS, ["l"]);
    let mut ads = Ads::open(&control_plane.in_process(), "node").await.expect("a stream");
    ads.asks(CDS, &["a"]).await;
    ads.asks(LDS, &["l"]).await;
    let without = ads.receives().await;
    assert_eq!((without.type_url.as_str(), without.resources.len()), (LDS, 0));
    control_plane.release(LDS);
    assert_eq!(ads.receives().await.resources.len(), 1);
    control_plane.release(CDS);
    assert_eq!(ads.receives().await.type_url, CDS);
}

#[tokio::test]
async fn cut_refused_and_silent_streams() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(clusters(&["a"]));
    let door = control_plane.in_process();
    let mut ads = Ads::open(&door, "node").await.expect("a stream");
    soon(control_plane.wait_for_streams(1)).await;
    control_plane.refuse(true);
    control_plane.cut_streams();
    let cut = soon(ads.responses.message()).await.expect_err("cut");
    assert_eq!(cut.code(), Code::Unavailable);
    soon(control_plane.wait_for_streams(0)).await;
    let refused = Ads::open(&door, "node").await.err().expect("refused");
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(control_plane.streams_opened(), 1);

    control_plane.refuse(false);
    control_plane.silent(true);
    let mut ads = Ads::open(&door, "node").await.expect("a stream");
    ads.asks(CDS, &["a"]).await;
    soon(control_plane.wait_for_subscription(CDS, "a")).await;
    control_plane.send_raw(CDS, "by hand", vec![]);
    assert_eq!(ads.receives().await.version_info, "by hand");
    control_plane.silent(false);
    assert_eq!(ads.receives().await.resources.len(), 1);
}

#[tokio::test]
async fn dropping_the_server_breaks_its_connections() {
    let control_plane = ControlPlane::new();
    let serving: Serving = control_plane.listen("127.0.0.1:0").await.expect("a free port");
    let uri = format!("http://{}", serving.local_addr().expect("a TCP address"));
    let mut client = AggregatedDiscoveryServiceClient::connect(uri.clone()).await.expect("the server accepts");
    let (_requests, outgoing) = mpsc::channel(1);
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut responses = client.stream_aggregated_resources(outgoing).await.expect("a stream").into_inner();
    soon(control_plane.wait_for_streams(1)).await;
    drop(serving);
    soon(responses.message()).await.expect_err("the connection broke");
    soon(control_plane.wait_for_streams(0)).await;
    AggregatedDiscoveryServiceClient::connect(uri).await.expect_err("nobody listens");
}

#[cfg(unix)]
#[tokio::test]
async fn a_dead_unix_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("xds.sock");
    // A listener that is dropped without unlinking is what a killed process leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let control_plane = ControlPlane::new();
    let serving = control_plane.serve_unix(&path).await.expect("replaces the dead socket");
    control_plane.serve_unix(&path).await.expect_err("the socket is in use");
    drop(serving);
    assert!(!path.exists());
}

/// A delta stream, driven by hand.
struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    async fn open(door: &InProcess) -> Self {
        let (requests, outgoing) = mpsc::channel(8);
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let responses = dial(door).await.delta_aggregated_resources(outgoing).await.expect("a stream").into_inner();
        Self { requests, responses }
    }

    async fn subscribes(&self, type_url: &str, names: &[&str], held: &[(&str, &str)]) {
        let request = DeltaDiscoveryRequest {
            node: Some(Node { id: "node".into(), ..Default::default() }),
            type_url: type_url.into(),
            resource_names_subscribe: names.iter().map(|name| (*name).into()).collect(),
            initial_resource_versions: held.iter().map(|(name, held)| ((*name).into(), (*held).into())).collect(),
            ..Default::default()
        };
        self.requests.send(request).await.expect("the stream is open");
    }

    async fn answers(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| rpc::Status { message: message.into(), ..Default::default() }),
            ..Default::default()
        };
        self.requests.send(request).await.expect("the stream is open");
    }

    async fn receives(&mut self) -> DeltaDiscoveryResponse {
        soon(self.responses.message()).await.expect("the stream is open").expect("the stream goes on")
    }
}

#[tokio::test]
async fn delta_tells_what_changed_and_what_is_gone() {
    let control_plane = ControlPlane::new();
    control_plane.set_unchecked(clusters(&["a", "b"]));
    let mut events = control_plane.events();
    let mut delta = Delta::open(&control_plane.in_process()).await;
    delta.subscribes(CDS, &["*"], &[]).await;
    let first = delta.receives().await;
    let packed: Vec<_> = first.resources.iter().filter_map(|resource| resource.resource.clone()).collect();
    assert_eq!(packed, [resources::pack(resources::cluster_eds("a")), resources::pack(resources::cluster_eds("b"))]);
    delta.answers(&first, None).await;
    soon(control_plane.wait_for_ack(CDS, "b")).await;

    control_plane.set_unchecked(clusters(&["b", "c"]));
    let second = delta.receives().await;
    assert_eq!(second.resources.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["c"]);
    delta.answers(&second, Some("no such cluster")).await;
    assert_eq!(soon(control_plane.wait_for_nack(CDS)).await, "no such cluster");
    let third = delta.receives().await;
    assert_eq!((third.resources.len(), third.removed_resources.as_slice()), (0, &["a".to_owned()][..]));
    delta.answers(&third, None).await;
    soon(control_plane.wait_for_ack(CDS, "a")).await;

    let opened = soon(events.recv()).await.expect("an event");
    assert_eq!(opened, Event::StreamOpened { stream: 1, dialect: Dialect::Delta });
    let is_removal = |event: &Event| matches!(event, Event::Response { removed, .. } if removed == &["a"]);
    soon(events.wait_for(is_removal)).await.expect("an event");
}

#[tokio::test]
async fn a_delta_client_resumes_on_a_restarted_control_plane() {
    let before = ControlPlane::new();
    before.set_unchecked(clusters(&["same", "changed", "gone"]));
    let mut delta = Delta::open(&before.in_process()).await;
    delta.subscribes(CDS, &[], &[]).await;
    let told = delta.receives().await;
    let held: Vec<_> = told.resources.iter().map(|known| (known.name.as_str(), known.version.as_str())).collect();

    let after = ControlPlane::new();
    after.set_unchecked(clusters(&["same"]).with(resources::cluster_static("changed", &[])));
    let mut delta = Delta::open(&after.in_process()).await;
    delta.subscribes(CDS, &[], &held).await;
    let changed = delta.receives().await;
    assert_eq!(changed.resources.iter().map(|resource| resource.name.as_str()).collect::<Vec<_>>(), ["changed"]);
    assert_eq!(delta.receives().await.removed_resources, ["gone"]);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let control_plane = ControlPlane::new();
    // Far more than fits into the pipe and its HTTP/2 windows.
    let many: Vec<_> = (0..10_000).map(|index| format!("cluster-{index}")).collect();
    let names: Vec<_> = many.iter().map(String::as_str).collect();
    control_plane.set_unchecked(clusters(&names));
    let door = control_plane.in_process();
    let lazy = Ads::open(&door, "lazy").await.expect("a stream");
    lazy.asks(CDS, &[]).await;
    soon(control_plane.wait_for_subscription(CDS, "cluster-0")).await;
    let mut eager = Ads::open(&door, "eager").await.expect("a stream");
    eager.asks(CDS, &[]).await;
    assert_eq!(eager.receives().await.resources.len(), 10_000);
    control_plane.set_unchecked(clusters(&names[1..]));
    assert_eq!(eager.receives().await.resources.len(), 9_999);
    // It can be cut while it does not read.
    control_plane.cut_streams();
    soon(control_plane.wait_for_streams(0)).await;
}

#[tokio::test]
async fn ten_thousand_endpoints_fit_into_one_response() {
    let control_plane = ControlPlane::new();
    let addresses: Vec<_> = (0..10_000_u16).map(|index| ([10, 0, 0, 1], 1_000 + index).into()).collect();
    control_plane.set_unchecked(Resources::default().with(resources::endpoints("a", &addresses)));
    let mut ads = Ads::open(&control_plane.in_process(), "node").await.expect("a stream");
    ads.asks(EDS, &["a"]).await;
    let response = ads.receives().await;
    assert_eq!(response.resources, [resources::pack(resources::endpoints("a", &addresses))]);
}
