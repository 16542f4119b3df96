//! The ADS streams of one client, one per server.
//!
//! A stream's task is started when something is first subscribed at its server; that of a fallback ends, and its
//! connection closes, as soon as nothing is (A71). What streams say and are told is the driver's business, NOT theirs.

use crate::{
    Bootstrap, ServerId,
    ads::{Event, Request, StreamTask},
};
use std::{future::poll_fn, mem, sync::Arc, task::Poll};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

pub(super) struct Servers {
    bootstrap: Arc<Bootstrap>,
    runtime: Handle,
    /// By number.
    all: Vec<Option<Stream>>,
    /// Who is asked for events first, so that no busy server starves another.
    turn: usize,
}

struct Stream {
    /// One slot: the stream reads its next message when this one is being worked on.
    events: mpsc::Receiver<Event>,
    /// Whether anything is subscribed; the stream is dialled only then. Latest wins.
    wanted: watch::Sender<bool>,
    /// Leads to the stream that is up.
    requests: Option<mpsc::UnboundedSender<Request>>,
    _task: StreamTask,
}

impl Servers {
    pub(super) fn new(bootstrap: Arc<Bootstrap>, runtime: Handle) -> Self {
        let all = bootstrap.servers().map(|_| None).collect();
        Self { bootstrap, runtime, all, turn: 0 }
    }

    pub(super) fn ids(&self) -> Vec<ServerId> {
        self.bootstrap.servers().map(|(id, _)| id).collect()
    }

    /// What happened next on some stream. Cancel safe.
    pub(super) async fn event(&mut self) -> (ServerId, Event) {
        let ids = self.ids();
        let (server, event) = poll_fn(|cx| {
            for step in 0..ids.len() {
                let server = ids[(self.turn + step) % ids.len()];
                if let Some(stream) = &mut self.all[server.index()]
                    && let Poll::Ready(Some(event)) = stream.events.poll_recv(cx)
                {
                    return Poll::Ready((server, event));
                }
            }
            Poll::Pending
        })
        .await;
        self.turn = server.index() + 1;
        if let (Event::Connected(requests), Some(stream)) = (&event, &mut self.all[server.index()]) {
            stream.requests = Some(requests.clone());
        } else if let (Event::Disconnected { .. }, Some(stream)) = (&event, &mut self.all[server.index()]) {
            stream.requests = None;
        }
        (server, event)
    }

    /// Has a server dialled, or not, from now on. Returns whether a stream to a fallback was closed.
    pub(super) fn want(&mut self, server: ServerId, wanted: bool) -> bool {
        let slot = &mut self.all[server.index()];
        match slot {
            None if wanted => {
                let (events, inbox) = mpsc::channel(1);
                let (wanted, watched) = watch::channel(true);
                let bootstrap = Arc::clone(&self.bootstrap);
                let task = StreamTask::spawn(&self.runtime, bootstrap, server, events, watched, fastrand::u64(..));
                *slot = Some(Stream { events: inbox, wanted, requests: None, _task: task });
                false
            }
            None => false,
            Some(_) if !wanted && !self.bootstrap.authorities.is_preferred(server) => {
                *slot = None;
                true
            }
            Some(stream) => {
                stream.wanted.send_if_modified(|before| mem::replace(before, wanted) != wanted);
                false
            }
        }
    }

    /// Sends on a server's stream. One that has just ended does not take it; its end is on the way to us.
    pub(super) fn send(&self, server: ServerId, request: Request) {
        if let Some(requests) = self.all[server.index()].as_ref().and_then(|stream| stream.requests.as_ref()) {
            let _ = requests.send(request);
        }
    }
}
