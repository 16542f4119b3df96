//! What a channel's calls and its apply task share: the routing table, and who waits for one.
//!
//! Which HTTP version a call speaks is decided here, too, because clusters are warmed for it before calls come. It does
//! NOT route.

use super::CallOptions;
#[cfg(feature = "http1")]
use super::HttpVersion;
use crate::{apply::Table, cluster::Cluster, endpoint::Protocol, error::ReplyForm, wakeups::Wakeups};
use arc_swap::ArcSwap;
use http::Version;
#[cfg(feature = "http1")]
use mesh_xds::resource::HttpProtocol;
use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

/// The table, and who waits for one: written by apply, read by calls.
#[derive(Debug)]
pub(crate) struct Shared {
    table: ArcSwap<Table>,
    pub(crate) wakeups: Wakeups,
    /// Each [`Use`] that was made of the channel: new clusters are connected for these before the routes point at them.
    uses: AtomicU8,
    #[cfg(feature = "http1")]
    http_protocol: HttpVersion,
}

/// What a channel is used for. Together with the cluster it decides which HTTP version is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Grpc = 1,
    /// Plain HTTP, in a request of version 1.
    Http1 = 2,
    /// Plain HTTP, in a request of version 2.
    Http2 = 4,
    /// Somebody waits until it is ready; for what, calls have not said yet.
    Ready = 8,
}

impl Use {
    const ALL: [Self; 4] = [Self::Grpc, Self::Http1, Self::Http2, Self::Ready];

    pub(super) fn of(version: Version, form: ReplyForm) -> Self {
        match form {
            ReplyForm::Grpc => Self::Grpc,
            ReplyForm::Http if version == Version::HTTP_2 => Self::Http2,
            ReplyForm::Http => Self::Http1,
        }
    }
}

impl Shared {
    #[cfg_attr(not(feature = "http1"), expect(unused_variables, reason = "there is one version"))]
    pub(crate) fn new(options: &CallOptions) -> Self {
        let pending = Table::Pending("waiting for the control plane".into());
        Self {
            table: ArcSwap::from_pointee(pending),
            wakeups: Wakeups::default(),
            uses: AtomicU8::new(0),
            #[cfg(feature = "http1")]
            http_protocol: options.http_protocol,
        }
    }

    pub(crate) fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// What a call waits for.
    pub(super) fn missing(&self) -> Arc<str> {
        match &**self.table() {
            Table::Pending(missing) | Table::Failed(missing) => Arc::clone(missing),
            Table::Ready(_) | Table::ShutDown => "a configuration".into(),
        }
    }

    pub(crate) fn publish(&self, table: Table) {
        let table = Arc::new(table);
        self.table.rcu(|current| match **current {
            // Nothing comes after a shutdown.
            Table::ShutDown => Arc::clone(current),
            _ => Arc::clone(&table),
        });
        self.wakeups.all();
    }

    pub(super) fn used(&self, usage: Use) {
        // Read first: the cache line stays shared by all callers.
        if self.uses.load(Ordering::Relaxed) & usage as u8 == 0 {
            self.uses.fetch_or(usage as u8, Ordering::Relaxed);
        }
    }

    /// Starts what calls like those so far will need of a cluster.
    pub(crate) fn warm(&self, cluster: &Cluster) {
        let uses = self.uses.load(Ordering::Relaxed);
        for usage in Use::ALL.into_iter().filter(|usage| uses & *usage as u8 != 0) {
            // To be ready for anything is to be ready for what calls have asked for, if they have.
            if usage != Use::Ready || cluster.running().next().is_none() {
                cluster.backends(self.protocol(cluster, usage));
            }
        }
    }

    /// gRPC is always HTTP/2; the rest as the cluster says, or else the channel.
    #[cfg(feature = "http1")]
    pub(super) fn protocol(&self, cluster: &Cluster, usage: Use) -> Protocol {
        match (usage, cluster.http_protocol(), self.http_protocol) {
            (Use::Grpc, ..) => Protocol::Http2,
            (Use::Ready, HttpProtocol::Http1, _) => Protocol::Http1,
            (Use::Ready, ..) => Protocol::Http2,
            (_, HttpProtocol::Http2, _) | (_, HttpProtocol::Unspecified, HttpVersion::Http2) => Protocol::Http2,
            (Use::Http2, HttpProtocol::Downstream, _) => Protocol::Http2,
            // ALPN decides for `auto_config` under TLS; in plaintext it means HTTP/1.1.
            (Use::Http1 | Use::Http2, ..) => Protocol::Http1,
        }
    }

    #[cfg(not(feature = "http1"))]
    pub(super) fn protocol(&self, _: &Cluster, _: Use) -> Protocol {
        Protocol::Http2
    }
}
