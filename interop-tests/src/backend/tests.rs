//! The ways a backend can go and come back, seen by a plain tonic client.

use super::*;
use crate::proto::testing::{Empty, SimpleRequest, test_service_client::TestServiceClient};
use tonic::{Code, transport::Channel};

async fn client(backend: &Backend) -> TestServiceClient<Channel> {
    let uri = format!("http://{}", backend.address());
    TestServiceClient::connect(uri).await.expect("the backend listens")
}

#[tokio::test]
async fn answers_carry_the_hostname_in_message_and_header() {
    let backend = Backend::builder("a").server_id("1").start().await.expect("a free port");
    let mut client = client(&backend).await;
    let request = SimpleRequest { response_size: 10, ..SimpleRequest::default() };
    let answer = client.unary_call(request).await.expect("answered");
    assert_eq!(answer.metadata().get("hostname").expect("signed"), "a");
    let answer = answer.into_inner();
    assert_eq!((answer.hostname.as_str(), answer.server_id.as_str()), ("a", "1"));
    assert_eq!(answer.payload.map(|payload| payload.body.len()), Some(10));
    assert_eq!(backend.last_call().expect("called").uri.path(), "/grpc.testing.TestService/UnaryCall");
}

#[tokio::test]
async fn a_killed_backend_resets_calls_and_comes_back_on_its_port() {
    let mut backend = Backend::start("a").await.expect("a free port");
    let mut first = client(&backend).await;
    let mut held = first.clone();
    let call = tokio::spawn(async move {
        let mut request = tonic::Request::new(Empty {});
        request.metadata_mut().insert("rpc-behavior", "keep-open".parse().expect("ASCII"));
        held.empty_call(request).await
    });
    backend.wait_for(|counters| counters.calls == 1).await.expect("the call arrives");
    backend.kill().await;
    call.await.expect("no panic").expect_err("cut");
    first.empty_call(Empty {}).await.expect_err("nobody listens");

    let counters = backend.counters();
    assert_eq!((counters.open_connections, counters.cancelled), (0, 1), "{counters:?}");
    backend.revive().await.expect("the port is free");
    client(&backend).await.empty_call(Empty {}).await.expect("answered again");
}

#[tokio::test]
async fn a_restart_drains_old_connections_and_takes_new_ones() {
    let mut backend = Backend::start("a").await.expect("a free port");
    let mut old = client(&backend).await;
    old.empty_call(Empty {}).await.expect("answered");
    backend.restart();
    backend.wait_for(|counters| counters.open_connections == 0).await.expect("the idle connection drains");
    client(&backend).await.empty_call(Empty {}).await.expect("the port is still served");
    backend.stop().await;
    assert_eq!(backend.counters().succeeded, 2);
}

#[tokio::test]
async fn a_wanted_error_is_signed_and_counted_as_failed() {
    let backend = Backend::start("a").await.expect("a free port");
    let mut request = tonic::Request::new(SimpleRequest::default());
    request.metadata_mut().insert("rpc-behavior", "error-code-9".parse().expect("ASCII"));
    let status = client(&backend).await.unary_call(request).await.expect_err("wanted");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.metadata().get("hostname").expect("signed"), "a");
    assert_eq!(backend.counters().failed, 1);
}
