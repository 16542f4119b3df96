//! A request on its way out: its body, and what was sent of it so far. Its head is in `head.rs`.
//!
//! Until response headers arrive an attempt may have to be repeated (a transparent retry, or a policy's), so DATA that was sent
//! is kept: refcounted, never copied, and only up to a cap. Past the cap the call is committed to its attempt. One frame of
//! lookahead lets END_STREAM ride on the last DATA frame.
//! This file does NOT decide whether to repeat, and knows no protocol.

mod activity;
mod head;
mod lent;

pub(crate) use activity::Activity;
pub(crate) use head::Head;
pub(crate) use lent::{BodyFailed, Lent, LentBody, lend};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, SizeHint};
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

/// One step of an upload.
#[derive(Debug, PartialEq)]
pub(crate) enum Part {
    /// Bytes; `last` when the body ends with them.
    Data { bytes: Bytes, last: bool },
    /// Trailers: the end.
    Trailers(Box<HeaderMap>),
    /// The end, with nothing more to send.
    End,
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
    ahead: Option<Result<Ahead, String>>,
    state: State,
    /// Told of each step, and of the end, if a timer asks.
    activity: Option<Activity>,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// The body has more to give.
    Open,
    /// The body is over; these were its trailers.
    Ended(Option<Box<HeaderMap>>),
}

/// A frame of the body. Small, since each call has room for one; few have trailers.
enum Ahead {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
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

    /// Tells of each step from now on, and when the caller has given everything.
    pub(crate) fn tell(&mut self, activity: Activity) {
        self.activity = Some(activity);
        self.is_whole();
        self.tell_if_complete();
    }

    fn tell_if_complete(&self) {
        if let (State::Ended(_), Some(activity)) = (&self.state, &self.activity) {
            activity.complete();
        }
    }

    /// Whether the caller has given everything: asks the body for its first frame, if nobody has yet, and does not wait.
    pub(crate) fn is_whole(&mut self) -> bool {
        if self.state == State::Open && self.ahead.is_none() && self.kept.len() == 0 {
            // Whoever sends polls again, with a waker of its own.
            self.look_ahead(&mut Context::from_waker(Waker::noop()));
            if self.state == State::Open && self.body.is_end_stream() {
                self.state = State::Ended(None);
            }
        }
        self.state != State::Open
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
        let none_left = self.kept.len() == 0 && self.ahead.is_none();
        match self.state {
            State::Open => none_left && self.body.is_end_stream(),
            State::Ended(ref trailers) => none_left && trailers.is_none() && !self.kept.overflowed,
        }
    }

    /// How much there is to send, if the body knows.
    pub(crate) fn size_hint(&self) -> SizeHint {
        let rest = match self.state {
            State::Open => self.body.size_hint(),
            State::Ended(None) => SizeHint::with_exact(0),
            State::Ended(Some(_)) => return SizeHint::default(),
        };
        let ahead = match &self.ahead {
            None => 0,
            Some(Ok(Ahead::Data(bytes))) => bytes.len(),
            Some(_) => return SizeHint::default(),
        };
        if self.kept.overflowed {
            return SizeHint::default();
        }
        let more = (self.kept.bytes + ahead) as u64;
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(more));
        }
        hint.set_lower(rest.lower().saturating_add(more));
        hint
    }

    /// The next step of this attempt, or the body's own error.
    pub(crate) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, String>> {
        let part = self.poll_step(cx);
        if let (Poll::Ready(_), Some(activity)) = (&part, &self.activity) {
            activity.touch();
            self.tell_if_complete();
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
        let frame = match (self.ahead.take(), &self.state) {
            (Some(frame), _) => frame,
            (None, State::Ended(None)) => return Poll::Ready(Ok(Part::End)),
            (None, State::Ended(Some(trailers))) => return Poll::Ready(Ok(Part::Trailers(trailers.clone()))),
            (None, State::Open) => match ready!(self.poll_body(cx)) {
                Some(frame) => frame,
                None => {
                    self.state = State::Ended(None);
                    return Poll::Ready(Ok(Part::End));
                }
            },
        };
        let bytes = match frame {
            Err(error) => return Poll::Ready(Err(error)),
            Ok(Ahead::Data(bytes)) => bytes,
            Ok(Ahead::Trailers(trailers)) => {
                self.state = State::Ended(Some(trailers.clone()));
                return Poll::Ready(Ok(Part::Trailers(trailers)));
            }
        };
        self.kept.push(&bytes, self.cap);
        self.replayed = self.kept.len();
        if self.state == State::Open {
            self.look_ahead(cx);
        }
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

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Ahead, String>>> {
        Pin::new(&mut self.body).poll_frame(cx).map(|frame| {
            frame.map(|frame| match frame {
                Ok(frame) => Ok(match frame.into_data() {
                    // `copy_to_bytes` of a `Bytes` takes a reference, it does not copy.
                    Ok(mut data) => Ahead::Data(data.copy_to_bytes(data.remaining())),
                    Err(other) => Ahead::Trailers(Box::new(other.into_trailers().unwrap_or_default())),
                }),
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
        let mut cx = Context::from_waker(Waker::noop());
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
            assert_eq!(next(&mut upload), Part::Trailers(Box::new(trailers.clone())));
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
    fn a_body_in_memory_is_known_to_be_whole_and_how_long_it_is() {
        let mut full = Upload::new(http_body_util::Full::new(Bytes::from_static(b"abc")), 10);
        for is_again in [false, true] {
            assert_eq!(
                (full.is_whole(), full.size_hint().exact(), full.is_empty()),
                (true, Some(3), false),
                "{is_again}"
            );
            assert_eq!(next(&mut full), part("abc", true));
            full.rewind();
        }
        let mut open = upload(vec![data("a"), data("b")], 10);
        assert!(!open.is_whole());
        assert_eq!(next(&mut open), part("a", false));
        assert_eq!(next(&mut open), part("b", true));
        assert!(open.is_whole());
    }

    #[test]
    fn who_asks_is_told_when_the_caller_has_given_everything() {
        let mut upload = upload(vec![data("a"), data("b")], 10);
        let activity = Activity::now();
        upload.tell(activity.clone());
        assert_eq!((next(&mut upload), activity.completed()), (part("a", false), None));
        assert_eq!(next(&mut upload), part("b", true));
        assert!(activity.completed().is_some());
    }

    #[test]
    fn an_empty_body_is_known_to_be_empty() {
        assert!(Upload::new(http_body_util::Empty::<Bytes>::new(), 10).is_empty());
        assert!(!upload(vec![data("a")], 10).is_empty());
    }
}
