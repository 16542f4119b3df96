//! The routes whose path matches, in the order that tables by path have lost, and what each asks for beside its path.
//!
//! It does NOT compare paths.

use super::RequestHead;
use mesh_xds::resource::{HeaderMatch, Millionths, Route};

/// What a route asks for beside its path.
#[derive(Clone, Debug)]
pub(super) struct Conditions {
    headers: Box<[HeaderMatch]>,
    fraction: Option<Millionths>,
}

impl Conditions {
    pub(super) fn of(route: &Route) -> Self {
        // A fraction of everything is no condition, and costs no random number.
        let fraction = route.matches.fraction.filter(|&fraction| fraction != Millionths::ALL);
        Self { headers: route.matches.headers.as_slice().into(), fraction }
    }

    fn are_none(&self) -> bool {
        self.headers.is_empty() && self.fraction.is_none()
    }

    pub(super) fn hold(&self, request: &RequestHead<'_>, draw: &mut dyn FnMut() -> u32) -> bool {
        request.has(&self.headers)
            // Last, so that a share is a share of the requests that match otherwise.
            && self.fraction.is_none_or(|fraction| fraction.hit(draw()))
    }
}

// === Slot and Candidates ===

/// The routes that have one path pattern.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    /// Those with conditions that stand before `unconditional`, ascending.
    conditional: Vec<usize>,
    /// The first without.
    unconditional: Option<usize>,
}

impl Slot {
    /// Routes must be appended in order.
    pub(super) fn append(&mut self, index: usize, conditions: &Conditions) {
        match self.unconditional {
            // An earlier route with this very path takes every request: this one is unreachable.
            Some(_) => {}
            None if conditions.are_none() => self.unconditional = Some(index),
            None => self.conditional.push(index),
        }
    }
}

/// The routes whose path matches a request, merged by index.
#[derive(Default)]
pub(super) struct Candidates<'t> {
    /// The lists of the first few slots, borrowed: the usual virtual host allocates nothing here.
    lists: [&'t [usize]; 8],
    len: usize,
    /// What found no room there; descending once `next` is called.
    rest: Vec<usize>,
    rest_is_sorted: bool,
    /// The lowest route without conditions. No route behind it can win.
    unconditional: Option<usize>,
}

impl<'t> Candidates<'t> {
    pub(super) fn add(&mut self, slot: &'t Slot) {
        if let Some(index) = slot.unconditional {
            self.add_unconditional(index);
        }
        if slot.conditional.is_empty() {
            return;
        }
        if let Some(list) = self.lists.get_mut(self.len) {
            *list = &slot.conditional;
            self.len += 1;
        } else {
            self.rest.extend_from_slice(&slot.conditional);
        }
    }

    fn add_unconditional(&mut self, index: usize) {
        self.unconditional = Some(self.unconditional.map_or(index, |lowest| lowest.min(index)));
    }

    /// A route whose path was found to match by itself.
    pub(super) fn add_route(&mut self, index: usize, conditions: &Conditions) {
        if conditions.are_none() {
            self.add_unconditional(index);
        } else {
            self.rest.push(index);
        }
    }

    /// The answer, if no conditions decide.
    pub(super) fn unconditional(&self) -> Option<usize> {
        self.unconditional
    }

    /// Whether a route with this index could still be the answer.
    pub(super) fn may_win(&self, index: usize) -> bool {
        self.unconditional.is_none_or(|lowest| index < lowest)
    }

    /// The next route whose conditions decide, in order. Sorting the rest once keeps many nested prefixes at
    /// O(k log k), where asking every list for its head each time would be O(k²).
    pub(super) fn next(&mut self) -> Option<usize> {
        if !self.rest_is_sorted {
            self.rest.sort_unstable_by(|a, b| b.cmp(a));
            self.rest_is_sorted = true;
        }
        let lists = self.lists[..self.len].iter_mut();
        let lowest = lists.filter(|list| !list.is_empty()).min_by_key(|list| list[0]);
        let index = match (lowest, self.rest.last()) {
            (Some(list), rest) if rest.is_none_or(|&index| list[0] < index) => {
                let index = list[0];
                *list = &list[1..];
                index
            }
            _ => self.rest.pop()?,
        };
        self.may_win(index).then_some(index)
    }
}
