//! The encoding of a SotW request, whose names are encoded once for all requests that share their list.
//!
//! Every ACK repeats the full list: with 10,000 clusters the generated message would gather 10,000 strings to say that
//! one assignment arrived. Here that is one copy. It does NOT know what a request says besides.

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use prost::{Message, bytes::BufMut, encoding};
use rustc_hash::FxHashMap;
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

/// Of one stream: keeps what it encoded.
#[derive(Debug, Default)]
pub(super) struct SotwEncoder {
    /// By type URL.
    lists: FxHashMap<String, EncodedList>,
}

/// The last list of one type, as it stands in a request.
#[derive(Debug)]
struct EncodedList {
    /// Held, so that its address stays its own.
    names: Arc<[Arc<str>]>,
    bytes: Box<[u8]>,
}

impl SotwEncoder {
    /// The bytes of a message's names, made anew when the list is another one.
    fn names(&mut self, message: &SotwMessage) -> &[u8] {
        let SotwMessage { head, names } = message;
        let held = self.lists.get(&head.type_url).is_some_and(|list| Arc::ptr_eq(&list.names, names));
        if !held {
            self.lists.insert(head.type_url.clone(), EncodedList::new(Arc::clone(names)));
        }
        &self.lists[&head.type_url].bytes
    }
}

impl EncodedList {
    fn new(names: Arc<[Arc<str>]>) -> Self {
        let len = |name: &Arc<str>| {
            encoding::key_len(RESOURCE_NAMES) + encoding::encoded_len_varint(name.len() as u64) + name.len()
        };
        let mut bytes = Vec::with_capacity(names.iter().map(len).sum());
        for name in &*names {
            encoding::encode_key(RESOURCE_NAMES, encoding::WireType::LengthDelimited, &mut bytes);
            encoding::encode_varint(name.len() as u64, &mut bytes);
            bytes.put_slice(name.as_bytes());
        }
        Self { names, bytes: bytes.into() }
    }
}

impl Codec for SotwCodec {
    type Encode = SotwMessage;
    type Decode = DiscoveryResponse;
    type Encoder = SotwEncoder;
    type Decoder = ProstDecoder<DiscoveryResponse>;

    fn encoder(&mut self) -> SotwEncoder {
        SotwEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::default())
    }
}

impl Encoder for SotwEncoder {
    type Item = SotwMessage;
    type Error = Status;

    /// "Fields may be in any order" (protobuf encoding): the names come last.
    fn encode(&mut self, message: SotwMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let names = self.names(&message);
        buffer.reserve(message.head.encoded_len() + names.len());
        message.head.encode_raw(buffer);
        buffer.put_slice(names);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(type_url: &str, names: &Arc<[Arc<str>]>) -> SotwMessage {
        let head = DiscoveryRequest { version_info: "7".into(), type_url: type_url.into(), ..Default::default() };
        SotwMessage { head, names: Arc::clone(names) }
    }

    #[test]
    fn it_says_what_the_generated_message_says() {
        let names: Arc<[Arc<str>]> = ["a".into(), "".into(), "ä".repeat(100).into()].into();
        let message = message("t", &names);
        let mut bytes = message.head.encode_to_vec();
        bytes.extend(SotwEncoder::default().names(&message));
        let resource_names = names.iter().map(ToString::to_string).collect();
        assert_eq!(DiscoveryRequest::decode(bytes.as_slice()), Ok(DiscoveryRequest { resource_names, ..message.head }));
    }

    #[test]
    fn a_list_is_encoded_again_when_it_is_another_one() {
        let [one, two] = ["a", "b"].map(|name| Arc::from([Arc::from(name)]));
        let mut encoder = SotwEncoder::default();
        let first = encoder.names(&message("t", &one)).as_ptr();
        assert_eq!(encoder.names(&message("u", &two)), b"\x1a\x01b", "of another type");
        assert_eq!(encoder.names(&message("t", &one)).as_ptr(), first, "kept");
        assert_eq!(encoder.names(&message("t", &two)), b"\x1a\x01b", "changed");
    }
}
