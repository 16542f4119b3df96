//! A number for the content of a resource, the same in every process.
//!
//! prost keeps protobuf maps in hash maps, so that one message encodes to different bytes from one time to the next. A
//! digest of the bytes alone would make a restarted control plane send everything with a map again. This walk knows from
//! the descriptors which fields are maps, and takes their entries in any order; all else counts in the order it is in.
//! What is no such message counts as bytes. It does NOT say whether two contents are equal: `snapshot` compares those.

use super::json::descriptor;
use bytes::Bytes;
use prost_reflect::{Kind, MessageDescriptor};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The digest of a message of this type.
pub(super) fn digest(type_url: &str, value: &Bytes) -> u64 {
    let walked = descriptor(type_url).and_then(|descriptor| message(&descriptor, value));
    walked.unwrap_or_else(|| of(value))
}

/// `DefaultHasher::new` has no random keys; another release of the standard library may have other digests, which costs
/// one more push.
fn of(content: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

/// `None` when the bytes are not well-formed.
fn message(descriptor: &MessageDescriptor, mut bytes: &[u8]) -> Option<u64> {
    if descriptor.full_name() == "google.protobuf.Any" {
        return any(bytes);
    }
    let (mut ordered, mut unordered) = (DefaultHasher::new(), 0_u64);
    while !bytes.is_empty() {
        let (number, content) = field(&mut bytes)?;
        let known = u32::try_from(number >> 3).ok().and_then(|number| descriptor.get_field(number));
        let below = match known.as_ref().map(|field| field.kind()) {
            // Strings and bytes have the same shape, and are not looked into.
            Some(Kind::Message(below)) if number & 7 == LENGTH_DELIMITED => message(&below, content)?,
            _ => of(content),
        };
        if known.is_some_and(|field| field.is_map()) {
            unordered = unordered.wrapping_add(of((number, below)));
        } else {
            (number, below).hash(&mut ordered);
        }
    }
    Some(of((ordered.finish(), unordered)))
}

fn any(bytes: &[u8]) -> Option<u64> {
    let (mut type_url, mut value, mut rest) = (&[][..], &[][..], bytes);
    while !rest.is_empty() {
        match field(&mut rest)? {
            (TYPE_URL, content) => type_url = content,
            (VALUE, content) => value = content,
            _ => return Some(of(bytes)),
        }
    }
    let below = std::str::from_utf8(type_url).ok().and_then(descriptor);
    let below = below.and_then(|descriptor| message(&descriptor, value)).unwrap_or_else(|| of(value));
    Some(of((type_url, below)))
}

const LENGTH_DELIMITED: u64 = 2;

/// The keys of `Any`'s fields: number and wire type.
const TYPE_URL: u64 = (1 << 3) | LENGTH_DELIMITED;
const VALUE: u64 = (2 << 3) | LENGTH_DELIMITED;

/// The next field: its key, and its content without a length.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let key = varint(bytes)?;
    let length = match key & 7 {
        0 => {
            let mut rest = *bytes;
            varint(&mut rest)?;
            bytes.len() - rest.len()
        }
        1 => 8,
        LENGTH_DELIMITED => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        // Groups: nobody sends them.
        _ => return None,
    };
    let (content, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some((key, content))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::resources;
    use super::*;
    use envoy_types::pb::envoy::config::{cluster::v3::Cluster, core::v3::Metadata};
    use prost::{Message, Name};

    fn digest_of<M: Message + Name>(message: &M) -> u64 {
        digest(&M::type_url(), &message.encode_to_vec().into())
    }

    fn with_metadata(values: impl Iterator<Item = (u32, u32)>) -> Cluster {
        // Inside an Any, and in a map itself.
        let filters = values.map(|(key, value)| {
            let inner = Cluster { name: value.to_string(), ..Default::default() };
            (format!("key{key}"), resources::pack(inner))
        });
        let metadata = Metadata { typed_filter_metadata: filters.collect(), ..Default::default() };
        Cluster { metadata: Some(metadata), ..resources::cluster_eds("a") }
    }

    #[test]
    fn the_order_of_map_entries_does_not_count() {
        let digests: Vec<_> = (0..16).map(|_| digest_of(&with_metadata((0..8).map(|n| (n, n))))).collect();
        assert!(digests.iter().all(|digest| *digest == digests[0]));
        assert_ne!(digests[0], digest_of(&with_metadata((0..8).map(|n| (n, 7 - n)))), "values change places");
        assert_ne!(digests[0], digest_of(&with_metadata((0..7).map(|n| (n, n)))));
    }

    #[test]
    fn everything_else_counts_in_its_order() {
        let addresses = |ports: [u16; 2]| ports.map(|port| ([127, 0, 0, 1], port).into());
        let [one, other] = [[1, 2], [2, 1]].map(|ports| digest_of(&resources::endpoints("a", &addresses(ports))));
        assert_ne!(one, other);
        let [a, b] = ["a", "b"].map(|name| digest_of(&resources::listener(name, "r")));
        assert_ne!(a, b);
        let [r, s] = ["r", "s"].map(|routes| digest_of(&resources::listener("a", routes)));
        assert_ne!(r, s, "in an Any");
    }

    #[test]
    fn what_is_no_message_counts_as_bytes() {
        let url = Cluster::type_url();
        let digests = [&[0xff_u8][..], &[0xff, 0xff], &[0x0a, 0x05, b'a'], &[0x0b], &[]];
        let mut digests = digests.map(|bytes| digest(&url, &Bytes::copy_from_slice(bytes))).to_vec();
        digests.push(digest("unknown", &Bytes::from_static(b"a")));
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), 6);
    }
}
