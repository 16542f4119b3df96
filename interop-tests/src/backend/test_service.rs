//! `grpc.testing.TestService` as a backend of the PSM suite answers it.
//!
//! Every answer carries the backend's hostname, so that a caller can count who answered. It does NOT count calls;
//! [`super::tally`] does.

use super::behavior::{self, Verdict};
use crate::proto::testing::{
    EchoStatus, Empty, Payload, PayloadType, ResponseParameters, SimpleRequest, SimpleResponse,
    StreamingInputCallRequest, StreamingInputCallResponse, StreamingOutputCallRequest, StreamingOutputCallResponse,
    test_service_server::TestService,
};
use futures_util::{StreamExt, stream, stream::BoxStream};
use std::{sync::Arc, time::Duration};
use tokio::time;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};

/// The largest answer a request can ask for; a larger one is a mistake of the test.
const LARGEST_ANSWER: i32 = 1 << 30;

/// Answers for one backend.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) hostname: Arc<str>,
    pub(crate) server_id: Arc<str>,
}

impl Service {
    /// Obeys `rpc-behavior`; the error already carries the `hostname` header.
    async fn obey(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let headers = metadata.clone().into_headers();
        match behavior::obey(&headers, &self.hostname).await {
            Verdict::Proceed => Ok(()),
            Verdict::Fail(code) => {
                let text = format!("rpc-behavior error-code-{code} from {}", self.hostname);
                Err(self.signed_status(Status::new(Code::from_i32(code.into()), text)))
            }
            Verdict::Malformed(reason) => Err(self.signed_status(Status::invalid_argument(reason))),
        }
    }

    fn signed<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        self.sign(response.metadata_mut());
        response
    }

    fn signed_status(&self, mut status: Status) -> Status {
        self.sign(status.metadata_mut());
        status
    }

    fn sign(&self, metadata: &mut MetadataMap) {
        // A hostname given on the command line may hold anything; then the message's field has to do.
        if let Ok(hostname) = self.hostname.parse() {
            metadata.insert("hostname", hostname);
        }
    }
}

fn payload(size: i32) -> Result<Option<Payload>, Status> {
    if !(0..=LARGEST_ANSWER).contains(&size) {
        return Err(Status::invalid_argument(format!("a response of {size} bytes")));
    }
    let body = vec![0; size.unsigned_abs() as usize];
    Ok((size > 0).then(|| Payload { r#type: PayloadType::Compressable.into(), body }))
}

fn wanted_status(status: Option<EchoStatus>) -> Result<(), Status> {
    match status {
        Some(status) if status.code != 0 => Err(Status::new(Code::from_i32(status.code), status.message)),
        _ => Ok(()),
    }
}

async fn chunk(parameters: ResponseParameters) -> Result<StreamingOutputCallResponse, Status> {
    let pause = u64::try_from(parameters.interval_us).unwrap_or(0);
    if pause > 0 {
        time::sleep(Duration::from_micros(pause)).await;
    }
    Ok(StreamingOutputCallResponse { payload: payload(parameters.size)? })
}

fn chunks(request: StreamingOutputCallRequest) -> BoxStream<'static, Result<StreamingOutputCallResponse, Status>> {
    let answers = stream::iter(request.response_parameters).then(chunk);
    let end = stream::iter(wanted_status(request.response_status).err().map(Err));
    answers.chain(end).boxed()
}

#[tonic::async_trait]
impl TestService for Service {
    type StreamingOutputCallStream = BoxStream<'static, Result<StreamingOutputCallResponse, Status>>;
    type FullDuplexCallStream = BoxStream<'static, Result<StreamingOutputCallResponse, Status>>;

    async fn empty_call(&self, request: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.obey(request.metadata()).await?;
        Ok(self.signed(Empty {}))
    }

    async fn unary_call(&self, request: Request<SimpleRequest>) -> Result<Response<SimpleResponse>, Status> {
        self.obey(request.metadata()).await?;
        let request = request.into_inner();
        wanted_status(request.response_status).map_err(|status| self.signed_status(status))?;
        Ok(self.signed(SimpleResponse {
            payload: payload(request.response_size)?,
            server_id: self.server_id.to_string(),
            hostname: self.hostname.to_string(),
        }))
    }

    async fn streaming_output_call(
        &self,
        request: Request<StreamingOutputCallRequest>,
    ) -> Result<Response<Self::StreamingOutputCallStream>, Status> {
        self.obey(request.metadata()).await?;
        Ok(self.signed(chunks(request.into_inner())))
    }

    async fn streaming_input_call(
        &self,
        request: Request<Streaming<StreamingInputCallRequest>>,
    ) -> Result<Response<StreamingInputCallResponse>, Status> {
        self.obey(request.metadata()).await?;
        let mut messages = request.into_inner();
        let mut size = 0i32;
        while let Some(message) = messages.message().await? {
            let bytes = message.payload.map_or(0, |payload| payload.body.len());
            size = size.saturating_add(i32::try_from(bytes).unwrap_or(i32::MAX));
        }
        Ok(self.signed(StreamingInputCallResponse { aggregated_payload_size: size }))
    }

    async fn full_duplex_call(
        &self,
        request: Request<Streaming<StreamingOutputCallRequest>>,
    ) -> Result<Response<Self::FullDuplexCallStream>, Status> {
        self.obey(request.metadata()).await?;
        let answers = request.into_inner().flat_map(|request| match request {
            Ok(request) => chunks(request),
            Err(status) => stream::iter([Err(status)]).boxed(),
        });
        Ok(self.signed(answers.boxed()))
    }
}
