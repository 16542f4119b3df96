//! One attempt in the books of load reports (LRS): from the pick to the end of the response body.
//!
//! Where the cluster reports no load this is a `None` that is looked at: no count, no clock, no allocation. What counts as a
//! success is decided here and nowhere else; what becomes of the counts is NOT known.

use crate::error::ReplyForm;
use http::{HeaderMap, StatusCode, response};
use mesh_xds::load::{CallLoad, LocalityLoad};

/// The trailer with the outcome of a gRPC call.
const GRPC_STATUS: &str = "grpc-status";

/// An attempt that is in progress until this is dropped. It has failed unless it is known to have succeeded: who cancels
/// counts as an error, as in grpc-go.
#[derive(Debug)]
pub(crate) struct Attempt {
    load: Option<CallLoad>,
    form: ReplyForm,
}

impl Attempt {
    /// Begins one, with the counters of the locality that was picked.
    pub(crate) fn begin(load: Option<LocalityLoad>, form: ReplyForm) -> Self {
        Self { load: load.map(LocalityLoad::start), form }
    }

    /// The response's head is here.
    pub(crate) fn head(&mut self, head: &response::Parts, is_whole: bool) {
        let Some(load) = &mut self.load else { return };
        match self.form {
            // Trailers-only: the head is the trailers.
            ReplyForm::Grpc if is_whole => self.trailers(&head.headers),
            // gRPC's outcome is in the trailers.
            ReplyForm::Grpc => {}
            // As in Envoy: errors are the server's errors; 4xx is an answer.
            ReplyForm::Http => load.succeeded(head.status < StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// The trailers are here.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        let Some(load) = &mut self.load else { return };
        if self.form == ReplyForm::Grpc {
            load.succeeded(trailers.get(GRPC_STATUS).is_some_and(|status| status.as_bytes() == b"0"));
        }
        load.trailers(trailers);
    }

    /// The response ended before its end: reset, connection lost, deadline.
    pub(crate) fn broken(&mut self) {
        if let Some(load) = &mut self.load {
            load.succeeded(false);
        }
    }
}
