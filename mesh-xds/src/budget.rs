//! How much of a turn is done at a time: the thread has other tasks, too.
//!
//! A turn of the client may have 10,000 resources to take in, or as many references to follow. It is done in slices, with
//! the other tasks of the thread in between. What a slice may do is counted and not timed, since the rooms that do it have
//! no clock. It does NOT say what comes first.

/// What is left of a slice.
#[derive(Debug)]
pub(crate) struct Budget(usize);

impl Budget {
    /// Of a slice: at some microseconds for each unit, about a millisecond.
    pub(crate) const SLICE: usize = 256;

    pub(crate) fn new(units: usize) -> Self {
        Self(units)
    }

    /// Pays for one resource, reference or name.
    pub(crate) fn spend(&mut self) {
        self.spend_many(1);
    }

    /// Pays for something that is not done in parts. It may cost more than there is.
    pub(crate) fn spend_many(&mut self, units: usize) {
        self.0 = self.0.saturating_sub(units);
    }

    /// Whether the rest is for the next slice.
    pub(crate) fn is_spent(&self) -> bool {
        self.0 == 0
    }
}
