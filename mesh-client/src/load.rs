//! One attempt in the books of load reports (LRS) and of outlier detection (A50): from the pick to the end of the response
//! body.
//!
//! Where the cluster has neither, these are two `None`s that are looked at: no count, no clock, no allocation. Which answers
//! are successes is [`Ending`]'s to say; what becomes of the counts is NOT known.

use crate::{
    endpoint::{Endpoint, SendFailure, Slot},
    error::ReplyForm,
    outlier::Ending,
};
use http::{HeaderMap, response};
use mesh_xds::load::{CallLoad, LocalityLoad};
use std::sync::Arc;

/// An attempt that is in progress until this is dropped. It has failed unless it is known to have succeeded: who cancels
/// counts as an error, as in grpc-go.
#[derive(Debug)]
pub(crate) struct Attempt {
    load: Option<CallLoad>,
    /// Of a cluster that detects outliers.
    endpoint: Option<Arc<Endpoint>>,
    /// Until the endpoint was told.
    is_open: bool,
    form: ReplyForm,
}

impl Attempt {
    /// Begins one, with the counters of the locality and the endpoint that were picked.
    pub(crate) fn begin(slot: &mut Slot, form: ReplyForm) -> Self {
        Self { load: slot.take_load().map(LocalityLoad::start), endpoint: slot.watched(), is_open: true, form }
    }

    /// The response's head is here.
    pub(crate) fn head(&mut self, head: &response::Parts, is_whole: bool) {
        match self.form {
            // Trailers-only: the head is the trailers.
            ReplyForm::Grpc if is_whole => self.trailers(&head.headers),
            // gRPC's outcome is in the trailers.
            ReplyForm::Grpc => {}
            ReplyForm::Http => self.answered(Ending::of_http(head.status)),
        }
    }

    /// The trailers are here.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        if self.form == ReplyForm::Grpc {
            self.answered(Ending::of_grpc(trailers));
        }
        if let Some(load) = &mut self.load {
            load.trailers(trailers);
        }
    }

    fn answered(&mut self, ending: Ending) {
        if let Some(load) = &mut self.load {
            load.succeeded(ending.is_success());
        }
        self.tell(ending);
    }

    /// There was no response: the connection broke, or the server reset the stream.
    pub(crate) fn failed(&mut self, failure: &SendFailure) {
        match failure {
            SendFailure::Refused | SendFailure::Reset(_) | SendFailure::Unacceptable(_) | SendFailure::Io(_) => {
                self.tell(Ending::Broken);
            }
            // "only RPCs that reached a subchannel" (A50): the server has not seen these.
            SendFailure::Unsent(_) | SendFailure::GoneAway | SendFailure::Invalid(_) => self.is_open = false,
            // Given up by the caller.
            SendFailure::RequestBody(_) => {}
        }
    }

    /// There was no response in time.
    pub(crate) fn timed_out(&mut self) {
        self.tell(Ending::TimedOut);
    }

    /// The response ended before its end: reset, connection lost, deadline.
    pub(crate) fn broken(&mut self) {
        if let Some(load) = &mut self.load {
            load.succeeded(false);
        }
        self.tell(Ending::Broken);
    }

    fn tell(&mut self, ending: Ending) {
        if let Some(endpoint) = &self.endpoint {
            self.is_open = false;
            endpoint.count(ending);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.is_open {
            self.tell(Ending::Cancelled);
        }
    }
}
