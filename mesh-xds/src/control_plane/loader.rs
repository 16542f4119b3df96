//! Serves a directory of resources and follows its changes.
//!
//! ```text
//!   change ─► wait until 50 ms were quiet (1 s at most) ─► load ─► good: set
//!                                                           └───► bad: load again after a quiet 250 ms, then report
//! ```
//! Editors and tools replace files by renaming, or write them piece by piece: the second look tolerates a file that
//! was caught half-written. What was loaded last without a mistake stays served. What resources mean, and how they are
//! read, is NOT decided here.

use super::{ControlPlane, files::LoadError, resources::Resources};
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, timeout, timeout_at},
};

const QUIET: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
const SECOND_LOOK: Duration = Duration::from_millis(250);

/// Follows a directory until it is dropped. What was served last stays served after that.
#[derive(Debug)]
pub struct DirectoryLoader {
    results: watch::Receiver<Result<(), LoadError>>,
    task: AbortHandle,
}

impl ControlPlane {
    /// Serves the resources of a directory (see [`Resources::from_dir`]) to all nodes, and loads them again whenever
    /// something changes there. A mistake is logged and reported by [`DirectoryLoader`], also a resource that is named and
    /// not there ([`Resources::check`]); the last good resources stay served meanwhile. The directory itself has to stay: one that is replaced as a whole is not followed.
    ///
    /// # Errors
    /// When the directory cannot be watched, or its files have mistakes now.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn watch_dir(&self, path: impl AsRef<Path>) -> Result<DirectoryLoader, LoadError> {
        let folder = path.as_ref().to_owned();
        // One permit: a change during a load makes one more load, however many there were.
        let changed = Arc::new(Notify::new());
        // Before the first load, so that no change falls between the two.
        let watcher =
            watch_folder(&folder, changed.clone()).map_err(|error| LoadError::unwatchable(&folder, &error))?;
        let resources = load(&folder)?;
        // Latest wins: whoever asks wants to know how things are.
        let reports = watch::Sender::new(Ok(()));
        let mut follower = Follower { control_plane: self.clone(), folder, served: None, reports };
        follower.serve(resources);
        let results = follower.reports.subscribe();
        let task = tokio::spawn(follower.run(changed, watcher)).abort_handle();
        Ok(DirectoryLoader { results, task })
    }
}

impl DirectoryLoader {
    /// How the directory is now: served, or not because of mistakes.
    ///
    /// # Errors
    /// The mistakes for which an older state is still served.
    pub fn state(&self) -> Result<(), LoadError> {
        self.results.borrow().clone()
    }

    /// Waits until the directory was loaded with another result than before, and returns that: other resources, the
    /// first good ones after a mistake, or (other) mistakes.
    ///
    /// # Errors
    /// The mistakes for which an older state is still served.
    pub async fn reloaded(&mut self) -> Result<(), LoadError> {
        // The task ends only with this value (or its runtime, and then nobody waits).
        if self.results.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.results.borrow_and_update().clone()
    }
}

impl Drop for DirectoryLoader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn load(folder: &Path) -> Result<Resources, LoadError> {
    let resources = Resources::from_dir(folder)?;
    resources.check().map_err(|inconsistent| LoadError::inconsistent(folder, &inconsistent))?;
    Ok(resources)
}

fn watch_folder(folder: &Path, changed: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too, and we read them all.
        let is_read = event.as_ref().is_ok_and(|event| {
            let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
            matches!(event.kind, EventKind::Access(_)) && event.kind != written
        });
        if !is_read {
            changed.notify_one();
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

struct Follower {
    control_plane: ControlPlane,
    folder: PathBuf,
    served: Option<Resources>,
    reports: watch::Sender<Result<(), LoadError>>,
}

impl Follower {
    /// `_watcher` lives as long as the task that it wakes.
    async fn run(mut self, changed: Arc<Notify>, _watcher: impl Send + 'static) {
        loop {
            changed.notified().await;
            quiet(&changed).await;
            match self.load().await {
                Ok(resources) => self.serve(resources),
                Err(_) if timeout(SECOND_LOOK, changed.notified()).await.is_ok() => changed.notify_one(),
                // Nothing changed since: it is not being written any more.
                Err(_) => match self.load().await {
                    Ok(resources) => self.serve(resources),
                    Err(error) => self.report(error),
                },
            }
        }
    }

    async fn load(&self) -> Result<Resources, LoadError> {
        let folder = self.folder.clone();
        match tokio::task::spawn_blocking(move || load(&folder)).await {
            Ok(result) => result,
            // Only when the runtime shuts down, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }

    fn serve(&mut self, resources: Resources) {
        let was_good = self.reports.borrow().is_ok();
        if self.served.as_ref() == Some(&resources) && was_good {
            return;
        }
        tracing::info!(folder = %self.folder.display(), resources = resources.len(), "resources loaded");
        // Checked when it was loaded.
        self.control_plane.set_unchecked(resources.clone());
        self.served = Some(resources);
        drop(self.reports.send_replace(Ok(())));
    }

    fn report(&self, error: LoadError) {
        if self.reports.borrow().as_ref() == Err(&error) {
            return;
        }
        for mistake in &error.mistakes {
            tracing::error!(%mistake, "resources not loaded, the last good ones stay served");
        }
        drop(self.reports.send_replace(Err(error)));
    }
}

/// Waits until nothing has changed for a while.
async fn quiet(changed: &Notify) {
    let latest = Instant::now() + LONGEST;
    while timeout_at(latest.min(Instant::now() + QUIET), changed.notified()).await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A follower of a folder with one file, which the test wakes by hand, on a clock that the test moves.
    fn follow(folder: &Path, changed: &Arc<Notify>) -> watch::Receiver<Result<(), LoadError>> {
        let reports = watch::Sender::new(Ok(()));
        let results = reports.subscribe();
        let control_plane = ControlPlane::new();
        let follower = Follower { control_plane, folder: folder.to_owned(), served: None, reports };
        tokio::spawn(follower.run(changed.clone(), ()));
        results
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_written_file_gets_a_second_look() {
        let folder = tempfile::tempdir().expect("a folder");
        let changed = Arc::new(Notify::new());
        let mut results = follow(folder.path(), &changed);
        fs::write(folder.path().join("a.yaml"), "resources: [").expect("written");
        changed.notify_one();
        tokio::task::yield_now().await;
        // Past the first look, before the second.
        tokio::time::advance(QUIET * 2).await;
        fs::write(folder.path().join("a.yaml"), "resources: []").expect("written");
        results.changed().await.expect("the follower lives");
        assert_eq!(*results.borrow_and_update(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_mistake_that_stays_is_reported_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let changed = Arc::new(Notify::new());
        let mut results = follow(folder.path(), &changed);
        fs::write(folder.path().join("a.yaml"), "resources: [").expect("written");
        changed.notify_one();
        results.changed().await.expect("the follower lives");
        assert!(results.borrow_and_update().is_err());
        changed.notify_one();
        assert!(timeout(LONGEST * 10, results.changed()).await.is_err(), "nothing new");
    }
}
