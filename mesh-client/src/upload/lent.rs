//! An upload on loan to somebody who takes a body for good: hyper, or a service below a layer.
//!
//! What is sent again must come back first. It does when the body was wholly read, and when the attempt is given up.

use super::{Part, Upload};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

/// Lends an upload, if there is one.
pub(crate) fn lend<B>(upload: &mut Option<Upload<B>>) -> (Loan<'_, B>, LentBody<B>)
where
    B: Body + Unpin,
    B::Error: fmt::Display,
{
    let size = upload.as_ref().map(Upload::size_hint).unwrap_or_default();
    let over = upload.as_ref().is_none_or(Upload::is_empty);
    let lent = Arc::new(Mutex::new(upload.take()));
    let written = Arc::new(AtomicBool::new(false));
    let body = LentBody { upload: Arc::clone(&lent), size, over, _written: Written(Arc::clone(&written)) };
    (Loan { home: upload, lent, written, returns: true }, body)
}

/// Brings a lent upload back, also when the attempt is given up.
pub(crate) struct Loan<'a, B> {
    home: &'a mut Option<Upload<B>>,
    lent: Arc<Mutex<Option<Upload<B>>>>,
    written: Arc<AtomicBool>,
    returns: bool,
}

impl<B> Loan<'_, B> {
    /// Raised once whoever has the body lets go of it.
    #[cfg(feature = "http1")]
    pub(crate) fn written(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.written)
    }

    /// A response has come. A body that is wholly sent is back; another goes on while the response is read, unless that
    /// is not wanted.
    pub(crate) fn settle(mut self) -> Option<Lent<B>> {
        self.returns = self.written.load(Ordering::Acquire);
        (!self.returns).then(|| Lent(Arc::clone(&self.lent)))
    }
}

/// An upload that goes on after its response has begun.
pub(crate) struct Lent<B>(Arc<Mutex<Option<Upload<B>>>>);

impl<B> Lent<B>
where
    B: Body + Unpin,
    B::Error: fmt::Display,
{
    /// Whether another attempt could send all of it.
    pub(crate) fn can_replay(&self) -> bool {
        lock(&self.0).as_ref().is_some_and(Upload::can_replay)
    }

    /// Takes it from whoever sends it, if another attempt can send all of it.
    pub(crate) fn recall(self) -> Option<Upload<B>> {
        lock(&self.0).take_if(|upload| upload.can_replay())
    }
}

impl<B> fmt::Debug for Lent<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lent").finish_non_exhaustive()
    }
}

impl<B> Drop for Loan<'_, B> {
    fn drop(&mut self) {
        if self.returns {
            *self.home = lock(&self.lent).take();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body that the borrower sees.
pub(crate) struct LentBody<B> {
    upload: Arc<Mutex<Option<Upload<B>>>>,
    size: SizeHint,
    over: bool,
    /// Dropped when the borrower lets go of the body.
    _written: Written,
}

impl<B> fmt::Debug for LentBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentBody").field("over", &self.over).finish_non_exhaustive()
    }
}
/// Raises its flag when it is dropped.
struct Written(Arc<AtomicBool>);

impl Drop for Written {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl<B> Body for LentBody<B>
where
    B: Body + Unpin,
    B::Error: fmt::Display,
{
    type Data = Bytes;
    type Error = BodyFailed;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailed>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let part = match lock(&self.upload).as_mut() {
            Some(upload) => ready!(upload.poll_part(cx)),
            // It went to another attempt: what hyper has of it must not look like the whole.
            None => Err("given up".to_owned()),
        };
        let (frame, over) = match part {
            Ok(Part::Data { bytes, last }) => (Some(Ok(Frame::data(bytes))), last),
            Ok(Part::Trailers(trailers)) => (Some(Ok(Frame::trailers(*trailers))), true),
            Ok(Part::End) => (None, true),
            Err(error) => (Some(Err(BodyFailed(error))), true),
        };
        self.over = over;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

/// The caller's body failed; its text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BodyFailed(pub(crate) String);
