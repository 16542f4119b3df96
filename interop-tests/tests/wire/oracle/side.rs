//! Envoy, and our client: one call through either.
//!
//! It does NOT know what a result should be.

use super::{
    backend::{ATTEMPT, END, MESSAGE},
    case::{Call, Got},
    script::{CALL, Stage},
};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use mesh_client::MeshChannel;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tower_service::Service;

/// Who is asked to make a call.
#[derive(Clone, Debug)]
pub(super) enum Side {
    /// A connection to Envoy's listener.
    Envoy(SendRequest<Bytes>),
    Ours(MeshChannel),
}

impl Side {
    pub(super) async fn envoy(ingress: SocketAddr) -> Self {
        let socket = TcpStream::connect(ingress).await.expect("it listens");
        let (client, connection) = h2::client::handshake(socket).await.expect("it speaks HTTP/2");
        // Ends with the last clone of the client.
        tokio::spawn(connection);
        Self::Envoy(client)
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Envoy(_) => "envoy",
            Self::Ours(_) => "ours",
        }
    }

    /// Makes a call that the stage knows as `id`, below `path`.
    pub(super) async fn call(&mut self, path: &str, id: &str, call: &Call, stage: &Stage) -> Got {
        let method = if call.grpc { "POST" } else { "GET" };
        let mut request = Request::builder().method(method).uri(format!("http://oracle{path}call")).header(CALL, id);
        if call.grpc {
            request = request.header("content-type", "application/grpc").header("te", "trailers");
        }
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        let request = request.body(()).expect("names and values of scripts are valid");
        match self {
            Self::Envoy(client) => through_envoy(client, request, call.grpc, || stage.begun(id)).await,
            Self::Ours(channel) => through_ours(channel, request, call.grpc, || stage.begun(id)).await,
        }
    }
}

async fn through_envoy(client: &SendRequest<Bytes>, request: Request<()>, grpc: bool, begun: impl FnOnce()) -> Got {
    let mut client = client.clone().ready().await.expect("Envoy keeps its connection");
    let (response, mut body) = client.send_request(request, !grpc).expect("a valid request");
    if grpc {
        // A stream that was answered early does not want it any more.
        let _ = body.send_data(MESSAGE, true);
    }
    let Ok(response) = response.await else { return Got::nothing() };
    begun();
    let (head, mut body) = response.into_parts();
    let mut whole = true;
    while let Some(data) = body.data().await {
        let Ok(data) = data else {
            whole = false;
            break;
        };
        let _ = body.flow_control().release_capacity(data.len());
    }
    let trailers = if whole { body.trailers().await.unwrap_or_default() } else { None };
    Got::of(&Response::from_parts(head, ()), &trailers.unwrap_or_default(), whole, grpc)
}

async fn through_ours(channel: &mut MeshChannel, request: Request<()>, grpc: bool, begun: impl FnOnce()) -> Got {
    let body = if grpc { MESSAGE } else { Bytes::new() };
    let Ok(response) = channel.call(request.map(|()| Full::new(body))).await else { return Got::nothing() };
    begun();
    let (head, body) = response.into_parts();
    let collected = body.collect().await;
    let trailers = collected.as_ref().ok().and_then(|body| body.trailers().cloned());
    Got::of(&Response::from_parts(head, ()), &trailers.unwrap_or_default(), collected.is_ok(), grpc)
}

impl Got {
    /// Not even headers.
    fn nothing() -> Self {
        Self { status: None, grpc: None, attempt: None, overloaded: false, whole: false }
    }

    fn of(head: &Response<()>, trailers: &HeaderMap, ended: bool, grpc: bool) -> Self {
        let number = |headers: &HeaderMap, name: &str| headers.get(name)?.to_str().ok()?.parse().ok();
        let headers = head.headers();
        let attempt = number(headers, ATTEMPT).map(usize::from);
        let trailers_only = number(headers, "grpc-status");
        // Our client ends a broken gRPC response with trailers of its own, as a gRPC library does on top of a proxy.
        let its_own_end = grpc && attempt.is_some() && trailers_only.is_none() && !trailers.contains_key(END);
        let whole = ended && !its_own_end;
        Self {
            status: Some(head.status().as_u16()),
            grpc: trailers_only.or_else(|| number(trailers, "grpc-status").filter(|_| whole)),
            attempt,
            // gRPC has its status for that.
            overloaded: !grpc && headers.contains_key("x-envoy-overloaded"),
            whole,
        }
    }
}
