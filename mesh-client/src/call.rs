//! A call below the channel: what a layer may know of it, and the one response body with its one guard.
//!
//! Inside the stack things are passed by value; `http::Extensions` are for the public edge only. This file does NOT
//! pick, route or retry.

use crate::{
    deadline::Deadline,
    endpoint::{RecvBody, RecvFailure, Slot},
    error::{Cause, MeshError, ReplyForm},
    idle::Idle,
    load::Attempt,
    reply::Reply,
    retry::Throttle,
};
use bytes::Bytes;
use http::{HeaderMap, Response, response, uri::Authority};
use http_body::{Body, Frame, SizeHint};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// A request extension: the call waits for an endpoint until its deadline, instead of failing while none can be
/// reached (gRPC's wait-for-ready).
///
/// ```
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(mesh_client::WaitForReady);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitForReady;

/// A request extension: `:authority` of this call. It wins over the channel's
/// ([`ChannelBuilder::authority`](crate::ChannelBuilder::authority)) and over the endpoint's hostname that a route may ask
/// for (`auto_host_rewrite`, A81), in every attempt.
///
/// The channel's target still chooses the virtual host. Its routes see this authority, as in gRPC: a header matcher on
/// `:authority` is compared with it. Endpoints are called in plaintext, so that no certificate has to cover it.
///
/// ```
/// # use http::uri::Authority;
/// let mut request = http::Request::new(()); // a tonic::Request has `extensions_mut`, too
/// request.extensions_mut().insert(mesh_client::CallAuthority(Authority::from_static("tenant-7.shop.example")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallAuthority(pub Authority);

/// The body of a response: data as it arrives, then trailers.
///
/// A stream that is reset, a connection that is lost or a deadline that passes ends it: for gRPC with trailers that
/// hold the status, otherwise with a [`MeshError`]. Dropping it early cancels the call.
pub struct ResponseBody(State);

enum State {
    /// No backend answered: our own words, or none.
    Local(Option<Bytes>),
    Live(Box<Live>),
    Over,
}

/// A response on its stream, with everything that lasts as long. On its way to the caller it is moved half a dozen times, which
/// costs more than its box.
pub(crate) struct Live {
    pub(crate) body: RecvBody,
    pub(crate) finish: Finish,
}

/// What is given back, exactly once, when a call is over in whichever way.
pub(crate) struct Finish {
    pub(crate) slot: Slot,
    pub(crate) attempt: Attempt,
    pub(crate) deadline: Option<Deadline>,
    /// Ends a response that pauses too long.
    pub(crate) idle: Option<Idle>,
    /// Told of a success.
    pub(crate) throttle: Option<Arc<Throttle>>,
    pub(crate) form: ReplyForm,
}

impl ResponseBody {
    pub(crate) fn empty() -> Self {
        Self(State::Over)
    }

    pub(crate) fn local(text: Bytes) -> Self {
        if text.is_empty() { Self::empty() } else { Self(State::Local(Some(text))) }
    }

    /// The body of a response whose head has come, and more is to come.
    pub(crate) fn live(live: Box<Live>) -> Self {
        Self(State::Live(live))
    }

    /// That of a response which is nothing but its head: trailers-only, the head is the trailers, and the attempt has seen it.
    pub(crate) fn whole(head: &response::Parts, finish: &Finish) -> Self {
        finish.ended(&head.headers);
        Self::empty()
    }
}

impl MeshError {
    /// The whole response that the caller gets instead of a backend's.
    pub(crate) fn into_response(self, form: ReplyForm) -> Response<ResponseBody> {
        let reply = Reply::of_cause(self.cause(), self.to_string());
        let mut response = reply.into_response(form).map(ResponseBody::local);
        response.extensions_mut().insert(self);
        response
    }
}

impl Finish {
    /// A success lets the channel retry more freely.
    fn ended(&self, trailers: &HeaderMap) {
        if let Some(throttle) = &self.throttle {
            throttle.ended(trailers);
        }
    }
}

/// No body, as tonic's interceptors ask of every response body.
impl Default for ResponseBody {
    fn default() -> Self {
        Self::empty()
    }
}

impl Live {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cause>>> {
        if let Poll::Ready(frame) = self.body.poll_frame(cx) {
            if let Some(idle) = &self.finish.idle {
                idle.touch();
            }
            // A reader that is slower than its server never finds the body pending. The end counts, however late.
            if let Some(Ok(data)) = &frame
                && data.is_data()
                && let Some(after) = self.finish.deadline.as_ref().and_then(Deadline::passed)
            {
                return Poll::Ready(Some(Err(Cause::DeadlineExceeded { after, waiting_for: None })));
            }
            return Poll::Ready(frame.map(|frame| {
                frame.map_err(|failure| {
                    let (cluster, peer) = (self.finish.slot.cluster().clone(), self.finish.slot.peer());
                    match failure {
                        RecvFailure::Reset(code) => Cause::Reset { cluster, peer, code },
                        RecvFailure::Unacceptable(reason) => Cause::Unacceptable { cluster, peer, reason },
                        RecvFailure::Io(reason) => {
                            Cause::Connection { cluster, peer, reason: self.finish.slot.why_lost(reason) }
                        }
                    }
                })
            }));
        }
        if let Some(idle) = &mut self.finish.idle
            && let Poll::Ready(after) = idle.poll(cx)
        {
            let endpoint = Some((self.finish.slot.cluster().clone(), self.finish.slot.peer()));
            return Poll::Ready(Some(Err(Cause::IdleTimeout { after, endpoint })));
        }
        match &mut self.finish.deadline {
            Some(deadline) => {
                let after = ready!(deadline.poll(cx));
                Poll::Ready(Some(Err(Cause::DeadlineExceeded { after, waiting_for: None })))
            }
            None => Poll::Pending,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = MeshError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, MeshError>>> {
        let live = match &mut self.0 {
            State::Live(live) => live,
            State::Local(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            State::Over => return Poll::Ready(None),
        };
        let frame = match ready!(live.poll_frame(cx)) {
            Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    live.finish.attempt.trailers(trailers);
                    live.finish.ended(trailers);
                }
                Some(Ok(frame))
            }
            Some(Err(cause)) => {
                live.finish.attempt.broken();
                let error = MeshError::new(cause, Arc::clone(live.finish.slot.node()));
                Some(match live.finish.form {
                    ReplyForm::Grpc => Ok(Frame::trailers(error.into_trailers())),
                    ReplyForm::Http => Err(error),
                })
            }
            None => {
                live.finish.attempt.over();
                None
            }
        };
        self.0 = State::Over;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            State::Local(text) => text.is_none(),
            State::Live(live) => live.body.is_end_stream(),
            State::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            State::Local(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            State::Live(live) => live.body.size_hint(),
            State::Over => SizeHint::with_exact(0),
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            State::Local(_) => "ResponseBody(Local)",
            State::Live(_) => "ResponseBody(Live)",
            State::Over => "ResponseBody(Over)",
        })
    }
}
