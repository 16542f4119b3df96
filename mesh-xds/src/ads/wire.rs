//! The way of a request into the transport, and the news that it went.
//!
//! A does-not-exist timer "starts only when the request has actually been put on a connected stream" (A57). Between us
//! and the wire are tonic, which encodes ahead, hyper, which holds a frame, and HTTP/2's flow control, which may stop it
//! for as long as the server likes. hyper asks for a next message only when it has begun to send the one before, so that
//! question is the news. It does NOT know what a message says, nor when its last byte has left.

use futures_util::stream::{Stream, poll_fn};
use std::task::Poll;
use tokio::sync::{mpsc, oneshot};

/// Where messages are put in, one at a time.
#[derive(Debug)]
pub(super) struct Outgoing<T>(mpsc::Sender<(T, oneshot::Sender<()>)>);

/// What became of the message that was handed out last.
enum Last {
    /// tonic has it, and asks at once whether there is more to put into the same frame.
    Encoded(oneshot::Sender<()>),
    /// hyper has it; who asks now has room.
    Handed(oneshot::Sender<()>),
    Taken,
}

/// Both ends: one for the writer, one for the transport.
pub(super) fn wire<T: Send>() -> (Outgoing<T>, impl Stream<Item = T> + Send) {
    // One: the next message is made when the transport took the one before. Closed by either end with the stream.
    let (sender, mut messages) = mpsc::channel::<(T, oneshot::Sender<()>)>(1);
    let mut last = Last::Taken;
    let stream = poll_fn(move |cx| {
        match std::mem::replace(&mut last, Last::Taken) {
            Last::Encoded(taken) => {
                last = Last::Handed(taken);
                // Nothing more, so that hyper gets the frame; it comes back by itself, once there is room.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // A writer that is gone does not mind.
            Last::Handed(taken) => drop(taken.send(())),
            Last::Taken => {}
        }
        messages.poll_recv(cx).map(|next| {
            let (message, taken) = next?;
            last = Last::Encoded(taken);
            Some(message)
        })
    });
    (Outgoing(sender), stream)
}

impl<T> Outgoing<T> {
    /// Waits until the transport took the message. `false` when it is gone.
    pub(super) async fn take(&self, message: T) -> bool {
        let (taken, is_taken) = oneshot::channel();
        self.0.send((message, taken)).await.is_ok() && is_taken.await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt};
    use std::pin::pin;

    #[tokio::test]
    async fn a_message_is_taken_when_the_transport_has_room_for_the_next() {
        let (outgoing, messages) = wire();
        let mut messages = pin!(messages);
        let mut taking = pin!(outgoing.take("a"));
        assert!(taking.as_mut().now_or_never().is_none());
        assert_eq!(messages.next().await, Some("a"));
        // tonic looks for more to encode into the same frame.
        assert!(messages.next().now_or_never().is_none());
        assert!(taking.as_mut().now_or_never().is_none(), "encoded, and perhaps stuck before a closed window");
        // hyper asks.
        assert!(messages.next().now_or_never().is_none());
        assert!(taking.await);
    }

    #[tokio::test]
    async fn a_transport_that_is_gone_takes_nothing() {
        let (outgoing, messages) = wire::<&str>();
        drop(messages);
        assert!(!outgoing.take("a").await);
    }
}
