//! The gRPC face: `AggregatedDiscoveryService`, with responses that were encoded before they got here.
//!
//! The generated service would take a `DiscoveryResponse` and so copy and encode every resource once per stream; this
//! codec only joins pieces that are shared. Delta is answered UNIMPLEMENTED, which every client takes as "use SotW".
//! This file does NOT know what an answer means.

use super::{ControlPlane, session::Answer, stream};
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use prost::bytes::BufMut;
use std::{
    convert::Infallible,
    task::{Context, Poll},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
    codegen::{Body, BoxFuture, Service, StdError, http},
    server::{Grpc, StreamingService},
};
use tonic_prost::ProstDecoder;

const SOTW: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// A request names what it subscribes to: 10,000 long names fit well into this, 4 MiB would be near.
const MAX_REQUEST: usize = 64 << 20;

/// `AggregatedDiscoveryService` over one [`ControlPlane`].
#[derive(Clone, Debug)]
pub(super) struct Ads(pub(super) ControlPlane);

#[derive(Clone, Copy, Debug, Default)]
struct AdsCodec;

#[derive(Clone, Copy, Debug, Default)]
struct AnswerEncoder;

impl Codec for AdsCodec {
    type Encode = Answer;
    type Decode = DiscoveryRequest;
    type Encoder = AnswerEncoder;
    type Decoder = ProstDecoder<DiscoveryRequest>;

    fn encoder(&mut self) -> AnswerEncoder {
        AnswerEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::default())
    }
}

impl Encoder for AnswerEncoder {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, answer: Answer, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(answer.pieces.iter().map(|piece| piece.len()).sum());
        answer.pieces.into_iter().for_each(|piece| buffer.put(piece));
        Ok(())
    }
}

impl StreamingService<DiscoveryRequest> for Ads {
    type Response = Answer;
    type ResponseStream = ReceiverStream<Result<Answer, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let opened = self.0.open();
        Box::pin(async move {
            let opened = opened?;
            // One answer: the next is computed when the client has room for it, from what is true by then. Full means
            // that this stream's task waits, and no other. Closed by the transport when the stream is reset.
            let (answers, outgoing) = mpsc::channel(1);
            tokio::spawn(stream::run(opened, request.into_inner(), answers));
            Ok(Response::new(ReceiverStream::new(outgoing)))
        })
    }
}

impl<B> Service<http::Request<B>> for Ads
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let ads = self.clone();
        Box::pin(async move {
            if request.uri().path() != SOTW {
                return Ok(Status::unimplemented("only StreamAggregatedResources is served").into_http());
            }
            let mut grpc = Grpc::new(AdsCodec).max_decoding_message_size(MAX_REQUEST);
            Ok(grpc.streaming(ads, request).await)
        })
    }
}
