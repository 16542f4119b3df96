//! gRPC's own words: its codes, what stands for them elsewhere, and a status as headers.
//!
//! Which failure has which code is NOT decided here.

use http::{HeaderMap, HeaderValue, StatusCode};

pub(super) const CANCELLED: u8 = 1;
const UNKNOWN: u8 = 2;
pub(super) const DEADLINE_EXCEEDED: u8 = 4;
const PERMISSION_DENIED: u8 = 7;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;
pub(super) const INTERNAL: u8 = 13;
pub(super) const UNAVAILABLE: u8 = 14;
const UNAUTHENTICATED: u8 = 16;

/// "HTTP to gRPC Status Code Mapping"
pub(crate) fn grpc_code_of(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502..=504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// The HTTP status that stands for a gRPC status, as Envoy has it (`Grpc::Utility::grpcToHttpStatus`).
pub(crate) fn http_status_of(grpc_status: &[u8]) -> u16 {
    match grpc_status {
        b"0" => 200,
        b"1" => 499,
        b"3" | b"9" | b"11" => 400,
        b"4" => 504,
        b"5" => 404,
        b"6" | b"10" => 409,
        b"7" => 403,
        b"8" => 429,
        b"12" => 501,
        b"14" => 503,
        b"16" => 401,
        // UNKNOWN, INTERNAL, DATA_LOSS, and what is no code.
        _ => 500,
    }
}

/// "HTTP2 Code → GRPC Code" (gRPC over HTTP/2, "Errors").
pub(crate) fn code_of_reset(code: u32) -> u8 {
    match code {
        0x7 => UNAVAILABLE,
        0x8 => CANCELLED,
        0xb => RESOURCE_EXHAUSTED,
        0xc => PERMISSION_DENIED,
        _ => INTERNAL,
    }
}

/// Where a gRPC status stands.
const GRPC_STATUS: &str = "grpc-status";

/// What a response says of its status. Its headers are looked at one by one: gRPC has a handful, and to hash the name costs
/// more.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.iter().find_map(|(name, value)| (name.as_str() == GRPC_STATUS).then_some(value))
}

/// A gRPC status as headers or trailers.
pub(crate) fn write_grpc_status(headers: &mut HeaderMap, code: u8, message: &[u8]) {
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(code)));
    if let Ok(message) = HeaderValue::try_from(percent_encode(message)) {
        headers.insert("grpc-message", message);
    }
}

/// `Status-Message` is percent-encoded: "%x20-%x24 / %x26-%x7E" stay as they are (gRPC over HTTP/2).
fn percent_encode(text: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for &byte in text {
        match byte {
            b'%' | 0..0x20 | 0x7f.. => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(super::percent_encode("50% é\n".as_bytes()), "50%25 %C3%A9%0A");
    }
}
