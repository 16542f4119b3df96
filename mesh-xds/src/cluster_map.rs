//! A map by cluster name, whose copies share what they have in common.
//!
//! One assignment changes one cluster of ten thousand, and the snapshot before it lives on. The entries lie in about as
//! many parts as a part has entries, so that a copy with one change costs two square roots: the pointers to all parts,
//! and one part anew. Parts that are the very same are no work for who looks for changes, which a hash trie does not
//! tell (`imbl`, measured: 2 us to copy and change instead of 4, but 4 times as long to iterate). No order is kept.
//! It does NOT know what is mapped.

use crate::resource::ClusterName;
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::{
    borrow::Borrow,
    fmt,
    hash::{BuildHasher, Hash},
    ops::Index,
    sync::Arc,
};

/// A map by cluster name that is cheap to clone, and cheap to change after that.
#[derive(Clone)]
pub struct ClusterMap<V> {
    /// A power of two of them.
    parts: Arc<[Arc<Part<V>>]>,
    len: usize,
}

type Part<V> = FxHashMap<ClusterName, V>;

/// So many times the number of parts is what a part holds on average before there are too few of them.
const FULL: usize = 4;

impl<V> ClusterMap<V> {
    /// How many clusters there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a cluster, by [`ClusterName`] or `str`.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, name: &Q) -> Option<&V>
    where
        ClusterName: Borrow<Q>,
    {
        self.parts[part_of(name, self.parts.len())].get(name)
    }

    /// Whether there is such a cluster.
    pub fn contains_key<Q: Hash + Eq + ?Sized>(&self, name: &Q) -> bool
    where
        ClusterName: Borrow<Q>,
    {
        self.get(name).is_some()
    }

    /// All names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&ClusterName, &V)> {
        self.parts.iter().flat_map(|part| &**part)
    }

    /// All names.
    pub fn keys(&self) -> impl Iterator<Item = &ClusterName> {
        self.iter().map(|(name, _)| name)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Entries that may have changed since `before`, each with its value there. Nothing that changed is left out; what
    /// did not is left out where the two maps are copies of one.
    pub fn changes_since<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (&'a ClusterName, Option<&'a V>, &'a V)> {
        let comparable = self.parts.len() == before.parts.len();
        let is_same = move |index: usize| comparable && Arc::ptr_eq(&self.parts[index], &before.parts[index]);
        let parts = self.parts.iter().enumerate().filter(move |(index, _)| !is_same(*index));
        parts.flat_map(|(_, part)| &**part).map(|(name, value)| (name, before.get(name), value))
    }
}

impl<V: Clone> ClusterMap<V> {
    /// Puts a value in, and returns the one that was there.
    pub fn insert(&mut self, name: ClusterName, value: V) -> Option<V> {
        if self.len >= FULL * self.parts.len().pow(2) {
            let entries = self.iter().map(|(name, value)| (name.clone(), value.clone()));
            *self = Self::with_parts(parts_for(self.len + 1), entries);
        }
        let index = part_of(&name, self.parts.len());
        let held = Arc::make_mut(&mut Arc::make_mut(&mut self.parts)[index]).insert(name, value);
        self.len += usize::from(held.is_none());
        held
    }

    /// Takes a cluster out, and returns its value.
    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, name: &Q) -> Option<V>
    where
        ClusterName: Borrow<Q>,
    {
        // Nothing is copied for what is not there.
        self.get(name)?;
        let index = part_of(name, self.parts.len());
        self.len -= 1;
        Arc::make_mut(&mut Arc::make_mut(&mut self.parts)[index]).remove(name)
    }
}

impl<V> ClusterMap<V> {
    fn with_parts(count: usize, entries: impl Iterator<Item = (ClusterName, V)>) -> Self {
        let mut parts: Vec<_> = std::iter::repeat_with(Part::default).take(count).collect();
        for (name, value) in entries {
            parts[part_of(&name, count)].insert(name, value);
        }
        let len = parts.iter().map(Part::len).sum();
        Self { parts: parts.into_iter().map(Arc::new).collect(), len }
    }
}

/// A power of two, next to the square root.
fn parts_for(len: usize) -> usize {
    len.isqrt().max(1).next_power_of_two()
}

/// `count` is a power of two. The hash is mixed once more (Fibonacci hashing), since the part's own table uses both of
/// its ends.
fn part_of(name: &(impl Hash + ?Sized), count: usize) -> usize {
    let mixed = FxBuildHasher.hash_one(name).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as usize & (count - 1)
}

impl<V> Default for ClusterMap<V> {
    fn default() -> Self {
        Self { parts: [Arc::default()].into(), len: 0 }
    }
}

impl<V> FromIterator<(ClusterName, V)> for ClusterMap<V> {
    fn from_iter<T: IntoIterator<Item = (ClusterName, V)>>(entries: T) -> Self {
        // A first table tells how many there are; its entries move.
        let entries: Part<V> = entries.into_iter().collect();
        Self::with_parts(parts_for(entries.len()), entries.into_iter())
    }
}

/// # Panics
/// When there is no such cluster.
impl<V, Q: Hash + Eq + ?Sized> Index<&Q> for ClusterMap<V>
where
    ClusterName: Borrow<Q>,
{
    type Output = V;

    fn index(&self, name: &Q) -> &V {
        self.get(name).expect("no such cluster")
    }
}

impl<V: fmt::Debug> fmt::Debug for ClusterMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn numbered(count: usize) -> ClusterMap<usize> {
        (0..count).map(|n| (ClusterName::from(n.to_string().as_str()), n)).collect()
    }

    fn changes(after: &ClusterMap<usize>, before: &ClusterMap<usize>) -> Vec<(String, Option<usize>, usize)> {
        let all = after.changes_since(before).map(|(name, old, new)| (name.to_string(), old.copied(), *new));
        all.filter(|(_, old, new)| *old != Some(*new)).collect()
    }

    #[test]
    fn a_copy_that_changes_leaves_the_first_one_as_it_was() {
        let before = numbered(1000);
        let mut after = before.clone();
        assert_eq!(after.insert("7".into(), 70), Some(7));
        assert_eq!((before["7"], after["7"]), (7, 70));
        assert_eq!(changes(&after, &before), [("7".to_owned(), Some(7), 70)]);
    }

    #[test]
    fn few_entries_are_looked_at_for_one_change() {
        let before = numbered(10_000);
        let mut after = before.clone();
        after.insert("7".into(), 70);
        let looked_at = after.changes_since(&before).count();
        assert!((1..200).contains(&looked_at), "{looked_at}");
        assert_eq!(before.changes_since(&before.clone()).count(), 0);
    }

    #[test]
    fn it_has_as_many_parts_as_it_needs() {
        let mut map = ClusterMap::default();
        for n in 0..10_000 {
            map.insert(n.to_string().as_str().into(), n);
        }
        let largest = map.parts.iter().map(|part| part.len()).max();
        assert_eq!((map.len(), largest < Some(400)), (10_000, true), "{largest:?}");
        assert!((0..10_000).all(|n| map[n.to_string().as_str()] == n));
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((any::<bool>(), 0..50_usize, any::<u8>()), 0..400)) {
            let (mut map, mut model) = (ClusterMap::default(), BTreeMap::new());
            let (mut copy, mut model_of_copy) = (map.clone(), model.clone());
            for (index, (puts, name, value)) in steps.into_iter().enumerate() {
                let name = name.to_string();
                if puts {
                    prop_assert_eq!(map.insert(name.as_str().into(), value), model.insert(name, value));
                } else {
                    prop_assert_eq!(map.remove(&*name), model.remove(&name));
                }
                if index % 100 == 50 {
                    (copy, model_of_copy) = (map.clone(), model.clone());
                }
            }
            for (map, model) in [(&map, &model), (&copy, &model_of_copy)] {
                let all: BTreeMap<_, _> = map.iter().map(|(name, value)| (name.to_string(), *value)).collect();
                prop_assert_eq!((&all, map.len()), (model, model.len()));
            }
            // What changed from the copy to the map, and what is gone.
            for (name, value) in &model {
                let told = map.changes_since(&copy).any(|(changed, ..)| changed.as_str() == name);
                prop_assert!(told || model_of_copy.get(name) == Some(value));
            }
            for name in model_of_copy.keys().filter(|name| !model.contains_key(*name)) {
                let gone = copy.changes_since(&map).find(|(gone, ..)| gone.as_str() == name);
                prop_assert!(matches!(gone, Some((_, None, _))));
            }
        }
    }
}
