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

/// The type URL inside a `TypedStruct` (`xds.type.v3` or `udpa.type.v1`), the envelope of custom configuration.
pub(super) fn typed_struct(any: &Any, scope: &Scope<'_>) -> Result<Option<String>, Invalid> {
    // Envoy's own definition is not among envoy-types; the struct inside is of no interest to us.
    #[derive(Clone, PartialEq, prost::Message)]
    struct TypedStruct {
        #[prost(string, tag = "1")]
        type_url: String,
    }
    match type_name(&any.type_url) {
        "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct" => TypedStruct::decode(any.value.as_slice())
            .map(|envelope| Some(envelope.type_url))
            .map_err(|error| scope.invalid(format!("malformed TypedStruct: {error}"))),
        _ => Ok(None),
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
    let denominator = match DenominatorType::try_from(percent.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(scope.invalid_at("denominator", format!("unknown value {}", percent.denominator))),
    };
    Ok(Millionths::from_ratio(percent.numerator, denominator))
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
