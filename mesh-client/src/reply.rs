//! An answer that a filter gives in the place of a backend.
//!
//! Made once, in HTTP's words with gRPC's beside them, and put into those of the call when it is sent: a filter does NOT
//! need to know which of the two a call speaks.

use crate::error::{ReplyForm, grpc_code_of, write_grpc_status};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

/// An answer, as Envoy's filters give it.
///
/// ```
/// use mesh_client::Reply;
/// use http::StatusCode;
///
/// // gRPC: PERMISSION_DENIED, which stands for 403. Other HTTP: 403 and the text.
/// let denied = Reply::new(StatusCode::FORBIDDEN, "not you");
/// // gRPC: RESOURCE_EXHAUSTED, and not the UNAVAILABLE that stands for 429.
/// let limited = Reply::new(StatusCode::TOO_MANY_REQUESTS, "too many").with_grpc_status(8);
/// ```
#[derive(Clone, Debug)]
pub struct Reply {
    status: StatusCode,
    text: Bytes,
    grpc_status: Option<u8>,
    /// Most answers have none.
    headers: Option<Box<HeaderMap>>,
}

impl Reply {
    /// An answer with this status and text. A gRPC call gets the text as its message, and the code that stands for the
    /// status: 400 INTERNAL, 401 UNAUTHENTICATED, 403 PERMISSION_DENIED, 404 UNIMPLEMENTED, 429, 502, 503 and 504
    /// UNAVAILABLE, any other UNKNOWN.
    pub fn new(status: StatusCode, text: impl Into<Bytes>) -> Self {
        Self { status, text: text.into(), grpc_status: None, headers: None }
    }

    /// The code for a gRPC call, if it is not the one that stands for the HTTP status.
    #[must_use]
    pub fn with_grpc_status(mut self, code: u8) -> Self {
        self.grpc_status = Some(code);
        self
    }

    /// One more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.get_or_insert_default().append(name, value);
        self
    }

    /// The response to a call of this form.
    pub(crate) fn into_response(self, form: ReplyForm) -> Response<Bytes> {
        let headers = self.headers.map(|headers| *headers).unwrap_or_default();
        let mut response = Response::new(Bytes::new());
        *response.headers_mut() = headers;
        match form {
            ReplyForm::Grpc => {
                let code = self.grpc_status.unwrap_or_else(|| grpc_code_of(self.status));
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                write_grpc_status(headers, code, &self.text);
            }
            ReplyForm::Http => {
                *response.status_mut() = self.status;
                response.headers_mut().entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
                *response.body_mut() = self.text;
            }
        }
        response
    }
}
