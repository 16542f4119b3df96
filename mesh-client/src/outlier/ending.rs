//! How a call that reached a host ended, and which endings are successes: the one place that says so, for the books of load
//! reports and for outlier detection, with a mesh and without.
//!
//! ```text
//!  sent: Cancelled ── head ──► what it says ── trailers, end, a break ──► what they say: this counts, once
//! ```
//!
//! Each part of a response may have more to say; whoever stops to listen has the last that was said. Who counts it, and when
//! a call is over, is NOT known here.

use crate::error::{ReplyForm, grpc_status, http_status_of};
use http::{HeaderMap, HeaderValue, StatusCode};

/// How a call that reached a host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With an answer: whether it is a success, and as which HTTP status it counts in a row (of gRPC: what stands for it).
    Answered { success: bool, status: u16 },
    /// The connection broke, or the stream was reset: Envoy's 503.
    Broken,
    /// No answer came in time: Envoy's 504.
    TimedOut,
    /// Given up by the caller: "anything else failure" (A50), and nothing in a row (Envoy).
    Cancelled,
}

/// A call from when it is sent to its end: how it has ended, should this be all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    form: ReplyForm,
    /// `None` if it came to no host.
    ending: Option<Ending>,
}

impl Ending {
    /// gRPC without a status is UNKNOWN.
    const NO_STATUS: Self = Self::Answered { success: false, status: 500 };

    /// Of a response that is not gRPC's. As in Envoy: errors are the server's errors; 4xx is an answer.
    fn of_http(status: StatusCode) -> Self {
        Self::Answered { success: !status.is_server_error(), status: status.as_u16() }
    }

    /// Of a gRPC call that somebody on the way has answered in other words: no such call succeeds ("HTTP to gRPC Status
    /// Code Mapping"). In a row it counts as in Envoy, by the HTTP status, unless that is no error.
    fn of_stranger(status: StatusCode) -> Self {
        let is_error = status.is_client_error() || status.is_server_error();
        if is_error { Self::Answered { success: false, status: status.as_u16() } } else { Self::NO_STATUS }
    }

    fn of_grpc(status: &HeaderValue) -> Self {
        let status = status.as_bytes();
        Self::Answered { success: status == b"0", status: http_status_of(status) }
    }

    pub(crate) fn is_success(self) -> bool {
        matches!(self, Self::Answered { success: true, .. })
    }

    fn is_failed_answer(self) -> bool {
        matches!(self, Self::Answered { success: false, .. })
    }
}

impl Course {
    /// The call is sent.
    pub(crate) fn begin(form: ReplyForm) -> Self {
        Self { form, ending: Some(Ending::Cancelled) }
    }

    pub(crate) fn form(self) -> ReplyForm {
        self.form
    }

    /// How it has ended, if it came to a host.
    pub(crate) fn ending(self) -> Option<Ending> {
        self.ending
    }

    /// The response's head is here.
    pub(crate) fn head(&mut self, status: StatusCode, headers: &HeaderMap) {
        match (self.form, grpc_status(headers)) {
            (ReplyForm::Http, _) => self.ending = Some(Ending::of_http(status)),
            // Trailers-only, or on the way to be.
            (ReplyForm::Grpc, Some(status)) => self.ending = Some(Ending::of_grpc(status)),
            // gRPC's outcome is in the trailers.
            (ReplyForm::Grpc, None) if status == StatusCode::OK && ReplyForm::of(headers) == ReplyForm::Grpc => {}
            (ReplyForm::Grpc, None) => self.ending = Some(Ending::of_stranger(status)),
        }
    }

    /// The trailers are here, and with them the end.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        match (self.form, grpc_status(trailers)) {
            (ReplyForm::Grpc, Some(status)) => self.ending = Some(Ending::of_grpc(status)),
            _ => self.over(),
        }
    }

    /// The response came to its end, and the end has nothing to say.
    pub(crate) fn over(&mut self) {
        if self.ending == Some(Ending::Cancelled) {
            self.ending = Some(Ending::NO_STATUS);
        }
    }

    /// There was no response, or it ended before its end. One that has failed by its head has failed by that.
    pub(crate) fn broken(&mut self) {
        if !self.ending.is_some_and(Ending::is_failed_answer) {
            self.ending = Some(Ending::Broken);
        }
    }

    /// It was not sent: no host has seen it.
    pub(crate) fn unreached(&mut self) {
        self.ending = None;
    }

    /// There was no response in time.
    pub(crate) fn timed_out(&mut self) {
        self.ending = Some(Ending::TimedOut);
    }
}

#[cfg(test)]
mod tests {
    use super::{Course, Ending};
    use crate::error::ReplyForm::{self, Grpc, Http};
    use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

    const OK: Ending = Ending::Answered { success: true, status: 200 };

    fn failed(status: u16) -> Ending {
        Ending::Answered { success: false, status }
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        fields.iter().map(field).collect()
    }

    /// What is told of a response with this head: given up after it, over with these trailers, over without any, broken.
    fn endings(
        form: ReplyForm,
        status: u16,
        head: &[(&'static str, &'static str)],
        trailers: &[(&'static str, &'static str)],
    ) -> [Ending; 4] {
        let mut course = Course::begin(form);
        course.head(StatusCode::from_u16(status).expect("a status"), &headers(head));
        let ends: [&dyn Fn(&mut Course); 4] =
            [&|_| {}, &|course| course.trailers(&headers(trailers)), &Course::over, &Course::broken];
        ends.map(|end| {
            let mut course = course;
            end(&mut course);
            course.ending().expect("it came to a host")
        })
    }

    #[test]
    fn an_answer_counts_by_its_status_wherever_that_stands() {
        let grpc = ("content-type", "application/grpc+proto");
        let text = ("content-type", "text/plain");
        let (ok, unavailable, not_found) = (("grpc-status", "0"), ("grpc-status", "14"), ("grpc-status", "5"));
        let no_status = failed(500);
        for (what, form, status, head, trailers, counted) in [
            ("success", Http, 200, vec![], vec![], [OK, OK, OK, Ending::Broken]),
            ("server's error", Http, 502, vec![], vec![], [failed(502); 4]),
            ("a stranger's field", Http, 200, vec![], vec![unavailable], [OK, OK, OK, Ending::Broken]),
            ("gRPC", Grpc, 200, vec![grpc], vec![ok], [Ending::Cancelled, OK, no_status, Ending::Broken]),
            (
                "gRPC that failed",
                Grpc,
                200,
                vec![grpc],
                vec![unavailable],
                [Ending::Cancelled, failed(503), no_status, Ending::Broken],
            ),
            ("trailers-only", Grpc, 200, vec![grpc, unavailable], vec![], [failed(503); 4]),
            ("a proxy's 503", Grpc, 503, vec![text], vec![], [failed(503); 4]),
            ("a proxy's 503 that claims to be gRPC", Grpc, 503, vec![grpc], vec![], [failed(503); 4]),
            ("a proxy's 404", Grpc, 404, vec![text], vec![], [failed(404); 4]),
            ("a page", Grpc, 200, vec![text], vec![], [no_status; 4]),
            ("elsewhere", Grpc, 302, vec![], vec![], [no_status; 4]),
            (
                "a status with another one before it",
                Grpc,
                503,
                vec![],
                vec![not_found],
                [failed(503), failed(404), failed(503), failed(503)],
            ),
        ] {
            assert_eq!(endings(form, status, &head, &trailers), counted, "{what}");
        }
    }

    #[test]
    fn what_has_no_head_is_given_up_broken_late_or_not_counted() {
        let course = Course::begin(Grpc);
        let (mut broken, mut late, mut unreached) = (course, course, course);
        broken.broken();
        late.timed_out();
        unreached.unreached();
        let endings = [course, broken, late, unreached].map(Course::ending);
        assert_eq!(endings, [Some(Ending::Cancelled), Some(Ending::Broken), Some(Ending::TimedOut), None]);
    }
}
