//! The conversation with a control plane over one ADS stream.
//!
//! `protocol` knows what to say and `backoff` when to try again, both without I/O; `stream` is the task that
//! dials, decodes and carries the words, `wire` tells it when the transport took one. This room does NOT decide what is needed or what survives an error.

mod backoff;
mod connect;
mod decoder;
mod protocol;
mod stream;
mod wire;

pub(crate) use protocol::{Protocol, Request, Verdict};
pub(crate) use stream::{Event, Response, StreamTask};
