//! What no agent should write never panics the bootstrap parser.
//!
//! The corpus is `bootstrap/`: what istio's agent and template, Traffic Director's generator and a careful tester
//! write. Mutations work on the bytes and on the JSON values; the latter get past the JSON parser. `FUZZ_INPUTS` says
//! how many, `FUZZ_SEED` where the dice start. A failure prints the input.

use fastrand::Rng;
use mesh_xds::{Bootstrap, BootstrapError};
use serde_json::{Value, json};
use std::{env, fs, panic, path::Path};

#[test]
fn no_bootstrap_panics_the_parser() {
    let setting = |name, default| env::var(name).map_or(default, |value| value.parse().expect(name));
    let (inputs, seed) = (setting("FUZZ_INPUTS", 100_000), setting("FUZZ_SEED", 27));
    let corpus = corpus();
    let mut rng = Rng::with_seed(seed);
    let (mut taken, mut refused) = (0, 0);
    for number in 0..inputs {
        let input = mutant(&corpus, &mut rng);
        let outcome = panic::catch_unwind(|| check(&input));
        match outcome {
            Ok(true) => taken += 1,
            Ok(false) => refused += 1,
            Err(_) => panic!("input {number} of FUZZ_SEED={seed}: {input:?}"),
        }
    }
    // Otherwise the mutations only scratch the surface, or break nothing.
    assert!(taken > inputs / 20 && refused > inputs / 20, "{taken} taken, {refused} refused");
}

/// Whether the parser takes it; what it takes can be used, and what it refuses has a reason.
fn check(input: &str) -> bool {
    match Bootstrap::parse(input) {
        Ok(bootstrap) => {
            assert!(!bootstrap.listener_name("greeter.prod:8080 é%").is_empty());
            assert!(!format!("{bootstrap:?}{}", bootstrap.node_id()).is_empty());
            true
        }
        Err(BootstrapError::Invalid(invalid)) => {
            assert!(!invalid.reason.is_empty(), "{input}");
            false
        }
        Err(other) => panic!("{input:?}: {other}"),
    }
}

struct Seed {
    text: String,
    value: Value,
}

fn corpus() -> Vec<Seed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bootstrap");
    let files = fs::read_dir(folder).expect("the corpus").map(|entry| entry.expect("an entry").path());
    let mut texts: Vec<_> = files.map(|file| fs::read_to_string(file).expect("readable")).collect();
    texts.sort();
    let seed = |text: String| {
        assert!(check(&text), "{text}");
        Seed { value: serde_json::from_str(&text).expect("JSON"), text }
    };
    texts.into_iter().map(seed).collect()
}

fn mutant(corpus: &[Seed], rng: &mut Rng) -> String {
    let seed = &corpus[rng.usize(..corpus.len())];
    if rng.u8(..3) == 0 {
        let mut bytes = seed.text.clone().into_bytes();
        for _ in 0..rng.usize(1..=3) {
            mutate_bytes(&mut bytes, rng);
        }
        return String::from_utf8_lossy(&bytes).into_owned();
    }
    let mut value = seed.value.clone();
    for _ in 0..rng.usize(1..=3) {
        let donor = corpus[rng.usize(..corpus.len())].value.clone();
        mutate_value(&mut value, donor, rng);
    }
    value.to_string()
}

/// Parts that mean something to a JSON parser, or to nobody.
const PIECES: [&[u8]; 12] =
    [b"null", b"{}", b"[]", b"\"\"", b"-1e999", b"\"unix:\"", b"\"[::1\"", b"%s", b"\\ud800", b",", b"\xff", b"\"\xc3"];

fn mutate_bytes(bytes: &mut Vec<u8>, rng: &mut Rng) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.usize(..bytes.len());
    let end = (at + rng.usize(..30)).min(bytes.len());
    match rng.u8(..4) {
        0 => bytes[at] = rng.u8(..),
        1 => drop(bytes.drain(at..end)),
        2 => bytes.truncate(at),
        _ => drop(bytes.splice(at..end, PIECES[rng.usize(..PIECES.len())].iter().copied())),
    }
}

/// Goes down a random way, and changes what is there.
fn mutate_value(value: &mut Value, donor: Value, rng: &mut Rng) {
    match value {
        Value::Object(fields) if !fields.is_empty() && rng.u8(..8) > 0 => {
            let name = fields.keys().nth(rng.usize(..fields.len())).cloned().unwrap_or_default();
            match rng.u8(..12) {
                0 => drop(fields.remove(&name)),
                1 => {
                    let moved = fields.remove(&name).unwrap_or_default();
                    fields.insert(format!("{name}x"), moved);
                }
                _ => {
                    let donor = match donor {
                        Value::Object(mut fields) => fields.remove(&name).unwrap_or_default(),
                        other => other,
                    };
                    mutate_value(&mut fields[&name], donor, rng);
                }
            }
        }
        Value::Array(items) if !items.is_empty() && rng.u8(..8) > 0 => {
            let at = rng.usize(..items.len());
            match rng.u8(..8) {
                0 => drop(items.remove(at)),
                1 => items.push(donor),
                _ => {
                    let donor = match donor {
                        Value::Array(mut items) if !items.is_empty() => items.swap_remove(0),
                        other => other,
                    };
                    mutate_value(&mut items[at], donor, rng);
                }
            }
        }
        Value::String(text) if rng.u8(..3) > 0 => *text = mutated(text, rng),
        _ => *value = replacement(donor, rng),
    }
}

fn replacement(donor: Value, rng: &mut Rng) -> Value {
    match rng.u8(..8) {
        0 => Value::Null,
        1 => json!(rng.bool()),
        2 => json!(u64::MAX),
        3 => json!({}),
        4 => json!([]),
        5 => json!(""),
        _ => donor,
    }
}

/// Server URIs of every kind, cut and joined.
fn mutated(text: &str, rng: &mut Rng) -> String {
    const PARTS: [&str; 16] = [
        "unix:", "//", "/", "dns:", "ipv4:", "ipv6:", "http://", "https://", ":", "[", "::1", "]", "65536", "%s", ",",
        "é",
    ];
    let cut = |rng: &mut Rng| text.char_indices().map(|(at, _)| at).nth(rng.usize(..text.len().max(1))).unwrap_or(0);
    let (from, to) = (cut(rng), cut(rng));
    let part = PARTS[rng.usize(..PARTS.len())];
    match rng.u8(..3) {
        0 => format!("{}{part}{}", &text[..from], &text[from..]),
        1 => format!("{}{}", &text[..from.min(to)], &text[from.max(to)..]),
        _ => (0..rng.usize(1..6)).map(|_| PARTS[rng.usize(..PARTS.len())]).collect(),
    }
}
