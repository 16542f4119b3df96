//! THE client stack, written in one place, outermost first.
//!
//! ```text
//!  tonic / hyper ─► MeshChannel        always ready: there is no queue in front of a call; what can be waited for
//!    error          causes → status    (configuration, a connection) is waited for inside the call, bounded
//!    route          table → cluster
//!    deadline       A31, or Envoy's timeout
//!    filters        the route's chain, once per call; most routes have none
//!    attempts       repeated when nothing was sent, when the server says that it did not look, and as the policy says
//!      pick         one synchronous step, repeated for each new picker
//!      load         counted for load reports, where the cluster makes any
//!      endpoint     authority, streams, bytes
//! ```
//!
//! The path is one future, boxed once, and what it is made of is pinned where it is made: a move of either costs as much as a
//! pick. A call reads: an `ArcSwap` load, a match, a pick, a send.

use super::{Called, Inner, Use, routing::Routed, terms::Terms};
use crate::{
    apply::AuthorityOf,
    balance::Tried,
    call::{Finish, Live, ResponseBody},
    cluster::NoPick,
    deadline::{CallTime, Passed as Limit},
    endpoint::{Rest, SendFailure, Slot},
    error::{self, Cause, MeshError, ReplyForm},
    filter::{FilterRequest, Passed},
    load::Attempt,
    retry::{Failure, Plan, Retries, Verdict, is_unwanted, time_of_day},
    upload::{Head, Upload},
};
use http::{
    HeaderValue, Method, Request, Response, Uri,
    header::{self, HeaderName},
    request, response,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body;
use std::{fmt, pin::pin, sync::Arc};
use tokio::{task::coop::consume_budget, time::sleep};

/// How much of a request body is kept for transparent retries: refcounted DATA, no copies.
const REPLAY_CAP: usize = 64 * 1024;

/// The same where the route has a retry policy.
const POLICY_REPLAY_CAP: usize = 256 * 1024;

/// "grpc-previous-rpc-attempts: N on retry attempts, absent on the first" (A6).
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

// === Attempts ===

/// What an attempt came to.
enum Ended<B> {
    Answered(Answer<B>),
    /// Without a response. `None` if that is not to be repeated, whatever the policy.
    Failed(Option<Failure>, Cause),
}

impl<B> Ended<B>
where
    B: Body + Send + Unpin + 'static,
    B::Error: fmt::Display,
{
    /// Whether another attempt could send the whole request.
    fn can_replay(&self, upload: &Option<Upload<B>>) -> bool {
        match self {
            Self::Answered(Answer { rest: Some(rest), .. }) => rest.can_replay(),
            _ => upload.as_ref().is_some_and(Upload::can_replay),
        }
    }

    fn take_rest(&mut self) -> Option<Rest<B>> {
        match self {
            Self::Answered(answer) => answer.rest.take(),
            Self::Failed(..) => None,
        }
    }
}

/// A response that the caller has not got yet.
struct Answer<B> {
    head: response::Parts,
    live: Box<Live>,
    /// There is no more of it than its head.
    is_whole: bool,
    /// What the request has left, if the answer came before its end.
    rest: Option<Rest<B>>,
}

// === Call ===

impl Inner {
    /// The whole client path.
    ///
    /// Not an `async fn`, which would keep the request beside the parts that it is taken into: each call has this in memory.
    pub(super) fn call<B>(self: Arc<Self>, request: Request<B>) -> impl Future<Output = Called> + Send
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        let (parts, body) = request.into_parts();
        let (terms, mut head) = (Terms::of(&parts), Head::new(parts));
        async move {
            // A caller that calls again at once must not keep the workers from running: nothing on the way to a failure, or to
            // a filter's answer, has to wait for anything.
            consume_budget().await;
            let mut passed = Passed::default();
            let answered = self.attempts(&mut head, body, &terms, &mut passed).await;
            let failed = |cause| self.failed(cause, terms.form);
            if !passed.awaits_response() {
                return Ok(answered.unwrap_or_else(failed));
            }
            let mut response = answered.unwrap_or_else(failed);
            Ok(match passed.response(head.parts(), terms.form, &mut response) {
                Ok(()) => response,
                Err(cause) => failed(cause),
            })
        }
    }

    fn failed(&self, cause: Cause, form: ReplyForm) -> Response<ResponseBody> {
        MeshError::new(cause, Arc::clone(&self.node)).into_response(form)
    }

    async fn attempts<B>(
        &self,
        head: &mut Head,
        body: B,
        terms: &Terms,
        passed: &mut Passed,
    ) -> Result<Response<ResponseBody>, Cause>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        let form = terms.form;
        let parts = head.parts();
        let mut time = CallTime::begin(form, terms.timeout);
        self.shared.used(Use::of(parts.version, form));
        self.address(parts, terms)?;
        let mut upload = Some(Upload::new(body, REPLAY_CAP));
        let (mut retries, mut tried, mut permit) = (Retries::default(), Tried::default(), None);
        loop {
            let routed = match self.try_route(head.parts(), terms) {
                Some(routed) => routed?,
                None => {
                    time.starts();
                    let routed = time.within(self.route_later(head.parts(), terms)).await;
                    routed.map_err(|late| late.waiting_for(|| self.shared.missing()))??
                }
            };
            time.obey(&routed.limits, routed.idle_timeout, &mut upload);
            if let (Some(upload), Some(_)) = (&mut upload, &routed.retry) {
                upload.keep(POLICY_REPLAY_CAP);
            }
            if let Some(chain) = routed.filters.as_ref().filter(|_| !passed.has_begun()) {
                if chain.sees_responses() {
                    // And the request with them.
                    head.stay();
                }
                let mut request = FilterRequest::new(head.parts(), form, Some(routed.backends.cluster()));
                if let Some(reply) = time.within(passed.request(chain, &mut request)).await?? {
                    return Ok(reply.into_response(form).map(ResponseBody::local));
                }
            }
            loop {
                let picked = match routed.backends.pick_at_once(terms.waits, &tried) {
                    Some(picked) => picked,
                    None => {
                        time.starts();
                        let picked = time.within(routed.pick(terms.waits, &mut tried)).await;
                        picked.map_err(|late| late.waiting_for(|| routed.backends.missing(&tried)))?
                    }
                };
                let mut ended = match picked {
                    Ok(slot) => {
                        if let Some(plan) = &routed.retry {
                            tried.add(&slot, plan.avoids_previous_hosts(), plan.avoids_previous_priorities());
                        }
                        pin!(self.attempt(head, &mut upload, slot, &routed, terms, &mut time)).await
                    }
                    // The cluster left the routes while the call waited for it: nothing was sent, so route again.
                    Err(NoPick::Removed) => break,
                    Err(NoPick::Failed(cause @ Cause::Cluster { .. })) => {
                        Ended::Failed(Some(Failure::Unreachable), cause)
                    }
                    // "LB result DROP → never retried" (A6), and whoever is refused for there being too many.
                    Err(NoPick::Failed(cause)) => return Err(cause),
                };
                let verdict = self.judge(&mut retries, &routed, head, terms, &ended);
                let backoff = match verdict {
                    Verdict::Transparent if ended.can_replay(&upload) => None,
                    Verdict::Retry(backoff) if ended.can_replay(&upload) && self.may_retry(form) => {
                        // From here to the end of its attempt. That of the retry before is free.
                        drop(permit.take());
                        permit = routed.backends.retry_permit(form);
                        if permit.is_none() {
                            return self.finish(ended, time, form);
                        }
                        Some(backoff)
                    }
                    Verdict::Spent => {
                        self.may_retry(form);
                        return self.finish(ended, time, form);
                    }
                    _ => return self.finish(ended, time, form),
                };
                if let Some(rest) = ended.take_rest() {
                    upload = rest.take_back();
                }
                // Gone if more than its cap has been sent just now.
                let Some(again) = &mut upload else { return self.finish(ended, time, form) };
                again.rewind();
                if backoff.is_some() {
                    tried.failed();
                }
                // What is not read of it is not wanted any more.
                drop(ended);
                time.set_taken(false);
                if let Some(backoff) = backoff {
                    time.within(sleep(backoff)).await?;
                    if form == ReplyForm::Grpc {
                        head.parts().headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(retries.made()));
                    }
                }
            }
        }
    }

    /// One attempt, until its response headers.
    async fn attempt<B>(
        &self,
        head: &mut Head,
        upload: &mut Option<Upload<B>>,
        mut slot: Slot,
        routed: &Routed,
        terms: &Terms,
        time: &mut CallTime,
    ) -> Ended<B>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        let mut attempt = Attempt::begin(&mut slot, terms.form);
        // "yields to an explicit per-RPC authority" (A81).
        if routed.authority == AuthorityOf::Endpoint && terms.authority.is_none() {
            // "a retry on an endpoint without hostname must revert" (A81).
            let authority = slot.endpoint().hostname().unwrap_or_else(|| self.options.authority.clone());
            if let Err(cause) = readdress(head.parts(), authority) {
                return Ended::Failed(None, cause);
            }
        }
        let limit = routed.retry.as_ref().and_then(Plan::per_try_timeout);
        let mut per_try = time.of_attempt(limit, upload);
        let mut idle = time.pauses_of_attempt(routed.retry.as_ref().and_then(Plan::per_try_idle_timeout), upload);
        time.tell(&mut head.parts().headers, limit);
        time.set_taken(true);
        let sent = time.within_attempt(&mut per_try, &mut idle, pin!(slot.send(head, upload))).await;
        let (cluster, peer) = (|| slot.cluster().clone(), slot.peer());
        let passed = match sent {
            Ok(Ok((head, body, rest))) => {
                let is_whole = body.is_end_stream();
                attempt.head(&head, is_whole);
                time.touch();
                let finish = Finish { slot, attempt, deadline: None, idle, throttle: None, form: terms.form };
                return Ended::Answered(Answer { head, live: Box::new(Live { body, finish }), is_whole, rest });
            }
            Ok(Err(failure)) => {
                attempt.failed(&failure);
                return Ended::Failed(repeatable(&failure), Cause::from_send(failure, cluster(), peer));
            }
            Err(passed) => passed,
        };
        attempt.timed_out();
        let cause = match passed {
            Limit::Call(late) => return Ended::Failed(None, late.at(|| (cluster(), peer))),
            Limit::Attempt(after) => Cause::TryTimeout { cluster: cluster(), peer, after },
            Limit::Pause(after) => Cause::IdleTimeout { after, endpoint: Some((cluster(), peer)) },
        };
        Ended::Failed(Some(Failure::TryTimeout), cause)
    }

    /// What follows from an attempt.
    fn judge<B>(
        &self,
        retries: &mut Retries,
        routed: &Routed,
        head: &mut Head,
        terms: &Terms,
        ended: &Ended<B>,
    ) -> Verdict {
        let form = terms.form;
        match (ended, &routed.retry) {
            (Ended::Answered(answer), Some(plan)) => {
                let answer = (&answer.head, answer.is_whole);
                retries.answered(
                    plan,
                    form,
                    answer,
                    || self.request_head(head.parts(), terms),
                    fastrand::f64,
                    time_of_day,
                )
            }
            (Ended::Failed(Some(failure), _), plan) => {
                retries.failed(plan.as_ref(), form, *failure, || self.request_head(head.parts(), terms), fastrand::f64)
            }
            (Ended::Answered(Answer { head, is_whole: true, .. }), None)
                if form == ReplyForm::Grpc && self.options.retries && is_unwanted(&head.headers) =>
            {
                Verdict::Spent
            }
            (Ended::Answered(_), None) | (Ended::Failed(None, _), _) => Verdict::Final,
        }
    }

    /// Counts a failure of the server against its name, and says whether that leaves room for a retry (A6).
    fn may_retry(&self, form: ReplyForm) -> bool {
        form == ReplyForm::Http || self.options.retry_throttle.as_ref().is_none_or(|throttle| throttle.failed())
    }

    /// What the caller gets.
    fn finish<B>(&self, ended: Ended<B>, time: CallTime, form: ReplyForm) -> Result<Response<ResponseBody>, Cause>
    where
        B: Body + Send + Unpin + 'static,
        B::Error: fmt::Display,
    {
        match ended {
            Ended::Answered(Answer { head, mut live, is_whole, rest }) => {
                if let Some(rest) = rest {
                    rest.go_on(&mut live.body);
                }
                let (deadline, idle) = time.into_rest();
                live.finish.deadline = deadline;
                // Now that something moves, both begin with it: the shorter one is first.
                live.finish.idle = match (live.finish.idle.take(), idle) {
                    (Some(attempt), Some(call)) if call.limit() < attempt.limit() => Some(call),
                    (attempt, call) => attempt.or(call),
                };
                live.finish.throttle = self.options.retry_throttle.clone().filter(|_| form == ReplyForm::Grpc);
                let body = if is_whole { ResponseBody::whole(&head, &live.finish) } else { ResponseBody::live(live) };
                Ok(Response::from_parts(head, body))
            }
            Ended::Failed(_, cause) => Err(cause),
        }
    }

    /// Writes the authority into the URI, and takes out what belongs to the caller's own hop.
    fn address(&self, head: &mut request::Parts, terms: &Terms) -> Result<(), Cause> {
        readdress(head, self.authority(terms).clone())?;
        match terms.form {
            ReplyForm::Grpc if terms.has_user_agent => {}
            ReplyForm::Grpc => {
                head.headers.insert(header::USER_AGENT, self.options.user_agent.clone());
            }
            ReplyForm::Http if head.method == Method::CONNECT => {
                return Err(Cause::InvalidRequest("CONNECT asks for a tunnel, and a mesh has none".to_owned()));
            }
            ReplyForm::Http => {
                for name in &HOP_BY_HOP {
                    head.headers.remove(name);
                }
            }
        }
        Ok(())
    }
}

fn readdress(head: &mut request::Parts, authority: Authority) -> Result<(), Cause> {
    let mut uri = std::mem::take(&mut head.uri).into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(authority);
    uri.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
    head.uri = Uri::from_parts(uri).map_err(|error| Cause::InvalidRequest(error.to_string()))?;
    Ok(())
}

/// What a policy may say about a failed attempt; `None` if it must not be repeated.
fn repeatable(failure: &SendFailure) -> Option<Failure> {
    match failure {
        SendFailure::Unsent(_) => Some(Failure::Unsent),
        SendFailure::Refused | SendFailure::GoneAway => Some(Failure::Refused),
        SendFailure::Reset(code) => Some(Failure::Reset(error::code_of_reset(*code))),
        SendFailure::Io(_) => Some(Failure::Lost),
        // The server has answered, or the request is to blame.
        SendFailure::Unacceptable(_) | SendFailure::RequestBody(_) | SendFailure::Invalid(_) => None,
    }
}

/// "Connection-specific header fields" (RFC 9113, 8.2.2), and `host`, which the authority replaces.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::HOST,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
