//! The encoding of requests, whose names are written from what the client holds, and of responses as bytes.
//!
//! Every ACK of SotW repeats the full list: with 10,000 clusters the generated message would gather 10,000 strings to say
//! that one assignment arrived. Here the list is encoded once for all requests that share it. And the generated message of
//! a response with 10,000 resources would be made in one go, while the thread's other tasks wait; its bytes are taken apart
//! later. This file does NOT know what a message says besides.

use super::protocol::Asks;
use crate::resource::Kind;
use bytes::{Buf, Bytes};
use prost::{Message, bytes::BufMut, encoding};
use rustc_hash::FxHashMap;
use std::{marker::PhantomData, sync::Arc};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// `DiscoveryRequest.resource_names` and `DeltaDiscoveryRequest.resource_names_subscribe`.
const SUBSCRIBE: u32 = 3;
/// `DeltaDiscoveryRequest.resource_names_unsubscribe`.
const UNSUBSCRIBE: u32 = 4;
/// `DeltaDiscoveryRequest.initial_resource_versions`, a map.
const HELD: u32 = 5;
/// Of an entry of a map.
const KEY: u32 = 1;
const VALUE: u32 = 2;

/// A request, whose names stand beside the rest.
#[derive(Debug)]
pub(super) struct Named<M> {
    pub(super) rest: M,
    pub(super) kind: Kind,
    pub(super) asks: Asks,
}

/// For a method of `AggregatedDiscoveryService` with this request.
#[derive(Debug)]
pub(super) struct AdsCodec<M>(PhantomData<fn(M)>);

/// Of one stream: keeps the lists that it encoded.
#[derive(Debug)]
pub(super) struct AdsEncoder<M> {
    lists: FxHashMap<Kind, EncodedList>,
    message: PhantomData<fn(M)>,
}

/// Bytes are bytes.
#[derive(Debug)]
pub(super) struct AdsDecoder;

/// The last list of one type, as it stands in a request.
#[derive(Debug)]
struct EncodedList {
    /// Held, so that its address stays its own.
    names: Arc<[Arc<str>]>,
    bytes: Box<[u8]>,
}

impl<M: Message> AdsEncoder<M> {
    /// "Fields may be in any order" (protobuf encoding): the names come last.
    fn names(&mut self, kind: Kind, asks: &Asks, buffer: &mut impl BufMut) {
        match asks {
            Asks::All { names, .. } => {
                let held = self.lists.get(&kind).is_some_and(|list| Arc::ptr_eq(&list.names, names));
                if !held {
                    self.lists.insert(kind, EncodedList::new(Arc::clone(names)));
                }
                buffer.put_slice(&self.lists[&kind].bytes);
            }
            Asks::Change { subscribe, unsubscribe, held } => {
                subscribe.iter().for_each(|name| text(SUBSCRIBE, name, buffer));
                unsubscribe.iter().for_each(|name| text(UNSUBSCRIBE, name, buffer));
                for (name, version) in held {
                    encoding::encode_key(HELD, encoding::WireType::LengthDelimited, buffer);
                    encoding::encode_varint((text_len(KEY, name) + text_len(VALUE, version)) as u64, buffer);
                    text(KEY, name, buffer);
                    text(VALUE, version, buffer);
                }
            }
        }
    }
}

impl EncodedList {
    fn new(names: Arc<[Arc<str>]>) -> Self {
        let mut bytes = Vec::with_capacity(names.iter().map(|name| text_len(SUBSCRIBE, name)).sum());
        names.iter().for_each(|name| text(SUBSCRIBE, name, &mut bytes));
        Self { names, bytes: bytes.into() }
    }
}

fn text_len(field: u32, text: &str) -> usize {
    encoding::key_len(field) + encoding::encoded_len_varint(text.len() as u64) + text.len()
}

fn text(field: u32, text: &str, buffer: &mut impl BufMut) {
    encoding::encode_key(field, encoding::WireType::LengthDelimited, buffer);
    encoding::encode_varint(text.len() as u64, buffer);
    buffer.put_slice(text.as_bytes());
}

impl<M> Default for AdsCodec<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + 'static> Codec for AdsCodec<M> {
    type Encode = Named<M>;
    type Decode = Bytes;
    type Encoder = AdsEncoder<M>;
    type Decoder = AdsDecoder;

    fn encoder(&mut self) -> AdsEncoder<M> {
        AdsEncoder { lists: FxHashMap::default(), message: PhantomData }
    }

    fn decoder(&mut self) -> AdsDecoder {
        AdsDecoder
    }
}

impl<M: Message> Encoder for AdsEncoder<M> {
    type Item = Named<M>;
    type Error = Status;

    fn encode(&mut self, Named { rest, kind, asks }: Named<M>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        rest.encode_raw(buffer);
        self.names(kind, &asks, buffer);
        Ok(())
    }
}

impl Decoder for AdsDecoder {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

    const KIND: Kind = Kind::Cluster;

    fn encoded<M: Message>(encoder: &mut AdsEncoder<M>, rest: &M, kind: Kind, asks: &Asks) -> Vec<u8> {
        let mut bytes = rest.encode_to_vec();
        encoder.names(kind, asks, &mut bytes);
        bytes
    }

    fn names() -> [Arc<str>; 3] {
        ["a".into(), "".into(), "ä".repeat(100).into()]
    }

    #[test]
    fn it_says_in_sotw_what_the_generated_message_says() {
        let rest = DiscoveryRequest { version_info: "7".into(), type_url: "t".into(), ..Default::default() };
        let asks = Asks::All { names: names().into(), version: "7".into() };
        let bytes = encoded(&mut AdsCodec::default().encoder(), &rest, KIND, &asks);
        let resource_names = names().iter().map(ToString::to_string).collect();
        assert_eq!(DiscoveryRequest::decode(bytes.as_slice()), Ok(DiscoveryRequest { resource_names, ..rest }));
    }

    #[test]
    fn it_says_in_delta_what_the_generated_message_says() {
        let rest = DeltaDiscoveryRequest { type_url: "t".into(), response_nonce: "7".into(), ..Default::default() };
        let held = vec![("a".into(), "1".into()), ("b".into(), "".into())];
        let asks = Asks::Change { subscribe: names().into(), unsubscribe: vec!["u".into()], held };
        let bytes = encoded(&mut AdsCodec::default().encoder(), &rest, KIND, &asks);
        let expected = DeltaDiscoveryRequest {
            resource_names_subscribe: names().iter().map(ToString::to_string).collect(),
            resource_names_unsubscribe: vec!["u".to_owned()],
            initial_resource_versions: [("a", "1"), ("b", "")].map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
            ..rest
        };
        assert_eq!(DeltaDiscoveryRequest::decode(bytes.as_slice()), Ok(expected));
    }

    #[test]
    fn a_list_is_encoded_again_when_it_is_another_one() {
        let [one, two] = ["a", "b"].map(|name| Asks::All { names: [Arc::from(name)].into(), version: "".into() });
        let mut encoder = AdsCodec::<DiscoveryRequest>::default().encoder();
        let mut names = |kind, asks| {
            let bytes = encoded(&mut encoder, &DiscoveryRequest::default(), kind, asks);
            (bytes, encoder.lists[&kind].bytes.as_ptr())
        };
        let first = names(KIND, &one);
        assert_eq!(names(Kind::Endpoints, &two).0, b"\x1a\x01b", "of another type");
        assert_eq!(names(KIND, &one), first, "kept");
        assert_eq!(names(KIND, &two).0, b"\x1a\x01b", "changed");
    }
}
