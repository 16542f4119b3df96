//! What is sent: which RPC types, with which metadata and deadline.
//!
//! The command line makes the first plan and `Configure` replaces it. It does NOT send.

pub use crate::proto::testing::client_configure_request::RpcType;

use crate::{flags::BadFlag, proto::testing::ClientConfigureRequest};
use std::time::Duration;
use tonic::{
    Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
};

/// What every tick sends. Replaced as a whole.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One RPC of each.
    pub types: Vec<RpcType>,
    /// Sent with the RPCs of a type; a key may be repeated.
    pub metadata: Vec<(RpcType, AsciiMetadataKey, AsciiMetadataValue)>,
    /// The deadline of each RPC.
    pub timeout: Duration,
}

/// Sizes of the messages of UnaryCall.
#[derive(Clone, Copy, Debug, Default)]
pub struct Payloads {
    /// Bytes in SimpleRequest.payload.body.
    pub request: usize,
    /// SimpleRequest.response_size.
    pub response: i32,
}

/// The method's name, as in `--rpc` and in `rpcs_by_method`.
pub(crate) fn method(rpc: RpcType) -> &'static str {
    match rpc {
        RpcType::EmptyCall => "EmptyCall",
        RpcType::UnaryCall => "UnaryCall",
    }
}

impl Plan {
    /// From `--rpc` (`UnaryCall,EmptyCall`), `--metadata` (`EmptyCall:key:value,...`) and `--rpc_timeout_sec`.
    ///
    /// # Errors
    /// The flag that does not parse.
    pub fn from_flags(rpc: &str, metadata: &str, timeout: Duration) -> Result<Self, BadFlag> {
        let types = entries(rpc).map(|name| rpc_type(name).ok_or_else(|| BadFlag::new("rpc", unknown(name))));
        let metadata = entries(metadata).map(|entry| {
            let mut parts = entry.splitn(3, ':');
            let (Some(name), Some(key), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(BadFlag::new("metadata", format!("{entry:?} is not TYPE:key:value")));
            };
            let rpc = rpc_type(name).ok_or_else(|| BadFlag::new("metadata", unknown(name)))?;
            let (key, value) = pair(key, value).map_err(|reason| BadFlag::new("metadata", reason))?;
            Ok((rpc, key, value))
        });
        Ok(Self { types: types.collect::<Result<_, _>>()?, metadata: metadata.collect::<Result<_, _>>()?, timeout })
    }

    /// From a request to configure; `default_timeout` is used if it has none.
    ///
    /// # Errors
    /// INVALID_ARGUMENT: an unknown type, or what can not be metadata.
    pub fn from_request(request: &ClientConfigureRequest, default_timeout: Duration) -> Result<Self, Status> {
        let metadata = request.metadata.iter().map(|entry| {
            let (key, value) = pair(&entry.key, &entry.value).map_err(Status::invalid_argument)?;
            Ok((entry.r#type(), key, value))
        });
        let types = request.types.iter().map(|&number| {
            RpcType::try_from(number).map_err(|_| Status::invalid_argument(format!("RPC type {number} is unknown")))
        });
        let timeout = u64::try_from(request.timeout_sec).ok().filter(|&seconds| seconds > 0);
        Ok(Self {
            types: types.collect::<Result<_, _>>()?,
            metadata: metadata.collect::<Result<_, Status>>()?,
            timeout: timeout.map_or(default_timeout, Duration::from_secs),
        })
    }

    /// The request metadata of one type.
    pub(crate) fn metadata_of(&self, wanted: RpcType) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (_, key, value) in self.metadata.iter().filter(|(rpc, ..)| *rpc == wanted) {
            map.append(key.clone(), value.clone());
        }
        map
    }
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

fn rpc_type(name: &str) -> Option<RpcType> {
    [RpcType::EmptyCall, RpcType::UnaryCall].into_iter().find(|&rpc| method(rpc) == name)
}

fn unknown(name: &str) -> String {
    format!("{name:?} is neither EmptyCall nor UnaryCall")
}

fn pair(key: &str, value: &str) -> Result<(AsciiMetadataKey, AsciiMetadataValue), String> {
    let key = AsciiMetadataKey::from_bytes(key.as_bytes()).map_err(|_| format!("{key:?} is no metadata key"))?;
    let value = value.parse().map_err(|_| format!("{value:?} is no metadata value"))?;
    Ok((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::testing::client_configure_request::Metadata;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn flags_repeat_keys_and_keep_colons_in_values() {
        let plan = Plan::from_flags("UnaryCall, EmptyCall", "EmptyCall:a:1:2,EmptyCall:a:3,UnaryCall:b:", SECOND);
        let plan = plan.expect("well-formed");
        assert_eq!(plan.types, [RpcType::UnaryCall, RpcType::EmptyCall]);
        let empty = plan.metadata_of(RpcType::EmptyCall);
        assert_eq!(empty.get_all("a").iter().collect::<Vec<_>>(), ["1:2", "3"]);
        assert_eq!(plan.metadata_of(RpcType::UnaryCall).get("b").expect("given"), "");
    }

    #[test]
    fn bad_flags_are_named() {
        let error = |rpc, metadata| Plan::from_flags(rpc, metadata, SECOND).expect_err("malformed").to_string();
        assert_eq!(error("StreamingCall", ""), "--rpc: \"StreamingCall\" is neither EmptyCall nor UnaryCall");
        assert_eq!(error("", "EmptyCall:a"), "--metadata: \"EmptyCall:a\" is not TYPE:key:value");
        assert_eq!(error("", "EmptyCall:a b:c"), "--metadata: \"a b\" is no metadata key");
    }

    #[test]
    fn a_request_without_timeout_has_the_one_of_the_command_line() {
        let entry = Metadata { r#type: RpcType::UnaryCall.into(), key: "k".into(), value: "v".into() };
        let request = ClientConfigureRequest { types: vec![0], metadata: vec![entry], timeout_sec: 0 };
        let plan = Plan::from_request(&request, SECOND).expect("well-formed");
        assert_eq!((plan.types.as_slice(), plan.timeout), ([RpcType::EmptyCall].as_slice(), SECOND));
        assert!(plan.metadata_of(RpcType::EmptyCall).is_empty());
        let request = ClientConfigureRequest { types: vec![7], timeout_sec: 5, ..request };
        Plan::from_request(&request, SECOND).expect_err("an unknown type");
    }
}
