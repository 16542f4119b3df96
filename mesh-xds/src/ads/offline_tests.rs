//! A stream without a socket: frames as bytes, decoded exactly as the stream's task does it.
//!
//! For tests that want everything behind the transport. It does NOT test anything itself.

use super::{Request, Response, asked::Asked, decoder::Decoder, messages::Frame, stream::decoded};
use crate::{bootstrap::Transport, decode::DecodeContext};
use bytes::Bytes;
use prost::DecodeError;

pub(crate) struct Offline {
    transport: Transport,
    decoder: Decoder,
    asked: Asked,
}

impl Offline {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport, decoder: Decoder::new(DecodeContext::default()), asked: Asked::default() }
    }

    /// A request went out.
    pub(crate) fn sent(&self, request: &Request) {
        self.asked.note(request);
    }

    /// A frame arrives, and gets a nonce that no other had.
    pub(crate) async fn brings(&mut self, frame: &[u8], nonce: &str) -> Result<Option<Response>, DecodeError> {
        let frame = Bytes::copy_from_slice(frame);
        let mut frame = match self.transport {
            Transport::Sotw => Frame::sotw(frame)?,
            Transport::Delta => Frame::delta(frame)?,
        };
        frame.nonce = nonce.into();
        decoded(frame, &mut self.decoder, &self.asked).await
    }

    /// The stream broke. What was decoded is remembered, what was asked is not.
    pub(crate) fn breaks(&mut self) {
        self.asked = Asked::default();
    }
}
