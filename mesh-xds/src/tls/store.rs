//! The task that keeps [`Material`] fresh, and the handle that dials and accepts get it from.
//!
//! ```text
//!              good                         good: published        bad: warned of, the last good one stays
//!  Reading ───────────► Good ── interval ──► read again ─────────────────────► Good
//!     │ bad                                       ▲
//!     ▼             interval, or somebody asks    │
//!   Bad(cause) ───────────────────────────────────┘
//! ```
//!
//! Files are read on threads that may block, so a slow disk delays a dial and nothing else. Whoever asks while nothing
//! good was ever read gets the outcome of a new read, never something weaker. It does NOT know what the material is for.

use super::material::{Material, Reader, Sources};
use rustls::crypto::CryptoProvider;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, watch},
    task::{JoinHandle, spawn_blocking},
    time::sleep,
};

/// Between two reads: an interval of nothing must not become a loop.
const SHORTEST: Duration = Duration::from_millis(10);

/// The last good material, or why there is none yet.
type Outcome = Result<Arc<Material>, Arc<str>>;

/// One set of sources, read by one task. Dropping it ends the task.
#[derive(Debug)]
pub(crate) struct Store {
    /// `None` until the first read. Latest wins.
    current: watch::Receiver<Option<Outcome>>,
    asked: Arc<Notify>,
    refreshing: JoinHandle<()>,
}

impl Store {
    /// Starts to read.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn spawn(sources: Sources, provider: Arc<CryptoProvider>, interval: Duration) -> Self {
        let reader = Reader::new(sources, provider);
        let (publish, current) = watch::channel(None);
        let asked = Arc::new(Notify::new());
        let refreshing = tokio::spawn(refresh(reader, interval.max(SHORTEST), publish, Arc::clone(&asked)));
        Self { current, asked, refreshing }
    }

    /// The last good material; without one, the outcome of a read that ends after this was called.
    ///
    /// # Errors
    /// Which file is wrong, and what about it.
    pub(crate) async fn material(&self) -> Outcome {
        let mut current = self.current.clone();
        match &*current.borrow_and_update() {
            Some(Ok(material)) => return Ok(Arc::clone(material)),
            Some(Err(_)) => self.asked.notify_one(),
            // The first read is under way.
            None => {}
        }
        let gone = || Err("certificates are no longer read".into());
        match current.changed().await {
            Ok(()) => current.borrow_and_update().clone().unwrap_or_else(gone),
            Err(_) => gone(),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.refreshing.abort();
    }
}

async fn refresh(mut reader: Reader, interval: Duration, publish: watch::Sender<Option<Outcome>>, asked: Arc<Notify>) {
    let mut warned = None;
    loop {
        let reading = spawn_blocking(move || {
            let outcome = reader.read();
            (reader, outcome)
        });
        // An error: the runtime goes down, or the read panicked. `material` reports the end.
        let Ok((back, outcome)) = reading.await else { return };
        reader = back;
        match outcome {
            Ok(material) => {
                warned = None;
                if let Some(material) = material {
                    publish.send_replace(Some(Ok(Arc::new(material))));
                }
            }
            Err(cause) => {
                // Each dial without material asks again, and says the same to its own caller.
                if warned.as_ref() != Some(&cause) {
                    tracing::warn!(%cause, "certificates cannot be read; what was good before stays in use");
                }
                publish.send_if_modified(|current| {
                    let none_is_good = !matches!(current, Some(Ok(_)));
                    if none_is_good {
                        *current = Some(Err(cause.as_str().into()));
                    }
                    none_is_good
                });
                warned = Some(cause);
            }
        }
        tokio::select! {
            () = sleep(interval) => {}
            () = asked.notified() => {}
        }
    }
}
