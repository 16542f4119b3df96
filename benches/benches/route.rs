//! What choosing a route costs: among 1,000 routes of a virtual host per call, among 10,000 virtual hosts per target.
//!
//! Paths are drawn in a fixed pseudo-random order from all routes, so that neither the first nor a cached one is what
//! is measured. Compiling is measured too, because it is paid when configuration arrives. This does NOT pick endpoints.

use benches::inputs::{Version, decoded, virtual_hosts};
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};
use mesh_client::route::{RequestHead, RouteMatcher};
use mesh_xds::resource::{FilterOverrides, Kind, PathMatch, Resource, Route, RouteAction, RouteMatch};
use std::hint::black_box;

const ROUTES: usize = 1_000;

fn find(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("1,000 routes");
    let exact = |n: usize| PathMatch::Exact { value: format!("/shop.Service{n}/Call"), ignore_case: false };
    let prefix = |n: usize| PathMatch::Prefix { value: format!("/shop.Service{n}/"), ignore_case: false };
    let folded = |n: usize| PathMatch::Prefix { value: format!("/shop.Service{n}/"), ignore_case: true };
    let kinds: [(&str, &dyn Fn(usize) -> PathMatch); 3] =
        [("exact", &exact), ("prefix", &prefix), ("prefix, any case", &folded)];
    for (name, path) in kinds {
        let routes: Vec<_> = (0..ROUTES).map(|n| route(path(n))).collect();
        let matcher = RouteMatcher::compile(&routes);
        let paths: Vec<_> = order().map(|n| (n, format!("/shop.Service{n}/Call"))).collect();
        for (n, path) in &paths {
            assert_eq!(find_path(&matcher, path), Some(*n), "the bench must measure hits");
        }
        let mut next = paths.iter().cycle();
        group.bench_function(format!("find, {name}"), |bencher| {
            bencher.iter(|| find_path(&matcher, black_box(next.next().map_or("", |(_, path)| path))));
        });
        group.bench_function(format!("find none, {name}"), |bencher| {
            bencher.iter(|| find_path(&matcher, black_box("/shop.Service500x/Call")));
        });
        group.bench_function(format!("compile, {name}"), |bencher| {
            bencher.iter_with_large_drop(|| RouteMatcher::compile(black_box(&routes)));
        });
    }
    group.finish();
}

fn host(criterion: &mut Criterion) {
    let Resource::RouteConfig(routes) = decoded(Kind::RouteConfig, &virtual_hosts(10_000, Version::First)) else {
        unreachable!("decoded as routes");
    };
    criterion.bench_function("10,000 virtual hosts/choose one", |bencher| {
        bencher.iter(|| routes.virtual_host(black_box("service-5000.prod.svc.cluster.local:8080")).is_some());
    });
}

/// All route numbers, each once: 387 has no factor in common with their count.
fn order() -> impl Iterator<Item = usize> {
    (0..ROUTES).map(|n| n * 387 % ROUTES)
}

fn route(path: PathMatch) -> Route {
    Route {
        name: String::new(),
        matches: RouteMatch { path, headers: Vec::new(), fraction: None },
        // The matcher does not look at actions.
        action: RouteAction::Unsupported("redirect"),
        overrides: FilterOverrides::default(),
    }
}

fn find_path(matcher: &RouteMatcher, path: &str) -> Option<usize> {
    let head = RequestHead {
        method: &Method::POST,
        path,
        query: None,
        scheme: "http",
        authority: "shop.prod:8080",
        headers: &HeaderMap::new(),
        is_grpc: true,
    };
    matcher.find(&head, &mut || 0)
}

criterion_group!(benches, find, host);
criterion_main!(benches);
