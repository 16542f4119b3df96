//! So much later than a moment, however long that is.
//!
//! A limit that a program or a control plane says may be as long as a `Duration` can be, which is longer than a clock runs: the
//! plain sum would panic. It does NOT run a timer.

use std::time::Duration;
use tokio::time::Instant;

/// So far away that nobody waits for it.
pub(crate) const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// The sum of both, or else a moment that nobody waits for.
pub(crate) fn later(from: Instant, by: Duration) -> Instant {
    from.checked_add(by).unwrap_or_else(|| from + NEVER)
}

#[cfg(test)]
mod tests {
    use super::{NEVER, later};
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::time::Instant;

    proptest! {
        #[test]
        fn later_is_as_much_later_as_it_says_or_never(seconds: u64, nanos in 0..1_000_000_000_u32, short in 0..1_u64 << 40) {
            let now = Instant::now();
            let by = later(now, Duration::new(seconds, nanos)) - now;
            prop_assert!(by == Duration::new(seconds, nanos) || by == NEVER);
            prop_assert_eq!(later(now, Duration::from_nanos(short)) - now, Duration::from_nanos(short));
        }
    }
}
