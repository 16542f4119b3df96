//! How long a call may pause: no byte of its request or response moves (Envoy's `idle_timeout` and `per_try_idle_timeout`).
//!
//! What moves notes the time, and a timer that is due looks whether something has moved since: a frame costs a clock
//! reading, not a timer. Calls whose route has neither limit have none of it. It does NOT end a call.

use crate::{later::later, upload::Activity};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// A limit on pauses, running. It is small: calls that have none carry it, too.
#[derive(Debug)]
pub(crate) struct Idle(Pin<Box<Running>>);

pin_project! {
    #[derive(Debug)]
    struct Running {
        limit: Duration,
        activity: Activity,
        begins: Begins,
        #[pin]
        timer: Sleep,
    }
}

/// What a pause begins with, if nothing moves at all.
#[derive(Clone, Copy, Debug)]
enum Begins {
    WithTheCall,
    /// "does not start until after both the entire request has been received by the router and a connection pool
    /// connection has been obtained" (Envoy, `per_try_idle_timeout`): no sooner than this attempt, and the request's end.
    WithTheAttempt(Instant),
}

impl Idle {
    /// For a call.
    pub(crate) fn new(limit: Duration, activity: Activity) -> Self {
        let timer = sleep_until(later(activity.last(), limit));
        Self(Box::pin(Running { limit, activity, begins: Begins::WithTheCall, timer }))
    }

    /// For an attempt that begins now.
    pub(crate) fn of_attempt(limit: Duration, activity: Activity) -> Self {
        let now = Instant::now();
        let timer = sleep_until(later(now, limit));
        Self(Box::pin(Running { limit, activity, begins: Begins::WithTheAttempt(now), timer }))
    }

    pub(crate) fn limit(&self) -> Duration {
        self.0.limit
    }

    /// Something has moved.
    pub(crate) fn touch(&self) {
        self.0.activity.touch();
    }

    /// Ready, with the limit, once nothing has moved for so long.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        loop {
            ready!(self.0.as_mut().project().timer.poll(cx));
            let now = Instant::now();
            let due = later(self.0.began(now), self.0.limit);
            if due <= now {
                return Poll::Ready(self.0.limit);
            }
            self.0.as_mut().project().timer.reset(due);
        }
    }
}

impl Running {
    /// When the pause began that lasts now.
    fn began(&self, now: Instant) -> Instant {
        match (self.begins, self.activity.completed()) {
            (Begins::WithTheCall, _) => self.activity.last(),
            (Begins::WithTheAttempt(attempt), Some(_)) => self.activity.last().max(attempt),
            (Begins::WithTheAttempt(_), None) => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Idle;
    use crate::{deadline::until, upload::Activity};
    use std::{future::pending, time::Duration};
    use tokio::time::{Instant, sleep};

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_the_work_as_long_after_the_last_move_as_the_limit_says() {
        let begin = Instant::now();
        let activity = Activity::now();
        let mut idle = Some(Idle::new(LIMIT, activity.clone()));
        let work = async {
            for _ in 0..3 {
                sleep(Duration::from_secs(9)).await;
                activity.touch();
            }
            pending::<()>().await;
        };
        assert_eq!(until(&mut idle, work).await, Err(LIMIT));
        assert_eq!(begin.elapsed(), Duration::from_secs(37));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempts_pause_begins_with_it_and_not_before_the_request_is_complete() {
        let begin = Instant::now();
        let activity = Activity::now();
        sleep(Duration::from_secs(3)).await;
        let work = async {
            sleep(Duration::from_secs(25)).await;
            activity.touch();
            activity.complete();
            pending::<()>().await;
        };
        let mut idle = Some(Idle::of_attempt(LIMIT, activity.clone()));
        assert_eq!(until(&mut idle, work).await, Err(LIMIT));
        assert_eq!(begin.elapsed(), Duration::from_secs(38));
        let mut next = Some(Idle::of_attempt(LIMIT, activity.clone()));
        assert_eq!(until(&mut next, pending::<()>()).await, Err(LIMIT));
        assert_eq!(begin.elapsed(), Duration::from_secs(48), "the attempt's, although nothing has moved for longer");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_work_may_pause() {
        assert_eq!(until(&mut None::<Idle>, sleep(LIMIT * 1000)).await, Ok(()));
    }
}
