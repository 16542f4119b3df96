//! The seam: what a filter is, what it sees of a call, and what it may say.
//!
//! It does NOT say when filters are made, nor in which order they run.

use super::Reply;
use crate::error::ReplyForm;
use http::{request, response};
use mesh_xds::resource::ClusterName;
use std::{fmt, future::Future, pin::Pin};

/// An HTTP filter: it may change a request's head, answer in the place of what is behind it, wait, and change the head of the
/// response.
///
/// One filter serves all calls of its route, at the same time; what belongs to one call it can keep in the extensions of the
/// request's head until the response comes back. A panic fails the call that it happens in, and no other.
///
/// [`MeshBuilder::filter`](crate::MeshBuilder::filter) registers filters for a type URL, so that the control plane says
/// where they run; [`FilterLayer`](crate::FilterLayer) puts one around any service, a client's or a server's.
///
/// ```
/// use http::{HeaderValue, StatusCode, response};
/// use mesh_client::{Filter, FilterRequest, Reply, Verdict};
///
/// /// Calls without a tenant are refused, all others say which version of us made them.
/// struct Tenants;
///
/// impl Filter for Tenants {
///     fn request<'a>(&'a self, request: &'a mut FilterRequest<'_>) -> Verdict<'a> {
///         if !request.head().headers.contains_key("x-tenant") {
///             return Verdict::Reply(Reply::new(StatusCode::FORBIDDEN, "no tenant"));
///         }
///         request.head_mut().headers.insert("x-version", HeaderValue::from_static("7"));
///         Verdict::Continue
///     }
///
///     fn response(&self, _: &FilterRequest<'_>, response: &mut response::Parts) {
///         response.headers.remove("x-internal");
///     }
/// }
/// ```
pub trait Filter: Send + Sync + 'static {
    /// Looks at a request before it is sent, once, however often it is tried then.
    fn request<'a>(&'a self, request: &'a mut FilterRequest<'_>) -> Verdict<'a>;

    /// Looks at what the caller gets: a backend's response, or one that was made here because the call failed or a filter
    /// behind this one answered. Comes only after [`request`](Self::request) has let the call pass.
    fn response(&self, request: &FilterRequest<'_>, response: &mut response::Parts) {
        let _ = (request, response);
    }

    /// Whether [`response`](Self::response) does anything: if not, it is not called. Asked once, when the route's filters are
    /// put together; if all of them say no, none of their calls has to keep its request's headers once they are sent.
    fn sees_responses(&self) -> bool {
        true
    }
}

/// What becomes of a request.
#[must_use]
pub enum Verdict<'a> {
    /// It goes on.
    Continue,
    /// It ends here.
    Reply(Reply),
    /// That is not known yet. The call's deadline covers the wait; when the call is given up, the future is dropped.
    Wait(Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>),
}

/// What becomes of a request in the end: it goes on, or the caller gets this.
pub type Outcome = Result<(), Reply>;

impl fmt::Debug for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Continue => f.write_str("Continue"),
            Self::Reply(reply) => f.debug_tuple("Reply").field(reply).finish(),
            Self::Wait(_) => f.write_str("Wait"),
        }
    }
}

/// A request on its way through the filters.
#[derive(Debug)]
pub struct FilterRequest<'a> {
    head: &'a mut request::Parts,
    form: ReplyForm,
    cluster: Option<&'a ClusterName>,
}

impl<'a> FilterRequest<'a> {
    pub(crate) fn new(head: &'a mut request::Parts, form: ReplyForm, cluster: Option<&'a ClusterName>) -> Self {
        Self { head, form, cluster }
    }

    /// The head: in a channel its URI has scheme and authority.
    pub fn head(&self) -> &request::Parts {
        self.head
    }

    /// The head, to be changed. The route does not change with it.
    pub fn head_mut(&mut self) -> &mut request::Parts {
        self.head
    }

    /// Whether it is a gRPC call, as its `content-type` said when it was made.
    pub fn is_grpc(&self) -> bool {
        self.form == ReplyForm::Grpc
    }

    /// Where the route leads; `None` where nobody is to be called, and in a [`FilterLayer`](crate::FilterLayer).
    pub fn cluster(&self) -> Option<&ClusterName> {
        self.cluster
    }
}
