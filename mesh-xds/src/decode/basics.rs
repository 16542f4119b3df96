//! The small protobuf types that every resource is made of: durations, fractions, addresses, `Any`, `ConfigSource`.
//!
//! Their edges (negative durations, unknown enum numbers, ports above 65535) are judged here once, so that no two
//! resources disagree about them.

use super::scope::Scope;
use crate::resource::{Invalid, Millionths};
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            Address, ConfigSource, RuntimeFractionalPercent, address, config_source::ConfigSourceSpecifier,
            socket_address,
        },
        r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
    google::protobuf::{self, Any},
};
use prost::{Message, Name};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// What follows the last `/` of a type URL: "only the content after the last slash names the type" (`Any`).
pub(super) fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// Decodes an `Any` that must hold an `M`.
pub(super) fn unpack<M: Message + Name + Default>(any: &Any, scope: &Scope<'_>) -> Result<M, Invalid> {
    if type_name(&any.type_url) != M::full_name() {
        return Err(scope.invalid(format!("holds a {:?}, not a {}", any.type_url, M::full_name())));
    }
    M::decode(any.value.as_slice()).map_err(|error| scope.invalid(format!("malformed {}: {error}", M::NAME)))
}

/// `TypedStruct` (`xds.type.v3` or `udpa.type.v1`), the envelope of custom configuration. Envoy's own definition is not
/// among envoy-types.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TypedStruct {
    /// What the struct stands for.
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(message, optional, tag = "2")]
    value: Option<protobuf::Struct>,
}

impl TypedStruct {
    /// What the `Any` holds, if it is one.
    pub(super) fn unpack(any: &Any, scope: &Scope<'_>) -> Result<Option<Self>, Invalid> {
        match type_name(&any.type_url) {
            "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct" => Self::decode(any.value.as_slice())
                .map(Some)
                .map_err(|error| scope.invalid(format!("malformed TypedStruct: {error}"))),
            _ => Ok(None),
        }
    }

    /// The struct as JSON text, its keys in order.
    pub(super) fn json(self) -> String {
        json_object(self.value.unwrap_or_default()).to_string()
    }
}

fn json_object(object: protobuf::Struct) -> serde_json::Value {
    object.fields.into_iter().map(|(key, value)| (key, json(value))).collect()
}

// As deep as prost decodes, which has a limit.
fn json(value: protobuf::Value) -> serde_json::Value {
    use protobuf::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::NumberValue(number)) => number.into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::BoolValue(truth)) => truth.into(),
        Some(Kind::StructValue(object)) => json_object(object),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json).collect(),
    }
}

/// A duration of `google.protobuf.Duration`'s range that is not negative.
pub(super) fn duration(duration: protobuf::Duration, scope: &Scope<'_>) -> Result<Duration, Invalid> {
    let (seconds, nanos) = (u64::try_from(duration.seconds), u32::try_from(duration.nanos));
    match (seconds, nanos) {
        // "seconds 0..315 576 000 000, nanos 0..999 999 999" - A75
        (Ok(seconds @ 0..=315_576_000_000), Ok(nanos @ 0..=999_999_999)) => Ok(Duration::new(seconds, nanos)),
        _ => Err(scope.invalid(format!("duration {}s {}ns is out of range", duration.seconds, duration.nanos))),
    }
}

/// The duration of a field that may be unset.
pub(super) fn optional_duration(
    value: Option<protobuf::Duration>,
    field: &'static str,
    scope: &mut Scope<'_>,
) -> Result<Option<Duration>, Invalid> {
    value.map(|value| scope.within(field, |scope| duration(value, scope))).transpose()
}

/// A fraction, as a share of a million.
pub(super) fn fraction(percent: FractionalPercent, scope: &Scope<'_>) -> Result<Millionths, Invalid> {
    Ok(Millionths::from_ratio(percent.numerator, denominator(percent, scope)?))
}

/// What a fraction's numerator is a part of.
pub(super) fn denominator(percent: FractionalPercent, scope: &Scope<'_>) -> Result<u32, Invalid> {
    match DenominatorType::try_from(percent.denominator) {
        Ok(DenominatorType::Hundred) => Ok(100),
        Ok(DenominatorType::TenThousand) => Ok(10_000),
        Ok(DenominatorType::Million) => Ok(1_000_000),
        Err(_) => Err(scope.invalid_at("denominator", format!("unknown value {}", percent.denominator))),
    }
}

/// A fraction with a runtime key, which nobody here looks up.
pub(super) fn runtime_fraction(
    percent: &RuntimeFractionalPercent,
    scope: &mut Scope<'_>,
) -> Result<Millionths, Invalid> {
    let Some(value) = percent.default_value else {
        return Err(scope.invalid_at("default_value", "must be set"));
    };
    scope.within("default_value", |scope| fraction(value, scope))
}

/// "config_source neither ads nor self" is refused (A27, A47).
pub(super) fn ads_or_self(
    source: Option<&ConfigSource>,
    field: &'static str,
    scope: &mut Scope<'_>,
) -> Result<(), Invalid> {
    if source.is_some_and(|source| source.initial_fetch_timeout.is_some()) {
        scope.within(field, |scope| scope.ignore("initial_fetch_timeout", "the bootstrap says how long to wait"));
    }
    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(()),
        Some(_) => Err(scope.invalid_at(field, "only ads and self are supported")),
        None => Err(scope.invalid_at(field, "must be ads or self")),
    }
}

/// What an `Address` is to somebody who wants to connect to it.
pub(super) enum EndpointAddress {
    /// An IP address with a port.
    Socket(SocketAddr),
    /// Valid in Envoy, out of reach for us: why.
    Unusable(&'static str),
}

/// The address of an endpoint: "must be an IP, port set" (A27).
pub(super) fn endpoint_address(address: Option<&Address>, scope: &mut Scope<'_>) -> Result<EndpointAddress, Invalid> {
    let socket = match address.and_then(|address| address.address.as_ref()) {
        None => return Err(scope.invalid("must be set")),
        Some(address::Address::Pipe(_)) => {
            return Ok(EndpointAddress::Unusable("Unix socket addresses are not supported: endpoint skipped"));
        }
        Some(address::Address::EnvoyInternalAddress(_)) => {
            return Ok(EndpointAddress::Unusable("internal listeners are not supported: endpoint skipped"));
        }
        Some(address::Address::SocketAddress(socket)) => socket,
    };
    scope.within("socket_address", |scope| {
        let Ok(ip) = socket.address.parse::<IpAddr>() else {
            return Err(scope.invalid_at("address", format!("{:?} is not an IP address", socket.address)));
        };
        let port = port(socket.port_specifier.as_ref(), scope)?;
        Ok(match (socket.protocol, port) {
            (_, 0) => EndpointAddress::Unusable("port 0 cannot be dialled: endpoint skipped"),
            (TCP, port) => EndpointAddress::Socket(SocketAddr::new(ip, port)),
            _ => EndpointAddress::Unusable("only TCP is supported: endpoint skipped"),
        })
    })
}

/// `SocketAddress.Protocol.TCP`.
const TCP: i32 = 0;

/// A port number that is set and fits.
pub(super) fn port(port: Option<&socket_address::PortSpecifier>, scope: &Scope<'_>) -> Result<u16, Invalid> {
    match port {
        Some(socket_address::PortSpecifier::PortValue(port)) => {
            u16::try_from(*port).map_err(|_| scope.invalid_at("port_value", format!("{port} is above 65535")))
        }
        Some(socket_address::PortSpecifier::NamedPort(_)) => {
            Err(scope.invalid_at("named_port", "named ports cannot be resolved"))
        }
        None => Err(scope.invalid_at("port_value", "must be set")),
    }
}
