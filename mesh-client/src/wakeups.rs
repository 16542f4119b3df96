//! How callers that wait for something to change are woken, without missing a change.
//!
//! A waiter registers first and looks second; a publisher publishes first and wakes second. It holds no data.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How callers that wait for a connection of a cluster are woken: a version that is read before the picker.
#[derive(Debug, Default)]
pub(crate) struct Wakeups {
    notify: tokio::sync::Notify,
    /// Of those to whom not every stream that is free is of use.
    choosy: tokio::sync::Notify,
    waiting: AtomicUsize,
}

impl Wakeups {
    /// Waits until `ready` has something. Of those that wait, the first one is woken first; who is woken for nothing, because
    /// somebody else was faster, is the last one then.
    pub(crate) async fn wait_unless<T>(&self, ready: impl FnMut() -> Option<T>) -> T {
        self.wait(&self.notify, ready).await
    }

    /// The same for who looks at each wake-up, and takes none from others: what it is for may be of no use to it.
    pub(crate) async fn wait_choosily<T>(&self, ready: impl FnMut() -> Option<T>) -> T {
        self.wait(&self.choosy, ready).await
    }

    async fn wait<T>(&self, notify: &tokio::sync::Notify, mut ready: impl FnMut() -> Option<T>) -> T {
        // `waiting` is raised before `ready` looks, so that a slot released in between sees a waiter.
        let _waiting = Waiting::new(self);
        loop {
            let notified = notify.notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            if let Some(value) = ready() {
                return value;
            }
            notified.await;
        }
    }

    /// Wakes every waiter: a new picker.
    pub(crate) fn all(&self) {
        self.notify.notify_waiters();
        self.choosy.notify_waiters();
    }

    /// Wakes one waiter, if any, and the choosy ones: a free stream.
    pub(crate) fn one(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.notify.notify_one();
            self.choosy.notify_waiters();
        }
    }

    /// How many callers wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

struct Waiting<'a>(&'a Wakeups);

impl<'a> Waiting<'a> {
    fn new(wakeups: &'a Wakeups) -> Self {
        wakeups.waiting.fetch_add(1, Ordering::SeqCst);
        Self(wakeups)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // A wake-up that has reached one who gives up is handed on by `Notified`. Who is woken and has no use for what is
        // free must hand it on itself.
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::Wakeups;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };
    use tokio::{sync::mpsc, task::JoinSet, time::timeout};

    #[tokio::test]
    async fn who_waited_longest_is_next_whoever_gives_up() {
        let (wakeups, free) = (Arc::new(Wakeups::default()), Arc::new(AtomicBool::new(false)));
        let (sender, mut turns) = mpsc::unbounded_channel();
        let caller = |number| {
            let (wakeups, free, sender) = (Arc::clone(&wakeups), Arc::clone(&free), sender.clone());
            tokio::spawn(async move {
                wakeups.wait_unless(|| free.swap(false, Ordering::SeqCst).then_some(())).await;
                sender.send(number).expect("open");
            })
        };
        let callers: Vec<_> = (0..5).map(caller).collect();
        tokio::task::yield_now().await;
        callers[1].abort();
        tokio::task::yield_now().await;
        let release = || {
            free.store(true, Ordering::SeqCst);
            wakeups.one();
        };
        release();
        // It is woken, and gives up before it runs.
        callers[0].abort();
        for expected in [2, 3, 4] {
            assert_eq!(turns.recv().await, Some(expected));
            release();
        }
        assert_eq!(wakeups.waiting(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_sleeps_while_the_one_thing_is_free() {
        let (wakeups, free) = (Arc::new(Wakeups::default()), Arc::new(AtomicBool::new(true)));
        let mut callers = JoinSet::new();
        for _ in 0..32 {
            let (wakeups, free) = (Arc::clone(&wakeups), Arc::clone(&free));
            callers.spawn(async move {
                for _ in 0..500 {
                    wakeups.wait_unless(|| free.swap(false, Ordering::SeqCst).then_some(())).await;
                    tokio::task::yield_now().await;
                    free.store(true, Ordering::SeqCst);
                    wakeups.one();
                }
            });
        }
        // Callers that give up take no wake-up with them.
        for _ in 0..100 {
            let given_up = wakeups.wait_unless(|| free.swap(false, Ordering::SeqCst).then_some(()));
            if timeout(Duration::from_micros(100), given_up).await.is_ok() {
                free.store(true, Ordering::SeqCst);
                wakeups.one();
            }
        }
        timeout(Duration::from_secs(60), callers.join_all()).await.expect("each has its turns");
        assert_eq!(wakeups.waiting(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_cannot_have_the_one_thing_keeps_nobody_from_it() {
        let (wakeups, free) = (Arc::new(Wakeups::default()), Arc::new(AtomicBool::new(true)));
        let (mut callers, mut choosy) = (JoinSet::new(), JoinSet::new());
        for number in 0..16 {
            let (wakeups, free) = (Arc::clone(&wakeups), Arc::clone(&free));
            let take = move || free.swap(false, Ordering::SeqCst).then(|| Arc::clone(&free));
            // None of these can have it; half of the callers are as choosy, and can.
            for _ in 0..10 {
                let wakeups = Arc::clone(&wakeups);
                choosy.spawn(async move { wakeups.wait_choosily(|| None::<()>).await });
            }
            callers.spawn(async move {
                for _ in 0..100 {
                    let free = match number % 2 {
                        0 => wakeups.wait_unless(&take).await,
                        _ => wakeups.wait_choosily(&take).await,
                    };
                    tokio::task::yield_now().await;
                    free.store(true, Ordering::SeqCst);
                    wakeups.one();
                }
            });
        }
        timeout(Duration::from_secs(60), callers.join_all()).await.expect("each has its turns");
        choosy.shutdown().await;
        assert_eq!(wakeups.waiting(), 0);
    }
}
