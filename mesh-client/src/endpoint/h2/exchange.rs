//! One call on its stream: request and response at the same time, and what h2's errors mean to a call.
//!
//! It does NOT know the connection: a stream that broke with it says what h2 says.

use crate::{
    endpoint::{RecvFailure, SendFailure},
    upload::{Part, Upload},
};
use bytes::Bytes;
use h2::{Reason, SendStream, client::ResponseFuture};
use http_body::{Body, Frame};
use std::{
    fmt, future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::task::AbortHandle;

/// What the first DATA frame may weigh to be enqueued without asking for flow-control capacity first: one frame.
const FIRST_FRAME: usize = 16 * 1024;

/// One attempt until its response headers: sends and listens at the same time.
pub(super) struct Exchange {
    response: ResponseFuture,
    /// `None` once the upload is over, or the server wants no more of it.
    stream: Option<SendStream<Bytes>>,
    chunk: Option<Chunk>,
    started: bool,
}

/// DATA that waits for flow-control capacity.
struct Chunk {
    bytes: Bytes,
    last: bool,
}

impl Exchange {
    /// Without a stream there is no request body.
    pub(super) fn new(response: ResponseFuture, stream: Option<SendStream<Bytes>>) -> Self {
        Self { response, stream, chunk: None, started: false }
    }

    pub(super) fn poll<B>(
        &mut self,
        cx: &mut Context<'_>,
        upload: &mut Option<Upload<B>>,
    ) -> Poll<Result<http::Response<h2::RecvStream>, SendFailure>>
    where
        B: Body + Unpin,
        B::Error: fmt::Display,
    {
        if let (Some(stream), Some(upload)) = (&mut self.stream, upload) {
            match poll_upload(cx, stream, &mut self.chunk, upload, &mut self.started) {
                // Whatever ended it, the response future knows more: an early answer, or the reason of the reset.
                Poll::Ready(Ok(())) => self.stream = None,
                Poll::Ready(Err(error)) => {
                    stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(SendFailure::RequestBody(error)));
                }
                Poll::Pending => {}
            }
        }
        Pin::new(&mut self.response).poll(cx).map_err(|error| failure(&error))
    }

    /// The response has begun: what is left to be sent, if anything is. A body that is wholly sent stays with the call.
    pub(super) fn rest<B>(self, upload: &mut Option<Upload<B>>) -> Option<Box<Open<B>>> {
        let (stream, chunk) = (self.stream?, self.chunk);
        Some(Box::new(Open { stream, chunk, upload: upload.take()? }))
    }
}

/// Sends what can be sent: `Ok` when the upload is over (or the server wants no more), `Err` when the body failed.
fn poll_upload<B>(
    cx: &mut Context<'_>,
    stream: &mut SendStream<Bytes>,
    chunk: &mut Option<Chunk>,
    upload: &mut Upload<B>,
    started: &mut bool,
) -> Poll<Result<(), String>>
where
    B: Body + Unpin,
    B::Error: fmt::Display,
{
    loop {
        if let Some(Chunk { bytes, last }) = chunk {
            if stream.capacity() == 0 {
                stream.reserve_capacity(bytes.len());
                match ready!(stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return Poll::Ready(Ok(())),
                }
            }
            let part = bytes.split_to(bytes.len().min(stream.capacity()));
            let (done, last) = (bytes.is_empty(), *last);
            if stream.send_data(part, done && last).is_err() {
                return Poll::Ready(Ok(()));
            }
            if done {
                *chunk = None;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            continue;
        }
        match ready!(upload.poll_part(cx)) {
            Ok(Part::Data { bytes, last }) if !std::mem::replace(started, true) && bytes.len() <= FIRST_FRAME => {
                // h2 holds one frame for us if the window is closed: bounded, and saves two locks in the common call.
                if stream.send_data(bytes, last).is_err() || last {
                    return Poll::Ready(Ok(()));
                }
            }
            Ok(Part::Data { bytes, last }) if bytes.is_empty() => {
                if last {
                    let _ = stream.send_data(bytes, true);
                    return Poll::Ready(Ok(()));
                }
            }
            Ok(Part::Data { bytes, last }) => *chunk = Some(Chunk { bytes, last }),
            // An error here means that the stream is closed, which the response tells.
            Ok(Part::Trailers(trailers)) => {
                let _ = stream.send_trailers(*trailers);
                return Poll::Ready(Ok(()));
            }
            Ok(Part::End) => {
                let _ = stream.send_data(Bytes::new(), true);
                return Poll::Ready(Ok(()));
            }
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// An upload that has not ended, on the stream of a response that has begun.
pub(crate) struct Open<B> {
    stream: SendStream<Bytes>,
    chunk: Option<Chunk>,
    pub(in crate::endpoint) upload: Upload<B>,
}

impl<B> Open<B>
where
    B: Body + Send + Unpin + 'static,
    B::Error: fmt::Display,
{
    /// Goes on by itself: the caller may now only read, or only write.
    pub(in crate::endpoint) fn pump(mut self: Box<Self>) -> AbortHandle {
        self.upload.commit();
        tokio::spawn(future::poll_fn(move |cx| self.poll(cx))).abort_handle()
    }
}

impl<B> Open<B>
where
    B: Body + Unpin,
    B::Error: fmt::Display,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match poll_upload(cx, &mut self.stream, &mut self.chunk, &mut self.upload, &mut true) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            Poll::Ready(Err(_)) => {
                self.stream.send_reset(Reason::CANCEL);
                Poll::Ready(())
            }
            // "RST_STREAM(NO_ERROR) after a complete response" (RFC 9113, 8.1): the server wants no more.
            Poll::Pending => self.stream.poll_reset(cx).map(drop),
        }
    }
}

fn failure(error: &h2::Error) -> SendFailure {
    // First: what the server has done must not be repeated, whatever h2 calls the reason.
    if let Some(reason) = unacceptable(error) {
        return SendFailure::Unacceptable(reason);
    }
    match error.reason() {
        Some(Reason::REFUSED_STREAM) if error.is_reset() => SendFailure::Refused,
        Some(reason) if error.is_reset() => SendFailure::Reset(reason.into()),
        // Streams up to the last id go on after a GOAWAY; only those above it see this.
        Some(_) if error.is_go_away() && error.is_remote() => SendFailure::GoneAway,
        _ => SendFailure::Io(error.to_string()),
    }
}

/// What is wrong with the response, if it was h2 that reset the stream, on our behalf.
fn unacceptable(error: &h2::Error) -> Option<String> {
    match error.reason().filter(|_| error.is_library() && error.is_reset())? {
        // h2 does not tell the two apart.
        Reason::PROTOCOL_ERROR => Some("malformed, or headers above http2_max_header_list_size".to_owned()),
        reason => Some(format!("{reason:?}: {reason}")),
    }
}

// === RecvBody ===

/// A response body on its stream. Dropping it early resets the stream (CANCEL).
pub(crate) struct RecvBody {
    recv: h2::RecvStream,
    pump: Option<AbortHandle>,
    ended: bool,
}

impl fmt::Debug for RecvBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("h2::RecvBody").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl RecvBody {
    pub(super) fn new(recv: h2::RecvStream) -> Self {
        Self { recv, pump: None, ended: false }
    }

    /// What is left of the request lasts no longer than the response.
    pub(in crate::endpoint) fn ends(&mut self, pump: AbortHandle) {
        self.pump = Some(pump);
    }

    pub(in crate::endpoint) fn is_end_stream(&self) -> bool {
        self.ended || self.recv.is_end_stream()
    }

    pub(in crate::endpoint) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RecvFailure>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let error = match ready!(self.recv.poll_data(cx)) {
            Some(Ok(bytes)) => {
                // Released as it is handed over: a slow reader slows its own stream down, and no other.
                let _ = self.recv.flow_control().release_capacity(bytes.len());
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Some(Err(error)) => error,
            None => match ready!(self.recv.poll_trailers(cx)) {
                Ok(trailers) => {
                    self.ended = true;
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Err(error) => error,
            },
        };
        self.ended = true;
        if let Some(reason) = unacceptable(&error) {
            return Poll::Ready(Some(Err(RecvFailure::Unacceptable(reason))));
        }
        Poll::Ready(match error.reason() {
            // Also NO_ERROR: after a complete response it is not seen here, and before its end the response is cut.
            Some(reason) if error.is_reset() => Some(Err(RecvFailure::Reset(reason.into()))),
            _ => Some(Err(RecvFailure::Io(error.to_string()))),
        })
    }
}

impl Drop for RecvBody {
    fn drop(&mut self) {
        // The call is over, whether the response has ended or was given up: what is left of the upload goes with it, as
        // in gRPC and in Envoy's router. It would hold a stream that nobody counts, for as long as its body likes.
        if let Some(pump) = self.pump.take() {
            pump.abort();
        }
    }
}
