//! The floors: what a call costs on hyper's and on h2's client alone, with the gRPC frame written by hand.
//!
//! Windows are hyper's defaults for both, which tonic uses too. No timeouts, no status mapping, no size limits: these
//! are NOT usable clients, they say what nobody above them can beat.

use super::{PAYLOAD, check};
use crate::{
    echo::{Echo, PATH},
    load::Caller,
    process::{BoxError, Peers},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// hyper's windows.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 5 * 1024 * 1024;

// === Hyper ===

#[derive(Clone)]
pub(super) struct Hyper {
    connection: http2::SendRequest<Full<Bytes>>,
    uri: http::Uri,
}

impl Hyper {
    pub(super) async fn connect(peers: &Peers) -> Result<Self, BoxError> {
        let (stream, uri) = dial(peers.backends[0]).await?;
        let (connection, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(Self { connection, uri })
    }

    async fn send(&mut self) -> Result<(), BoxError> {
        self.connection.ready().await?;
        let response = self.connection.send_request(request(&self.uri, Full::new(frame()))).await?;
        let body = response.into_body().collect().await?;
        let trailers = body.trailers().cloned();
        finish(trailers.as_ref(), &mut body.aggregate())
    }
}

impl Caller for Hyper {
    async fn call(&mut self) -> Result<(), String> {
        self.send().await.map_err(|error| error.to_string())
    }
}

// === H2 ===

#[derive(Clone)]
pub(super) struct H2 {
    connection: h2::client::SendRequest<Bytes>,
    uri: http::Uri,
}

impl H2 {
    pub(super) async fn connect(peers: &Peers) -> Result<Self, BoxError> {
        let (stream, uri) = dial(peers.backends[0]).await?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW).enable_push(false);
        let (connection, driver) = builder.handshake(stream).await?;
        tokio::spawn(driver);
        Ok(Self { connection, uri })
    }

    async fn send(&mut self) -> Result<(), BoxError> {
        // `poll_ready` keeps a handle of the stream that may wait for capacity, so it needs `&mut` and no clone.
        std::future::poll_fn(|cx| self.connection.poll_ready(cx)).await?;
        let (response, mut upload) = self.connection.send_request(request(&self.uri, ()), false)?;
        upload.send_data(frame(), true)?;
        let mut body = response.await?.into_body();
        let mut received = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            received.extend_from_slice(&data);
        }
        finish(body.trailers().await?.as_ref(), &mut received)
    }
}

impl Caller for H2 {
    async fn call(&mut self) -> Result<(), String> {
        self.send().await.map_err(|error| error.to_string())
    }
}

// === The gRPC part ===

async fn dial(backend: SocketAddr) -> Result<(TcpStream, http::Uri), BoxError> {
    let stream = TcpStream::connect(backend).await?;
    stream.set_nodelay(true)?;
    Ok((stream, format!("http://{backend}{PATH}").parse()?))
}

fn request<B>(uri: &http::Uri, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.clone();
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request
}

/// The request message after its five-byte prefix: not compressed, length.
fn frame() -> Bytes {
    let message = Echo { payload: PAYLOAD };
    let mut frame = BytesMut::with_capacity(5 + message.encoded_len());
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    // `BytesMut` grows, so there is room.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

fn finish(trailers: Option<&HeaderMap>, body: &mut impl Buf) -> Result<(), BoxError> {
    match trailers.and_then(|trailers| trailers.get("grpc-status")) {
        Some(status) if status == "0" => {}
        status => return Err(format!("grpc-status {status:?}").into()),
    }
    if body.remaining() < 5 {
        return Err("no message".into());
    }
    body.advance(5);
    Ok(check(&Echo::decode(body)?)?)
}
