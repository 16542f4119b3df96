//! HTTP/1.1: a pool of connections to one endpoint, behind the same face as one HTTP/2 connection.
//!
//! A call claims an idle connection, or the place for one that it dials; it goes back when the request was written and the
//! response has been read, and is closed otherwise. Who gets neither waits, in the pick. hyper parses; this room does NOT.

mod message;
mod place;
mod pool;

pub(super) use message::RecvBody;
pub(super) use pool::{First, run};

use super::SendFailure;
use crate::{
    breaker::{Breaker, Waiting},
    upload::{BodyFailed, Head, Lent, Upload, lend},
};
use http::{StatusCode, response};
use http_body::Body;
use message::{ErasedBody, Lease, request};
use place::Place;
use pool::{Pooled, Shared};
use std::{
    error::Error as _,
    fmt,
    sync::{Arc, atomic::Ordering},
};

/// The calling side of an endpoint's connections.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

/// A call's right to one connection.
pub(super) struct Claim {
    pool: Arc<Shared>,
    place: Arc<Place>,
    idle: Option<Box<Pooled>>,
    /// A call whose connection is not there yet is one that waits.
    waiting: Option<Waiting>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("h1::Pool").field("peer", &self.0.peer).finish_non_exhaustive()
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("h1::Claim").field("dials", &self.dials()).finish_non_exhaustive()
    }
}

impl Pool {
    fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    pub(super) fn retire(&self) {
        self.0.retired.store(true, Ordering::Release);
        self.0.places.changed.notify_one();
    }

    /// None while there are as many connections as may be, and none of them is idle.
    pub(super) fn claim(&self, breaker: Option<&Breaker>) -> Option<Claim> {
        let idle = self.0.newest();
        let place = match &idle {
            Some(connection) => Arc::clone(&connection.place),
            None => self.0.places.for_call(breaker)?,
        };
        self.0.used();
        Some(Claim { pool: Arc::clone(&self.0), place, idle, waiting: None })
    }
}

impl Claim {
    /// Whether the connection has to be made.
    pub(super) fn dials(&self) -> bool {
        self.idle.is_none()
    }

    /// Counts the call as one that waits, for as long as that takes.
    pub(super) fn waits(&mut self, waiting: Option<Waiting>) {
        self.waiting = waiting;
    }

    /// Sends one attempt and waits for its response headers.
    pub(super) async fn send<B>(
        &mut self,
        head: &mut Head,
        upload: &mut Option<Upload<B>>,
    ) -> Result<(response::Parts, RecvBody, Option<Lent<B>>), SendFailure>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        let request = request(head)?;
        let mut connection = self.connection().await?;
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
        let rest = loan.settle();
        let (parts, body) = response.into_parts();
        let lease = Lease { connection, written, pool: Arc::clone(&self.pool) };
        Ok((parts, RecvBody::new(body, lease), rest))
    }

    async fn connection(&mut self) -> Result<Box<Pooled>, SendFailure> {
        // The one that was claimed, or another that has become idle.
        while let Some(mut connection) = self.idle.take().or_else(|| self.pool.newest()) {
            // At once, or after one more turn of its driver: nothing is left to be written or read. An error if the
            // server has closed it meanwhile.
            if connection.sender.ready().await.is_ok() {
                (self.place, self.waiting) = (Arc::clone(&connection.place), None);
                return Ok(connection);
            }
        }
        let dialled = self.pool.dial(Arc::clone(&self.place)).await;
        self.waiting = None;
        dialled.map_err(SendFailure::Unsent)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A call that ended before it was sent.
        if let Some(connection) = self.idle.take() {
            self.pool.give_back(connection);
        }
    }
}
