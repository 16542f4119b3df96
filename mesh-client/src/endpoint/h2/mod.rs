//! HTTP/2 connections: one driver task each, and calls that talk to h2 directly.
//!
//! A call clones the send handle, enqueues its frames and waits for its own stream; no task and no queue stand
//! between. What the socket does is NOT the calls' affair: the driver owns it.

mod driver;
mod exchange;

pub(super) use driver::run;
pub(super) use exchange::{Open, RecvBody};

use super::{SendFailure, connect::Writes};
use crate::upload::{Head, Upload};
use bytes::Bytes;
use driver::Retired;
use exchange::Exchange;
use h2::client::SendRequest;
use http::response;
use http_body::Body;
use std::{
    fmt, future,
    sync::Arc,
    task::{Context, Poll},
};

/// The calling side of a connection.
pub(super) struct Sender {
    send: SendRequest<Bytes>,
    writes: Arc<Writes>,
    retired: Arc<Retired>,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("h2::Sender")
    }
}

impl Sender {
    /// One that no driver and no peer belongs to.
    #[cfg(test)]
    pub(super) async fn unheard() -> Self {
        let (io, _peer) = tokio::io::duplex(1024);
        let (send, _) = h2::client::handshake(io).await.expect("the preface fits");
        Self { send, writes: Arc::default(), retired: Arc::default() }
    }

    pub(super) fn retire(&self) {
        self.retired.tell();
    }

    /// Sends one attempt and waits for its response headers; what is left to be sent then waits, too.
    pub(super) async fn send<B>(
        &self,
        head: &mut Head,
        upload: &mut Option<Upload<B>>,
    ) -> Result<(response::Parts, RecvBody, Option<Box<Open<B>>>), SendFailure>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        // Read before anything is enqueued: if it has not moved when the connection breaks, nothing of us was written.
        let written = self.writes.count();
        let mut send = self.send.clone();
        let end = upload.as_ref().is_none_or(Upload::is_empty);
        let (response, stream) = match send.send_request(head.give(), end) {
            Ok(pair) => pair,
            // The connection (GOAWAY, closed, ids used up) or the request itself may be at fault: ask.
            Err(error) => {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                return Err(match send.poll_ready(&mut cx) {
                    Poll::Ready(Err(_)) => SendFailure::Unsent(error.to_string()),
                    _ => SendFailure::Invalid(error.to_string()),
                });
            }
        };
        drop(send);
        let mut exchange = Exchange::new(response, (!end).then_some(stream));
        let result = future::poll_fn(|cx| exchange.poll(cx, upload)).await;
        let response = result.map_err(|failure| match failure {
            SendFailure::Io(reason) if self.writes.count() == written => SendFailure::Unsent(reason),
            failure => failure,
        })?;
        let (parts, recv) = response.into_parts();
        Ok((parts, RecvBody::new(recv), exchange.rest(upload)))
    }
}
