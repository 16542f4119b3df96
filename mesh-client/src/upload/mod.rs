//! A request body on its way out, and what was sent of it so far.
//!
//! Until response headers arrive an attempt may have to be repeated (a transparent retry, or a policy's), so DATA that was sent is kept: refcounted, never copied, and only up to a cap. Past the cap the call is
//! committed to its attempt. One frame of lookahead lets END_STREAM ride on the last DATA frame.
//! This file does NOT decide whether to repeat, and knows no protocol.

mod lent;

pub(crate) use lent::{BodyFailed, LentBody, lend};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Body;
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// One step of an upload.
#[derive(Debug, PartialEq)]
pub(crate) enum Part {
    /// Bytes; `last` when the body ends with them.
    Data { bytes: Bytes, last: bool },
    /// Trailers: the end.
    Trailers(HeaderMap),
    /// The end, with nothing more to send.
    End,
}

/// When something of a call last moved; shared by whatever moves.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Moved>);

#[derive(Debug)]
struct Moved {
    begin: Instant,
    /// In nanoseconds since `begin`.
    last: AtomicU64,
}

impl Activity {
    pub(crate) fn now() -> Self {
        Self(Arc::new(Moved { begin: Instant::now(), last: AtomicU64::new(0) }))
    }

    pub(crate) fn touch(&self) {
        let since = self.0.begin.elapsed().as_nanos();
        self.0.last.store(since.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn last(&self) -> Instant {
        self.0.begin + Duration::from_nanos(self.0.last.load(Ordering::Relaxed))
    }
}

/// A request body with replay.
pub(crate) struct Upload<B> {
    body: B,
    /// What the body yielded so far, while it can be sent again.
    kept: Kept,
    cap: usize,
    /// How many of `kept` this attempt has sent.
    replayed: usize,
    /// Taken from the body by the lookahead, not sent yet.
    ahead: Option<Result<http_body::Frame<Bytes>, String>>,
    state: State,
    /// Told of each step, if pauses are limited.
    activity: Option<Activity>,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// The body has more to give.
    Open,
    /// The body is over; these were its trailers.
    Ended(Option<HeaderMap>),
}

impl<B> Upload<B>
where
    B: Body + Unpin,
    B::Error: fmt::Display,
{
    /// A body of which at most `cap` bytes are kept for another attempt.
    pub(crate) fn new(body: B, cap: usize) -> Self {
        Self { body, kept: Kept::default(), cap, replayed: 0, ahead: None, state: State::Open, activity: None }
    }

    /// Keeps up to `cap` bytes from now on.
    pub(crate) fn keep(&mut self, cap: usize) {
        self.cap = cap;
    }

    /// Tells of each step from now on.
    pub(crate) fn tell(&mut self, activity: Option<Activity>) {
        self.activity = activity;
    }

    /// Whether another attempt could send the whole body.
    pub(crate) fn can_replay(&self) -> bool {
        !self.kept.overflowed
    }

    /// Starts again from the first byte. Only after [`can_replay`](Self::can_replay).
    pub(crate) fn rewind(&mut self) {
        self.replayed = 0;
    }

    /// There will be no other attempt: lets go of what was kept.
    pub(crate) fn commit(&mut self) {
        let unsent = self.kept.len() - self.replayed;
        if unsent == 0 {
            self.kept = Kept { overflowed: true, ..Kept::default() };
            self.replayed = 0;
        }
        self.cap = 0;
    }

    /// Whether it is known now that there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        match self.state {
            State::Open => self.kept.len() == 0 && self.ahead.is_none() && self.body.is_end_stream(),
            State::Ended(ref trailers) => self.kept.len() == 0 && trailers.is_none() && !self.kept.overflowed,
        }
    }

    /// How much there is to send, if the body knows.
    pub(crate) fn size_hint(&self) -> http_body::SizeHint {
        match self.state {
            State::Open if self.kept.len() == 0 && self.ahead.is_none() => self.body.size_hint(),
            _ => http_body::SizeHint::default(),
        }
    }

    /// The next step of this attempt, or the body's own error.
    pub(crate) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, String>> {
        let part = self.poll_step(cx);
        if let (Poll::Ready(_), Some(activity)) = (&part, &self.activity) {
            activity.touch();
        }
        part
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, String>> {
        if let Some(bytes) = self.kept.get(self.replayed) {
            let bytes = bytes.clone();
            self.replayed += 1;
            let last = self.replayed == self.kept.len() && self.state == State::Ended(None);
            return Poll::Ready(Ok(Part::Data { bytes, last }));
        }
        match &self.state {
            State::Ended(None) => return Poll::Ready(Ok(Part::End)),
            State::Ended(Some(trailers)) => return Poll::Ready(Ok(Part::Trailers(trailers.clone()))),
            State::Open => {}
        }
        let frame = match self.ahead.take() {
            Some(frame) => Some(frame),
            None => ready!(self.poll_body(cx)),
        };
        let Some(frame) = frame else {
            self.state = State::Ended(None);
            return Poll::Ready(Ok(Part::End));
        };
        let bytes = match frame.map(http_body::Frame::into_data) {
            Err(error) => return Poll::Ready(Err(error)),
            Ok(Ok(bytes)) => bytes,
            Ok(Err(other)) => {
                let trailers = other.into_trailers().unwrap_or_default();
                self.state = State::Ended(Some(trailers.clone()));
                return Poll::Ready(Ok(Part::Trailers(trailers)));
            }
        };
        self.kept.push(&bytes, self.cap);
        self.replayed = self.kept.len();
        self.look_ahead(cx);
        Poll::Ready(Ok(Part::Data { bytes, last: self.state == State::Ended(None) }))
    }

    /// Asks the body whether that was all, without waiting for the answer.
    fn look_ahead(&mut self, cx: &mut Context<'_>) {
        if self.body.is_end_stream() {
            self.state = State::Ended(None);
            return;
        }
        match self.poll_body(cx) {
            Poll::Ready(None) => self.state = State::Ended(None),
            Poll::Ready(frame) => self.ahead = frame,
            // The waker is registered: the caller polls again when the body has something.
            Poll::Pending => {}
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, String>>> {
        Pin::new(&mut self.body).poll_frame(cx).map(|frame| {
            frame.map(|frame| match frame {
                // `copy_to_bytes` of a `Bytes` takes a reference, it does not copy.
                Ok(frame) => Ok(frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))),
                Err(error) => Err(error.to_string()),
            })
        })
    }
}

impl<B> fmt::Debug for Upload<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("state", &self.state).field("kept", &self.kept).finish_non_exhaustive()
    }
}

/// Frames that were sent. The first is in line: most calls have one.
#[derive(Debug, Default)]
struct Kept {
    first: Option<Bytes>,
    rest: Vec<Bytes>,
    bytes: usize,
    overflowed: bool,
}

impl Kept {
    fn push(&mut self, bytes: &Bytes, cap: usize) {
        if self.overflowed || self.bytes + bytes.len() > cap {
            *self = Self { overflowed: true, ..Self::default() };
            return;
        }
        self.bytes += bytes.len();
        match self.first {
            None => self.first = Some(bytes.clone()),
            Some(_) => self.rest.push(bytes.clone()),
        }
    }

    fn get(&self, index: usize) -> Option<&Bytes> {
        match index {
            0 => self.first.as_ref(),
            _ => self.rest.get(index - 1),
        }
    }

    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};
    use std::convert::Infallible;

    type Frames = Vec<http_body::Frame<Bytes>>;

    fn upload(frames: Frames, cap: usize) -> Upload<impl Body<Data = Bytes, Error = Infallible> + Unpin> {
        Upload::new(StreamBody::new(futures_util::stream::iter(frames.into_iter().map(Ok))).boxed(), cap)
    }

    fn data(text: &'static str) -> http_body::Frame<Bytes> {
        http_body::Frame::data(Bytes::from_static(text.as_bytes()))
    }

    fn next<B: Body<Error = Infallible> + Unpin>(upload: &mut Upload<B>) -> Part {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match upload.poll_part(&mut cx) {
            Poll::Ready(Ok(part)) => part,
            other => panic!("{other:?}"),
        }
    }

    fn part(text: &'static str, last: bool) -> Part {
        Part::Data { bytes: Bytes::from_static(text.as_bytes()), last }
    }

    #[test]
    fn the_last_data_frame_says_so() {
        let mut upload = upload(vec![data("a"), data("b")], 10);
        assert_eq!(next(&mut upload), part("a", false));
        assert_eq!(next(&mut upload), part("b", true));
    }

    #[test]
    fn a_second_attempt_sends_the_same_again_and_goes_on() {
        let mut upload = upload(vec![data("a"), data("b"), data("c")], 10);
        assert_eq!(next(&mut upload), part("a", false));
        assert_eq!(next(&mut upload), part("b", false));
        assert!(upload.can_replay());
        upload.rewind();
        assert_eq!(next(&mut upload), part("a", false));
        assert_eq!(next(&mut upload), part("b", false));
        assert_eq!(next(&mut upload), part("c", true));
    }

    #[test]
    fn what_is_sent_again_is_not_a_copy() {
        let bytes = Bytes::from(vec![1; 100]);
        let mut upload = upload(vec![http_body::Frame::data(bytes.clone())], 100);
        for _ in 0..2 {
            let Part::Data { bytes: sent, last: true } = next(&mut upload) else { panic!("all of the data") };
            assert_eq!(sent.as_ptr(), bytes.as_ptr());
            upload.rewind();
        }
    }

    #[test]
    fn trailers_end_an_upload_and_are_repeated() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
        let mut upload = upload(vec![data("a"), http_body::Frame::trailers(trailers.clone())], 10);
        for _ in 0..2 {
            assert_eq!(next(&mut upload), part("a", false));
            assert_eq!(next(&mut upload), Part::Trailers(trailers.clone()));
            upload.rewind();
        }
    }

    #[test]
    fn more_than_the_cap_commits_the_call() {
        let mut upload = upload(vec![data("aaa"), data("bbb"), data("ccc")], 5);
        next(&mut upload);
        assert!(upload.can_replay());
        assert_eq!(next(&mut upload), part("bbb", false));
        assert!(!upload.can_replay());
        assert_eq!(next(&mut upload), part("ccc", true));
    }

    #[test]
    fn an_empty_body_is_known_to_be_empty() {
        assert!(Upload::new(http_body_util::Empty::<Bytes>::new(), 10).is_empty());
        assert!(!upload(vec![data("a")], 10).is_empty());
    }
}
