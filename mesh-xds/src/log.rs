//! A limit on log events, so that ten thousand bad resources do not make ten thousand lines.
//!
//! It does NOT log; it says whether one may.

use std::time::Duration;
use tokio::time::Instant;

/// At most 20 events in 10 s. The data plane limits its own events with it, too.
#[derive(Debug, Default)]
pub struct Limiter {
    period_began: Option<Instant>,
    used: u32,
    suppressed: u64,
}

impl Limiter {
    const BURST: u32 = 20;
    const PERIOD: Duration = Duration::from_secs(10);

    /// Whether an event may be logged, and how many were not since the last one.
    pub fn permit(&mut self, now: Instant) -> Option<u64> {
        if self.period_began.is_none_or(|began| now.saturating_duration_since(began) >= Self::PERIOD) {
            self.period_began = Some(now);
            self.used = 0;
        }
        if self.used == Self::BURST {
            self.suppressed += 1;
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_cut_and_the_next_event_tells_how_many() {
        let mut limiter = Limiter::default();
        let now = Instant::now();
        let logged = (0..100).filter(|_| limiter.permit(now).is_some()).count();
        assert_eq!(logged, Limiter::BURST as usize);
        assert_eq!(limiter.permit(now + Limiter::PERIOD), Some(80));
        assert_eq!(limiter.permit(now + Limiter::PERIOD), Some(0));
    }
}
