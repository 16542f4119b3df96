//! Places of a pool: one for each connection, from its dial until its socket is closed.
//!
//! A place counts against the cluster's `max_connections`, except that a pool without any may always have one: "if this
//! upstream has no connections, always create one, to prevent pool starvation" (Envoy). Whoever gets none waits for what
//! the pool has; a place that is given up wakes one of them. Calls of other pools are NOT woken: each pool has a
//! connection of its own that they wait for.

use crate::{
    breaker::{Breaker, ConnectionPermit, Counters},
    wakeups::Wakeups,
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::Notify;

/// Raised in [`Places::held`] while the pool dials on its own: calls wait for that, or else there would be one too many.
const WARMING: usize = 1 << (usize::BITS - 1);

/// The places of one pool.
#[derive(Debug)]
pub(super) struct Places {
    /// Sequentially consistent, as everything is that a caller looks at before it waits.
    held: AtomicUsize,
    /// One was given up.
    pub(super) changed: Notify,
    counters: Arc<Counters>,
    wakeups: Arc<Wakeups>,
}

/// One of them. Shared by all that keep its connection from being closed.
#[derive(Debug)]
pub(super) struct Place {
    permit: Option<ConnectionPermit>,
    places: Arc<Places>,
}

impl Places {
    /// Those of a pool that begins with this connection.
    pub(super) fn of_first(
        permit: ConnectionPermit,
        counters: Arc<Counters>,
        wakeups: Arc<Wakeups>,
    ) -> (Arc<Self>, Arc<Place>) {
        let places = Arc::new(Self { held: AtomicUsize::new(1), changed: Notify::new(), counters, wakeups });
        let place = places.place(permit);
        (places, place)
    }

    /// For a call. None while there are as many as may be, and while the pool dials.
    pub(super) fn for_call(self: &Arc<Self>, breaker: Option<&Breaker>) -> Option<Arc<Place>> {
        match self.held.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => Some(self.place(self.counters.first_connection())),
            Err(held) if held & WARMING != 0 => None,
            Err(_) => {
                let permit = breaker.map_or_else(|| Some(self.counters.first_connection()), Breaker::connection)?;
                self.held.fetch_add(1, Ordering::SeqCst);
                Some(self.place(permit))
            }
        }
    }

    /// For the pool, which dials once nobody has any. [`warmed`](Self::warmed) ends that.
    pub(super) fn for_pool(self: &Arc<Self>) -> Option<Arc<Place>> {
        let alone = self.held.compare_exchange(0, WARMING | 1, Ordering::SeqCst, Ordering::SeqCst);
        alone.is_ok().then(|| self.place(self.counters.first_connection()))
    }

    /// The pool has dialled: one call has that connection, the others may dial.
    pub(super) fn warmed(&self) {
        self.held.fetch_and(!WARMING, Ordering::SeqCst);
        self.wakeups.all();
    }

    /// Whether no connection is left.
    pub(super) fn is_empty(&self) -> bool {
        self.held.load(Ordering::SeqCst) & !WARMING == 0
    }

    fn place(self: &Arc<Self>, permit: ConnectionPermit) -> Arc<Place> {
        Arc::new(Place { permit: Some(permit), places: Arc::clone(self) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // First: whoever is woken wants a permit, too.
        self.permit = None;
        self.places.held.fetch_sub(1, Ordering::SeqCst);
        self.places.changed.notify_one();
        self.places.wakeups.one();
    }
}
