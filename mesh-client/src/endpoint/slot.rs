//! A call's part of a connection, from the pick to the end of the response.
//!
//! It does NOT know what a connection is made of; it sends over it, and gives back what it took when it is dropped.

#[cfg(feature = "http1")]
use super::h1;
use super::{Connection, Endpoint, RecvBody, Rest, SendFailure, Transport};
use crate::{
    breaker::{Permit, Waiting},
    upload::{Head, Upload},
};
use http::response;
use http_body::Body;
use mesh_xds::{load::LocalityLoad, resource::ClusterName};
use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

/// What a call has of a connection.
#[derive(Debug)]
pub(super) enum Claim {
    /// One of its streams.
    Stream,
    /// All of it.
    #[cfg(feature = "http1")]
    Connection(h1::Claim),
}

/// A call's right to one stream of a connection, for as long as the response lasts.
#[derive(Debug)]
pub(crate) struct Slot {
    connection: Arc<Connection>,
    claim: Claim,
    /// Counts the call, if its cluster reports load.
    load: Option<LocalityLoad>,
    /// The circuit breaker's.
    permit: Option<Permit>,
}

impl Slot {
    pub(super) fn new(connection: Arc<Connection>, claim: Claim) -> Self {
        Self { connection, claim, load: None, permit: None }
    }

    /// Whom the call goes to.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.connection.peer
    }

    /// The endpoint it goes to.
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.connection.endpoint
    }

    /// The same, to be counted there.
    pub(crate) fn counted(mut self, load: Option<&LocalityLoad>) -> Self {
        self.load = load.cloned();
        self
    }

    /// The same, in flight as the circuit breaker counts it.
    pub(crate) fn admitted(mut self, permit: Option<Permit>) -> Self {
        self.permit = permit;
        self
    }

    /// Whether its connection has to be made.
    pub(crate) fn dials(&self) -> bool {
        match &self.claim {
            Claim::Stream => false,
            #[cfg(feature = "http1")]
            Claim::Connection(claim) => claim.dials(),
        }
    }

    /// The same, counted as a call that waits for as long as its connection is made.
    pub(crate) fn waiting(mut self, waiting: Option<Waiting>) -> Self {
        match &mut self.claim {
            Claim::Stream => drop(waiting),
            #[cfg(feature = "http1")]
            Claim::Connection(claim) => claim.waits(waiting),
        }
        self
    }

    /// Whom to tell how the call ends, if anybody wants to know.
    pub(crate) fn watched(&self) -> Option<Arc<Endpoint>> {
        let endpoint = &self.connection.endpoint;
        endpoint.outcomes.is_watched().then(|| Arc::clone(endpoint))
    }

    /// Where to count the call, once.
    pub(crate) fn take_load(&mut self) -> Option<LocalityLoad> {
        self.load.take()
    }

    /// The xDS node that calls.
    pub(crate) fn node(&self) -> &Arc<str> {
        &self.connection.node
    }

    /// The cluster it was picked from.
    pub(crate) fn cluster(&self) -> &ClusterName {
        &self.connection.cluster
    }

    /// Sends one attempt and waits for response headers.
    ///
    /// `upload` keeps what was sent, as far as its cap allows, so that a failed attempt can be repeated: one that got no
    /// response, and one whose response is not wanted. What was not sent before the headers came is the [`Rest`].
    pub(crate) async fn send<B>(
        &mut self,
        head: &mut Head,
        upload: &mut Option<Upload<B>>,
    ) -> Result<(response::Parts, RecvBody, Option<Rest<B>>), SendFailure>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        self.connection.endpoint.attempts.fetch_add(1, Ordering::Relaxed);
        let result = match (&self.connection.transport, &mut self.claim) {
            (Transport::H2(sender), _) => {
                let sent = sender.send(head, upload).await;
                if let Err(SendFailure::Unsent(_)) = sent {
                    // Its driver will notice, too; but the next pick comes before the driver's next turn.
                    self.connection.gate.close();
                }
                sent.map(|(head, body, rest)| (head, RecvBody::H2(body), rest.map(Rest::H2)))
            }
            #[cfg(feature = "http1")]
            (Transport::H1(_), Claim::Connection(claim)) => {
                let sent = claim.send(head, upload).await;
                sent.map(|(head, body, rest)| (head, RecvBody::H1(body), rest.map(Rest::H1)))
            }
            #[cfg(feature = "http1")]
            (Transport::H1(_), Claim::Stream) => Err(SendFailure::Unsent("a pool has no streams".to_owned())),
        };
        result.map_err(|failure| match failure {
            SendFailure::Io(reason) => SendFailure::Io(self.why_lost(reason)),
            failure => failure,
        })
    }

    /// Why the connection is gone: what its driver found out, or else what the socket said.
    pub(crate) fn why_lost(&self, otherwise: String) -> String {
        self.connection.gate.lost.get().cloned().unwrap_or(otherwise)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // First: whoever waits for the stream, or for the connection, wants a permit, too.
        self.permit = None;
        match self.claim {
            Claim::Stream => self.connection.gate.leave(),
            // Goes back to its pool, which wakes somebody.
            #[cfg(feature = "http1")]
            Claim::Connection(_) => {}
        }
    }
}
