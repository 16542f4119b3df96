//! Bytes that no control plane should send never panic the decoder.
//!
//! The corpus is what is committed anyway: the resources of the NACK table, good and bad, and the recordings of an
//! istiod. Mutations work on the bytes and on the protobuf structure; the latter get deep, because lengths stay right.
//! `FUZZ_INPUTS` sets how many inputs each kind gets, `FUZZ_SEED` where the dice start. A failure prints the input.

use bytes::Bytes;
use fastrand::Rng;
use interop_tests::{
    nack_table::{CERTIFICATE_PROVIDERS, rows},
    recordings::{responses, scenarios},
};
use mesh_xds::{
    control_plane::proto::envoy::service::discovery::v3::Resource as Wrapper,
    decode::{DecodeContext, decode, decode_after, reuse},
    resource::{ClusterLoadAssignment, ClusterSpecifier, Kind, Received, Resource, RouteAction, RouteConfig},
};
use prost::{
    Message, Name,
    encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint},
};
use std::{
    collections::HashSet,
    env,
    panic::{self, AssertUnwindSafe},
};

#[test]
fn no_listener_panics_the_decoder() {
    fuzz(Kind::Listener);
}

#[test]
fn no_route_configuration_panics_the_decoder() {
    fuzz(Kind::RouteConfig);
}

#[test]
fn no_cluster_panics_the_decoder() {
    fuzz(Kind::Cluster);
}

#[test]
fn no_cluster_load_assignment_panics_the_decoder() {
    fuzz(Kind::Endpoints);
}

fn fuzz(kind: Kind) {
    let setting = |name, default| env::var(name).map_or(default, |value| value.parse().expect(name));
    let (inputs, seed) = (setting("FUZZ_INPUTS", 100_000), setting("FUZZ_SEED", 27));
    let corpus = corpus(kind);
    let context = DecodeContext { certificate_providers: CERTIFICATE_PROVIDERS.map(str::to_owned).into() };
    let decoded: Vec<_> = corpus.iter().map(|seed| decode(kind, kind.type_url(), &seed.bytes, &context)).collect();
    let mut rng = Rng::with_seed(seed);
    let (mut taken, mut refused) = (0, 0);
    for number in 0..inputs {
        let seed_index = rng.usize(..corpus.len());
        let (type_url, input) = mutant(kind, &corpus, seed_index, &mut rng);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            let received = decode(kind, &type_url, &input, &context);
            check(&received);
            // What came before saves work and changes nothing.
            let after = decode_after(&decoded[seed_index], kind, &type_url, &input, &context);
            assert_eq!((&after.name, &after.value), (&received.name, &received.value));
            received.value.is_ok()
        }));
        match outcome {
            Ok(true) => taken += 1,
            Ok(false) => refused += 1,
            Err(_) => panic!("input {number} of FUZZ_SEED={seed}, a {type_url}: {input:?}"),
        }
    }
    // Otherwise the mutations only scratch the surface, or break nothing.
    assert!(taken > inputs / 20 && refused > inputs / 20, "{taken} taken, {refused} refused");
}

// === Corpus ===

/// An input to begin with: its bytes, and its fields if the bytes can be read as a message.
struct Seed {
    bytes: Bytes,
    fields: Option<Vec<Field>>,
}

fn corpus(kind: Kind) -> Vec<Seed> {
    let of_table = rows().into_iter().filter(|row| row.kind == kind);
    let mut corpus: Vec<Bytes> =
        of_table.flat_map(|row| [row.good, row.bad]).map(|any| Bytes::from(any.value)).collect();
    for response in scenarios().unwrap().iter().flat_map(|scenario| responses(scenario).unwrap()) {
        if response.kind == kind {
            corpus.extend(response.resources.into_values().map(|any| Bytes::from(any.value)));
        }
    }
    // In any order the same: the files are listed as the file system likes.
    corpus.sort();
    corpus.dedup();
    corpus.into_iter().map(|bytes| Seed { fields: parse(&bytes, 0), bytes }).collect()
}

// === Mutations ===

fn mutant(kind: Kind, corpus: &[Seed], seed_index: usize, rng: &mut Rng) -> (String, Bytes) {
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
    match rng.u8(..100) {
        0 => (Kind::ALL[rng.usize(..4)].type_url().to_owned(), bytes.into()),
        1..10 => {
            let any = mesh_xds::control_plane::proto::google::protobuf::Any {
                type_url: kind.type_url().to_owned(),
                value: bytes,
            };
            let wrapper = Wrapper { name: "wrapped".to_owned(), resource: Some(any), ..Wrapper::default() };
            (Wrapper::type_url(), wrapper.encode_to_vec().into())
        }
        _ => (kind.type_url().to_owned(), bytes.into()),
    }
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

// === What holds of everything that was taken ===

fn check(received: &Received) {
    let Ok(resource) = &received.value else { return };
    assert_eq!(received.name.as_deref(), Some(resource.name()));
    assert_eq!(reuse(resource, resource.clone()), *resource);
    match resource {
        Resource::RouteConfig(routes) => check_routes(routes),
        Resource::Endpoints(endpoints) => check_endpoints(endpoints),
        Resource::Listener(_) | Resource::Cluster(_) | Resource::Other(_) => {}
    }
}

fn check_routes(routes: &RouteConfig) {
    for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
        if let RouteAction::Forward(forward) = &route.action
            && let ClusterSpecifier::Weighted(clusters) = &forward.cluster
        {
            let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
            assert!(clusters.iter().all(|cluster| cluster.weight > 0) && (1..=u64::from(u32::MAX)).contains(&sum));
        }
    }
}

fn check_endpoints(endpoints: &ClusterLoadAssignment) {
    assert!(endpoints.priorities.iter().all(|localities| !localities.is_empty()));
    let mut seen = HashSet::new();
    for endpoint in endpoints.endpoints() {
        assert!(endpoint.weight > 0 && endpoint.addresses.iter().all(|address| seen.insert(address)));
    }
}
