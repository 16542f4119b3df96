//! The rules of A28 and A63 row by row, and agreement with a matcher that simply walks the list.

use super::{RequestHead, RouteMatcher};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_xds::resource::{
    FilterOverrides, FullRegex, HeaderField, HeaderMatch, HeaderValueMatch, Millionths, PathMatch, PseudoHeader, Route,
    RouteAction, RouteMatch, StringMatch,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

// === Making routes and requests ===

fn route(path: PathMatch, headers: Vec<HeaderMatch>, fraction: Option<Millionths>) -> Route {
    let matches = RouteMatch { path, headers, fraction };
    Route {
        name: String::new(),
        matches,
        action: RouteAction::Unsupported("redirect"),
        overrides: FilterOverrides::default(),
    }
}

fn exact(value: &str) -> PathMatch {
    PathMatch::Exact { value: value.into(), ignore_case: false }
}

fn exact_folded(value: &str) -> PathMatch {
    PathMatch::Exact { value: value.into(), ignore_case: true }
}

fn prefix(value: &str) -> PathMatch {
    PathMatch::Prefix { value: value.into(), ignore_case: false }
}

fn prefix_folded(value: &str) -> PathMatch {
    PathMatch::Prefix { value: value.into(), ignore_case: true }
}

fn full_regex(source: &str) -> FullRegex {
    FullRegex::new(source).expect("the test's regex is valid")
}

fn regex(source: &str) -> PathMatch {
    PathMatch::Regex(full_regex(source))
}

fn string(value: StringMatch) -> HeaderValueMatch {
    HeaderValueMatch::String(value)
}

fn equals(value: &str) -> HeaderValueMatch {
    string(StringMatch::Exact { value: value.into(), ignore_case: false })
}

fn on(name: &'static str, value: HeaderValueMatch) -> HeaderMatch {
    let name = match name {
        ":method" => HeaderField::Pseudo(PseudoHeader::Method),
        ":path" => HeaderField::Pseudo(PseudoHeader::Path),
        ":scheme" => HeaderField::Pseudo(PseudoHeader::Scheme),
        ":authority" => HeaderField::Pseudo(PseudoHeader::Authority),
        binary if binary.ends_with("-bin") => HeaderField::Binary,
        name => HeaderField::Header(HeaderName::from_static(name)),
    };
    HeaderMatch { name, value, invert: false }
}

fn not(header: HeaderMatch) -> HeaderMatch {
    HeaderMatch { invert: true, ..header }
}

fn head<'a>(path: &'a str, headers: &'a HeaderMap) -> RequestHead<'a> {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    RequestHead { method: &Method::POST, path, query, scheme: "http", authority: "s:80", headers, is_grpc: true }
}

fn header_map(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let pair = |&(name, value): &(&'static str, &str)| {
        (HeaderName::from_static(name), HeaderValue::from_str(value).expect("the test's value is valid"))
    };
    let mut headers = HeaderMap::new();
    pairs.iter().map(pair).for_each(|(name, value)| _ = headers.append(name, value));
    headers
}

fn find(routes: &[Route], path: &str) -> Option<usize> {
    RouteMatcher::compile(routes).find(&head(path, &HeaderMap::new()), &mut || panic!("no route has a fraction"))
}

// === Paths ===

#[test]
fn paths_match_as_a28_says() {
    let plain = |paths: Vec<PathMatch>| paths.into_iter().map(|path| route(path, vec![], None)).collect::<Vec<_>>();
    for (rule, paths, path, expected) in [
        ("the first match wins, in list order", vec![prefix("/S"), exact("/S/M")], "/S/M", Some(0)),
        ("the first match wins, whatever its kind", vec![exact("/S/M"), prefix("/S")], "/S/M", Some(0)),
        ("a longer prefix does not win over an earlier one", vec![prefix("/"), prefix("/S/")], "/S/M", Some(0)),
        ("equal patterns: the first one", vec![exact("/x"), exact("/S/M"), exact("/S/M")], "/S/M", Some(1)),
        ("no match", vec![exact("/S/N"), prefix("/T")], "/S/M", None),
        ("no routes", vec![], "/S/M", None),
        ("an empty prefix matches everything", vec![exact("/x"), prefix("")], "/S/M", Some(1)),
        ("an empty prefix matches an empty path", vec![prefix("/"), prefix("")], "", Some(1)),
        ("a prefix is not a path segment", vec![prefix("/S/M")], "/S/Mx", Some(0)),
        ("a prefix longer than the path", vec![prefix("/S/Mx")], "/S/M", None),
        ("a prefix equal to the path", vec![prefix("/S/M")], "/S/M", Some(0)),
        ("a prefix behind siblings in the table", vec![prefix("/S"), prefix("/S/A"), prefix("/S/L")], "/S/M", Some(0)),
        ("an exact path is the whole path", vec![exact("/S/M")], "/S/M/", None),
        ("the query is no part of the path", vec![exact("/S/M")], "/S/M?x=1", Some(0)),
        ("case matters by default", vec![exact("/s/m"), prefix("/s")], "/S/M", None),
        ("case_sensitive: false, path", vec![exact_folded("/s/M")], "/S/m", Some(0)),
        ("case_sensitive: false, prefix", vec![prefix_folded("/s/M")], "/S/mx", Some(0)),
        ("case_sensitive: false and no match", vec![exact_folded("/s/n"), prefix_folded("/t")], "/S/M", None),
        ("only ASCII case is folded", vec![exact_folded("/É"), prefix_folded("/É")], "/é", None),
        ("a regex is a full-string match: not a beginning", vec![regex("/S/M")], "/S/MX", None),
        ("a regex is a full-string match: not an end", vec![regex("/S/M")], "/x/S/M", None),
        ("a regex is a full-string match: next route", vec![regex("/S/M"), prefix("/S")], "/S/MX", Some(1)),
        ("alternatives are anchored as a whole", vec![regex("/S|/M")], "/S/M", None),
        ("case_sensitive has no effect on a regex", vec![regex("/s/m"), regex("(?i)/s/m")], "/S/M", Some(1)),
        ("the first of several regexes", vec![regex("/x"), regex("/S/.*"), regex("/.*")], "/S/M", Some(1)),
        ("a regex before a prefix", vec![regex("/S/.*"), prefix("/")], "/S/M", Some(0)),
        ("a regex behind a prefix", vec![prefix("/"), regex("/S/.*")], "/S/M", Some(0)),
    ] {
        assert_eq!(find(&plain(paths), path), expected, "{rule}");
    }
}

// === Headers ===

#[test]
fn headers_match_as_a28_and_a63_say() {
    let present = |present| HeaderValueMatch::Present(present);
    let range = || HeaderValueMatch::Range(100..200);
    let long = || StringMatch::Exact { value: "FOO".into(), ignore_case: true };
    let (prefix, suffix) = (
        || StringMatch::Prefix { value: "ab".into(), ignore_case: false },
        || StringMatch::Suffix { value: "bc".into(), ignore_case: false },
    );
    let contains = |value: &str, ignore_case| StringMatch::Contains { value: value.into(), ignore_case };
    for (rule, header, request, expected) in [
        ("exact", on("k", equals("v")), &[("k", "v")][..], true),
        ("exact, other value", on("k", equals("v")), &[("k", "w")], false),
        ("exact, absent", on("k", equals("v")), &[], false),
        ("exact and empty matches only an empty value", on("k", equals("")), &[("k", "")], true),
        ("exact and empty is not absent", on("k", equals("")), &[], false),
        ("invert, absent: no match", not(on("k", equals("v"))), &[], false),
        ("invert, other value: match", not(on("k", equals("v"))), &[("k", "w")], true),
        ("invert, same value: no match", not(on("k", equals("v"))), &[("k", "v")], false),
        ("invert, range, absent: no match", not(on("n", range())), &[], false),
        ("several values are joined with a comma", on("k", equals("v,v")), &[("k", "v"), ("k", "v")], true),
        ("several values: inverted exact of one", not(on("k", equals("v"))), &[("k", "v"), ("k", "v")], true),
        ("three values", on("k", equals("a,b,c")), &[("k", "a"), ("k", "b"), ("k", "c")], true),
        ("range", on("n", range()), &[("n", "159")], true),
        ("range: the end is outside", on("n", range()), &[("n", "200")], false),
        ("range: the start is inside", on("n", range()), &[("n", "100")], true),
        ("range: not a number", on("n", range()), &[("n", "159x")], false),
        ("range: not a number, inverted", not(on("n", range())), &[("n", "159x")], true),
        ("range: joined values are no number", on("n", range()), &[("n", "159"), ("n", "159")], false),
        ("present", on("k", present(true)), &[("k", "")], true),
        ("present, absent", on("k", present(true)), &[], false),
        ("present: false is absent", on("k", present(false)), &[], true),
        ("present: false, present", on("k", present(false)), &[("k", "v")], false),
        ("present, inverted", not(on("k", present(true))), &[], true),
        ("present: false, inverted", not(on("k", present(false))), &[("k", "v")], true),
        ("-bin behaves as absent: present", on("x-bin", present(true)), &[("x-bin", "AAAA")], false),
        ("-bin behaves as absent: not present", on("x-bin", present(false)), &[("x-bin", "AAAA")], true),
        ("-bin behaves as absent: exact, inverted", not(on("x-bin", equals("v"))), &[("x-bin", "AAAA")], false),
        ("content-type is assumed", on("content-type", equals("application/grpc")), &[], true),
        (
            "content-type of the request wins",
            on("content-type", equals("application/grpc")),
            &[("content-type", "application/grpc+proto")],
            false,
        ),
        ("prefix", on("k", string(prefix())), &[("k", "abc")], true),
        ("prefix, elsewhere", on("k", string(prefix())), &[("k", "cab")], false),
        ("suffix", on("k", string(suffix())), &[("k", "abc")], true),
        ("suffix, elsewhere", on("k", string(suffix())), &[("k", "bca")], false),
        ("contains", on("k", string(contains("b", false))), &[("k", "abc")], true),
        ("contains, other case", on("k", string(contains("b", false))), &[("k", "ABC")], false),
        ("contains, ignore_case", on("k", string(contains("b", true))), &[("k", "ABC")], true),
        ("exact, ignore_case", on("k", string(long())), &[("k", "foo")], true),
        ("regex is full-string", on("k", string(StringMatch::Regex(full_regex("o+")))), &[("k", "foo")], false),
        ("regex", on("k", string(StringMatch::Regex(full_regex("fo+")))), &[("k", "foo")], true),
        (":method", on(":method", equals("POST")), &[], true),
        (":scheme", on(":scheme", equals("http")), &[], true),
        (":authority", on(":authority", equals("s:80")), &[], true),
        (":path has the query", on(":path", equals("/S/M?q")), &[], true),
    ] {
        let matcher = RouteMatcher::compile(&[route(exact("/S/M"), vec![header], None)]);
        let headers = header_map(request);
        assert_eq!(matcher.find(&head("/S/M?q", &headers), &mut || 0), expected.then_some(0), "{rule}");
    }
}

#[test]
fn content_type_is_assumed_for_grpc_only() {
    let matcher =
        RouteMatcher::compile(&[route(prefix(""), vec![on("content-type", equals("application/grpc"))], None)]);
    let headers = HeaderMap::new();
    let http = RequestHead { is_grpc: false, ..head("/page", &headers) };
    assert_eq!(matcher.find(&http, &mut || 0), None);
}

#[test]
fn a_value_that_is_not_utf8_is_present() {
    let matcher = RouteMatcher::compile(&[route(prefix(""), vec![on("k", HeaderValueMatch::Present(true))], None)]);
    let mut headers = HeaderMap::new();
    headers.insert("k", HeaderValue::from_bytes(b"\xff").expect("opaque bytes are valid in a header"));
    assert_eq!(matcher.find(&head("/", &headers), &mut || 0), Some(0));
}

#[test]
fn all_headers_of_a_route_must_match() {
    let both = vec![on("a", equals("1")), on("b", equals("2"))];
    let matcher = RouteMatcher::compile(&[route(prefix(""), both, None)]);
    for (request, expected) in [(&[("a", "1")][..], None), (&[("b", "2")], None), (&[("a", "1"), ("b", "2")], Some(0))]
    {
        assert_eq!(matcher.find(&head("/", &header_map(request)), &mut || 0), expected, "{request:?}");
    }
}

#[test]
fn routes_of_the_same_path_are_tried_in_order_when_headers_fail() {
    let version = |path: PathMatch, version: &str| route(path, vec![on("v", equals(version))], None);
    let routes = [
        version(prefix("/S"), "1"),
        version(exact("/S/M"), "2"),
        version(regex("/S/.*"), "3"),
        version(exact_folded("/s/m"), "4"),
        version(prefix_folded("/s/"), "5"),
        version(exact("/S/M"), "6"),
        route(exact("/S/M"), vec![], None),
        version(exact("/S/M"), "8"),
        version(prefix("/"), "9"),
    ];
    let matcher = RouteMatcher::compile(&routes);
    for (value, expected) in [("1", 0), ("2", 1), ("3", 2), ("4", 3), ("5", 4), ("6", 5), ("8", 6), ("9", 6)] {
        let headers = header_map(&[("v", value)]);
        assert_eq!(matcher.find(&head("/S/M", &headers), &mut || 0), Some(expected), "v: {value}");
    }
}

// === Fractions ===

#[test]
fn fractions_match_as_a28_says() {
    let share = |millionths| Some(Millionths::from_ratio(millionths, 1_000_000));
    for (rule, fraction, draw, expected) in [
        ("0 % matches never, not once per million", share(0), 0, false),
        ("below the share", share(500_000), 499_999, true),
        ("at the share", share(500_000), 500_000, false),
        ("100 % matches always", share(1_000_000), 999_999, true),
        ("more than 100 % means always", share(2_000_000), 999_999, true),
    ] {
        let matcher = RouteMatcher::compile(&[route(prefix(""), vec![], fraction)]);
        let found = matcher.find(&head("/", &HeaderMap::new()), &mut || draw);
        assert_eq!(found, expected.then_some(0), "{rule}");
    }
}

#[test]
fn a_random_number_is_drawn_only_where_all_else_matches_and_in_order() {
    let half = Some(Millionths::from_ratio(1, 2));
    let routes = [
        route(exact("/other"), vec![], half),
        route(prefix("/S"), vec![on("k", equals("v"))], half),
        route(exact("/S/M"), vec![], half),
        route(prefix("/"), vec![], half),
        route(exact("/S/M"), vec![], half),
    ];
    let mut draws = vec![7, 900_000].into_iter();
    let found = RouteMatcher::compile(&routes)
        .find(&head("/S/M", &HeaderMap::new()), &mut || draws.next_back().expect("two routes are reached"));
    assert_eq!((found, draws.len()), (Some(3), 0));
}

// === Everything together ===

#[test]
fn every_one_of_many_nested_prefixes_is_tried_once_and_in_order() {
    let path = "/a".repeat(1_000);
    // The longest first, then with growing distance, so that no order of the table is the order of the routes.
    let cut = |index: usize| if index.is_multiple_of(2) { path.len() - index } else { index };
    let share = Some(Millionths::from_ratio(0, 1));
    let mut routes: Vec<_> = (0..path.len()).map(|index| route(prefix(&path[..cut(index)]), vec![], share)).collect();
    routes.push(route(prefix(""), vec![], None));
    let mut draws = 0;
    let found = RouteMatcher::compile(&routes).find(&head(&path, &HeaderMap::new()), &mut || {
        draws += 1;
        0
    });
    assert_eq!((found, draws), (Some(2_000), 2_000));
}

/// The rule itself: walk the list.
fn walk(routes: &[Route], request: &RequestHead<'_>, draw: u32) -> Option<usize> {
    let same = |ignore_case: bool, a: &str, b: &str| if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b };
    routes.iter().position(|Route { matches, .. }| {
        let path = match &matches.path {
            PathMatch::Exact { value, ignore_case } => same(*ignore_case, value, request.path),
            PathMatch::Prefix { value, ignore_case } => {
                request.path.get(..value.len()).is_some_and(|start| same(*ignore_case, value, start))
            }
            PathMatch::Regex(regex) => regex.is_match(request.path),
        };
        let header = |header: &HeaderMatch| {
            let HeaderField::Header(name) = &header.name else { panic!("only plain headers are made here") };
            let value = request.headers.get(name).map(|value| value.to_str().expect("values are ASCII"));
            header.value.is_match(value, header.invert)
        };
        path && matches.headers.iter().all(header) && matches.fraction.is_none_or(|fraction| fraction.hit(draw))
    })
}

fn any_path() -> impl Strategy<Value = String> {
    vec(select(vec!["/", "a", "A", "b", "ab", "/a", "-", "é"]), 0..6).prop_map(|parts| parts.concat())
}

fn any_path_match() -> impl Strategy<Value = PathMatch> {
    let sources = vec![".*", "/.*", "/a|/b", "[ab/]*", "(?i)/a.*", "/a", "", ".*b", "/[^/]+", "é+"];
    prop_oneof![
        4 => (any_path(), any::<bool>()).prop_map(|(value, ignore_case)| PathMatch::Prefix { value, ignore_case }),
        3 => (any_path(), any::<bool>()).prop_map(|(value, ignore_case)| PathMatch::Exact { value, ignore_case }),
        1 => select(sources).prop_map(regex),
    ]
}

fn any_header() -> impl Strategy<Value = HeaderMatch> {
    let value = prop_oneof![select(vec!["x", "y"]).prop_map(equals), any::<bool>().prop_map(HeaderValueMatch::Present)];
    (select(vec!["k", "l"]), value, any::<bool>())
        .prop_map(|(name, value, invert)| HeaderMatch { invert, ..on(name, value) })
}

fn any_route() -> impl Strategy<Value = Route> {
    let fraction = prop_oneof![3 => Just(None), 1 => select(vec![0, 1, 2]).prop_map(|of_two| {
        Some(Millionths::from_ratio(of_two, 2))
    })];
    let headers = prop_oneof![2 => Just(vec![]), 1 => vec(any_header(), 1..3)];
    (any_path_match(), headers, fraction).prop_map(|(path, headers, fraction)| route(path, headers, fraction))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn agrees_with_walking_the_list(
        routes in vec(any_route(), 0..40),
        requests in vec((any_path(), option::of(select(vec!["x", "y"])), 0..1_000_000_u32), 1..20),
    ) {
        let matcher = RouteMatcher::compile(&routes);
        for (path, value, draw) in requests {
            let headers = header_map(value.map(|value| ("k", value)).as_slice());
            let head = RequestHead { query: None, ..head(&path, &headers) };
            prop_assert_eq!(matcher.find(&head, &mut || draw), walk(&routes, &head, draw), "{}", path);
        }
    }
}
