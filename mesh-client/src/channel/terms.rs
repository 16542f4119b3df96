//! What the application says of a call, read once, before anything is done with it.
//!
//! It does NOT change the request.

use crate::{
    call::{CallAuthority, WaitForReady},
    deadline,
    error::ReplyForm,
};
use http::{request, uri::Authority};
use std::time::Duration;

/// What the application says of a call, beside the request itself.
pub(super) struct Terms {
    pub(super) form: ReplyForm,
    /// Its `grpc-timeout`.
    pub(super) timeout: Option<Duration>,
    pub(super) has_user_agent: bool,
    /// For an endpoint, until the deadline.
    pub(super) waits: bool,
    /// Its own word for `:authority`.
    pub(super) authority: Option<Authority>,
}

impl Terms {
    pub(super) fn of(head: &request::Parts) -> Self {
        let (mut content_type, mut timeout, mut user_agent) = (None, None, None);
        // One look at each header is less than a search for each of these, unless there are dozens.
        for (name, value) in &head.headers {
            let first = match name.as_str() {
                "content-type" => &mut content_type,
                "grpc-timeout" => &mut timeout,
                "user-agent" => &mut user_agent,
                _ => continue,
            };
            first.get_or_insert(value);
        }
        Self {
            form: ReplyForm::of_content_type(content_type),
            timeout: timeout.and_then(deadline::parse),
            has_user_agent: user_agent.is_some(),
            waits: head.extensions.get::<WaitForReady>().is_some(),
            authority: head.extensions.get::<CallAuthority>().map(|CallAuthority(authority)| authority.clone()),
        }
    }
}
