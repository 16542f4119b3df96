//! Looking at encoded messages without decoding them: a name, or the places of a repeated field.
//!
//! Ten thousand virtual hosts of which one changed are told apart by their bytes, at a fraction of what decoding
//! costs. Nothing is judged here: what does not look as expected is left to the decoder.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use std::ops::Range;

/// Every xDS resource has its name in field 1.
const NAME: u32 = 1;

/// The places of one repeated message field, and all other fields' bytes.
pub(super) struct Split {
    pub(super) parts: Vec<Range<usize>>,
    pub(super) rest: Vec<u8>,
}

/// Takes a message apart; `None` when it is malformed.
pub(super) fn split(message: &[u8], number: u32) -> Option<Split> {
    let mut split = Split { parts: Vec::new(), rest: Vec::new() };
    let mut left = message;
    while !left.is_empty() {
        let start = message.len() - left.len();
        let (field, wire_type) = decode_key(&mut left).ok()?;
        if (field, wire_type) == (number, WireType::LengthDelimited) {
            let part = delimited(&mut left)?;
            let end = message.len() - left.len();
            split.parts.push(end - part.len()..end);
        } else {
            skip_field(wire_type, field, &mut left, DecodeContext::default()).ok()?;
            split.rest.extend_from_slice(&message[start..message.len() - left.len()]);
        }
    }
    Some(split)
}

/// The name of an encoded resource, if it can be seen.
pub(super) fn name(message: &[u8]) -> Option<&str> {
    let mut left = message;
    while !left.is_empty() {
        let (field, wire_type) = decode_key(&mut left).ok()?;
        if (field, wire_type) == (NAME, WireType::LengthDelimited) {
            return std::str::from_utf8(delimited(&mut left)?).ok();
        }
        skip_field(wire_type, field, &mut left, DecodeContext::default()).ok()?;
    }
    None
}

fn delimited<'a>(left: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(left).ok()?).ok()?;
    let (part, after) = left.split_at_checked(length)?;
    *left = after;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    // 1: "ab", 2: "x", 3: 7, 2: "yz"
    const MESSAGE: &[u8] = b"\x0a\x02ab\x12\x01x\x18\x07\x12\x02yz";

    #[test]
    fn a_message_is_taken_apart_at_one_field() {
        let Split { parts, rest } = split(MESSAGE, 2).expect("well formed");
        let parts: Vec<_> = parts.into_iter().map(|part| &MESSAGE[part]).collect();
        assert_eq!(parts, [b"x".as_slice(), b"yz"]);
        assert_eq!(rest, b"\x0a\x02ab\x18\x07");
    }

    #[test]
    fn the_name_is_seen_without_decoding() {
        assert_eq!(name(MESSAGE), Some("ab"));
        assert_eq!(name(&MESSAGE[4..]), None);
        for end in 0..MESSAGE.len() {
            assert!(split(&MESSAGE[..end], 2).is_none_or(|split| split.parts.len() < 2), "cut at {end}");
        }
    }
}
