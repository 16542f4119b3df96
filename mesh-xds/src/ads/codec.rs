//! The encoding of a SotW request, whose names are written from the list that all requests share.
//!
//! Every ACK repeats the full list: with 10,000 clusters the generated message would copy 10,000 strings to say that one
//! assignment arrived. It does NOT know what a request says besides.

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use prost::{Message, bytes::BufMut, encoding};
use std::sync::Arc;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
};
use tonic_prost::ProstDecoder;

/// `DiscoveryRequest.resource_names`.
const RESOURCE_NAMES: u32 = 3;

/// A `DiscoveryRequest`, whose `resource_names` stand beside it.
#[derive(Debug)]
pub(super) struct SotwMessage {
    pub(super) head: DiscoveryRequest,
    pub(super) names: Arc<[Arc<str>]>,
}

/// For `StreamAggregatedResources`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SotwCodec;

impl SotwMessage {
    fn encoded_len(&self) -> usize {
        let name = |name: &Arc<str>| {
            encoding::key_len(RESOURCE_NAMES) + encoding::encoded_len_varint(name.len() as u64) + name.len()
        };
        self.head.encoded_len() + self.names.iter().map(name).sum::<usize>()
    }

    /// "Fields may be in any order" (protobuf encoding): the names come last.
    fn encode(&self, buffer: &mut impl BufMut) {
        self.head.encode_raw(buffer);
        for name in &*self.names {
            encoding::encode_key(RESOURCE_NAMES, encoding::WireType::LengthDelimited, buffer);
            encoding::encode_varint(name.len() as u64, buffer);
            buffer.put_slice(name.as_bytes());
        }
    }
}

impl Codec for SotwCodec {
    type Encode = SotwMessage;
    type Decode = DiscoveryResponse;
    type Encoder = Self;
    type Decoder = ProstDecoder<DiscoveryResponse>;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::default())
    }
}

impl Encoder for SotwCodec {
    type Item = SotwMessage;
    type Error = Status;

    fn encode(&mut self, message: SotwMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.encoded_len());
        message.encode(buffer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_the_generated_message_says() {
        let names: Arc<[Arc<str>]> = ["a".into(), "".into(), "ä".repeat(100).into()].into();
        let head = DiscoveryRequest { version_info: "7".to_owned(), type_url: "t".to_owned(), ..Default::default() };
        let message = SotwMessage { head: head.clone(), names: Arc::clone(&names) };
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        assert_eq!(bytes.len(), message.encoded_len());
        let resource_names = names.iter().map(ToString::to_string).collect();
        assert_eq!(DiscoveryRequest::decode(bytes.as_slice()), Ok(DiscoveryRequest { resource_names, ..head }));
    }
}
