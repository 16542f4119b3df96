//! The routes of one virtual host, compiled so that a request does not walk them (A28, A63).
//!
//! "First match wins" is a rule about order; tables by path have none. So every table hands out the indices of the
//! routes whose path matches, and the lowest index whose headers and fraction match too is the answer:
//!
//! ```text
//!  path ─┬─ exact           hash map             ┐  at most one slot each
//!        ├─ exact, folded   binary search        ┘
//!        ├─ prefix          binary search, then up the chain of shorter prefixes
//!        ├─ prefix, folded  the same
//!        └─ regex           one RegexSet, only if a regex route could still win
//!              │ a slot: routes with conditions (ascending), and the first route without any
//!              ▼
//!        Candidates         merges them by index; the lowest unconditional route ends the search
//! ```
//!
//! Whatever the routes are, a request costs O(log routes) comparisons, a walk no longer than the longest prefix and at
//! most one run of the regexes, plus O(k log k) for the k routes whose path matches and that have conditions.
//!
//! It does NOT choose the virtual host, and it does NOT look at actions.

use super::RequestHead;
use mesh_xds::resource::{FullRegex, HeaderMatch, Millionths, PathMatch, Route};
use regex::{RegexSet, RegexSetBuilder};
use rustc_hash::FxHashMap;
use std::{cmp::Ordering, collections::BTreeMap};

/// The compiled matchers of a virtual host's routes.
///
/// ```
/// use http::{HeaderMap, Method};
/// use mesh_client::route::{RequestHead, RouteMatcher};
/// use mesh_xds::resource::{FilterOverrides, PathMatch, Route, RouteAction, RouteMatch};
///
/// let route = |path| Route {
///     name: String::new(),
///     matches: RouteMatch { path, headers: Vec::new(), fraction: None },
///     action: RouteAction::Unsupported("redirect"), // the matcher does not look at it
///     overrides: FilterOverrides::default(),
/// };
/// let routes = [
///     route(PathMatch::Exact { value: "/shop.Cart/Add".into(), ignore_case: false }),
///     route(PathMatch::Prefix { value: "/shop.".into(), ignore_case: false }),
/// ];
/// let matcher = RouteMatcher::compile(&routes);
///
/// let headers = HeaderMap::new();
/// let mut find = |path| {
///     let head = RequestHead {
///         method: &Method::POST,
///         path,
///         query: None,
///         scheme: "http",
///         authority: "shop.prod:8080",
///         headers: &headers,
///         is_grpc: true,
///     };
///     matcher.find(&head, &mut || 0) // no route here asks for a random number
/// };
/// assert_eq!(find("/shop.Cart/Add"), Some(0));
/// assert_eq!(find("/shop.Cart/Remove"), Some(1));
/// assert_eq!(find("/other.Service/Call"), None);
/// ```
#[derive(Clone, Debug)]
pub struct RouteMatcher {
    /// By route index.
    conditions: Box<[Conditions]>,
    exact: FxHashMap<Box<str>, Slot>,
    /// Lower case, sorted.
    exact_folded: Box<[(Box<str>, Slot)]>,
    prefix: PrefixTable,
    prefix_folded: PrefixTable,
    regex: RegexTable,
}

impl RouteMatcher {
    /// Compiles the routes of one virtual host. The answers of [`find`](Self::find) are indices into `routes`.
    pub fn compile(routes: &[Route]) -> Self {
        let conditions: Box<[_]> = routes.iter().map(Conditions::of).collect();
        let (mut exact, mut regexes) = (FxHashMap::<Box<str>, Slot>::default(), Vec::new());
        let (mut exact_folded, mut prefix, mut prefix_folded) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (index, (route, conditions)) in routes.iter().zip(&conditions).enumerate() {
            let slot: &mut Slot = match &route.matches.path {
                PathMatch::Exact { value, ignore_case: false } => exact.entry(value.as_str().into()).or_default(),
                PathMatch::Exact { value, ignore_case: true } => exact_folded.entry(lower(value)).or_default(),
                PathMatch::Prefix { value, ignore_case: false } => prefix.entry(value.as_str().into()).or_default(),
                PathMatch::Prefix { value, ignore_case: true } => prefix_folded.entry(lower(value)).or_default(),
                PathMatch::Regex(regex) => {
                    regexes.push((index, regex.clone()));
                    continue;
                }
            };
            slot.append(index, conditions);
        }
        Self {
            conditions,
            exact,
            exact_folded: exact_folded.into_iter().collect(),
            prefix: PrefixTable::new(Case::Sensitive, prefix),
            prefix_folded: PrefixTable::new(Case::Folded, prefix_folded),
            regex: RegexTable::new(regexes, RegexTable::SET_LIMIT),
        }
    }

    /// The first route whose path, headers and runtime fraction all match, if there is one.
    ///
    /// `draw` gives a random number in `0..1_000_000`. It is called once for each route with a fraction that is
    /// reached with everything else matching, in route order; so a test can pass what it likes.
    pub fn find(&self, request: &RequestHead<'_>, draw: &mut dyn FnMut() -> u32) -> Option<usize> {
        let mut candidates = Candidates::default();
        if let Some(slot) = self.exact.get(request.path) {
            candidates.add(slot);
        }
        if let Ok(at) =
            self.exact_folded.binary_search_by(|(path, _)| Case::Folded.compare(path.as_bytes(), request.path))
        {
            candidates.add(&self.exact_folded[at].1);
        }
        self.prefix.find(request.path, &mut candidates);
        self.prefix_folded.find(request.path, &mut candidates);
        self.regex.find(request.path, &self.conditions, &mut candidates);
        while let Some(index) = candidates.next() {
            if self.conditions[index].hold(request, draw) {
                return Some(index);
            }
        }
        candidates.unconditional
    }
}

fn lower(text: &str) -> Box<str> {
    text.to_ascii_lowercase().into()
}

// === Conditions ===

/// What a route asks for beside its path.
#[derive(Clone, Debug)]
struct Conditions {
    headers: Box<[HeaderMatch]>,
    fraction: Option<Millionths>,
}

impl Conditions {
    fn of(route: &Route) -> Self {
        // A fraction of everything is no condition, and costs no random number.
        let fraction = route.matches.fraction.filter(|&fraction| fraction != Millionths::ALL);
        Self { headers: route.matches.headers.as_slice().into(), fraction }
    }

    fn are_none(&self) -> bool {
        self.headers.is_empty() && self.fraction.is_none()
    }

    fn hold(&self, request: &RequestHead<'_>, draw: &mut dyn FnMut() -> u32) -> bool {
        request.has(&self.headers)
            // Last, so that a share is a share of the requests that match otherwise.
            && self.fraction.is_none_or(|fraction| fraction.hit(draw()))
    }
}

// === Slot and Candidates ===

/// The routes that have one path pattern.
#[derive(Clone, Debug, Default)]
struct Slot {
    /// Those with conditions that stand before `unconditional`, ascending.
    conditional: Vec<usize>,
    /// The first without.
    unconditional: Option<usize>,
}

impl Slot {
    /// Routes must be appended in order.
    fn append(&mut self, index: usize, conditions: &Conditions) {
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
struct Candidates<'t> {
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
    fn add(&mut self, slot: &'t Slot) {
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

    /// Whether a route with this index could still be the answer.
    fn may_win(&self, index: usize) -> bool {
        self.unconditional.is_none_or(|lowest| index < lowest)
    }

    /// The next route whose conditions decide, in order. Sorting the rest once keeps many nested prefixes at
    /// O(k log k), where asking every list for its head each time would be O(k²).
    fn next(&mut self) -> Option<usize> {
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

// === PrefixTable ===

/// How path patterns are compared. Folded ones are stored in lower case.
#[derive(Clone, Copy, Debug)]
enum Case {
    Sensitive,
    Folded,
}

impl Case {
    fn compare(self, pattern: &[u8], path: &str) -> Ordering {
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
struct PrefixTable {
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
    fn new(case: Case, slots: BTreeMap<Box<str>, Slot>) -> Self {
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

    fn find<'t>(&'t self, path: &str, candidates: &mut Candidates<'t>) {
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
struct RegexTable {
    /// All of them in one automaton; none if that would be too large, though each alone is not. They are then tried
    /// one by one.
    set: Option<RegexSet>,
    /// Index of the route and its regex, ascending, in the order of `set`.
    routes: Box<[(usize, FullRegex)]>,
}

impl RegexTable {
    /// Bytes of the automaton: what the regex crate grants to a single regex by default, so that a virtual host
    /// cannot make the process pay for the sum of its worst.
    const SET_LIMIT: usize = 10 << 20;

    fn new(routes: Vec<(usize, FullRegex)>, set_limit: usize) -> Self {
        let sources = routes.iter().map(|(_, regex)| regex.anchored());
        let set = RegexSetBuilder::new(sources).size_limit(set_limit).build().ok();
        Self { set, routes: routes.into() }
    }

    fn find(&self, path: &str, conditions: &[Conditions], candidates: &mut Candidates<'_>) {
        // The usual case: no regex at all, or all of them behind a route that takes the request anyway.
        if self.routes.first().is_none_or(|&(index, _)| !candidates.may_win(index)) {
            return;
        }
        let mut add = |index: usize| {
            if conditions[index].are_none() {
                candidates.add_unconditional(index);
            } else {
                candidates.rest.push(index);
            }
        };
        match &self.set {
            Some(set) => set.matches(path).iter().for_each(|at| add(self.routes[at].0)),
            None => self.routes.iter().filter(|(_, regex)| regex.is_match(path)).for_each(|&(index, _)| add(index)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, Method};
    use mesh_xds::resource::{FilterOverrides, RouteAction, RouteMatch};

    // The rules of matching are in `route/tests.rs`; this one needs to reach inside.
    #[test]
    fn regexes_too_large_for_one_set_are_tried_one_by_one() {
        let regexes = ["/a/.*", "/b/.*", ".*"].map(|source| FullRegex::new(source).expect("the regex is valid"));
        let routes = regexes.clone().map(|regex| {
            let matches = RouteMatch { path: PathMatch::Regex(regex), headers: vec![], fraction: None };
            Route {
                name: String::new(),
                matches,
                action: RouteAction::Unsupported("redirect"),
                overrides: FilterOverrides::default(),
            }
        });
        let regex = RegexTable::new(regexes.into_iter().enumerate().collect(), 0);
        assert!(regex.set.is_none(), "no automaton fits into no bytes");
        let matcher = RouteMatcher { regex, ..RouteMatcher::compile(&routes) };
        for (path, expected) in [("/a/x", 0), ("/b/x", 1), ("/c/x", 2)] {
            let (method, headers) = (Method::POST, HeaderMap::new());
            let (scheme, authority) = ("http", "s:80");
            let head =
                RequestHead { method: &method, path, query: None, scheme, authority, headers: &headers, is_grpc: true };
            assert_eq!(matcher.find(&head, &mut || 0), Some(expected), "{path}");
        }
    }
}
