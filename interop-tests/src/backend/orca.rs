//! Load reports of a backend in its trailers (ORCA, A51): what the caller puts into `orca-report-bin` comes back as the
//! report of the call.
//!
//! It does NOT look into the report: a test may send anything.

use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tonic::body::Body;

/// Asks for a report, in the encoding of the trailer.
const REQUEST: &str = "orca-report-bin";
const TRAILER: &str = "endpoint-load-metrics-bin";

/// The report that a call asks for.
pub(super) fn asked_for(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(REQUEST).cloned()
}

/// The response with that report in its trailers, if it has any.
pub(super) fn reporting(response: Response<Body>, report: HeaderValue) -> Response<Body> {
    let add = move |frame: Frame<_>| match frame.into_trailers() {
        Ok(mut trailers) => {
            trailers.insert(TRAILER, report.clone());
            Frame::trailers(trailers)
        }
        Err(data) => data,
    };
    response.map(|body| Body::new(body.map_frame(add)))
}
