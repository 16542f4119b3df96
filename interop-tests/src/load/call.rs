//! One RPC of the suite over any tonic-compatible channel.
//!
//! It goes below tonic's generated client because that merges trailers into headers, and the suite tells them apart. It
//! does NOT count.

use super::plan::{Payloads, Plan, RpcType};
use crate::proto::testing::{Empty, Payload, PayloadType, SimpleRequest, SimpleResponse};
use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::{
    Request, Status,
    body::Body,
    client::{Grpc, GrpcService},
    codegen::{Body as HttpBody, StdError},
    metadata::MetadataMap,
};
use tonic_prost::ProstCodec;

/// What RPCs are sent over: tonic's channel, the mesh's, any layer around them.
pub trait Channel: GrpcService<Body, ResponseBody: ChannelBody, Future: Send> + Clone + Send + Sync + 'static {}

impl<C> Channel for C where C: GrpcService<Body, ResponseBody: ChannelBody, Future: Send> + Clone + Send + Sync + 'static
{}

/// The response bodies of a [`Channel`].
pub trait ChannelBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static {}

impl<B> ChannelBody for B where B: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static {}

/// An RPC that was answered with OK.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The `hostname` header, else the message's hostname; empty if there is neither.
    pub(crate) hostname: String,
    pub(crate) headers: MetadataMap,
    pub(crate) trailers: MetadataMap,
}

/// Makes one RPC as the plan says.
pub(crate) async fn call<C: Channel>(
    channel: C,
    rpc: RpcType,
    plan: &Plan,
    payloads: Payloads,
) -> Result<Answer, Status> {
    match rpc {
        RpcType::EmptyCall => {
            let path = PathAndQuery::from_static("/grpc.testing.TestService/EmptyCall");
            unary::<C, Empty, Empty>(channel, path, Empty {}, rpc, plan, |_| String::new()).await
        }
        RpcType::UnaryCall => {
            let path = PathAndQuery::from_static("/grpc.testing.TestService/UnaryCall");
            let body = vec![0; payloads.request];
            let payload = (!body.is_empty()).then(|| Payload { r#type: PayloadType::Compressable.into(), body });
            let message = SimpleRequest { response_size: payloads.response, payload, ..SimpleRequest::default() };
            unary(channel, path, message, rpc, plan, |answer: SimpleResponse| answer.hostname).await
        }
    }
}

async fn unary<C: Channel, Q: Message + 'static, R: Message + Default + 'static>(
    channel: C,
    path: PathAndQuery,
    message: Q,
    rpc: RpcType,
    plan: &Plan,
    hostname: impl FnOnce(R) -> String,
) -> Result<Answer, Status> {
    let mut request = Request::new(message);
    *request.metadata_mut() = plan.metadata_of(rpc);
    request.set_timeout(plan.timeout);
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let response = grpc.server_streaming(request, path, ProstCodec::<Q, R>::default()).await?;
    let (headers, mut messages, _) = response.into_parts();
    let message = messages.message().await?.ok_or_else(|| Status::internal("OK without a message"))?;
    // Trailers come after the end of the messages, which is what says that the RPC went well.
    if messages.message().await?.is_some() {
        return Err(Status::internal("more than one message"));
    }
    let trailers = messages.trailers().await?.unwrap_or_default();
    let header = headers.get("hostname").and_then(|hostname| hostname.to_str().ok()).map(str::to_owned);
    Ok(Answer { hostname: header.unwrap_or_else(|| hostname(message)), headers, trailers })
}
