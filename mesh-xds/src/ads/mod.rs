//! The conversation with a control plane over one ADS stream.
//!
//! `protocol` knows what to say and `backoff` when to try again, both without I/O; `stream` is the task that
//! dials and decodes, `messages` spells the words, `wire` tells when the transport took them. This room does NOT
//! decide what is needed or what survives an error.

mod asked;
mod backoff;
mod codec;
mod connect;
mod connection;
mod decoder;
mod jwt;
mod messages;
#[cfg(test)]
mod offline_tests;
mod protocol;
mod stream;
mod wire;

pub(crate) use backoff::{Again, Backoff};
pub(crate) use connect::Dialer;
pub(crate) use messages::node_message;
pub(crate) use protocol::{Protocol, Request, Verdict};
pub(crate) use stream::{Event, Response, StreamTask, describe};
#[cfg(test)]
pub(crate) use {offline_tests::Offline, protocol::Asks};
