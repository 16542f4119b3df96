//! When to dial again: at once after a good stream, on A57's curve after a bad one.
//!
//! ```text
//!                      answered and lived >= 1 s
//!           ┌─────────────────────────────────────────────┐
//!           ▼          the 6th within 10 s that did not   │
//! Immediate, jitter ──────────────────────────────► Flapping, the curve
//!           └──── no answer: the curve ────┘
//! ```
//!
//! It neither sleeps, reads the clock nor rolls dice; all come from the stream task.

use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

const BASE: Duration = Duration::from_secs(1);
const CAP: Duration = Duration::from_secs(120);
const FACTOR: f64 = 1.6;
const JITTER: f64 = 0.2;

/// After a good stream the next one is dialled at once, but not by a thousand clients in the same millisecond.
const AT_ONCE: Duration = Duration::from_millis(100);

/// A stream that lived less was no good one, whatever it brought.
const SHORT: Duration = Duration::from_secs(1);
/// This many of them within [`WINDOW`] are forgiven: a control plane that restarts, or an agent that is replaced.
const FORGIVEN: usize = 5;
const WINDOW: Duration = Duration::from_secs(10);

/// "base 1.0 s, x1.6, +-20 % jitter, cap 120 s; first delay exactly 1.0 s with no jitter" - A57 and grpc-go.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: i32,
    /// When answered streams ended that had lived a short time; those within the window, and not more than decide.
    short: VecDeque<Instant>,
    /// Set by too many short streams, until one lives longer.
    flapping: bool,
}

/// What to do after a stream that was answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Again {
    /// "not an error, retry immediately" - A57, after this jitter.
    AtOnce(Duration),
    /// The server answers and closes, again and again: to dial at once would be a loop.
    Flapping(Duration),
}

impl Backoff {
    /// The wait after a stream that was opened then, brought no response, and ended now.
    pub(crate) fn unanswered(&mut self, opened: Instant, now: Instant, random: f64) -> Duration {
        // Who has nothing to tell, does not answer. The streams of such a server are no steps of one curve, even if each
        // of them is cut after half an hour.
        if now.saturating_duration_since(opened) > WINDOW {
            *self = Self::default();
        }
        self.failed(random)
    }

    /// The wait after a dial that failed; `random` is in `0.0..1.0`.
    pub(crate) fn failed(&mut self, random: f64) -> Duration {
        let delay = BASE.mul_f64(FACTOR.powi(self.failures).min(CAP.as_secs_f64()));
        self.failures = self.failures.saturating_add(1).min(64);
        if self.failures == 1 { delay } else { delay.mul_f64(1.0 - JITTER + 2.0 * JITTER * random) }
    }

    /// The wait after a stream that was opened then, brought a response, and ended now.
    pub(crate) fn answered(&mut self, opened: Instant, now: Instant, random: f64) -> Again {
        if now.saturating_duration_since(opened) >= SHORT {
            *self = Self::default();
            return Again::AtOnce(AT_ONCE.mul_f64(random));
        }
        self.short.push_back(now);
        let is_old = |ended: &Instant| now.saturating_duration_since(*ended) > WINDOW;
        while self.short.len() > FORGIVEN + 1 || self.short.front().is_some_and(is_old) {
            self.short.pop_front();
        }
        // "reset after any response received"; but once the curve is what holds us back, only a stream that lives ends
        // it, else its later steps would be longer than the window and never be reached.
        if self.short.len() > FORGIVEN && !self.flapping {
            self.flapping = true;
            self.failures = 0;
        }
        if self.flapping {
            return Again::Flapping(self.failed(random));
        }
        self.failures = 0;
        Again::AtOnce(AT_ONCE.mul_f64(random))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_follow_the_curve_within_the_jitter() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.failed(0.9), Duration::from_secs(1));
        for expected in [1.6, 2.56, 4.096, 6.5536] {
            assert_eq!(backoff.failed(0.5), Duration::from_secs_f64(expected));
        }
        let mut backoff = Backoff { failures: 1, ..Backoff::default() };
        assert_eq!(backoff.failed(0.0), Duration::from_secs_f64(1.6 * 0.8));
    }

    #[test]
    fn the_cap_holds_for_ever_and_a_response_resets() {
        let mut backoff = Backoff::default();
        for _ in 0..1000 {
            assert!(backoff.failed(1.0) <= CAP.mul_f64(1.0 + JITTER));
        }
        assert_eq!(backoff.failed(0.5), CAP);
        let now = Instant::now();
        assert_eq!(backoff.answered(now, now, 0.5), Again::AtOnce(AT_ONCE / 2));
        assert_eq!(backoff.failed(0.7), Duration::from_secs(1));
    }

    /// A server that answers and closes after `life`: the waits of its client.
    fn waits(backoff: &mut Backoff, now: &mut Instant, life: Duration, streams: usize) -> Vec<Again> {
        let stream = |_| {
            let opened = *now;
            *now += life;
            let again = backoff.answered(opened, *now, 0.5);
            *now += match again {
                Again::AtOnce(delay) | Again::Flapping(delay) => delay,
            };
            again
        };
        (0..streams).map(stream).collect()
    }

    #[test]
    fn the_sixth_short_stream_within_ten_seconds_falls_back_to_the_curve_and_stays_on_it() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        let waits = waits(&mut backoff, &mut now, Duration::from_millis(1), 30);
        assert_eq!(waits[..5], [Again::AtOnce(AT_ONCE / 2); 5]);
        for (wait, expected) in waits[5..].iter().zip([1.0, 1.6, 2.56, 4.096]) {
            assert_eq!(*wait, Again::Flapping(Duration::from_secs_f64(expected)));
        }
        assert_eq!(waits[29], Again::Flapping(CAP), "also when six of them take far more than ten seconds");
    }

    #[test]
    fn a_stream_that_was_silent_for_long_is_no_step_of_the_curve() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        assert_eq!(backoff.unanswered(now, now, 0.5), BASE);
        assert_eq!(backoff.unanswered(now, now + WINDOW, 0.5), BASE.mul_f64(1.6));
        assert_eq!(backoff.unanswered(now, now + WINDOW * 2, 0.5), BASE);
    }

    #[test]
    fn a_stream_that_lives_a_second_ends_it() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        waits(&mut backoff, &mut now, Duration::ZERO, 10);
        let good = waits(&mut backoff, &mut now, SHORT, 1);
        let after = waits(&mut backoff, &mut now, Duration::ZERO, 6);
        assert_eq!([good, after[..5].to_vec()].concat(), [Again::AtOnce(AT_ONCE / 2); 6]);
        assert_eq!(after[5], Again::Flapping(BASE));
    }

    #[test]
    fn five_short_streams_in_ten_seconds_are_forgiven_for_ever() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        for _ in 0..100 {
            now += Duration::from_millis(2100);
            assert!(matches!(backoff.answered(now, now, 0.0), Again::AtOnce(_)));
        }
    }

    #[test]
    fn streams_that_live_are_dialled_again_at_once_however_many() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        assert_eq!(waits(&mut backoff, &mut now, SHORT, 100), [Again::AtOnce(AT_ONCE / 2); 100]);
    }
}
