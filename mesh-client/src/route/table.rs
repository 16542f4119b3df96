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

use super::{
    RequestHead,
    candidates::{Candidates, Conditions, Slot},
    paths::{Case, PrefixTable, RegexTable},
};
use mesh_xds::resource::{PathMatch, Route};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

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
        candidates.unconditional()
    }
}

fn lower(text: &str) -> Box<str> {
    text.to_ascii_lowercase().into()
}
