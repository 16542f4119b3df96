//! The gRPC face: `AggregatedDiscoveryService`, with responses that were encoded before they got here.
//!
//! The generated service would take a `DiscoveryResponse` and so copy and encode every resource once per stream; this
//! codec only joins pieces that are shared, for SotW and delta alike. This file does NOT know what an answer means.

use super::{
    ControlPlane,
    events::Dialect,
    load,
    session::{Answer, Asked},
    stream,
};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use prost::{Message, bytes::BufMut};
use std::{
    convert::Infallible,
    marker::PhantomData,
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
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// A request names what it subscribes to: 10,000 long names fit well into this, 4 MiB would be near.
const MAX_REQUEST: usize = 64 << 20;

/// `AggregatedDiscoveryService` over one [`ControlPlane`].
#[derive(Clone, Debug)]
pub(super) struct Ads(pub(super) ControlPlane);

/// One of its two methods, by the requests that it takes.
#[derive(Clone, Debug)]
struct Method<T> {
    control_plane: ControlPlane,
    dialect: Dialect,
    requests: PhantomData<fn() -> T>,
}

#[derive(Clone, Copy, Debug, Default)]
struct AdsCodec<T>(PhantomData<fn() -> T>);

#[derive(Clone, Copy, Debug, Default)]
struct AnswerEncoder;

impl<T: Message + Default + 'static> Codec for AdsCodec<T> {
    type Encode = Answer;
    type Decode = T;
    type Encoder = AnswerEncoder;
    type Decoder = ProstDecoder<T>;

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

impl<T: Into<Asked> + Send + 'static> StreamingService<T> for Method<T> {
    type Response = Answer;
    type ResponseStream = ReceiverStream<Result<Answer, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<T>>) -> Self::Future {
        let opened = self.control_plane.open(self.dialect);
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

impl Ads {
    async fn serve<T, B>(self, dialect: Dialect, request: http::Request<B>) -> http::Response<tonic::body::Body>
    where
        T: Message + Default + Into<Asked> + 'static,
        B: Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let method = Method::<T> { control_plane: self.0, dialect, requests: PhantomData };
        let mut grpc = Grpc::new(AdsCodec(PhantomData)).max_decoding_message_size(MAX_REQUEST);
        grpc.streaming(method, request).await
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
            Ok(match request.uri().path() {
                SOTW => ads.serve::<DiscoveryRequest, B>(Dialect::Sotw, request).await,
                DELTA => ads.serve::<DeltaDiscoveryRequest, B>(Dialect::Delta, request).await,
                load::PATH => load::serve(ads.0, request).await,
                _ => Status::unimplemented("only AggregatedDiscoveryService is served").into_http(),
            })
        })
    }
}
