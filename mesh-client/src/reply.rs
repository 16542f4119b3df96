//! An answer in the place of a service's: a "local reply" in Envoy's words.
//!
//! Made once, in HTTP's words with gRPC's beside them, and put into those of the call when it is sent: who gives it does NOT
//! need to know which of the two a call speaks.

use crate::error::{Cause, MeshError, ReplyForm, grpc_code_of, write_grpc_status};
use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// "set on a local reply when a request was dropped by a circuit breaker" (Envoy).
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

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
    overloaded: bool,
}

impl Reply {
    /// An answer with this status and text. A gRPC call gets the text as its message, and the code that stands for the
    /// status: 400 INTERNAL, 401 UNAUTHENTICATED, 403 PERMISSION_DENIED, 404 UNIMPLEMENTED, 429, 502, 503 and 504
    /// UNAVAILABLE, any other UNKNOWN.
    pub fn new(status: StatusCode, text: impl Into<Bytes>) -> Self {
        Self { status, text: text.into(), grpc_status: None, headers: None, overloaded: false }
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

    /// What the caller is told of a failure, by this text.
    pub(crate) fn of_cause(cause: &Cause, text: String) -> Self {
        let reply = Self::new(cause.http_status(), text).with_grpc_status(cause.grpc_code());
        match cause {
            Cause::CircuitOpen { .. } | Cause::TooManyPending { .. } => reply.overloaded(),
            _ => reply,
        }
    }

    /// Of a call that a limit has refused: says so to who does not speak gRPC.
    #[must_use]
    pub(crate) fn overloaded(mut self) -> Self {
        self.overloaded = true;
        self
    }

    /// The response to a call of this form.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::{Request, Response, StatusCode};
    /// use http_body_util::Empty;
    /// use mesh_client::{Reply, ReplyBody, ReplyForm};
    /// use tower::{ServiceExt, service_fn};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let polite = service_fn(async |request: Request<Empty<Bytes>>| {
    ///     if request.headers().contains_key("please") {
    ///         return Ok(Response::new(ReplyBody::of_service(Empty::<Bytes>::new())));
    ///     }
    ///     let denied = Reply::new(StatusCode::FORBIDDEN, "say please");
    ///     let response = denied.into_response(ReplyForm::of(request.headers()));
    ///     Ok::<_, std::convert::Infallible>(response.map(ReplyBody::of_reply))
    /// });
    ///
    /// let call = Request::post("/s/m").header("content-type", "application/grpc").body(Empty::new()).unwrap();
    /// assert_eq!(polite.oneshot(call).await.unwrap().headers()["grpc-status"], "7"); // PERMISSION_DENIED
    /// assert_eq!(polite.oneshot(Request::new(Empty::new())).await.unwrap().status(), 403);
    /// # }
    /// ```
    pub fn into_response(self, form: ReplyForm) -> Response<Bytes> {
        let headers = self.headers.map(|headers| *headers).unwrap_or_default();
        let mut response = Response::new(Bytes::new());
        *response.headers_mut() = headers;
        let headers = response.headers_mut();
        match form {
            ReplyForm::Grpc => {
                let code = self.grpc_status.unwrap_or_else(|| grpc_code_of(self.status));
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                write_grpc_status(headers, code, &self.text);
            }
            ReplyForm::Http => {
                headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
                if self.overloaded {
                    headers.insert(OVERLOADED, HeaderValue::from_static("true"));
                }
                *response.status_mut() = self.status;
                *response.body_mut() = self.text;
            }
        }
        response
    }
}

// === Refused ===

/// A response's extension: no backend has answered, a limit has refused the call. A header would not do: a backend can say
/// `x-envoy-overloaded` as well, and then it is one to be asked again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused;

impl Refused {
    /// Whether a response with these extensions is a refusal: a layer's, or a channel's.
    pub(crate) fn is_in(extensions: &Extensions) -> bool {
        let of_channel = || extensions.get::<MeshError>().is_some_and(|error| error.cause().is_refusal());
        extensions.get::<Self>().is_some() || of_channel()
    }
}

// === ReplyBody ===

pin_project! {
    /// The body of a response that may be a [`Reply`]: the service's, or a text.
    #[derive(Debug)]
    pub struct ReplyBody<B> {
        #[pin]
        of_service: Option<B>,
        text: Option<Bytes>,
    }
}

impl<B> ReplyBody<B> {
    /// The service's.
    pub fn of_service(body: B) -> Self {
        Self { of_service: Some(body), text: None }
    }

    /// A reply's.
    pub fn of_reply(text: Bytes) -> Self {
        Self { of_service: None, text: Some(text).filter(|text| !text.is_empty()) }
    }
}

impl<B: Body<Data = Bytes>> Body for ReplyBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        match this.of_service.as_pin_mut() {
            Some(body) => body.poll_frame(cx),
            None => Poll::Ready(this.text.take().map(|text| Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.of_service.as_ref().map_or_else(|| self.text.is_none(), Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let text = || SizeHint::with_exact(self.text.as_ref().map_or(0, |text| text.len() as u64));
        self.of_service.as_ref().map_or_else(text, Body::size_hint)
    }
}
