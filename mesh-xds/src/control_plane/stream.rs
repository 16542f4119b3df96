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
        let mut answer = lock(&self.session).next(&snapshot, &hooks, self.control_plane.is_observed());
        if let Some(event) = answer.as_mut().and_then(|answer| answer.event.take()) {
            self.control_plane.emit(|| event);
        }
        // Also without an answer: what was found to be as the client knows it, is settled now, and may be waited for.
        self.control_plane.progressed();
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control_plane::{
            Dialect, Resources,
            resources::{cluster_eds, endpoints},
        },
        resource::Kind,
    };
    use envoy_types::pb::{
        envoy::{config::cluster::v3::Cluster, service::discovery::v3::DiscoveryRequest},
        google::protobuf::Duration,
    };
    use futures_util::FutureExt;
    use std::pin::pin;

    #[test]
    fn who_waits_hears_of_a_resource_that_went_and_came_back_unseen() {
        let [clusters, assignments] = [Kind::Cluster, Kind::Endpoints].map(Kind::type_url);
        let control_plane = ControlPlane::new();
        let opened = control_plane.open(Dialect::Sotw).expect("streams are not refused");
        let cluster = |seconds| {
            let connect_timeout = Some(Duration { seconds, nanos: 0 });
            Resources::default().with(Cluster { connect_timeout, ..cluster_eds("c") })
        };
        let both = |seconds| cluster(seconds).with(endpoints("c", &[([127, 0, 0, 1], 80).into()]));
        let asks = |type_url: &str, nonce: &str| {
            let (type_url, response_nonce) = (type_url.to_owned(), nonce.to_owned());
            let resource_names = vec!["c".to_owned()];
            opened.received(DiscoveryRequest { type_url, resource_names, response_nonce, ..Default::default() }.into());
        };
        control_plane.set_unchecked(both(1));
        for (type_url, nonce) in [(clusters, "1"), (assignments, "2")] {
            asks(type_url, "");
            assert!(opened.next().is_some());
            asks(type_url, nonce);
        }
        assert!(opened.next().is_none());
        control_plane.set_unchecked(cluster(1));
        control_plane.set_unchecked(both(2));
        assert!(opened.next().is_some(), "the cluster is another one");
        let mut waiting = pin!(control_plane.wait_for_ack(assignments, "c"));
        assert!(waiting.as_mut().now_or_never().is_none(), "the assignment is not compared yet");
        assert!(opened.next().is_none());
        assert!(waiting.as_mut().now_or_never().is_some());
    }
}
