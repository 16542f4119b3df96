//! Envoy, and our client: one call through either.
//!
//! It does NOT know what a result should be.

use super::{
    backend::{ATTEMPT, END, MESSAGE},
    case::{Call, Got},
    script::{CALL, Stage},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use mesh_client::MeshChannel;
use std::{convert::Infallible, future::pending, net::SocketAddr, time::Duration};
use tokio::{net::TcpStream, time};
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
        let method = if call.grpc || call.upload.is_some() { "POST" } else { "GET" };
        let mut request = Request::builder().method(method).uri(format!("http://oracle{path}call")).header(CALL, id);
        if call.grpc {
            request = request.header("content-type", "application/grpc").header("te", "trailers");
        }
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        let request = request.body(()).expect("names and values of scripts are valid");
        match self {
            Self::Envoy(client) => through_envoy(client, request, call, || stage.begun(id)).await,
            Self::Ours(channel) => through_ours(channel, request, call, || stage.begun(id)).await,
        }
    }
}

/// The pieces of a request's body, each with the pause before it.
fn pieces(call: &Call) -> Vec<(Duration, Bytes)> {
    match (call.grpc, call.upload) {
        (true, _) => vec![(Duration::ZERO, MESSAGE)],
        (false, Some(upload)) => vec![(Duration::ZERO, MESSAGE), (upload, MESSAGE)],
        (false, None) => Vec::new(),
    }
}

async fn through_envoy(client: &SendRequest<Bytes>, request: Request<()>, call: &Call, begun: impl FnOnce()) -> Got {
    let mut client = client.clone().ready().await.expect("Envoy keeps its connection");
    let (grpc, pieces) = (call.grpc, pieces(call));
    let (response, mut body) = client.send_request(request, pieces.is_empty()).expect("a valid request");
    let upload = async {
        for (index, (pause, piece)) in pieces.iter().enumerate() {
            time::sleep(*pause).await;
            // A stream that was answered early does not want it any more.
            let _ = body.send_data(piece.clone(), index + 1 == pieces.len());
        }
        pending::<()>().await;
    };
    let response = tokio::select! {
        // Fair: they do not meet before the stream.
        response = response => response,
        () = upload => unreachable!("it waits for the response"),
    };
    let Ok(response) = response else { return Got::nothing() };
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

async fn through_ours(channel: &mut MeshChannel, request: Request<()>, call: &Call, begun: impl FnOnce()) -> Got {
    let grpc = call.grpc;
    let late = |(pause, piece)| async move {
        time::sleep(pause).await;
        Ok::<_, Infallible>(Frame::data(piece))
    };
    let body = match call.upload {
        None => Full::new(if grpc { MESSAGE } else { Bytes::new() }).boxed_unsync(),
        Some(_) => UnsyncBoxBody::new(StreamBody::new(stream::iter(pieces(call)).then(late).boxed())),
    };
    let Ok(response) = channel.call(request.map(|()| body)).await else { return Got::nothing() };
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
