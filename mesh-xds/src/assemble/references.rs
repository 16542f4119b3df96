//! Who refers to which resource, and what that makes needed.
//!
//! Needs are reported as the net difference since they were last [asked for](References::next_change): a reference that
//! is dropped and taken again within one turn is no change, so no server is asked to forget what we still hold. It does NOT
//! hold resources.

use rustc_hash::FxHashMap;
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
    sync::Arc,
};

#[derive(Debug)]
pub(super) struct References<U, N = Arc<str>> {
    users: FxHashMap<N, BTreeSet<U>>,
    /// Names whose users changed in this turn, and whether there were any before.
    touched: BTreeMap<N, bool>,
}

impl<U, N> Default for References<U, N> {
    fn default() -> Self {
        Self { users: FxHashMap::default(), touched: BTreeMap::new() }
    }
}

impl<U: Clone + Ord, N: Clone + Ord + Hash> References<U, N> {
    /// `user` refers to `name`; once is enough.
    pub(super) fn add(&mut self, name: &N, user: U) {
        let was_used = self.is_used(name);
        if self.users.entry(name.clone()).or_default().insert(user) {
            self.touched.entry(name.clone()).or_insert(was_used);
        }
    }

    /// `user` does not refer to `name` any more.
    pub(super) fn remove(&mut self, name: &N, user: U) {
        let Some(users) = self.users.get_mut(name) else { return };
        if users.remove(&user) {
            self.touched.entry(name.clone()).or_insert(true);
        }
        if users.is_empty() {
            self.users.remove(name);
        }
    }

    pub(super) fn is_used<Q: Hash + Eq + ?Sized>(&self, name: &Q) -> bool
    where
        N: Borrow<Q>,
    {
        self.users.contains_key(name)
    }

    pub(super) fn users<Q: Hash + Eq + ?Sized>(&self, name: &Q) -> Vec<U>
    where
        N: Borrow<Q>,
    {
        self.users.get(name).map(|users| users.iter().cloned().collect()).unwrap_or_default()
    }

    /// Whether some user of `name` is such a one.
    pub(super) fn any<Q: Hash + Eq + ?Sized>(&self, name: &Q, is_such: impl Fn(&U) -> bool) -> bool
    where
        N: Borrow<Q>,
    {
        self.users.get(name).is_some_and(|users| users.iter().any(is_such))
    }

    /// The next name that became needed or stopped being needed.
    pub(super) fn next_change(&mut self) -> Option<N> {
        while let Some((name, was_used)) = self.touched.pop_first() {
            if was_used != self.is_used(&name) {
                return Some(name);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn needs_are_the_net_difference_of_a_turn() {
        let name: Arc<str> = "c".into();
        let mut references = References::default();
        references.add(&name, 1);
        references.add(&name, 2);
        assert_eq!((references.next_change(), references.next_change()), (Some(Arc::clone(&name)), None));
        references.remove(&name, 1);
        assert_eq!(references.next_change(), None, "another user is left");
        references.remove(&name, 2);
        references.add(&name, 3);
        assert_eq!(references.next_change(), None, "dropped and taken again");
        references.remove(&name, 3);
        assert_eq!(references.next_change(), Some(name));
    }
}
