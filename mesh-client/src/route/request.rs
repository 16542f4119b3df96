//! What a route matcher may look at: a request's head, borrowed (A28).
//!
//! It exists beside `http::request::Parts` because matchers see a request as the wire would show it: the authority
//! is the service's, `content-type` is there before it was written, and several values are one.
//!
//! It does NOT own or change anything of the request.

use http::{HeaderMap, HeaderName, Method, header::CONTENT_TYPE, request};
use mesh_xds::resource::{HeaderField, HeaderMatch, PseudoHeader};
use std::borrow::Cow;

/// The head of a request, as a [`RouteMatcher`](super::RouteMatcher) sees it.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// `:method`.
    pub method: &'a Method,
    /// The path alone: what `prefix`, `path` and `safe_regex` are compared with.
    pub path: &'a str,
    /// What follows the path's `?`. Only a header matcher on `:path` sees it.
    pub query: Option<&'a str>,
    /// `:scheme`.
    pub scheme: &'a str,
    /// `:authority`.
    pub authority: &'a str,
    /// All other headers.
    pub headers: &'a HeaderMap,
    /// Whether this is a gRPC call: one without `content-type` is matched as if it had `application/grpc`.
    pub is_grpc: bool,
}

impl<'a> RequestHead<'a> {
    /// What a filter or a retry policy may match: the head as it is to be sent, authority and all.
    pub(crate) fn of(head: &'a request::Parts, is_grpc: bool) -> Self {
        Self {
            method: &head.method,
            path: head.uri.path(),
            query: head.uri.query(),
            scheme: head.uri.scheme_str().unwrap_or("http"),
            authority: head.uri.authority().map_or("", |authority| authority.as_str()),
            headers: &head.headers,
            is_grpc,
        }
    }

    /// Whether all of these match.
    pub(crate) fn has(&self, headers: &[HeaderMatch]) -> bool {
        headers.iter().all(|header| header.value.is_match(self.field(&header.name).as_deref(), header.invert))
    }

    /// The value that a header matcher compares; `None` if the header is absent. Allocates only to join several
    /// values and to replace bytes that are not UTF-8.
    pub(crate) fn field(&self, field: &HeaderField) -> Option<Cow<'a, str>> {
        match field {
            HeaderField::Header(name) => self.header(name),
            HeaderField::Pseudo(PseudoHeader::Method) => Some(self.method.as_str().into()),
            HeaderField::Pseudo(PseudoHeader::Scheme) => Some(self.scheme.into()),
            HeaderField::Pseudo(PseudoHeader::Authority) => Some(self.authority.into()),
            // The pseudo header is path and query (RFC 9113, 8.3.1).
            HeaderField::Pseudo(PseudoHeader::Path) => Some(match self.query {
                None => self.path.into(),
                Some(query) => format!("{}?{query}", self.path).into(),
            }),
            // "Names ending -bin behave as absent" (A28): their values are not text before they are sent.
            HeaderField::Binary => None,
        }
    }

    fn header(&self, name: &HeaderName) -> Option<Cow<'a, str>> {
        let joined = Self::joined(self.headers, name);
        // The transport will write it; routing must not depend on who writes it when (A28).
        joined.or_else(|| (self.is_grpc && name == CONTENT_TYPE).then_some(Cow::Borrowed("application/grpc")))
    }

    /// The values of a header as a matcher compares them: "joined with `,`", without a space (A28).
    pub(crate) fn joined(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
        let mut values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let first = values.next()?;
        let Some(second) = values.next() else { return Some(first) };
        let mut joined = format!("{first},{second}");
        for value in values {
            joined.push(',');
            joined.push_str(&value);
        }
        Some(joined.into())
    }
}
