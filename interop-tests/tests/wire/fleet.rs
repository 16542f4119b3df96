//! Backends that are all in the same trouble, until they heal: what they count is the measure of a storm.
//!
//! An attempt meets its trouble at once, or when the test lets a wave of them go: then each budget is asked by that many
//! calls at once. It does NOT serve anything else than calls without a body to speak of.

use crate::{refuser::reply, rig::within};
use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Request, Response};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Notify, oneshot},
    task::{JoinHandle, JoinSet},
};

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// OK.
    Answered,
    /// UNAVAILABLE without headers before, or 503.
    Unavailable,
    /// REFUSED_STREAM.
    Refused,
    /// Its connection is reset, and so are all attempts on it.
    Cut,
    /// It never arrives: each connection is reset before a word was said.
    HungUp,
}

/// What all backends have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) connections: u64,
    pub(crate) attempts: u64,
    /// Of the attempts: those that say that they are repetitions (A6).
    pub(crate) retries: u64,
}

/// They run until this is dropped.
pub(crate) struct Fleet {
    addresses: Vec<SocketAddr>,
    books: Arc<Books>,
    listening: Vec<JoinHandle<()>>,
}

struct Books {
    page: Mutex<Page>,
    arrived: Notify,
}

struct Page {
    fate: Fate,
    /// Attempts wait for [`Fleet::wave`].
    holds: bool,
    /// Whether it is a retry, and what tells it its fate.
    waiting: Vec<(bool, oneshot::Sender<Fate>)>,
    counts: Counts,
}

impl Fleet {
    /// So many backends.
    pub(crate) async fn start(count: usize, fate: Fate) -> Self {
        let page = Page { fate, holds: false, waiting: Vec::new(), counts: Counts::default() };
        let books = Arc::new(Books { page: Mutex::new(page), arrived: Notify::new() });
        let mut fleet = Self { addresses: Vec::new(), books, listening: Vec::new() };
        for _ in 0..count {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
            fleet.addresses.push(listener.local_addr().expect("bound"));
            fleet.listen(listener);
        }
        fleet
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(crate) fn counts(&self) -> Counts {
        self.books.page().counts
    }

    /// From now on each attempt meets this, those that wait as well.
    pub(crate) fn meets(&self, fate: Fate) {
        let mut page = self.books.page();
        (page.fate, page.holds) = (fate, false);
        page.let_go();
    }

    /// From now on attempts wait to be let go.
    pub(crate) fn holds(&self) {
        self.books.page().holds = true;
    }

    /// Waits until `size` attempts wait: how many of them are retries.
    pub(crate) async fn gathered(&self, size: usize) -> u64 {
        let gathered = async {
            loop {
                let arrived = self.books.arrived.notified();
                if let Some(retries) = self.books.page().gathered(size) {
                    return retries;
                }
                arrived.await;
            }
        };
        within("a wave", gathered).await
    }

    /// Waits for the same, and lets them go all at once.
    pub(crate) async fn wave(&self, size: usize) -> u64 {
        let retries = self.gathered(size).await;
        self.books.page().let_go();
        retries
    }

    /// All are gone: connections are reset, and ports refuse.
    pub(crate) async fn leaves(&mut self) {
        for listening in self.listening.drain(..) {
            listening.abort();
            // Cancelled, as asked: with its connections, which it owns.
            let _ = listening.await;
        }
    }

    /// All are back at the same ports.
    pub(crate) fn returns(&mut self) {
        for address in self.addresses.clone() {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("a socket option");
            socket.bind(address).expect("its port");
            self.listen(socket.listen(64).expect("bound"));
        }
    }

    fn listen(&mut self, listener: TcpListener) {
        self.listening.push(tokio::spawn(accept(listener, Arc::clone(&self.books))));
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.listening.iter().for_each(JoinHandle::abort);
    }
}

impl Page {
    fn gathered(&mut self, size: usize) -> Option<u64> {
        // Of a connection that was cut nobody waits any more.
        self.waiting.retain(|(_, fate)| !fate.is_closed());
        let retries = || self.waiting.iter().filter(|(retry, _)| *retry).count() as u64;
        (self.waiting.len() >= size).then(retries)
    }

    fn let_go(&mut self) {
        for (_, fate) in self.waiting.drain(..) {
            // Who has left needs no answer.
            let _ = fate.send(self.fate);
        }
    }
}

impl Books {
    fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an attempt, and says what becomes of it.
    async fn fate(&self, retry: bool) -> Fate {
        let told = {
            let mut page = self.page();
            page.counts.attempts += 1;
            page.counts.retries += u64::from(retry);
            if !page.holds {
                return page.fate;
            }
            let (tell, told) = oneshot::channel();
            page.waiting.push((retry, tell));
            told
        };
        self.arrived.notify_waiters();
        told.await.unwrap_or(Fate::Cut)
    }
}

// === A backend ===

async fn accept(listener: TcpListener, books: Arc<Books>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        // Its end is a reset.
        let Ok(()) = socket.set_zero_linger() else { continue };
        let hangs_up = {
            let mut page = books.page();
            page.counts.connections += 1;
            page.fate == Fate::HungUp
        };
        if !hangs_up {
            connections.spawn(serve(socket, Arc::clone(&books)));
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(socket: TcpStream, books: Arc<Books>) {
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    let mut attempts = JoinSet::new();
    loop {
        tokio::select! {
            biased; // A connection that is cut takes no more.
            Some(ended) = attempts.join_next() => if let Ok(Some(_unanswered)) = ended {
                // Before the attempt, which would say that it was given up.
                return drop(connection);
            },
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => drop(attempts.spawn(answer(request, respond, Arc::clone(&books)))),
                Some(Err(_)) | None => return,
            },
        }
    }
}

/// Gives back what is not to be answered before its connection is cut.
async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    books: Arc<Books>,
) -> Option<SendResponse<Bytes>> {
    let (head, mut body) = request.into_parts();
    // An error is the end: h2 tells it again and again.
    while let Some(Ok(_)) = body.data().await {}
    let is_grpc = head.headers.contains_key("te");
    let fate = books.fate(head.headers.get("grpc-previous-rpc-attempts").is_some_and(|made| made != "0")).await;
    // An error anywhere means that the client has left.
    let _ = match fate {
        Fate::Answered if is_grpc => reply(&mut respond, "well"),
        Fate::Answered => respond.send_response(Response::new(()), true).map(drop),
        Fate::Unavailable => {
            let head = Response::builder();
            let head = if is_grpc { head.header("grpc-status", "14") } else { head.status(503) };
            respond.send_response(head.body(()).expect("valid"), true).map(drop)
        }
        Fate::Refused => {
            respond.send_reset(Reason::REFUSED_STREAM);
            Ok(())
        }
        Fate::Cut | Fate::HungUp => return Some(respond),
    };
    None
}
