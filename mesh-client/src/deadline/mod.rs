//! How long a call may take (A31), and the `grpc-timeout` header that says so.
//!
//! gRPC and HTTP read different fields of the same route: a gRPC call obeys `max_stream_duration` and its own
//! `grpc-timeout`, any other request Envoy's `timeout` and `max_stream_duration`. Both rules are here, as functions of plain values.
//! What runs is in [`timer`] and, for a call, in [`call_time`].
//!
//! This room does NOT decide whether a request is gRPC.

mod call_time;
mod layer;
mod timer;

pub(crate) use call_time::{CallTime, Passed};
pub use layer::{Timeout, TimeoutBody, TimeoutFuture, TimeoutLayer, Timeouts};
pub(crate) use timer::{Deadline, until};

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_xds::resource::Forward;
use std::time::Duration;

/// The header in which a gRPC client says how long it will wait.
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// What an HTTP request gets if its route says nothing.
///
/// "If not set, the default is 15s" (Envoy, `RouteAction.timeout`).
const HTTP_DEFAULT: Duration = Duration::from_secs(15);

/// What listener and route say about the time that a call may take. Unset and zero differ: zero is "no limit", and
/// hides what stands behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `RouteAction.timeout`, for requests that are not gRPC.
    pub(crate) timeout: Option<Duration>,
    /// `RouteAction.max_stream_duration.max_stream_duration`.
    pub(crate) max_stream_duration: Option<Duration>,
    /// `RouteAction.max_stream_duration.grpc_timeout_header_max`.
    pub(crate) grpc_timeout_header_max: Option<Duration>,
    /// `HttpConnectionManager.common_http_protocol_options.max_stream_duration`.
    pub(crate) hcm_max_stream_duration: Option<Duration>,
}

impl Limits {
    /// The limits of one route under its listener.
    pub(crate) fn of(route: &Forward, hcm_max_stream_duration: Option<Duration>) -> Self {
        Self {
            timeout: route.timeout,
            max_stream_duration: route.max_stream_duration,
            grpc_timeout_header_max: route.grpc_timeout_header_max,
            hcm_max_stream_duration,
        }
    }

    fn grpc(&self) -> Option<Duration> {
        // The first that is present decides, even by being zero: an explicit 0 on the route beats the HCM's default.
        let limit = self.grpc_timeout_header_max.or(self.max_stream_duration).or(self.hcm_max_stream_duration);
        limit.filter(|limit| !limit.is_zero())
    }

    /// Of a request that is not gRPC, from its end on.
    fn http(&self) -> Option<Duration> {
        Some(self.timeout.unwrap_or(HTTP_DEFAULT)).filter(|limit| !limit.is_zero())
    }

    /// Of a request that is not gRPC, from its begin on: "the maximum duration allowed for streams on the route" (Envoy).
    fn http_stream(&self) -> Option<Duration> {
        let limit = self.max_stream_duration.or(self.hcm_max_stream_duration);
        limit.filter(|limit| !limit.is_zero())
    }
}

/// How long a gRPC call may take in all, its attempts and their delays included; `None` is for ever.
///
/// A call's own deadline can only shorten what the route grants: "min(app deadline, route limit)" (A31).
fn limit(own: Option<Duration>, limits: &Limits) -> Option<Duration> {
    own.into_iter().chain(limits.grpc()).min()
}

/// A gRPC call's own deadline. One that is malformed is none of ours: it is still sent, and the server judges it.
pub(crate) fn own_limit(headers: &HeaderMap) -> Option<Duration> {
    headers.get(GRPC_TIMEOUT).and_then(parse)
}

/// Reads a `grpc-timeout`. `0` of any unit is valid: that call is already late.
///
/// "TimeoutValue → {positive integer as ASCII string of at most 8 digits}", "TimeoutUnit → Hour / Minute / Second /
/// Millisecond / Microsecond / Nanosecond" (gRPC over HTTP/2).
pub(crate) fn parse(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    // Digits only, because integer parsers accept a sign too.
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 60 * 60),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The `grpc-timeout` that tells a server how long this client will wait.
///
/// The finest unit that needs at most 8 digits, rounded up: a server that gives up before its client would fail calls
/// that still have time.
pub(crate) fn grpc_timeout(remaining: Duration) -> HeaderValue {
    const UNITS: [(u128, char); 6] = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60 * 1_000_000_000, 'M'),
        (60 * 60 * 1_000_000_000, 'H'),
    ];
    const MOST: u128 = 99_999_999;
    let count = |nanos: u128| remaining.as_nanos().div_ceil(nanos);
    let fitting = UNITS.into_iter().map(|(nanos, unit)| (count(nanos), unit)).find(|&(count, _)| count <= MOST);
    // 11,000 years are enough for whatever is longer.
    let (count, unit) = fitting.unwrap_or((MOST, 'H'));
    HeaderValue::from_str(&format!("{count}{unit}")).expect("digits and a letter are valid in a header")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_xds::resource::ClusterSpecifier;
    use proptest::prelude::*;

    fn app(timeout: Option<&'static str>) -> HeaderMap {
        timeout.map(|timeout| (GRPC_TIMEOUT, HeaderValue::from_static(timeout))).into_iter().collect()
    }

    const S: fn(u64) -> Duration = Duration::from_secs;

    /// All in seconds.
    fn limits(timeout: Option<u64>, header_max: Option<u64>, route: Option<u64>, hcm: Option<u64>) -> Limits {
        let route = Forward {
            cluster: ClusterSpecifier::Cluster("c".into()),
            timeout: timeout.map(S),
            max_stream_duration: route.map(S),
            grpc_timeout_header_max: header_max.map(S),
            idle_timeout: None,
            retry_policy: None,
            auto_host_rewrite: false,
        };
        Limits::of(&route, hcm.map(S))
    }

    #[test]
    fn grpc_calls_obey_the_table_of_a31() {
        // (application's deadline, grpc_timeout_header_max, max_stream_duration, the HCM's, result)
        for row in [
            (None, None, None, None, None),
            (None, None, Some(0), None, None),
            (None, None, None, Some(0), None),
            (None, None, Some(10), None, Some(10)),
            (None, None, None, Some(10), Some(10)),
            (None, None, Some(10), Some(5), Some(10)),
            // "An explicit 0 on the route beats a non-zero HCM default."
            (None, None, Some(0), Some(10), None),
            (None, Some(0), None, None, None),
            (None, Some(0), Some(5), Some(5), None),
            (None, Some(10), None, None, Some(10)),
            (None, Some(10), Some(5), Some(5), Some(10)),
            (Some("20S"), None, None, None, Some(20)),
            (Some("20S"), None, Some(0), Some(10), Some(20)),
            (Some("20S"), None, Some(10), None, Some(10)),
            (Some("20S"), None, None, Some(10), Some(10)),
            (Some("20S"), Some(0), None, None, Some(20)),
            (Some("20S"), Some(0), Some(5), Some(5), Some(20)),
            (Some("20S"), Some(10), None, None, Some(10)),
            (Some("20S"), Some(10), Some(5), Some(5), Some(10)),
            // The route cannot lengthen what the application asked for.
            (Some("3S"), Some(10), Some(20), Some(20), Some(3)),
            (Some("3S"), None, Some(10), None, Some(3)),
            (Some("0m"), None, Some(10), None, Some(0)),
            // A malformed deadline is none.
            (Some("soon"), None, Some(10), None, Some(10)),
            (Some("20"), None, None, None, None),
        ] {
            let (deadline, header_max, route, hcm, expected) = row;
            let limits = limits(Some(1), header_max, route, hcm);
            assert_eq!(limit(own_limit(&app(deadline)), &limits), expected.map(S), "{row:?}");
        }
    }

    #[test]
    fn other_requests_obey_envoys_timeout_and_how_long_a_stream_may_last() {
        for (rule, timeout, route, hcm, expected) in [
            ("unset is 15 s", None, None, None, (Some(15), None)),
            ("zero is none", Some(0), Some(0), None, (None, None)),
            ("set", Some(40), Some(3), Some(4), (Some(40), Some(3))),
            ("the route's zero wins", Some(40), Some(0), Some(4), (Some(40), None)),
            ("the HCM's", Some(40), None, Some(4), (Some(40), Some(4))),
        ] {
            let limits = limits(timeout, Some(2), route, hcm);
            assert_eq!((limits.http(), limits.http_stream()), (expected.0.map(S), expected.1.map(S)), "{rule}");
        }
    }

    #[test]
    fn grpc_timeouts_are_read_as_the_protocol_says() {
        for (value, expected) in [
            ("1H", Some(S(3_600))),
            ("2M", Some(S(120))),
            ("3S", Some(S(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("0n", Some(Duration::ZERO)),
            ("00000001S", Some(S(1))),
            ("99999999H", Some(S(99_999_999 * 3_600))),
            ("100000000n", None),
            ("000000001S", None),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("1h", None),
            ("+1S", None),
            ("-1S", None),
            (" 1S", None),
            ("1 S", None),
            ("1.5S", None),
            ("1SS", None),
        ] {
            assert_eq!(parse(&HeaderValue::from_static(value)), expected, "{value:?}");
        }
        assert_eq!(parse(&HeaderValue::from_bytes(b"1\xff").expect("opaque bytes are valid in a header")), None);
    }

    #[test]
    fn grpc_timeouts_are_written_in_the_finest_unit_that_fits() {
        for (remaining, expected) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_001), "100001u"),
            (S(1), "1000000u"),
            (S(100), "100000m"),
            (S(100_000), "100000S"),
            (S(100_000_000), "1666667M"),
            (S(100_000_000 * 60), "1666667H"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(grpc_timeout(remaining), expected, "{remaining:?}");
        }
    }

    proptest! {
        #[test]
        fn a_written_grpc_timeout_is_read_back_and_never_shorter(
            seconds in 0..1_u64 << 40,
            nanos in 0..1_000_000_000_u32,
        ) {
            let remaining = Duration::new(seconds, nanos).min(S(99_999_999 * 3_600));
            let read = parse(&grpc_timeout(remaining)).expect("what we write is well-formed");
            prop_assert!(read >= remaining);
            prop_assert!(read.as_secs_f64() <= remaining.as_secs_f64() * 1.00001 + 1e-9);
        }
    }
}
