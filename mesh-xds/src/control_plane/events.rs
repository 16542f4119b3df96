//! What happened on the control plane's streams, for tests and logs to follow.
//!
//! Events are made only while somebody listens, and listening can NOT slow a stream down: a receiver that is too far
//! behind is told how much it missed.

use std::{fmt, sync::Arc};
use tokio::sync::broadcast;

/// Which variant of the xDS protocol a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// State of the world: `StreamAggregatedResources`.
    Sotw,
    /// Incremental: `DeltaAggregatedResources`.
    Delta,
}

/// One thing that happened on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A client opened an ADS stream.
    StreamOpened {
        /// Number of the stream, from 1, never reused.
        stream: u64,
        /// What is spoken on it.
        dialect: Dialect,
    },
    /// A DiscoveryRequest or DeltaDiscoveryRequest arrived.
    Request {
        /// The stream's number.
        stream: u64,
        /// Node id from the stream's first request.
        node: Arc<str>,
        /// Which resource type it is about.
        type_url: String,
        /// `version_info`: the last version that the client accepted. Empty in delta.
        version: String,
        /// `response_nonce`.
        nonce: String,
        /// `resource_names`; in delta `resource_names_subscribe`.
        names: Vec<String>,
        /// `resource_names_unsubscribe`. Empty in SotW.
        unsubscribed: Vec<String>,
        /// `initial_resource_versions`: names and their versions, sorted. Empty in SotW.
        held: Vec<(String, String)>,
        /// What kind of request it is.
        verdict: Verdict,
    },
    /// A DiscoveryResponse or DeltaDiscoveryResponse was handed to the stream.
    Response {
        /// The stream's number.
        stream: u64,
        /// Node id from the stream's first request.
        node: Arc<str>,
        /// Which resource type it is about.
        type_url: String,
        /// `version_info`; in delta `system_version_info`.
        version: String,
        /// `nonce`.
        nonce: String,
        /// Names of the resources inside; empty for a hand-made response.
        names: Vec<String>,
        /// `removed_resources`. Empty in SotW.
        removed: Vec<String>,
    },
    /// A client opened an LRS stream.
    LoadStreamOpened {
        /// Number of the LRS stream, from 1, never reused.
        stream: u64,
        /// Node id from the stream's first request.
        node: Arc<str>,
    },
    /// A client reported its load; [`ControlPlane::load_reports`](super::ControlPlane::load_reports) has what it said.
    LoadReport {
        /// Number of the LRS stream.
        stream: u64,
        /// Node id from the stream's first request.
        node: Arc<str>,
        /// The clusters with something to say.
        clusters: Vec<String>,
    },
    /// An LRS stream ended, whoever ended it.
    LoadStreamClosed {
        /// Number of the LRS stream.
        stream: u64,
        /// Node id from the stream's first request.
        node: Arc<str>,
    },
    /// A stream ended, whoever ended it.
    StreamClosed {
        /// The stream's number.
        stream: u64,
        /// Node id from the stream's first request; empty if there was none.
        node: Arc<str>,
    },
}

/// What a request says about the response whose nonce it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It judges none: a first request, or a change of names.
    Request,
    /// The response was accepted: the newest one, or in delta any.
    Ack,
    /// The response was refused: the newest one, or in delta any.
    Nack {
        /// `error_detail.message`.
        message: String,
    },
    /// It answers an older response, or none that we know. In SotW it is ignored, in delta its names count.
    Stale,
}

/// Receives [`Event`]s from the moment it was made.
#[derive(Debug)]
pub struct EventReceiver(pub(super) broadcast::Receiver<Event>);

/// Why a receiver has no event to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    /// So many events were overwritten before they were read; the next call goes on after them.
    Behind(u64),
    /// The control plane is gone.
    Closed,
}

impl EventReceiver {
    /// The next event.
    ///
    /// # Errors
    /// [`Missed`] when events were lost, or when there will be none.
    pub async fn recv(&mut self) -> Result<Event, Missed> {
        self.0.recv().await.map_err(|error| match error {
            broadcast::error::RecvError::Lagged(count) => Missed::Behind(count),
            broadcast::error::RecvError::Closed => Missed::Closed,
        })
    }

    /// The next event for which `wanted` holds; others are dropped.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&Event) -> bool) -> Result<Event, Missed> {
        loop {
            let event = self.recv().await?;
            if wanted(&event) {
                return Ok(event);
            }
        }
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Behind(count) => write!(f, "{count} events were missed"),
            Self::Closed => f.write_str("the control plane is gone"),
        }
    }
}

impl std::error::Error for Missed {}
