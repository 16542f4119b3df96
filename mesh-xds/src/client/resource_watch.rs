//! A watch of one resource by itself, for programs that want xDS without targets.
//!
//! Any [`Watchable`] type will do, a user's own as well. It does NOT follow references.

use super::{Closed, Command, WatchId, XdsClient};
use crate::{assemble::Found, resource::Watchable};
use std::{fmt, marker::PhantomData, sync::Arc};
use tokio::sync::watch;

/// What is known of a resource (A88).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceUpdate<T> {
    /// Nothing yet.
    Pending,
    /// A good value.
    Ready {
        /// The newest one that is good.
        value: Arc<T>,
        /// Why it may be out of date: an ambient error, which goes away by itself when it is over.
        error: Option<Arc<str>>,
    },
    /// There is no value to use, and this is why.
    Failed(Arc<str>),
}

/// A watched resource. Dropping it unsubscribes.
///
/// ```no_run
/// # async fn run(client: mesh_xds::XdsClient) -> Result<(), mesh_xds::Closed> {
/// use mesh_xds::{ResourceUpdate, resource::ClusterLoadAssignment};
/// let mut watch = client.watch_resource::<ClusterLoadAssignment>("greeter");
/// while let Ok(update) = watch.changed().await {
///     match update {
///         ResourceUpdate::Ready { value, .. } => println!("{} endpoints", value.endpoints().count()),
///         ResourceUpdate::Failed(why) => println!("{why}"),
///         ResourceUpdate::Pending => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct ResourceWatch<T> {
    id: WatchId,
    values: watch::Receiver<Found>,
    client: XdsClient,
    of: PhantomData<fn() -> T>,
}

impl<T: Watchable> ResourceWatch<T> {
    pub(super) fn new(id: WatchId, values: watch::Receiver<Found>, client: XdsClient) -> Self {
        Self { id, values, client, of: PhantomData }
    }

    /// The newest value.
    pub fn current(&self) -> ResourceUpdate<T> {
        update(&self.values.borrow())
    }

    /// Waits for a value that [`ResourceWatch::changed`] has not returned yet; values in between may be skipped.
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Closed`] when the client's runtime is gone.
    pub async fn changed(&mut self) -> Result<ResourceUpdate<T>, Closed> {
        self.values.changed().await.map_err(|_| Closed)?;
        Ok(update(&self.values.borrow_and_update()))
    }
}

fn update<T: Watchable>(found: &Found) -> ResourceUpdate<T> {
    match found {
        Found::Pending => ResourceUpdate::Pending,
        Found::Failed(text) => ResourceUpdate::Failed(Arc::clone(text)),
        // The subscription was made for this type: a resource of another one is never its answer.
        Found::Usable { value, error } => T::from_resource(value)
            .map_or(ResourceUpdate::Pending, |value| ResourceUpdate::Ready { value, error: error.clone() }),
    }
}

impl<T> fmt::Debug for ResourceWatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResourceWatch").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<T> Drop for ResourceWatch<T> {
    fn drop(&mut self) {
        self.client.0.tell(Command::Unwatch { id: self.id });
    }
}
