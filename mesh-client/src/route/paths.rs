//! Tables by path: which prefixes and regexes match one, without a walk over all of them.
//!
//! Which of the routes that match is the answer is NOT decided here.

use super::candidates::{Candidates, Conditions, Slot};
use mesh_xds::resource::FullRegex;
use regex::{RegexSet, RegexSetBuilder};
use std::{cmp::Ordering, collections::BTreeMap};

/// How path patterns are compared. Folded ones are stored in lower case.
#[derive(Clone, Copy, Debug)]
pub(super) enum Case {
    Sensitive,
    Folded,
}

impl Case {
    pub(super) fn compare(self, pattern: &[u8], path: &str) -> Ordering {
        match self {
            Self::Sensitive => pattern.cmp(path.as_bytes()),
            Self::Folded => pattern.iter().copied().cmp(path.bytes().map(|byte| byte.to_ascii_lowercase())),
        }
    }

    /// How many leading bytes are the same.
    fn shared(self, pattern: &[u8], path: &str) -> usize {
        let same = |&(a, b): &(&u8, u8)| match self {
            Self::Sensitive => *a == b,
            Self::Folded => *a == b.to_ascii_lowercase(),
        };
        pattern.iter().zip(path.bytes()).take_while(same).count()
    }
}

/// All prefixes, sorted, each linked to the longest other one that it begins with.
///
/// A prefix of a path sorts before the path, and everything that sorts between the two begins with that prefix. So
/// the prefixes that match are found on the chain that starts at the last entry not behind the path.
#[derive(Clone, Debug)]
pub(super) struct PrefixTable {
    case: Case,
    prefixes: Box<[Prefix]>,
}

#[derive(Clone, Debug)]
struct Prefix {
    text: Box<[u8]>,
    /// Position of the longest prefix that is a proper beginning of this one.
    parent: Option<usize>,
    slot: Slot,
}

impl PrefixTable {
    pub(super) fn new(case: Case, slots: BTreeMap<Box<str>, Slot>) -> Self {
        let mut prefixes: Vec<Prefix> = Vec::with_capacity(slots.len());
        for (text, slot) in slots {
            let text = text.into_boxed_bytes();
            // Whatever this text begins with is the previous entry or on its chain, by the order of the table.
            let mut parent = prefixes.len().checked_sub(1);
            while let Some(at) = parent.filter(|&at| !text.starts_with(&prefixes[at].text)) {
                parent = prefixes[at].parent;
            }
            prefixes.push(Prefix { text, parent, slot });
        }
        Self { case, prefixes: prefixes.into() }
    }

    pub(super) fn find<'t>(&'t self, path: &str, candidates: &mut Candidates<'t>) {
        let behind = self.prefixes.partition_point(|prefix| self.case.compare(&prefix.text, path) != Ordering::Greater);
        let Some(last) = behind.checked_sub(1) else { return };
        let shared = self.case.shared(&self.prefixes[last].text, path);
        let mut next = Some(last);
        while let Some(at) = next {
            let prefix = &self.prefixes[at];
            // All texts on the chain are beginnings of the last one, so lengths are enough to compare.
            if prefix.text.len() <= shared {
                candidates.add(&prefix.slot);
            }
            next = prefix.parent;
        }
    }
}

// === RegexTable ===

/// The regex routes.
#[derive(Clone, Debug)]
pub(super) struct RegexTable {
    /// All of them in one automaton; none if that would be too large, though each alone is not. They are then tried
    /// one by one.
    set: Option<RegexSet>,
    /// Index of the route and its regex, ascending, in the order of `set`.
    routes: Box<[(usize, FullRegex)]>,
}

impl RegexTable {
    /// Bytes of the automaton: what the regex crate grants to a single regex by default, so that a virtual host
    /// cannot make the process pay for the sum of its worst.
    pub(super) const SET_LIMIT: usize = 10 << 20;

    pub(super) fn new(routes: Vec<(usize, FullRegex)>, set_limit: usize) -> Self {
        let sources = routes.iter().map(|(_, regex)| regex.anchored());
        let set = RegexSetBuilder::new(sources).size_limit(set_limit).build().ok();
        Self { set, routes: routes.into() }
    }

    pub(super) fn find(&self, path: &str, conditions: &[Conditions], candidates: &mut Candidates<'_>) {
        // The usual case: no regex at all, or all of them behind a route that takes the request anyway.
        if self.routes.first().is_none_or(|&(index, _)| !candidates.may_win(index)) {
            return;
        }
        let mut add = |index: usize| candidates.add_route(index, &conditions[index]);
        match &self.set {
            Some(set) => set.matches(path).iter().for_each(|at| add(self.routes[at].0)),
            None => self.routes.iter().filter(|(_, regex)| regex.is_match(path)).for_each(|&(index, _)| add(index)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_xds::resource::{FilterOverrides, PathMatch, Route, RouteAction, RouteMatch};

    // The rules of matching are in `route/tests.rs`; this one needs to reach inside.
    #[test]
    fn regexes_too_large_for_one_set_are_tried_one_by_one() {
        let regexes = ["/a/.*", "/b/.*", ".*"].map(|source| FullRegex::new(source).expect("the regex is valid"));
        let conditions = regexes.clone().map(|regex| {
            let matches = RouteMatch { path: PathMatch::Regex(regex), headers: vec![], fraction: None };
            Conditions::of(&Route {
                name: String::new(),
                matches,
                action: RouteAction::Unsupported("redirect"),
                overrides: FilterOverrides::default(),
            })
        });
        let table = RegexTable::new(regexes.into_iter().enumerate().collect(), 0);
        assert!(table.set.is_none(), "no automaton fits into no bytes");
        for (path, expected) in [("/a/x", 0), ("/b/x", 1), ("/c/x", 2)] {
            let mut candidates = Candidates::default();
            table.find(path, &conditions, &mut candidates);
            assert_eq!(candidates.unconditional(), Some(expected), "{path}");
        }
    }
}
