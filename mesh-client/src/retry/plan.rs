//! A retry policy at work: what a call's attempts came to, and what follows.
//!
//! A [`Plan`] is made when the configuration arrives and shared by calls; [`Retries`] is one call's part. It does NOT
//! allocate, and a call that succeeds asks it one question.

use super::backoff;
use crate::{
    error::{ReplyForm, grpc_code_of, grpc_status},
    route::RequestHead,
};
use http::{HeaderMap, HeaderName, StatusCode, response};
use mesh_xds::resource::{HeaderField, RetryCondition, RetryPolicy};
use std::{borrow::Cow, num::NonZeroU32, sync::Arc, time::Duration};

/// "Values of maxAttempts > 5 act as 5" (A6).
const MAX_GRPC_ATTEMPTS: u32 = 5;

const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// A route's policy, for calls of both kinds. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    policy: Arc<RetryPolicy>,
}

/// Why an attempt has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No endpoint can be connected to.
    Unreachable,
    /// No byte of it was written.
    Unsent,
    /// The server says that it did not look at it: REFUSED_STREAM, or GOAWAY with a lower stream.
    Refused,
    /// The server reset the stream; with the gRPC status that stands for it.
    Reset(u8),
    /// The connection broke.
    Lost,
    /// It took longer than an attempt may.
    TryTimeout,
}

/// What follows from the end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// The caller gets it.
    Final,
    /// The caller gets it, though it is one to be repeated: there is no retry left, or the server wants none. Throttling
    /// counts it (A6).
    Spent,
    /// Again, at once: it does not count as a retry.
    Transparent,
    /// Again, after this.
    Retry(Duration),
}

impl Plan {
    pub(crate) fn new(policy: Arc<RetryPolicy>) -> Self {
        Self { policy }
    }

    /// How long an attempt may take until its response headers.
    pub(crate) fn per_try_timeout(&self) -> Option<Duration> {
        self.policy.per_try_timeout
    }

    /// How long an attempt may pause.
    pub(crate) fn per_try_idle_timeout(&self) -> Option<Duration> {
        self.policy.per_try_idle_timeout
    }

    /// How many more endpoints to look at for one that was not tried; `None` where that does not matter.
    pub(crate) fn avoids_previous_hosts(&self) -> Option<u32> {
        self.policy.avoid_previous_hosts.then_some(self.policy.host_selection_attempts)
    }

    /// After how many attempts those to come go to another priority; `None` where that does not matter.
    pub(crate) fn avoids_previous_priorities(&self) -> Option<NonZeroU32> {
        self.policy.previous_priorities
    }

    fn retries(&self, form: ReplyForm) -> u32 {
        match form {
            ReplyForm::Grpc => self.policy.num_retries.min(MAX_GRPC_ATTEMPTS - 1),
            ReplyForm::Http => self.policy.num_retries,
        }
    }

    fn has(&self, condition: RetryCondition) -> bool {
        self.policy.retry_on.has(condition)
    }

    fn has_code(&self, code: u8) -> bool {
        RetryCondition::of_code(code).is_some_and(|condition| self.has(condition))
    }

    fn repeats(&self, form: ReplyForm, failure: Failure) -> bool {
        use RetryCondition::{ConnectFailure, GatewayError, RefusedStream, Reset, ResetBeforeRequest, ServerError};
        let on = self.policy.retry_on;
        let named = match failure {
            Failure::Unreachable | Failure::Unsent => on.has_any(&[ConnectFailure, ResetBeforeRequest]),
            Failure::Refused => on.has(RefusedStream),
            Failure::Reset(_) | Failure::Lost | Failure::TryTimeout => false,
        };
        named
            || match form {
                ReplyForm::Grpc => self.has_code(match failure {
                    Failure::Reset(code) => code,
                    Failure::TryTimeout => 4,
                    Failure::Unreachable | Failure::Unsent | Failure::Refused | Failure::Lost => 14,
                }),
                // "Currently we count an upstream reset as a 5xx" (Envoy), whatever it was.
                ReplyForm::Http => on.has_any(&[Reset, ServerError, GatewayError]),
            }
    }

    /// Whether a response is a condition of `retry_on` by its HTTP status.
    fn repeats_status(&self, status: StatusCode) -> bool {
        (self.has(RetryCondition::ServerError) && status.is_server_error())
            || (self.has(RetryCondition::GatewayError) && matches!(status.as_u16(), 502..=504))
            || (self.has(RetryCondition::Retriable4xx) && status == StatusCode::CONFLICT)
            || (self.has(RetryCondition::RetriableStatusCodes)
                && self.policy.retriable_status_codes.contains(&status.as_u16()))
    }

    /// Whether a response is repeated for being rate limited; `None` if it is not, so that other conditions decide.
    fn repeats_rate_limited(&self, head: &response::Parts) -> Option<bool> {
        // "A response that contains the x-envoy-ratelimited header [...] We retry these only when the envoy-ratelimited
        // policy is in effect" (Envoy).
        head.headers.contains_key("x-envoy-ratelimited").then(|| self.has(RetryCondition::EnvoyRateLimited))
    }

    fn repeats_http(&self, head: &response::Parts) -> bool {
        if let Some(repeats) = self.repeats_rate_limited(head) {
            return repeats;
        }
        let headers = || {
            self.policy.retriable_headers.iter().any(|matcher| {
                let value = match &matcher.name {
                    HeaderField::Header(name) => RequestHead::joined(&head.headers, name),
                    HeaderField::Pseudo(_) | HeaderField::Binary => None::<Cow<'_, str>>,
                };
                matcher.value.is_match(value.as_deref(), matcher.invert)
            })
        };
        self.repeats_status(head.status) || self.has(RetryCondition::RetriableHeaders) && headers()
    }

    /// Whether an answer to a gRPC call that is not gRPC's is repeated.
    fn repeats_foreign(&self, head: &response::Parts) -> bool {
        let by_status = || self.repeats_status(head.status) || self.has_code(grpc_code_of(head.status));
        self.repeats_rate_limited(head).unwrap_or_else(by_status)
    }

    /// Whether such requests may be repeated at all. "Everything else ignored (per_try_timeout, headers, budgets)" (A44):
    /// headers are asked for where the call is not gRPC.
    fn allows<'r>(&self, form: ReplyForm, request: impl FnOnce() -> RequestHead<'r>) -> bool {
        let matchers = &self.policy.retriable_request_headers;
        if form == ReplyForm::Grpc || matchers.is_empty() {
            return true;
        }
        let request = request();
        matchers.iter().any(|matcher| matcher.value.is_match(request.field(&matcher.name).as_deref(), matcher.invert))
    }
}

// === Retries ===

/// One call's retries so far.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    /// By the policy; transparent ones do not count.
    pub(super) made: u32,
    /// Since the call began, or the server last said when: "the exponent restarts" (A6).
    pub(super) in_a_row: u32,
    pub(super) refused: bool,
}

impl Retries {
    /// How many were made by the policy.
    pub(crate) fn made(&self) -> u32 {
        self.made
    }

    /// An attempt ended without a response. `draw` is in `0.0..1.0`.
    pub(crate) fn failed<'r>(
        &mut self,
        plan: Option<&Plan>,
        form: ReplyForm,
        failure: Failure,
        request: impl FnOnce() -> RequestHead<'r>,
        draw: impl FnOnce() -> f64,
    ) -> Verdict {
        match failure {
            Failure::Unsent => return Verdict::Transparent,
            // "transparent once, then policy" (A6).
            Failure::Refused if !self.refused => {
                self.refused = true;
                return Verdict::Transparent;
            }
            _ => {}
        }
        match plan.filter(|plan| plan.repeats(form, failure)) {
            Some(plan) => self.again(plan, form, request, draw),
            None => Verdict::Final,
        }
    }

    /// A response has come. `is_whole`: there is no more of it than its head. `now` is the time of day, in seconds since 1970.
    pub(crate) fn answered<'r>(
        &mut self,
        plan: &Plan,
        form: ReplyForm,
        (head, is_whole): (&response::Parts, bool),
        request: impl FnOnce() -> RequestHead<'r>,
        draw: impl FnOnce() -> f64,
        now: impl FnOnce() -> u64,
    ) -> Verdict {
        if form == ReplyForm::Http {
            if !plan.repeats_http(head) {
                return Verdict::Final;
            }
            let told = plan.policy.rate_limited.as_ref();
            // A number of its own, so that the jitter of what is told and of what is not are drawn alike.
            let draw = draw();
            let told = told.and_then(|back_off| backoff::rate_limited(back_off, &head.headers, draw, now));
            return match self.again(plan, form, request, || draw) {
                Verdict::Retry(backoff) => Verdict::Retry(told.unwrap_or(backoff)),
                verdict => verdict,
            };
        }
        // "Retryable only for trailers-only failures: any response headers commit the RPC" (A6). Nearly all answers are this.
        if !is_whole && is_grpc(&head.headers) {
            return Verdict::Final;
        }
        match grpc_code(&head.headers) {
            Some(_) if !is_whole => Verdict::Final,
            Some(0) => Verdict::Final,
            Some(code) => match pushback(&head.headers) {
                // Counted, "or that receive a pushback response indicating not to retry" (A6), whatever the code.
                Some(Err(Unwanted)) => Verdict::Spent,
                _ if !plan.has_code(code) => Verdict::Final,
                None => self.again(plan, form, request, draw),
                Some(Ok(told)) => match self.again(plan, form, request, draw) {
                    Verdict::Retry(_) => {
                        self.in_a_row = 0;
                        Verdict::Retry(told)
                    }
                    verdict => verdict,
                },
            },
            None if is_grpc(&head.headers) => Verdict::Final,
            // Not gRPC's words: somebody on the way has answered.
            None if plan.repeats_foreign(head) => self.again(plan, form, request, draw),
            None => Verdict::Final,
        }
    }

    fn again<'r>(
        &mut self,
        plan: &Plan,
        form: ReplyForm,
        request: impl FnOnce() -> RequestHead<'r>,
        draw: impl FnOnce() -> f64,
    ) -> Verdict {
        if !plan.allows(form, request) {
            return Verdict::Final;
        }
        if self.made >= plan.retries(form) {
            return Verdict::Spent;
        }
        let earlier = self.in_a_row;
        (self.made, self.in_a_row) = (self.made + 1, earlier + 1);
        Verdict::Retry(match form {
            ReplyForm::Grpc => backoff::grpc(&plan.policy, earlier, draw()),
            ReplyForm::Http => backoff::envoy(&plan.policy, earlier, draw()),
        })
    }
}

// === gRPC's words ===

/// Whether a server that has failed a call wants no retry: where there is no policy, throttling still counts "RPCs [...] that
/// receive a pushback response indicating not to retry", "regardless of service or method invoked" (A6).
pub(crate) fn is_unwanted(headers: &HeaderMap) -> bool {
    matches!(pushback(headers), Some(Err(Unwanted))) && grpc_code(headers).is_some_and(|code| code != 0)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    ReplyForm::of(headers) == ReplyForm::Grpc
}

fn grpc_code(headers: &HeaderMap) -> Option<u8> {
    grpc_status(headers)?.to_str().ok()?.parse().ok()
}

/// The server wants no retry.
struct Unwanted;

/// "value >= 0 → retry after exactly that [...]; negative/unparsable/duplicated → no retry" (A6).
fn pushback(headers: &HeaderMap) -> Option<Result<Duration, Unwanted>> {
    let mut values = headers.get_all(&PUSHBACK).iter();
    let first = values.next()?;
    let millis = first.to_str().ok().and_then(|text| text.parse::<u32>().ok()).filter(|_| values.next().is_none());
    Some(millis.map(|millis| Duration::from_millis(u64::from(millis))).ok_or(Unwanted))
}
