//! When to dial again: A57's curve, as arithmetic.
//!
//! It neither sleeps nor rolls dice; both come from the stream task.

use std::time::Duration;

const BASE: Duration = Duration::from_secs(1);
const CAP: Duration = Duration::from_secs(120);
const FACTOR: f64 = 1.6;
const JITTER: f64 = 0.2;

/// "base 1.0 s, x1.6, +-20 % jitter, cap 120 s; first delay exactly 1.0 s with no jitter" - A57 and grpc-go.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: i32,
}

impl Backoff {
    /// The wait before the next attempt; `random` is in `0.0..1.0`.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let delay = BASE.mul_f64(FACTOR.powi(self.failures).min(CAP.as_secs_f64()));
        self.failures = self.failures.saturating_add(1).min(64);
        if self.failures == 1 { delay } else { delay.mul_f64(1.0 - JITTER + 2.0 * JITTER * random) }
    }

    /// "reset after any response received".
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_follow_the_curve_within_the_jitter() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0.9), Duration::from_secs(1));
        for expected in [1.6, 2.56, 4.096, 6.5536] {
            assert_eq!(backoff.next(0.5), Duration::from_secs_f64(expected));
        }
        let mut backoff = Backoff { failures: 1 };
        assert_eq!(backoff.next(0.0), Duration::from_secs_f64(1.6 * 0.8));
    }

    #[test]
    fn the_cap_holds_for_ever_and_a_response_resets() {
        let mut backoff = Backoff::default();
        for _ in 0..1000 {
            assert!(backoff.next(1.0) <= CAP.mul_f64(1.0 + JITTER));
        }
        assert_eq!(backoff.next(0.5), CAP);
        backoff.reset();
        assert_eq!(backoff.next(0.7), Duration::from_secs(1));
    }
}
