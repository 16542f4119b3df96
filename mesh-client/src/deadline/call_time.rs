//! One call's time: what its application and its route allow, running, and what its server is told.
//!
//! It does NOT know attempts: theirs is part of the call's.

use super::{
    Deadline, GRPC_TIMEOUT, Limits, grpc_timeout, limit,
    timer::{Limit, Until},
    until,
};
use crate::{
    error::{Cause, ReplyForm},
    idle::Idle,
    upload::{Activity, Upload},
};
use http::HeaderMap;
use http_body::Body;
use std::{
    fmt,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// The time of one call.
#[derive(Debug)]
pub(crate) struct CallTime {
    /// `None` as long as nobody had to wait, and nobody asks.
    started: Option<Instant>,
    form: ReplyForm,
    /// The application's own limit.
    own: Option<Duration>,
    /// What `grpc-timeout` says now.
    told: Option<Duration>,
    deadline: Option<Deadline>,
    idle: Option<Idle>,
    /// Only where a timer asks.
    activity: Option<Activity>,
}

impl CallTime {
    /// Until a route adds its own limit, the caller's holds, which is what its `grpc-timeout` says: it covers the wait for
    /// configuration, too.
    pub(crate) fn begin(form: ReplyForm, own: Option<Duration>) -> Self {
        let own = own.filter(|_| form == ReplyForm::Grpc);
        let mut time = Self { started: None, form, own, told: own, deadline: None, idle: None, activity: None };
        time.deadline = own.map(|limit| Deadline::new(time.started(), limit));
        time
    }

    /// When it began. A call that has no limit and does not wait reads no clock.
    fn started(&mut self) -> Instant {
        *self.started.get_or_insert_with(Instant::now)
    }

    /// The call has to wait, while it is not known yet which limits it has.
    pub(crate) fn starts(&mut self) {
        self.started();
    }

    /// From now on, what this route says. What it says of time counts from the call's start.
    pub(crate) fn obey<B>(&mut self, limits: &Limits, idle_timeout: Option<Duration>, upload: &mut Option<Upload<B>>)
    where
        B: Body + Unpin,
        B::Error: fmt::Display,
    {
        let (whole, after_request) = match self.form {
            ReplyForm::Grpc => (limit(self.own, limits), None),
            ReplyForm::Http => (limits.http_stream(), limits.http()),
        };
        if (whole, after_request) != self.deadline.as_ref().map_or((None, None), Deadline::limits) {
            let started = self.started();
            self.deadline = self.deadline(started, whole, after_request, upload);
        }
        if idle_timeout != self.idle.as_ref().map(Idle::limit) {
            self.idle = idle_timeout.map(|limit| Idle::new(limit, self.activity(upload)));
        }
    }

    /// The time of an attempt that begins now: Envoy's `per_try_timeout`, which waits for the end of the request, as
    /// `timeout` does.
    pub(crate) fn of_attempt<B>(&mut self, limit: Option<Duration>, upload: &mut Option<Upload<B>>) -> Option<Deadline>
    where
        B: Body + Unpin,
        B::Error: fmt::Display,
    {
        limit.and_then(|limit| self.deadline(Instant::now(), None, Some(limit), upload))
    }

    /// How long an attempt that begins now may pause.
    pub(crate) fn pauses_of_attempt<B>(
        &mut self,
        limit: Option<Duration>,
        upload: &mut Option<Upload<B>>,
    ) -> Option<Idle>
    where
        B: Body + Unpin,
        B::Error: fmt::Display,
    {
        limit.map(|limit| Idle::of_attempt(limit, self.activity(upload)))
    }

    fn deadline<B>(
        &mut self,
        started: Instant,
        whole: Option<Duration>,
        after_request: Option<Duration>,
        upload: &mut Option<Upload<B>>,
    ) -> Option<Deadline>
    where
        B: Body + Unpin,
        B::Error: fmt::Display,
    {
        // A gRPC call's own time begins with it, whatever its request does.
        let asks = after_request.is_some() || (self.form == ReplyForm::Http && whole.is_some());
        let is_open = asks && !upload.as_mut().is_none_or(Upload::is_whole);
        let activity = is_open.then(|| self.activity(upload));
        match (after_request, activity) {
            (Some(after), Some(activity)) => Some(Deadline::after_request(started, after, activity, whole)),
            // The request is complete, so that both begin now.
            (after, _) => whole.into_iter().chain(after).min().map(|limit| Deadline::new(started, limit)),
        }
    }

    fn activity<B>(&mut self, upload: &mut Option<Upload<B>>) -> Activity
    where
        B: Body + Unpin,
        B::Error: fmt::Display,
    {
        let activity = self.activity.get_or_insert_with(|| {
            let activity = Activity::now();
            match upload {
                Some(upload) => upload.tell(activity.clone()),
                None => activity.complete(),
            }
            activity
        });
        activity.clone()
    }

    /// An attempt takes what the caller gives; or none does, until the next one.
    pub(crate) fn set_taken(&self, is_taken: bool) {
        if let Some(activity) = &self.activity {
            activity.set_taken(is_taken);
        }
    }

    /// Something came back.
    pub(crate) fn touch(&self) {
        if let Some(activity) = &self.activity {
            activity.touch();
        }
    }

    /// Runs `work` as long as there is time.
    pub(crate) fn within<F: Future>(&mut self, work: F) -> Until<OfCall<'_>, F> {
        until(self.limits(), work)
    }

    /// The same for an attempt, which has limits of its own: [`of_attempt`](Self::of_attempt) and
    /// [`pauses_of_attempt`](Self::pauses_of_attempt).
    pub(crate) fn within_attempt<'a, F: Future>(
        &'a mut self,
        limit: &'a mut Option<Deadline>,
        idle: &'a mut Option<Idle>,
        work: F,
    ) -> Until<OfAttempt<'a>, F> {
        until(OfAttempt { call: self.limits(), limit, idle }, work)
    }

    fn limits(&mut self) -> OfCall<'_> {
        let late = Late { form: self.form, request: &self.activity };
        OfCall { deadline: &mut self.deadline, idle: &mut self.idle, late }
    }

    /// Fails once no time is left. A clock is read only if somebody had to wait.
    pub(crate) fn check(&self) -> Result<(), Cause> {
        let passed = |deadline: &Deadline| deadline.to_tell().is_some_and(|left| left.is_zero());
        match self.deadline.as_ref().filter(|deadline| passed(deadline)).and_then(|deadline| deadline.limits().0) {
            Some(after) => Err(Cause::DeadlineExceeded { after, waiting_for: None }),
            None => Ok(()),
        }
    }

    /// Tells the server of a gRPC call what is left for it: of the call's time, or of the attempt's.
    pub(crate) fn tell(&mut self, headers: &mut HeaderMap, attempt: Option<Duration>) {
        if self.form == ReplyForm::Http {
            return;
        }
        let left = match (self.deadline.as_ref().and_then(Deadline::to_tell), attempt) {
            (Some(call), Some(attempt)) => Some(call.min(attempt)),
            (call, attempt) => call.or(attempt),
        };
        if left == self.told {
            return;
        }
        match left {
            Some(left) => headers.insert(GRPC_TIMEOUT, grpc_timeout(left)),
            None => headers.remove(GRPC_TIMEOUT),
        };
        self.told = left;
    }

    /// What goes on running while the response is read.
    pub(crate) fn into_rest(self) -> (Option<Deadline>, Option<Idle>) {
        (self.deadline, self.idle)
    }
}

// === Limits at work ===

/// The time that a call has.
pub(crate) struct OfCall<'a> {
    deadline: &'a mut Option<Deadline>,
    idle: &'a mut Option<Idle>,
    late: Late<'a>,
}

impl Limit for OfCall<'_> {
    type Passed = Cause;

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Cause> {
        if let Poll::Ready(after) = self.idle.poll(cx) {
            return Poll::Ready(self.late.cause(Cause::IdleTimeout { after, endpoint: None }, after));
        }
        let after = ready!(self.deadline.poll(cx));
        Poll::Ready(self.late.cause(Cause::DeadlineExceeded { after, waiting_for: None }, after))
    }
}

/// The time that an attempt has, and its call.
pub(crate) struct OfAttempt<'a> {
    call: OfCall<'a>,
    limit: &'a mut Option<Deadline>,
    idle: &'a mut Option<Idle>,
}

/// What has passed before an attempt ended.
#[derive(Debug)]
pub(crate) enum Passed {
    /// The call's own time.
    Call(Cause),
    /// `per_try_timeout`.
    Attempt(Duration),
    /// `per_try_idle_timeout`.
    Pause(Duration),
}

impl Limit for OfAttempt<'_> {
    type Passed = Passed;

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Passed> {
        if let Poll::Ready(after) = self.idle.poll(cx) {
            return Poll::Ready(Passed::Pause(after));
        }
        if let Poll::Ready(after) = self.limit.poll(cx) {
            return Poll::Ready(Passed::Attempt(after));
        }
        self.call.poll(cx).map(Passed::Call)
    }
}

/// Whose fault it is that a call is late.
#[derive(Clone, Copy, Debug)]
struct Late<'a> {
    form: ReplyForm,
    request: &'a Option<Activity>,
}

impl Late<'_> {
    /// That of a caller who is waited for is HTTP's 408.
    fn cause(self, cause: Cause, after: Duration) -> Cause {
        let is_callers = self.request.as_ref().is_some_and(Activity::waits_for_caller);
        if self.form == ReplyForm::Http && is_callers { Cause::RequestTimeout { after } } else { cause }
    }
}
