//! A list that shares what did not change with the list before it.
//!
//! A cluster publishes its READY connections and its endpoints whenever one of them changes. Ten thousand reference
//! counts, each in a cache line of its own, are what that would cost; here it is a walk over pointers and the counts of
//! one chunk. Where a chunk ends is told by its last element, not by its place: one that comes or goes moves the others
//! and leaves their chunks alone. This is NOT a general container.

use std::sync::Arc;

/// One element in so many ends a chunk, on average.
const LENGTH: usize = 64;

/// Something that is the same if it has the same identity, for as long as it is held.
pub(crate) trait Identity: Clone {
    /// Of two elements that are held at the same time equal only if they are the same.
    fn identity(&self) -> usize;
}

impl<T> Identity for Arc<T> {
    fn identity(&self) -> usize {
        Self::as_ptr(self).addr()
    }
}

/// A list in chunks that are shared with its successors.
#[derive(Debug)]
pub(crate) struct Chunks<T> {
    chunks: Vec<Chunk<T>>,
}

#[derive(Debug)]
struct Chunk<T> {
    /// The number of elements up to its end.
    up_to: usize,
    elements: Arc<[T]>,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<T> Chunks<T> {
    pub(crate) fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| last.up_to)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Every element once, from this index on and then from the start.
    pub(crate) fn iter_from(&self, index: usize) -> impl Iterator<Item = &T> {
        let chunk = match self.chunks.len() {
            1 => 0,
            _ => self.chunks.partition_point(|chunk| chunk.up_to <= index).min(self.chunks.len().saturating_sub(1)),
        };
        let (before, from) = self.chunks.split_at(chunk);
        let (head, tail) = match from.first() {
            Some(first) => {
                let start = first.up_to - first.elements.len();
                first.elements.split_at((index.saturating_sub(start)).min(first.elements.len()))
            }
            None => Default::default(),
        };
        let others = from.iter().skip(1).chain(before).flat_map(|chunk| &*chunk.elements);
        tail.iter().chain(others).chain(head)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.iter_from(0)
    }
}

impl<T: Identity> Chunks<T> {
    /// These elements, in the chunks of `self` where they are the same.
    pub(crate) fn followed_by<'a>(&self, elements: impl Iterator<Item = &'a T>) -> Self
    where
        T: 'a,
    {
        let mut list = Self { chunks: Vec::with_capacity(self.chunks.len() + 1) };
        let mut old = self.chunks.as_slice();
        let mut chunk = Vec::with_capacity(LENGTH);
        for element in elements {
            chunk.push(element);
            if ends_chunk(element) {
                old = list.push(&chunk, old);
                chunk.clear();
            }
        }
        if !chunk.is_empty() {
            list.push(&chunk, old);
        }
        list
    }

    /// Adds a chunk: one of `old` if it is the same. Returns the part of `old` that follows the place where it was.
    fn push<'o>(&mut self, chunk: &[&T], old: &'o [Chunk<T>]) -> &'o [Chunk<T>] {
        let same = |old: &Chunk<T>| {
            old.elements.len() == chunk.len()
                && old.elements.iter().zip(chunk).all(|(old, new)| old.identity() == new.identity())
        };
        let up_to = self.len() + chunk.len();
        let found = old.iter().position(same);
        let elements = match found {
            Some(index) => Arc::clone(&old[index].elements),
            None => chunk.iter().map(|element| (*element).clone()).collect(),
        };
        self.chunks.push(Chunk { up_to, elements });
        found.map_or(old, |index| &old[index + 1..])
    }
}

/// By chance, but always the same for one element.
fn ends_chunk<T: Identity>(element: &T) -> bool {
    // Fibonacci hashing: addresses have their zeros at the end, the product has its chance at the start.
    let hash = (element.identity() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash >> 32 <= u64::from(u32::MAX) / LENGTH as u64
}

impl<T: Identity> FromIterator<T> for Chunks<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        let elements: Vec<T> = elements.into_iter().collect();
        Self::default().followed_by(elements.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::{Chunks, Identity};
    use proptest::prelude::*;
    use std::sync::Arc;

    #[derive(Clone, Debug, PartialEq)]
    struct Number(usize);

    impl Identity for Number {
        fn identity(&self) -> usize {
            self.0 * 64
        }
    }

    fn of(numbers: &[usize]) -> Chunks<Number> {
        numbers.iter().copied().map(Number).collect()
    }

    fn numbers<'a>(iterator: impl Iterator<Item = &'a Number>) -> Vec<usize> {
        iterator.map(|number| number.0).collect()
    }

    fn shared(old: &Chunks<Number>, new: &Chunks<Number>) -> usize {
        let is_old = |elements: &Arc<[Number]>| old.chunks.iter().any(|chunk| Arc::ptr_eq(&chunk.elements, elements));
        new.chunks.iter().filter(|chunk| is_old(&chunk.elements)).map(|chunk| chunk.elements.len()).sum()
    }

    proptest! {
        #[test]
        fn a_list_is_what_it_was_made_from(
            before in prop::collection::vec(0..1000usize, 0..600),
            after in prop::collection::vec(0..1000usize, 0..600),
            from in 0..600usize,
        ) {
            let elements: Vec<_> = after.iter().copied().map(Number).collect();
            let list = of(&before).followed_by(elements.iter());
            prop_assert_eq!(numbers(list.iter()), after.clone());
            prop_assert_eq!(list.len(), after.len());
            prop_assert_eq!(list.is_empty(), after.is_empty());
            if from < after.len() {
                let mut turned = after.clone();
                turned.rotate_left(from);
                prop_assert_eq!(numbers(list.iter_from(from)), turned);
            }
        }
    }

    #[test]
    fn one_change_leaves_nearly_everything_shared() {
        let all: Vec<usize> = (0..10_000).collect();
        let before = of(&all);
        let mut replaced = all.clone();
        replaced[5_000] = 20_000;
        let mut removed = all.clone();
        removed.remove(5_000);
        let mut added = all.clone();
        added.insert(5_000, 20_000);
        for (what, changed) in [("replaced", replaced), ("removed", removed), ("added", added)] {
            let elements: Vec<_> = changed.iter().copied().map(Number).collect();
            let after = before.followed_by(elements.iter());
            let fresh = after.len() - shared(&before, &after);
            assert!((1..1_000).contains(&fresh), "{what}: {fresh} of {} are in new chunks", after.len());
        }
        let same: Vec<_> = all.iter().copied().map(Number).collect();
        assert_eq!(shared(&before, &before.followed_by(same.iter())), 10_000);
    }
}
