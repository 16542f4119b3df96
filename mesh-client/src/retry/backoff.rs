//! How long to wait before a retry: gRPC's curve, Envoy's, or what the server says.
//!
//! It does NOT know why there is a retry.

use http::HeaderMap;
use mesh_xds::resource::{RateLimitedBackOff, ResetFormat, RetryPolicy};
use std::time::Duration;

/// "min(initial·mult^(n-1), max) · U(0.8, 1.2)" with a multiplier of 2 (A6, A44). `earlier` retries have been made; `draw`
/// is in `0.0..1.0`.
pub(super) fn grpc(policy: &RetryPolicy, earlier: u32, draw: f64) -> Duration {
    times(interval(policy, earlier), 0.8 + 0.4 * draw)
}

/// "a fully jittered exponential back-off": from nothing up to the interval, which doubles up to its maximum (Envoy).
pub(super) fn envoy(policy: &RetryPolicy, earlier: u32, draw: f64) -> Duration {
    times(interval(policy, earlier), draw)
}

fn interval(policy: &RetryPolicy, earlier: u32) -> Duration {
    let factor = 2_u32.checked_pow(earlier).unwrap_or(u32::MAX);
    policy.base_interval.saturating_mul(factor).min(policy.max_interval)
}

/// The product, or the longest time there is: a policy may say any interval, and a server any number of seconds.
fn times(interval: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(interval.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

/// When the server wants to be asked again, if it says so in one of the headers and that is not too long: at least that,
/// at most half as much again (Envoy). `now` is the time of day, in seconds since 1970.
pub(super) fn rate_limited(
    back_off: &RateLimitedBackOff,
    headers: &HeaderMap,
    draw: f64,
    now: impl FnOnce() -> u64,
) -> Option<Duration> {
    let mut now = Some(now);
    let mut today = None;
    let interval = back_off.reset_headers.iter().find_map(|header| {
        // "only the first value is used" (Envoy).
        let seconds: u64 = headers.get(&header.name)?.to_str().ok()?.trim().parse().ok()?;
        let seconds = match header.format {
            ResetFormat::Seconds => seconds,
            ResetFormat::UnixTimestamp => {
                let today = *today.get_or_insert_with(|| now.take().map_or(0, |now| now()));
                seconds.checked_sub(today)?
            }
        };
        Some(Duration::from_secs(seconds)).filter(|interval| *interval <= back_off.max_interval)
    })?;
    (!interval.is_zero()).then(|| times(interval, 1.0 + 0.5 * draw))
}
