//! What became of every call: answered by whom and how fast, cut, or failed.
//!
//! The callers write, the screen reads. A call counts for the chapter of the story in which it ended. Nothing here
//! calls or draws. Latencies are without the time that a backend worked: what is left is network and mesh.

use crate::latencies::Latencies;
use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The backends, in the order of the columns.
pub(crate) const BACKENDS: [&str; 3] = ["a", "b", "c"];

/// How far back "now" reaches on the screen.
const NOW: Duration = Duration::from_secs(1);

/// How many failures are printed.
const FIRST_FEW: usize = 5;

/// How a call was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Grpc,
    Http,
}

/// Who answered, and how much of the time was the backend's own.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The column.
    pub(crate) backend: usize,
    pub(crate) worked: Duration,
}

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) struct Failure {
    /// gRPC's UNAVAILABLE, or HTTP's 503.
    pub(crate) unavailable: bool,
    pub(crate) text: String,
}

/// One part of the story, and what happened to the calls meanwhile.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chapter {
    pub(crate) title: &'static str,
    pub(crate) answered: [u64; BACKENDS.len()],
    pub(crate) latencies: Latencies,
    pub(crate) cut: u64,
    pub(crate) failed: u64,
}

/// The last second of one protocol.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    pub(crate) answered: [u64; BACKENDS.len()],
    pub(crate) latencies: Latencies,
}

/// Everything there is to show at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub(crate) elapsed: Duration,
    /// Those that have begun.
    pub(crate) chapters: Vec<Chapter>,
    pub(crate) grpc: Recent,
    pub(crate) http: Recent,
    /// What is going on, and how often that changed.
    pub(crate) news: (u64, String),
    pub(crate) failures: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Tally {
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    began: Instant,
    chapters: Vec<Chapter>,
    recent: VecDeque<Timed>,
    kill: Option<Kill>,
    news: (u64, String),
    failures: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
struct Timed {
    at: Instant,
    latency: Duration,
    protocol: Protocol,
    backend: usize,
}

/// A backend that was killed. The instant of its death lasts until the client's kernel has told the client.
#[derive(Debug)]
struct Kill {
    peer: SocketAddr,
    noticed: Option<Instant>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let chapters = vec![Chapter { title: "start", ..Chapter::default() }];
        Self {
            books: Mutex::new(Books {
                began: Instant::now(),
                chapters,
                recent: VecDeque::new(),
                kill: None,
                news: (0, String::new()),
                failures: Vec::new(),
            }),
        }
    }

    // === The story ===

    /// Calls that end from now on count for this chapter.
    pub(crate) fn begin(&self, title: &'static str) {
        self.books().chapters.push(Chapter { title, ..Chapter::default() });
    }

    /// Says what is going on.
    pub(crate) fn say(&self, news: impl Into<String>) {
        let mut books = self.books();
        books.news = (books.news.0 + 1, news.into());
    }

    /// A backend is about to be killed: calls in flight there may be cut.
    pub(crate) fn killing(&self, peer: SocketAddr) {
        self.books().kill = Some(Kill { peer, noticed: None });
    }

    /// The client knows that the backend is gone: calls that begin from now on have no excuse.
    pub(crate) fn kill_noticed(&self) {
        if let Some(kill) = &mut self.books().kill {
            kill.noticed = Some(Instant::now());
        }
    }

    // === The calls ===

    /// A call ended: answered by a backend, or not.
    pub(crate) fn ended(&self, protocol: Protocol, began: Instant, result: Result<Answer, Failure>) {
        let at = Instant::now();
        let mut books = self.books();
        let books = &mut *books;
        let Some(chapter) = books.chapters.last_mut() else { return };
        match result {
            Ok(Answer { backend, worked }) => {
                let latency = (at - began).saturating_sub(worked);
                chapter.answered[backend] += 1;
                chapter.latencies.add(latency);
                books.recent.push_back(Timed { at, latency, protocol, backend });
                while books.recent.front().is_some_and(|oldest| at - oldest.at > NOW) {
                    books.recent.pop_front();
                }
            }
            Err(failure) if books.kill.as_ref().is_some_and(|kill| kill.cut(began, &failure)) => chapter.cut += 1,
            Err(failure) => {
                chapter.failed += 1;
                if books.failures.len() < FIRST_FEW {
                    let when = (at - books.began).as_secs_f64();
                    books.failures.push(format!("{when:.3} s, {:?}, {:?}: {}", chapter.title, protocol, failure.text));
                }
            }
        }
    }

    // === The screen ===

    pub(crate) fn picture(&self) -> Picture {
        let now = Instant::now();
        let books = self.books();
        let recent = |protocol| {
            let mut recent = Recent::default();
            for answer in books.recent.iter().filter(|answer| now - answer.at <= NOW && answer.protocol == protocol) {
                recent.answered[answer.backend] += 1;
                recent.latencies.add(answer.latency);
            }
            recent
        };
        Picture {
            elapsed: now - books.began,
            chapters: books.chapters.clone(),
            grpc: recent(Protocol::Grpc),
            http: recent(Protocol::Http),
            news: books.news.clone(),
            failures: books.failures.clone(),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kill {
    /// Whether a failed call was in flight on the killed backend: it says so, and began before that could be known.
    fn cut(&self, began: Instant, failure: &Failure) -> bool {
        let in_time = self.noticed.is_none_or(|noticed| began <= noticed);
        in_time && failure.unavailable && failure.text.contains(&format!("endpoint {}:", self.peer))
    }
}

impl Picture {
    /// Answered, cut, failed: all calls so far.
    pub(crate) fn totals(&self) -> (u64, u64, u64) {
        self.chapters.iter().fold((0, 0, 0), |(answered, cut, failed), chapter| {
            (answered + chapter.answered.iter().sum::<u64>(), cut + chapter.cut, failed + chapter.failed)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset(text: &str) -> Failure {
        Failure { unavailable: true, text: text.to_owned() }
    }

    #[test]
    fn only_calls_in_flight_on_the_killed_backend_are_cut() {
        let tally = Tally::new();
        let totals = || tally.picture().totals();
        let peer = SocketAddr::from(([127, 0, 0, 1], 4000));
        let text = "endpoint 127.0.0.1:4000: connection reset";
        tally.ended(Protocol::Grpc, Instant::now(), Err(reset(text)));
        assert_eq!(totals(), (0, 0, 1), "nobody was killed yet");
        tally.killing(peer);
        let before = Instant::now();
        tally.ended(Protocol::Grpc, before, Err(reset(text)));
        assert_eq!(totals(), (0, 1, 1));
        tally.ended(Protocol::Grpc, before, Err(reset("endpoint 127.0.0.1:4001: connection reset")));
        tally.ended(Protocol::Grpc, before, Err(Failure { unavailable: false, text: text.to_owned() }));
        assert_eq!(totals(), (0, 1, 3), "another backend, another status");
        tally.kill_noticed();
        tally.ended(Protocol::Http, before, Err(reset(text)));
        assert_eq!(totals(), (0, 2, 3), "it was in flight, and is only told late");
        let after = Instant::now() + Duration::from_nanos(1);
        tally.ended(Protocol::Http, after, Err(reset(text)));
        assert_eq!(totals(), (0, 2, 4), "sent to a backend that was known to be gone");
    }
}
