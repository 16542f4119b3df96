//! One dial of one endpoint, from its addresses to the end of the connection.
//!
//! It fails for certain within [`DialOptions::connect_timeout`], which also covers the proof that the peer speaks HTTP/2.
//! This file does NOT retry: backoff is the cluster worker's.

#[cfg(feature = "http1")]
use super::h1;
use super::{
    Connection, ConnectionEvent, Endpoint, Gate, Protocol,
    connect::{DialOptions, Tracked, happy_eyeballs, interleaved},
    h2,
};
#[cfg(feature = "http1")]
use crate::task::Tasks;
use crate::{breaker::Counters, later::later, wakeups::Wakeups};
use mesh_xds::resource::ClusterName;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};

/// Run as a task by the cluster worker: it ends when the connection is closed.
#[derive(Debug)]
pub(crate) struct Dial {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) cluster: ClusterName,
    pub(crate) node: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) options: Arc<DialOptions>,
    /// Of the cluster: they know of the connection while it is dialled and open.
    pub(crate) counters: Arc<Counters>,
    /// For the connections of a pool.
    #[cfg(feature = "http1")]
    pub(crate) tasks: Tasks,
    pub(crate) wakeups: Arc<Wakeups>,
}

impl Dial {
    /// Connects, reports what happens through `report` (false = nobody listens any more), and drives the connection.
    pub(crate) async fn run(self, report: impl Fn(ConnectionEvent) -> bool) {
        // An endpoint is dialled here when it has no connection.
        let permit = self.counters.first_connection();
        let deadline = later(Instant::now(), self.options.connect_timeout);
        let connected = timeout_at(deadline, happy_eyeballs(interleaved(self.endpoint.addresses.iter()))).await;
        let (io, peer) = match connected {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => {
                report(ConnectionEvent::Failed(error));
                return;
            }
            Err(_elapsed) => {
                report(ConnectionEvent::Failed(format!("no connection within {:?}", self.options.connect_timeout)));
                return;
            }
        };
        let gate = Arc::new(Gate::new(self.wakeups));
        let (endpoint, cluster, node, shared) = (self.endpoint, self.cluster, self.node, Arc::clone(&gate));
        let connection = |transport| Connection { endpoint, cluster, node, peer, gate: shared, transport };
        match self.protocol {
            Protocol::Http2 => {
                h2::run(Tracked::new(io), gate, deadline, &self.options, connection, report).await;
                drop(permit);
            }
            #[cfg(feature = "http1")]
            Protocol::Http1 => {
                let first = h1::First { io, peer, permit, counters: self.counters };
                h1::run(first, gate, &self.options, self.tasks, connection, report).await;
            }
        }
    }
}
