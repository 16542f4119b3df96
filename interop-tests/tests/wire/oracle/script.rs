//! What a backend does with the attempts of one call, and what it saw of them.
//!
//! A call names itself in the header [`CALL`]; its script says what happens to its first attempt, its second, and so on,
//! wherever they arrive. It does NOT know HTTP versions or sockets.

use h2::Reason;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// The request header that names a call.
pub(super) const CALL: &str = "x-oracle-call";

/// What becomes of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Answer(Answer),
    /// RST_STREAM before headers; HTTP/1.1 closes the connection instead.
    Reset(Reason),
    /// RST_STREAM after headers and the beginning of a body.
    Broken(Reason),
    /// The connection closes before headers.
    Close,
    /// No answer ever.
    Silence,
    /// 200, or gRPC's OK, once the gate of the call opens.
    Gate,
}

/// A response: gRPC's if it has a gRPC status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) delay: Duration,
    pub(super) status: u16,
    pub(super) grpc: Option<Grpc>,
    pub(super) headers: Vec<(String, String)>,
    /// It stands for a client's own, and does not say which attempt it is of.
    pub(super) anonymous: bool,
}

/// Where a gRPC status stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grpc {
    TrailersOnly(u16),
    /// After headers and a message.
    Trailers(u16),
}

impl Answer {
    pub(super) fn status(status: u16) -> Self {
        Self { delay: Duration::ZERO, status, grpc: None, headers: Vec::new(), anonymous: false }
    }

    pub(super) fn grpc(grpc: Grpc) -> Self {
        Self { grpc: Some(grpc), ..Self::status(200) }
    }

    pub(super) fn after(self, millis: u64) -> Act {
        Act::Answer(Self { delay: Duration::from_millis(millis), ..self })
    }

    pub(super) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

/// What happens to the attempts of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// By the number of the attempt; the last one repeats.
    ByAttempt(Vec<Act>),
    /// By the endpoint that it arrives at; all others answer with success.
    ByEndpoint(BTreeMap<usize, Act>, Box<Act>),
}

impl Script {
    fn act(&self, attempt: usize, endpoint: usize) -> Act {
        match self {
            Self::ByAttempt(acts) => acts[attempt.min(acts.len() - 1)].clone(),
            Self::ByEndpoint(acts, otherwise) => acts.get(&endpoint).unwrap_or(otherwise).clone(),
        }
    }
}

/// An attempt, as the backend saw it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    pub(super) endpoint: usize,
    pub(super) at: Instant,
}

/// The scripts of all calls, and what became of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Stage(Arc<Mutex<HashMap<String, Entry>>>);

#[derive(Debug)]
struct Entry {
    script: Script,
    hits: Vec<Hit>,
    /// An attempt waits at the gate.
    held: watch::Sender<bool>,
    /// The caller has the headers of a response.
    begun: watch::Sender<bool>,
    gate: watch::Receiver<bool>,
}

/// What a backend needs for an attempt.
pub(super) struct Arrival {
    pub(super) act: Act,
    /// Its number.
    pub(super) attempt: usize,
    /// Of its call.
    pub(super) gate: watch::Receiver<bool>,
    /// Whether its caller has the headers of a response.
    pub(super) begun: watch::Receiver<bool>,
}

impl Stage {
    /// Expects the call, whose gate opens with `gate`.
    pub(super) fn expect(&self, call: &str, script: Script, gate: &watch::Sender<bool>) -> watch::Receiver<bool> {
        let held = watch::Sender::new(false);
        let seen = held.subscribe();
        let entry = Entry { script, hits: Vec::new(), held, begun: watch::Sender::new(false), gate: gate.subscribe() };
        let before = self.locked(|entries| entries.insert(call.to_owned(), entry));
        assert!(before.is_none(), "two calls are {call}");
        seen
    }

    /// The caller has the headers of a response.
    pub(super) fn begun(&self, call: &str) {
        self.locked(|entries| entries.get(call).map(|entry| entry.begun.send_replace(true)));
    }

    /// An attempt has arrived.
    pub(super) fn arrived(&self, call: &str, endpoint: usize) -> Option<Arrival> {
        self.locked(|entries| {
            let entry = entries.get_mut(call)?;
            let attempt = entry.hits.len();
            entry.hits.push(Hit { endpoint, at: Instant::now() });
            let act = entry.script.act(attempt, endpoint);
            if act == Act::Gate {
                entry.held.send_replace(true);
            }
            Some(Arrival { act, attempt, gate: entry.gate.clone(), begun: entry.begun.subscribe() })
        })
    }

    /// The attempts of a call that is over.
    pub(super) fn hits(&self, call: &str) -> Vec<Hit> {
        self.locked(|entries| entries.remove(call)).map(|entry| entry.hits).unwrap_or_default()
    }

    fn locked<T>(&self, look: impl FnOnce(&mut HashMap<String, Entry>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
