//! The echo service: one unary method, in the shape that tonic's code generator gives clients and servers.
//!
//! Written by hand so that the bench needs no code generator at build time; every tonic stack calls through this very
//! client, so that its cost is the same for all of them. It does NOT connect and does NOT listen.

use bytes::Bytes;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tonic::{
    GrpcMethod, IntoRequest, Request, Response, Status,
    body::Body,
    client::GrpcService,
    codegen::{BoxFuture, StdError, http},
    server::{NamedService, UnaryService},
};
use tonic_prost::ProstCodec;

/// The path of the method.
pub(crate) const PATH: &str = "/bench.Echo/Unary";

/// Request and response of the method.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Echo {
    /// Comes back as it was sent.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) payload: Bytes,
}

// === EchoClient ===

/// The client, as generated.
#[derive(Clone, Debug)]
pub(crate) struct EchoClient<T> {
    inner: tonic::client::Grpc<T>,
}

impl<T> EchoClient<T>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    pub(crate) fn new(inner: T) -> Self {
        Self { inner: tonic::client::Grpc::new(inner) }
    }

    pub(crate) async fn unary(&mut self, request: impl IntoRequest<Echo>) -> Result<Response<Echo>, Status> {
        self.inner.ready().await.map_err(|e| Status::unknown(format!("Service was not ready: {}", e.into())))?;
        let codec: ProstCodec<Echo, Echo> = ProstCodec::default();
        let path = http::uri::PathAndQuery::from_static(PATH);
        let mut request = request.into_request();
        request.extensions_mut().insert(GrpcMethod::new("bench.Echo", "Unary"));
        self.inner.unary(request, path, codec).await
    }
}

// === EchoServer ===

/// The server, which counts its calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct EchoServer {
    pub(crate) calls: Arc<AtomicU64>,
}

impl NamedService for EchoServer {
    const NAME: &'static str = "bench.Echo";
}

impl UnaryService<Echo> for EchoServer {
    type Response = Echo;
    type Future = std::future::Ready<Result<Response<Echo>, Status>>;

    fn call(&mut self, request: Request<Echo>) -> Self::Future {
        self.calls.fetch_add(1, Relaxed);
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

impl tower::Service<http::Request<Body>> for EchoServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            Ok(tonic::server::Grpc::new(ProstCodec::<Echo, Echo>::default()).unary(method, request).await)
        })
    }
}
