//! The tasks of a mesh: where they run, who watches them, and how all of them end.
//!
//! Each task ends by itself when its owner is gone, and [`Tasks::ended`] waits for that; only a shutdown whose time is
//! up aborts. A supervised task that panics is logged and starts again from its last input.

use futures_util::FutureExt;
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    task::{AbortHandle, JoinHandle},
};
use tokio_util::task::TaskTracker;

/// Between a panic and the next start: long enough to be no hot loop, short enough to be forgotten.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Workers and connections of one mesh, on its runtime. Clones are the same set.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    runtime: Handle,
    running: TaskTracker,
    /// Of those that run, and of some that do not any more: see [`Tasks::spawn`].
    handles: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Tasks {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { runtime, running: TaskTracker::new(), handles: Arc::default() }
    }

    pub(crate) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let task = self.running.spawn_on(task, &self.runtime);
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if handles.len() == handles.capacity() {
            // About to grow: first forget what has ended.
            handles.retain(|handle| !handle.is_finished());
        }
        handles.push(task.abort_handle());
        task
    }

    /// The mesh is shutting down.
    pub(crate) fn close(&self) {
        self.running.close();
    }

    /// Whether [`close`](Self::close) was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.running.is_closed()
    }

    /// Waits until every task has ended; only after [`close`](Self::close).
    pub(crate) async fn ended(&self) {
        self.running.wait().await;
    }

    /// Ends every task where it stands: sockets close, and calls on them fail.
    pub(crate) fn abort(&self) {
        let handles = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        for handle in handles {
            handle.abort();
        }
    }
}

/// What `start` makes; again, after a delay, whenever it panics.
pub(crate) async fn supervised<Fut>(name: &'static str, mut start: impl FnMut() -> Fut)
where
    Fut: Future<Output = ()>,
{
    // Unwind safety: a task that panicked is dropped whole, and the next one starts from its inputs.
    while AssertUnwindSafe(start()).catch_unwind().await.is_err() {
        tracing::error!(task = name, "task panicked and starts again");
        tokio::time::sleep(RESTART_DELAY).await;
    }
}

/// Does something unless it is disarmed: what is left behind by a task that did not come to its own end, because its
/// runtime was dropped or it was aborted.
pub(crate) struct OnAbort<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> OnAbort<F> {
    pub(crate) fn new(last_words: F) -> Self {
        Self(Some(last_words))
    }

    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for OnAbort<F> {
    fn drop(&mut self) {
        if let Some(last_words) = self.0.take() {
            last_words();
        }
    }
}
