//! HTTP/1.1: a pool of connections to one endpoint, behind the same face as one HTTP/2 connection.
//!
//! A call takes an idle connection or dials one; it goes back when the request was written and the response has been read,
//! and is closed otherwise. hyper parses; this room does NOT.

mod message;
mod pool;

pub(super) use message::RecvBody;
pub(super) use pool::run;

use super::SendFailure;
use crate::upload::{BodyFailed, Upload, lend};
use http::{StatusCode, request, response};
use http_body::Body;
use message::{ErasedBody, Lease, request};
use pool::{Pooled, Shared, lock};
use std::{
    error::Error as _,
    fmt,
    sync::{Arc, atomic::Ordering},
};

/// The calling side of an endpoint's connections.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("h1::Pool").field("peer", &self.0.peer).finish_non_exhaustive()
    }
}

impl Pool {
    fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    pub(super) fn retire(&self) {
        self.0.retired.store(true, Ordering::Release);
        self.0.changed.notify_one();
    }

    /// Sends one attempt and waits for its response headers.
    pub(super) async fn send<B>(
        &self,
        head: &request::Parts,
        upload: &mut Option<Upload<B>>,
    ) -> Result<(response::Parts, RecvBody), SendFailure>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        let request = request(head)?;
        let mut connection = self.ready_connection().await?;
        // hyper takes the body; the next attempt needs it back.
        let (loan, body) = lend(upload);
        let written = loan.written();
        let sent = connection.sender.try_send_request(request.map(|()| ErasedBody::new(body))).await;
        let response = sent.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            let error = error.into_error();
            match error.to_string() {
                reason if unsent => SendFailure::Unsent(reason),
                reason if error.is_parse() => SendFailure::Unacceptable(reason),
                // hyper counts it as the user's fault when a connection's task is aborted, as a shutdown does.
                reason if error.source().is_some_and(|source| error.is_user() && !source.is::<BodyFailed>()) => {
                    SendFailure::Io(reason)
                }
                // The caller's body; its own words are the source.
                reason if error.is_user() => {
                    SendFailure::RequestBody(error.source().map_or(reason, ToString::to_string))
                }
                reason => SendFailure::Io(reason),
            }
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(SendFailure::Unacceptable("101 Switching Protocols, which nobody asked for".to_owned()));
        }
        loan.settle();
        let (parts, body) = response.into_parts();
        let lease = Lease { connection, written, pool: Arc::clone(&self.0) };
        Ok((parts, RecvBody::new(body, lease)))
    }

    async fn ready_connection(&self) -> Result<Pooled, SendFailure> {
        if let Some(connection) = self.idle_connection().await {
            return Ok(connection);
        }
        let _dialling = self.0.dialling.read().await;
        // What the pool dialled, if it did.
        if let Some(connection) = self.idle_connection().await {
            return Ok(connection);
        }
        self.0.dial().await.map_err(|reason| {
            // The next pick comes before the pool's next turn.
            self.0.gate.close();
            *lock(&self.0.lost) = Some(reason.clone());
            self.0.changed.notify_one();
            SendFailure::Unsent(reason)
        })
    }

    async fn idle_connection(&self) -> Option<Pooled> {
        while let Some(mut connection) = self.0.newest() {
            // At once, or after one more turn of its driver: nothing is left to be written or read. An error if the
            // server has closed it meanwhile.
            if connection.sender.ready().await.is_ok() {
                return Some(connection);
            }
        }
        None
    }
}
