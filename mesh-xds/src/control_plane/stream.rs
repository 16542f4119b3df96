//! The task behind one ADS stream: it joins a [`Session`] with a transport.
//!
//! It ends when the client goes, when the transport breaks or when the stream is cut; dropping [`Opened`] then takes
//! the stream off the books. Decisions about what to send are NOT made here.

use super::{
    ControlPlane,
    events::{Event, Verdict},
    server::lock,
    session::{Answer, Asked, Session},
};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

/// A stream that is on the books of its control plane, until this is dropped.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) control_plane: ControlPlane,
    pub(super) number: u64,
    pub(super) session: Arc<Mutex<Session>>,
    /// Fires after every change of what is served and how.
    pub(super) changes: watch::Receiver<()>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        let node = lock(&self.session).node().map(|node| node.id.clone()).unwrap_or_default();
        self.control_plane.close(self.number);
        self.control_plane.emit(|| Event::StreamClosed { stream: self.number, node });
    }
}

pub(super) async fn run<T: Into<Asked>>(
    mut opened: Opened,
    mut requests: Streaming<T>,
    answers: mpsc::Sender<Result<Answer, Status>>,
) {
    // Whether something may be due: the answer is computed only when there is room for it.
    let mut stale = true;
    loop {
        tokio::select! {
            // 1. a cut is seen before anything else is said; 2. requests before answers, so that an answer covers all
            // names that have arrived.
            biased;
            changed = opened.changes.changed() => {
                if changed.is_err() || opened.control_plane.is_cut(opened.number) {
                    // `try_send`: a client that does not read is cut too, without a last word.
                    let _ = answers.try_send(Err(Status::unavailable("the control plane cut the stream")));
                    return;
                }
                stale = true;
            }
            request = requests.message() => {
                let Ok(Some(request)) = request else { return };
                opened.received(request.into());
                stale = true;
            }
            permit = answers.reserve(), if stale => {
                let Ok(permit) = permit else { return };
                match opened.next() {
                    Some(answer) => permit.send(Ok(answer)),
                    None => stale = false,
                }
            }
        }
    }
}

impl Opened {
    fn received(&self, request: Asked) {
        let manners = self.control_plane.manners();
        let event = lock(&self.session).received(request, manners, |node| self.control_plane.key_of(node));
        if let Event::Request { node, type_url, verdict: Verdict::Nack { message }, .. } = &event {
            tracing::warn!(stream = self.number, %node, %type_url, %message, "NACK");
        }
        self.control_plane.emit(|| event);
        self.control_plane.progressed();
    }

    fn next(&self) -> Option<Answer> {
        // The books' lock comes before the session's wherever both are held, so this one is let go first.
        // A stream without a first request has no node, and is told only what is hand-made.
        let key = lock(&self.session).node().map(|node| node.key.clone()).unwrap_or_default();
        let (snapshot, hooks) = self.control_plane.served_to(&key);
        let mut answer = lock(&self.session).next(&snapshot, &hooks, self.control_plane.is_observed())?;
        if let Some(event) = answer.event.take() {
            self.control_plane.emit(|| event);
        }
        self.control_plane.progressed();
        Some(answer)
    }
}
