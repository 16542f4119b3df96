//! Bytes that are nearly right: mutations of encoded messages, for the fuzz tests of both crates.
//!
//! They work on the bytes and on the protobuf structure; the latter get deep, because lengths stay right. Nothing is
//! judged here.

use bytes::Bytes;
use fastrand::Rng;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

/// An input to begin with: its bytes, and its fields if the bytes can be read as a message.
pub(crate) struct Seed {
    pub(crate) bytes: Bytes,
    fields: Option<Vec<Field>>,
}

/// Seeds in an order that does not depend on where they came from, each once.
pub(crate) fn seeds(mut corpus: Vec<Bytes>) -> Vec<Seed> {
    corpus.sort();
    corpus.dedup();
    corpus.into_iter().map(|bytes| Seed { fields: parse(&bytes, 0), bytes }).collect()
}

/// Up to three mutations of one seed.
pub(crate) fn mutant(corpus: &[Seed], seed_index: usize, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = corpus[seed_index].bytes.to_vec();
    // The same as `bytes`, as long as there is one.
    let mut fields = corpus[seed_index].fields.clone();
    for _ in 0..rng.usize(1..=3) {
        let other = &corpus[rng.usize(..corpus.len())];
        if rng.u8(..4) > 0
            && let Some(fields) = &mut fields
        {
            mutate_fields(fields, other.fields.as_deref().unwrap_or_default(), rng);
            bytes = encode(fields);
        } else {
            mutate_bytes(&mut bytes, &other.bytes, rng);
            fields = parse(&bytes, 0);
        }
    }
    bytes
}

fn mutate_bytes(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    if bytes.is_empty() {
        bytes.extend_from_slice(other);
        return;
    }
    let (at, end) = (rng.usize(..bytes.len()), rng.usize(..bytes.len()));
    match rng.u8(..5) {
        0 => bytes[at] ^= 1 << rng.u8(..8),
        1 => bytes[at] = rng.u8(..),
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at.min(end)..at.max(end))),
        _ => {
            let tail = other.get(rng.usize(..other.len().max(1))..).unwrap_or_default();
            bytes.splice(at.., tail.iter().copied());
        }
    }
}

/// One field on the wire; `Message` where the bytes can be read as one.
#[derive(Clone)]
struct Field {
    number: u32,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Varint(u64),
    Fixed(WireType, Vec<u8>),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

/// Numbers at which something changes: signs, widths, limits of xDS.
const EDGES: [u64; 12] =
    [0, 1, 2, 100, 101, 65_536, 8_388_609, i32::MAX as u64, u32::MAX as u64, 1 << 63, u64::MAX - 1, u64::MAX];

fn mutate_fields(fields: &mut Vec<Field>, other: &[Field], rng: &mut Rng) {
    if fields.is_empty() {
        fields.extend_from_slice(other);
        return;
    }
    let at = rng.usize(..fields.len());
    // Down, more often than not, as far as it goes.
    let number = fields[at].number;
    if let Value::Message(inner) = &mut fields[at].value
        && rng.u8(..8) > 0
    {
        let donor = other.iter().find(|field| field.number == number);
        let donor = match donor.map(|field| &field.value) {
            Some(Value::Message(fields)) => fields.as_slice(),
            _ => &[],
        };
        return mutate_fields(inner, donor, rng);
    }
    match rng.u8(..7) {
        0 => drop(fields.remove(at)),
        1 => fields.insert(at, fields[at].clone()),
        2 => fields[at].number = rng.u32(1..60),
        3 => fields.swap(at, 0),
        4 if !other.is_empty() => fields.push(other[rng.usize(..other.len())].clone()),
        _ => fields[at].value = mutated(&fields[at].value, rng),
    }
}

fn mutated(value: &Value, rng: &mut Rng) -> Value {
    match value {
        Value::Varint(_) => Value::Varint(EDGES[rng.usize(..EDGES.len())]),
        Value::Fixed(kind, bytes) => Value::Fixed(*kind, bytes.iter().map(|_| rng.u8(..)).collect()),
        Value::Message(_) => Value::Bytes(Vec::new()),
        Value::Bytes(bytes) => match rng.u8(..4) {
            0 => Value::Bytes(Vec::new()),
            1 => Value::Bytes([bytes.as_slice(), bytes.as_slice()].concat()),
            2 => Value::Bytes(b"*([\\x{*".to_vec()),
            _ => {
                Value::Bytes(bytes.iter().map(|byte| if rng.u8(..4) == 0 { rng.u8(32..127) } else { *byte }).collect())
            }
        },
    }
}

// === The wire format ===

fn parse(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes).ok()?;
        let value = match wire_type {
            WireType::Varint => Value::Varint(decode_varint(&mut bytes).ok()?),
            WireType::SixtyFourBit => Value::Fixed(wire_type, take(&mut bytes, 8)?),
            WireType::ThirtyTwoBit => Value::Fixed(wire_type, take(&mut bytes, 4)?),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let inner = take(&mut bytes, length)?;
                // A text may look like a message by accident, which makes odd mutations of texts.
                match parse(&inner, depth + 1) {
                    Some(fields) if depth < 40 && !fields.is_empty() => Value::Message(fields),
                    _ => Value::Bytes(inner),
                }
            }
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        fields.push(Field { number, value });
    }
    Some(fields)
}

fn take(bytes: &mut &[u8], length: usize) -> Option<Vec<u8>> {
    let (head, tail) = bytes.split_at_checked(length)?;
    *bytes = tail;
    Some(head.to_vec())
}

fn encode(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Field { number, value } in fields {
        match value {
            Value::Varint(value) => {
                encode_key(*number, WireType::Varint, &mut bytes);
                encode_varint(*value, &mut bytes);
            }
            Value::Fixed(wire_type, value) => {
                encode_key(*number, *wire_type, &mut bytes);
                bytes.extend_from_slice(value);
            }
            Value::Bytes(value) => delimited(*number, value, &mut bytes),
            Value::Message(fields) => delimited(*number, &encode(fields), &mut bytes),
        }
    }
    bytes
}

fn delimited(number: u32, value: &[u8], bytes: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, bytes);
    encode_varint(value.len() as u64, bytes);
    bytes.extend_from_slice(value);
}
