//! How long a call may pause: no byte of its request or response moves (Envoy's `idle_timeout` and `per_try_idle_timeout`).
//!
//! What moves notes the time, and a timer that is due looks whether something has moved since: a frame costs a clock
//! reading, not a timer. Calls whose route has neither limit have none of it. It does NOT end a call.

use crate::upload::Activity;
use std::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// A call's limit on pauses, running.
#[derive(Debug)]
pub(crate) struct Idle {
    limit: Duration,
    activity: Activity,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    pub(crate) fn new(limit: Duration) -> Self {
        let activity = Activity::now();
        let timer = Box::pin(sleep_until(activity.last() + limit));
        Self { limit, activity, timer }
    }

    /// To note by whatever else moves of the call.
    pub(crate) fn activity(&self) -> Activity {
        self.activity.clone()
    }

    /// Something has moved.
    pub(crate) fn touch(&self) {
        self.activity.touch();
    }

    /// Ready, with the limit, once nothing has moved for so long.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = self.activity.last() + self.limit;
            if due <= Instant::now() {
                return Poll::Ready(self.limit);
            }
            self.timer.as_mut().reset(due);
        }
    }
}

/// Runs `work` as long as something moves, if there is a limit. `Err` has the limit.
pub(crate) async fn moving<T>(idle: &mut Option<Idle>, work: impl Future<Output = T>) -> Result<T, Duration> {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        match idle {
            Some(idle) => idle.poll(cx).map(Err),
            None => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::{Idle, moving};
    use std::{future::pending, time::Duration};
    use tokio::time::{Instant, sleep};

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_the_work_as_long_after_the_last_move_as_the_limit_says() {
        let begin = Instant::now();
        let mut idle = Some(Idle::new(LIMIT));
        let activity = idle.as_ref().map(Idle::activity).expect("has one");
        let work = async {
            for _ in 0..3 {
                sleep(Duration::from_secs(9)).await;
                activity.touch();
            }
            pending::<()>().await;
        };
        assert_eq!(moving(&mut idle, work).await, Err(LIMIT));
        assert_eq!(begin.elapsed(), Duration::from_secs(37));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_work_may_pause() {
        assert_eq!(moving(&mut None, sleep(LIMIT * 1000)).await, Ok(()));
    }
}
