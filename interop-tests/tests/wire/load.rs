//! An open loop of calls at a fixed rate, and the books about who answered.
//!
//! A slow answer does not slow the loop down: what is late is made up for, as users do, up to a bound that keeps a
//! machine that is too slow for the rate from drowning. It does NOT retry.

use crate::rig::within;
use interop_tests::{
    backend::Backend,
    proto::testing::{SimpleRequest, test_service_client::TestServiceClient},
};
use mesh_client::MeshChannel;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time,
};
use tonic::{Request, Status};

/// Calls in flight at once: well below the mesh's own bound for calls that wait.
const MAX_IN_FLIGHT: usize = 256;

/// A request header of the call with this number, if it has one.
type Header = fn(u64) -> Option<(&'static str, String)>;

/// A running load.
pub(crate) struct Load {
    stop: oneshot::Sender<()>,
    books: Arc<Books>,
    task: JoinHandle<()>,
}

/// Written by calls, read by the test.
#[derive(Default)]
struct Books {
    pages: Mutex<Pages>,
    /// How many calls have their answer.
    answers: watch::Sender<u64>,
}

#[derive(Default)]
struct Pages {
    started: u64,
    /// Numbers of the calls that have no answer yet.
    in_flight: BTreeSet<u64>,
    replies: Replies,
}

/// What became of the calls.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    by_hostname: BTreeMap<String, u64>,
    failures: Vec<Status>,
}

impl Load {
    pub(crate) fn start(channel: MeshChannel, per_second: u32) -> Self {
        Self::start_with(channel, per_second, |_| None)
    }

    pub(crate) fn start_with(channel: MeshChannel, per_second: u32, header: Header) -> Self {
        let (stop, stopped) = oneshot::channel();
        let books = Arc::<Books>::default();
        let task = tokio::spawn(run(channel, per_second, header, Arc::clone(&books), stopped));
        Self { stop, books, task }
    }

    /// Waits until so many calls that are yet to start have their answer, and each older one, too.
    pub(crate) async fn goes_on(&self, count: u64) {
        let goal = self.books.pages().started + count;
        let reached = |_: &u64| {
            let pages = self.books.pages();
            pages.started >= goal && pages.in_flight.first().is_none_or(|oldest| *oldest >= goal)
        };
        within("answers", self.books.answers.subscribe().wait_for(reached)).await.expect("the books are ours");
    }

    /// Waits until each call that is in flight now has its answer: what is called from then on was chosen after this.
    pub(crate) async fn old_calls_end(&self) {
        self.goes_on(0).await;
    }

    /// No more calls; waits for the answers that are still to come.
    pub(crate) async fn stop(self) -> Replies {
        let _ = self.stop.send(());
        within("the last answer", self.task).await.expect("no panic");
        std::mem::take(&mut self.books.pages().replies)
    }
}

impl Books {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn starts(&self) -> u64 {
        let mut pages = self.pages();
        let number = pages.started;
        pages.started += 1;
        pages.in_flight.insert(number);
        number
    }

    fn ends(&self, number: u64, reply: Result<String, Status>) {
        let mut pages = self.pages();
        pages.in_flight.remove(&number);
        pages.replies.add(reply);
        drop(pages);
        self.answers.send_modify(|answers| *answers += 1);
    }
}

async fn run(
    channel: MeshChannel,
    per_second: u32,
    header: Header,
    books: Arc<Books>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut ticks = time::interval(Duration::from_secs(1) / per_second);
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            biased; // It may be late with its ticks, but not with its end.
            _ = &mut stopped => break,
            _ = ticks.tick() => {}
        }
        while calls.try_join_next().is_some() {}
        if calls.len() >= MAX_IN_FLIGHT {
            calls.join_next().await;
        }
        let number = books.starts();
        let mut request = Request::new(SimpleRequest::default());
        if let Some((name, value)) = header(number) {
            request.metadata_mut().insert(name, value.parse().expect("a header value"));
        }
        let (mut client, books) = (TestServiceClient::new(channel.clone()), Arc::clone(&books));
        calls.spawn(async move {
            let reply = client.unary_call(request).await;
            books.ends(number, reply.map(|reply| reply.into_inner().hostname));
        });
    }
    while calls.join_next().await.is_some() {}
}

impl FromIterator<Result<String, Status>> for Replies {
    fn from_iter<T: IntoIterator<Item = Result<String, Status>>>(replies: T) -> Self {
        let mut all = Self::default();
        replies.into_iter().for_each(|reply| all.add(reply));
        all
    }
}

impl Replies {
    fn add(&mut self, reply: Result<String, Status>) {
        match reply {
            Ok(hostname) => *self.by_hostname.entry(hostname).or_default() += 1,
            Err(status) => self.failures.push(status),
        }
    }

    /// None failed.
    pub(crate) fn were_all_answered(&self) {
        let (failed, answered) = (self.failures.len(), self.by_hostname.values().sum::<u64>());
        assert!(self.failures.is_empty(), "{failed} failed, {answered} answered; first: {}", self.failures[0]);
        assert!(answered > 0, "no call was made");
    }

    /// None failed, and each backend has answered as often as callers say.
    pub(crate) fn were_all_answered_by(&self, backends: &[&Backend]) {
        self.were_all_answered();
        for backend in backends {
            self.came_from(backend.hostname(), backend.counters().succeeded);
        }
        let known = |hostname: &String| backends.iter().any(|backend| backend.hostname() == hostname);
        assert!(self.by_hostname.keys().all(known), "{:?}", self.by_hostname);
    }

    /// This one has answered so often.
    pub(crate) fn came_from(&self, hostname: &str, answered: u64) {
        let count = self.by_hostname.get(hostname).copied().unwrap_or(0);
        assert_eq!(count, answered, "{hostname}: callers and backend disagree");
    }
}
