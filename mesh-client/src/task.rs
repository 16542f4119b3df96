//! Tasks that somebody watches: a panic is logged and the task starts again from its last input.
//!
//! Each task here ends by itself when its owner is gone; this file does NOT abort anything.

use futures_util::FutureExt;
use std::{panic::AssertUnwindSafe, time::Duration};
use tokio::runtime::Handle;

/// Between a panic and the next start: long enough to be no hot loop, short enough to be forgotten.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Runs what `start` makes; again, after a delay, whenever it panics.
pub(crate) fn spawn_supervised<F, Fut>(
    runtime: &Handle,
    name: &'static str,
    mut start: F,
) -> tokio::task::JoinHandle<()>
where
    F: FnMut() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    runtime.spawn(async move {
        // Unwind safety: a task that panicked is dropped whole, and the next one starts from its inputs.
        while AssertUnwindSafe(start()).catch_unwind().await.is_err() {
            tracing::error!(task = name, "task panicked and starts again");
            tokio::time::sleep(RESTART_DELAY).await;
        }
    })
}
