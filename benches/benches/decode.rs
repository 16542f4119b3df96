//! What a configuration update costs up to the validated value: 10,000 endpoints, 10,000 virtual hosts, one changed.
//!
//! `decode` starts at the bytes of the resource; `keep` is the part after it, in which unchanged values take over the
//! identity of the previous version. `update` is what a running client does with the bytes: both, knowing the bytes that
//! came before. Assembly and the data plane are NOT in it.

use benches::inputs::{Version, assignment, decoded, virtual_hosts};
use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use mesh_xds::{
    decode::{DecodeContext, decode, decode_after, reuse},
    resource::Kind,
};
use std::hint::black_box;

const COUNT: usize = 10_000;

fn update(criterion: &mut Criterion, name: &str, kind: Kind, input: fn(usize, Version) -> Bytes) {
    let (first, next) = (input(COUNT, Version::First), input(COUNT, Version::OneChanged));
    let previous = decoded(kind, &first);
    let mut group = criterion.benchmark_group(name);
    group.sample_size(30);
    group.bench_function("decode", |bencher| {
        bencher.iter_with_large_drop(|| decoded(kind, black_box(&next)));
    });
    group.bench_function("keep all but one", |bencher| {
        let setup = || decoded(kind, &next);
        bencher.iter_batched(setup, |new| reuse(black_box(&previous), new), BatchSize::LargeInput);
    });
    group.bench_function("keep all", |bencher| {
        let setup = || decoded(kind, &first);
        bencher.iter_batched(setup, |new| reuse(black_box(&previous), new), BatchSize::LargeInput);
    });
    let context = DecodeContext::default();
    let received = decode(kind, kind.type_url(), &first, &context);
    group.bench_function("update", |bencher| {
        bencher.iter_with_large_drop(|| {
            let after = decode_after(&received, kind, kind.type_url(), black_box(&next), &context);
            after.value.map(|new| reuse(&previous, new))
        });
    });
    group.finish();
}

fn endpoints(criterion: &mut Criterion) {
    update(criterion, "10,000 endpoints", Kind::Endpoints, assignment);
}

fn routes(criterion: &mut Criterion) {
    update(criterion, "10,000 virtual hosts", Kind::RouteConfig, virtual_hosts);
}

criterion_group!(benches, endpoints, routes);
criterion_main!(benches);
