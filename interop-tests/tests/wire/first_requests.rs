//! What gRPC's own clients say on an ADS stream, our client says too: who it is and when, which versions and nonces it
//! answers with, and what of that outlives a stream.
//!
//! Each client is led by the same script, from the same bootstrap. It does NOT compare when requests come; each client has
//! its own order.

use crate::{
    control_plane_failures::{config, scripted},
    rig::{backends, bootstrap, within},
};
use interop_tests::{
    peers::{ForeignClient, Grpc},
    proto::testing::{SimpleRequest, test_service_client::TestServiceClient},
    scripted::{ScriptedServer, ScriptedStream},
};
use mesh_client::{Bootstrap, Mesh};
use mesh_xds::{
    control_plane::{
        proto::{
            envoy::{
                config::{cluster::v3::Cluster, core::v3::Node},
                service::discovery::v3::DiscoveryRequest,
            },
            google::protobuf::Any,
        },
        resources::{cluster_eds, pack},
    },
    resource::Kind,
};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tonic::Status;

/// What a request says, but for who says it and in which words it refuses.
#[derive(Debug, PartialEq)]
struct Said {
    has_node: bool,
    names: Vec<String>,
    version: String,
    nonce: String,
    refusal: Option<i32>,
}

impl Said {
    fn of(request: DiscoveryRequest) -> Self {
        Self {
            has_node: request.node.is_some(),
            names: request.resource_names,
            version: request.version_info,
            nonce: request.response_nonce,
            refusal: request.error_detail.map(|detail| detail.code),
        }
    }
}

/// Who says it, without the name of the implementation.
fn known(node: Node) -> Node {
    let mut client_features = node.client_features;
    client_features.sort_unstable();
    Node {
        id: node.id,
        cluster: node.cluster,
        metadata: node.metadata,
        locality: node.locality,
        client_features,
        ..Node::default()
    }
}

/// Asked, answered, and judged.
async fn exchange(stream: &mut ScriptedStream, kind: Kind, resources: Vec<Any>, said: &mut Vec<Said>) {
    let nonce = stream.answer(kind, resources);
    said.push(Said::of(stream.verdict(kind, &nonce).await.expect("judged")));
}

/// Leads a client to "echo", tells it of a cluster that is wrong, and then leaves it to a second stream.
async fn led(server: &mut ScriptedServer, backend: SocketAddr) -> (Node, Vec<Said>) {
    let mut stream = server.stream().await.expect("dialled");
    let (mut node, mut said) = (None, Vec::new());
    for (kind, good) in config(&[backend]) {
        let mut first = stream.request(kind).await.expect("asked for");
        if kind == Kind::Listener {
            node = first.node.take();
            // It was the first word on the stream.
            assert!(node.is_some());
        }
        said.push(Said::of(first));
        exchange(&mut stream, kind, good, &mut said).await;
        if kind == Kind::Cluster {
            let bad = Cluster { lb_policy: 77, ..cluster_eds("echo-cluster") };
            exchange(&mut stream, kind, vec![pack(bad)], &mut said).await;
        }
    }
    stream.end(Status::unavailable("a restart"));
    let mut stream = server.stream().await.expect("dialled again");
    let mut again = Vec::new();
    for _ in Kind::ALL {
        again.push(stream.next().await.expect("asked for again"));
    }
    assert_eq!(again.iter().map(|request| request.node.is_some()).collect::<Vec<_>>(), [true, false, false, false]);
    again.sort_by(|a, b| a.type_url.cmp(&b.type_url));
    said.extend(again.into_iter().map(|request| Said::of(DiscoveryRequest { node: None, ..request })));
    (known(node.expect("seen above")), said)
}

fn identity(server: SocketAddr) -> Value {
    let mut bootstrap = bootstrap("first-requests", server);
    bootstrap["node"]["locality"]["sub_zone"] = json!("s");
    bootstrap["node"]["metadata"] =
        json!({ "INSTANCE_IPS": "10.0.0.7", "LABELS": { "app": "a", "n": 1.5, "no": null } });
    bootstrap
}

async fn ours() -> (Node, Vec<Said>) {
    let ([a], mut server) = (backends(["a"]).await, scripted().await);
    let parsed = Bootstrap::parse(&identity(server.address()).to_string()).expect("well-formed");
    let mesh = Mesh::builder(parsed).build();
    let mut client = TestServiceClient::new(mesh.channel("xds:///echo").expect("a valid target"));
    let (call, led) = tokio::join!(client.unary_call(SimpleRequest::default()), led(&mut server, a.address()));
    call.expect("a reply");
    led
}

async fn theirs(implementation: Grpc) -> (Node, Vec<Said>) {
    let ([a], mut server) = (backends(["a"]).await, scripted().await);
    let bootstrap = identity(server.address());
    let mut client = ForeignClient::start(implementation, "xds:///echo", &bootstrap).await.expect("set up");
    let (calls, led) = tokio::join!(client.call(1), led(&mut server, a.address()));
    calls.expect("it runs");
    led
}

async fn says_what_ours_says(implementation: Grpc) {
    let (ours, theirs) = (within("our words", ours()).await, within("their words", theirs(implementation)).await);
    assert_eq!(theirs, ours);
    assert!(ours.0.client_features.contains(&"envoy.lb.does_not_support_overprovisioning".to_owned()));
}

#[tokio::test]
async fn c_core_says_the_same_on_its_streams() {
    says_what_ours_says(Grpc::Core).await;
}

#[tokio::test]
async fn grpc_go_says_the_same_on_its_streams() {
    says_what_ours_says(Grpc::Go).await;
}
