//! So much later than a moment, however long that is.
//!
//! A program, a DNS server or a control plane may say a time that is longer than a clock runs: the plain sum would panic. It does
//! NOT run a timer.

use std::time::Duration;
use tokio::time::Instant;

/// So far away that nobody waits for it.
const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// The sum of both, or else a moment that nobody waits for.
pub(crate) fn later(from: Instant, by: Duration) -> Instant {
    from.checked_add(by).unwrap_or_else(|| from + NEVER)
}

#[cfg(test)]
mod tests {
    use super::{NEVER, later};
    use std::time::Duration;
    use tokio::time::Instant;

    #[test]
    fn what_no_clock_reaches_is_never() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(later(now, second), now + second);
        assert_eq!(later(now, Duration::MAX), now + NEVER);
    }
}
