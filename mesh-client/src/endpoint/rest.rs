//! What is left of a request whose response has begun, until it is known whether the response is the caller's.
//!
//! If it is, the rest goes on by itself. If not, as when a policy repeats the attempt, the upload is wanted back. Nothing of it is
//! sent over HTTP/2 meanwhile; nobody waits between the two, so this is no pause. It does NOT decide which of the two happens.

use super::{RecvBody, h2};
#[cfg(feature = "http1")]
use crate::upload::Lent;
use crate::upload::Upload;
use http_body::Body;
use std::fmt;

/// The rest of a request, and where it goes.
pub(crate) enum Rest<B> {
    /// On its stream. Few calls have one.
    H2(Box<h2::Open<B>>),
    /// hyper has it.
    #[cfg(feature = "http1")]
    H1(Lent<B>),
}

impl<B> Rest<B>
where
    B: Body + Send + Unpin + 'static,
    B::Error: fmt::Display,
{
    /// It goes on, for as long as the response lasts.
    pub(crate) fn go_on(self, response: &mut RecvBody) {
        match (self, response) {
            (Self::H2(open), RecvBody::H2(response)) => response.ends(open.pump()),
            // hyper goes on with it anyway.
            #[cfg(feature = "http1")]
            (Self::H1(_) | Self::H2(_), _) => {}
        }
    }

    /// Whether another attempt could send the whole upload.
    pub(crate) fn can_replay(&self) -> bool {
        match self {
            Self::H2(open) => open.upload.can_replay(),
            #[cfg(feature = "http1")]
            Self::H1(lent) => lent.can_replay(),
        }
    }

    /// The upload, if another attempt can still send all of it: hyper goes on while the response is looked at.
    pub(crate) fn take_back(self) -> Option<Upload<B>> {
        match self {
            Self::H2(open) => Some(open.upload),
            #[cfg(feature = "http1")]
            Self::H1(lent) => lent.recall(),
        }
    }
}
