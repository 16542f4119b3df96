//! A limit that runs.
//!
//! It does NOT know where its limits come from.

use crate::{
    idle::Idle,
    later::{NEVER, later},
    upload::Activity,
};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// A limit of a call or of an attempt, running. It is small: calls that have none carry it, too.
#[derive(Debug)]
pub(crate) struct Deadline(Pin<Box<Running>>);

pin_project! {
    #[derive(Debug)]
    struct Running {
        #[pin]
        sleep: Sleep,
        started: Instant,
        limit: Option<Duration>,
        after_request: Option<(Duration, Activity)>,
        // Whether anybody had to wait.
        has_run: bool,
    }
}

impl Deadline {
    /// So long from the start on.
    pub(crate) fn new(started: Instant, limit: Duration) -> Self {
        Self::running(started, Some(limit), None)
    }

    /// So long from the moment on in which the request is complete, and `limit` from the start on, if there is one.
    ///
    /// "Time between the point at which the entire downstream request (i.e. end-of-stream) has been processed and when the
    /// upstream response has been completely processed" (Envoy, `RouteAction.timeout`).
    pub(crate) fn after_request(started: Instant, after: Duration, request: Activity, limit: Option<Duration>) -> Self {
        Self::running(started, limit, Some((after, request)))
    }

    fn running(started: Instant, limit: Option<Duration>, after_request: Option<(Duration, Activity)>) -> Self {
        let after = after_request.as_ref().map(|(after, _)| *after);
        // No request is complete before it starts.
        let soonest = limit.into_iter().chain(after).min().unwrap_or(NEVER);
        let sleep = sleep_until(later(started, soonest));
        Self(Box::pin(Running { sleep, started, limit, after_request, has_run: false }))
    }

    /// From the start, and from the end of the request.
    pub(super) fn limits(&self) -> (Option<Duration>, Option<Duration>) {
        (self.0.limit, self.0.after_request.as_ref().map(|(after, _)| *after))
    }

    /// What a server is to be told. It is what is left, but where nobody had to wait that is all: no clock is read.
    pub(super) fn to_tell(&self) -> Option<Duration> {
        let limit = self.0.limit?;
        Some(if self.0.has_run {
            later(self.0.started, limit).saturating_duration_since(Instant::now())
        } else {
            limit
        })
    }

    /// Ready, with the limit, once it has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        *self.0.as_mut().project().has_run = true;
        loop {
            ready!(self.0.as_mut().project().sleep.poll(cx));
            let now = Instant::now();
            let (due, limit) = self.0.due(now);
            if due <= now {
                return Poll::Ready(limit);
            }
            self.0.as_mut().project().sleep.reset(due);
        }
    }

    /// The limit, if it has passed. Only after the first [`poll`](Self::poll), which starts the timer.
    pub(crate) fn passed(&self) -> Option<Duration> {
        if !self.0.sleep.is_elapsed() {
            return None;
        }
        let now = Instant::now();
        let (due, limit) = self.0.due(now);
        (due <= now).then_some(limit)
    }
}

impl Running {
    /// When it is due, and which limit that is. While the caller is waited for, no sooner than its limit from now on; while
    /// nobody takes what the caller has, it is not the caller's fault that the request goes on.
    fn due(&self, now: Instant) -> (Instant, Duration) {
        let whole = self.limit.map(|limit| (later(self.started, limit), limit));
        let after = self.after_request.as_ref().map(|(after, request)| {
            let waiting = || if request.waits_for_caller() { now } else { request.last() };
            let complete = request.completed().unwrap_or_else(waiting);
            (later(complete.max(self.started), *after), *after)
        });
        whole.into_iter().chain(after).min().unwrap_or_else(|| (later(now, NEVER), NEVER))
    }
}

/// Runs `work` until the limit passes, if there is one. `Err` says which.
///
/// Not an `async fn`: that keeps its argument beside the future that it becomes, and a few of them around each other make a
/// call many times as large.
pub(crate) fn until<L: Limit, F: Future>(limit: L, work: F) -> Until<L, F> {
    Until { limit, work }
}

/// What may pass while something is done.
pub(crate) trait Limit {
    /// What is said of it then.
    type Passed;

    /// Ready once it has passed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Self::Passed>;
}

impl Limit for &mut Option<Deadline> {
    type Passed = Duration;

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        self.as_mut().map_or(Poll::Pending, |deadline| deadline.poll(cx))
    }
}

impl Limit for &mut Option<Idle> {
    type Passed = Duration;

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        self.as_mut().map_or(Poll::Pending, |idle| idle.poll(cx))
    }
}

pin_project! {
    /// Made by [`until`].
    pub(crate) struct Until<L, F> {
        limit: L,
        #[pin]
        work: F,
    }
}

impl<L: Limit, F: Future> Future for Until<L, F> {
    type Output = Result<F::Output, L::Passed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // Work that is done counts, however late.
        if let Poll::Ready(done) = this.work.poll(cx) {
            return Poll::Ready(Ok(done));
        }
        this.limit.poll(cx).map(Err)
    }
}

#[cfg(test)]
mod tests {
    use super::{Deadline, until};
    use crate::upload::Activity;
    use std::{future::pending, time::Duration};
    use tokio::time::{Instant, sleep};

    const S: fn(u64) -> Duration = Duration::from_secs;

    /// When a call whose request is complete after `complete` ends, and by which limit.
    async fn ends(after: Duration, limit: Option<Duration>, complete: Option<Duration>) -> (Duration, Duration) {
        let (begin, activity) = (Instant::now(), Activity::now());
        let request = activity.clone();
        request.set_taken(true);
        let mut deadline = Some(Deadline::after_request(begin, after, activity, limit));
        let work = async {
            if let Some(complete) = complete {
                sleep(complete).await;
                request.complete();
            }
            pending::<()>().await;
        };
        let limit = until(&mut deadline, work).await.expect_err("the work never ends");
        (begin.elapsed(), limit)
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_after_the_request_begins_with_its_end() {
        assert_eq!(ends(S(15), None, Some(S(0))).await, (S(15), S(15)));
        assert_eq!(ends(S(15), None, Some(S(40))).await, (S(55), S(15)));
        assert_eq!(ends(S(15), Some(S(20)), Some(S(1))).await, (S(16), S(15)));
        assert_eq!(ends(S(15), Some(S(20)), Some(S(10))).await, (S(20), S(20)));
        assert_eq!(ends(S(15), Some(S(20)), None).await, (S(20), S(20)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_nobody_takes_has_its_time() {
        let (begin, activity) = (Instant::now(), Activity::now());
        let request = activity.clone();
        let mut deadline = Some(Deadline::after_request(begin, S(15), activity, None));
        let work = async {
            sleep(S(4)).await;
            request.set_taken(true);
            sleep(S(40)).await;
            request.touch();
            // The attempt has failed, and there is no connection for another.
            request.set_taken(false);
            pending::<()>().await;
        };
        assert_eq!(until(&mut deadline, work).await, Err(S(15)));
        assert_eq!(begin.elapsed(), S(59), "15 s after the caller was heard of");
        let mut never_taken = Some(Deadline::after_request(Instant::now(), S(15), Activity::now(), None));
        assert_eq!(until(&mut never_taken, pending::<()>()).await, Err(S(15)));
        assert_eq!(begin.elapsed(), S(74));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_told_what_is_left_once_somebody_had_to_wait() {
        let mut deadline = Some(Deadline::new(Instant::now(), S(10)));
        assert_eq!(until(&mut deadline, std::future::ready(1)).await, Ok(1));
        assert_eq!(deadline.as_ref().and_then(Deadline::to_tell), Some(S(10)));
        assert_eq!(until(&mut deadline, sleep(S(4))).await, Ok(()));
        assert_eq!(deadline.as_ref().and_then(Deadline::to_tell), Some(S(6)));
    }
}
