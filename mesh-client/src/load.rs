//! One attempt in the books of load reports (LRS) and of outlier detection (A50): from the pick to the end of the response
//! body.
//!
//! It is told once, when it is dropped, by the last thing that was known of it. Where the cluster has neither book, these are
//! two `None`s that are looked at: no count, no clock, no allocation. Which answers are successes is [`Course`]'s to say; what
//! becomes of the counts is NOT known.

use crate::{
    endpoint::{Endpoint, SendFailure, Slot},
    error::ReplyForm,
    outlier::{Course, Ending},
};
use http::{HeaderMap, response};
use mesh_xds::load::{CallLoad, LocalityLoad};
use std::sync::Arc;

/// An attempt that is in progress until this is dropped. Who cancels counts as an error, as in grpc-go.
#[derive(Debug)]
pub(crate) struct Attempt {
    load: Option<CallLoad>,
    /// Of a cluster that detects outliers.
    endpoint: Option<Arc<Endpoint>>,
    course: Course,
}

impl Attempt {
    /// Begins one, with the counters of the locality and the endpoint that were picked.
    pub(crate) fn begin(slot: &mut Slot, form: ReplyForm) -> Self {
        let load = slot.take_load().map(LocalityLoad::start);
        Self { load, endpoint: slot.watched(), course: Course::begin(form) }
    }

    fn is_counted(&self) -> bool {
        self.load.is_some() || self.endpoint.is_some()
    }

    /// The response's head is here.
    pub(crate) fn head(&mut self, head: &response::Parts, is_whole: bool) {
        if !self.is_counted() {
            return;
        }
        self.course.head(head.status, &head.headers);
        match self.course.form() {
            // Trailers-only: the head is the trailers.
            ReplyForm::Grpc if is_whole => self.trailers(&head.headers),
            ReplyForm::Grpc | ReplyForm::Http => {}
        }
    }

    /// The trailers are here.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        if !self.is_counted() {
            return;
        }
        self.course.trailers(trailers);
        if let Some(load) = &self.load {
            load.trailers(trailers);
        }
    }

    /// The response is over, and there were no trailers.
    pub(crate) fn over(&mut self) {
        self.course.over();
    }

    /// There was no response: the connection broke, or the server reset the stream.
    pub(crate) fn failed(&mut self, failure: &SendFailure) {
        match failure {
            SendFailure::Refused | SendFailure::Reset(_) | SendFailure::Unacceptable(_) | SendFailure::Io(_) => {
                self.course.broken();
            }
            // "only RPCs that reached a subchannel" (A50): the server has not seen these.
            SendFailure::Unsent(_) | SendFailure::GoneAway | SendFailure::Invalid(_) => self.course.unreached(),
            // Given up by the caller.
            SendFailure::RequestBody(_) => {}
        }
    }

    /// There was no response in time.
    pub(crate) fn timed_out(&mut self) {
        self.course.timed_out();
    }

    /// The response ended before its end: reset, connection lost, deadline.
    pub(crate) fn broken(&mut self) {
        self.course.broken();
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let ending = self.course.ending();
        if let Some(load) = &mut self.load {
            load.succeeded(ending.is_some_and(Ending::is_success));
        }
        if let (Some(endpoint), Some(ending)) = (&self.endpoint, ending) {
            endpoint.count(ending);
        }
    }
}
