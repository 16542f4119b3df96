//! Bytes that no control plane should send never panic the decoder.
//!
//! The corpus is what is committed anyway: the resources of the NACK table, good and bad, and the recordings of an
//! istiod; `mutate` makes of them what is nearly right.
//! `FUZZ_INPUTS` sets how many inputs each kind gets, `FUZZ_SEED` where the dice start. A failure prints the input.

#[path = "../../mesh-xds/tests/fuzz/mutate.rs"]
mod mutate;

use bytes::Bytes;
use fastrand::Rng;
use interop_tests::{
    nack_table::{CERTIFICATE_PROVIDERS, rows},
    recordings::{responses, scenarios},
};
use mesh_xds::{
    control_plane::proto::envoy::service::discovery::v3::Resource as Wrapper,
    decode::{DecodeContext, decode, decode_after, reuse},
    resource::{ClusterLoadAssignment, ClusterSpecifier, Kind, Received, Resource, RouteAction, RouteConfig},
};
use mutate::{Seed, seeds};
use prost::{Message, Name};
use std::{
    collections::HashSet,
    env,
    panic::{self, AssertUnwindSafe},
};

#[test]
fn no_listener_panics_the_decoder() {
    fuzz(Kind::Listener);
}

#[test]
fn no_route_configuration_panics_the_decoder() {
    fuzz(Kind::RouteConfig);
}

#[test]
fn no_cluster_panics_the_decoder() {
    fuzz(Kind::Cluster);
}

#[test]
fn no_cluster_load_assignment_panics_the_decoder() {
    fuzz(Kind::Endpoints);
}

fn fuzz(kind: Kind) {
    let setting = |name, default| env::var(name).map_or(default, |value| value.parse().expect(name));
    let (inputs, seed) = (setting("FUZZ_INPUTS", 100_000), setting("FUZZ_SEED", 27));
    let corpus = corpus(kind);
    let context = DecodeContext {
        certificate_providers: CERTIFICATE_PROVIDERS.map(str::to_owned).into(),
        ..DecodeContext::default()
    };
    let decoded: Vec<_> = corpus.iter().map(|seed| decode(kind, kind.type_url(), &seed.bytes, &context)).collect();
    let mut rng = Rng::with_seed(seed);
    let (mut taken, mut refused) = (0, 0);
    for number in 0..inputs {
        let seed_index = rng.usize(..corpus.len());
        let (type_url, input) = mutant(kind, &corpus, seed_index, &mut rng);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            let received = decode(kind, &type_url, &input, &context);
            check(&received);
            // What came before saves work and changes nothing.
            let after = decode_after(&decoded[seed_index], kind, &type_url, &input, &context);
            assert_eq!((&after.name, &after.value), (&received.name, &received.value));
            received.value.is_ok()
        }));
        match outcome {
            Ok(true) => taken += 1,
            Ok(false) => refused += 1,
            Err(_) => panic!("input {number} of FUZZ_SEED={seed}, a {type_url}: {input:?}"),
        }
    }
    // Otherwise the mutations only scratch the surface, or break nothing.
    assert!(taken > inputs / 20 && refused > inputs / 20, "{taken} taken, {refused} refused");
}

// === Corpus ===

fn corpus(kind: Kind) -> Vec<Seed> {
    let of_table = rows().into_iter().filter(|row| row.kind == kind);
    let mut corpus: Vec<Bytes> =
        of_table.flat_map(|row| [row.good, row.bad]).map(|any| Bytes::from(any.value)).collect();
    for response in scenarios().unwrap().iter().flat_map(|scenario| responses(scenario).unwrap()) {
        if response.kind == kind {
            corpus.extend(response.resources.into_values().map(|any| Bytes::from(any.value)));
        }
    }
    seeds(corpus)
}

fn mutant(kind: Kind, corpus: &[Seed], seed_index: usize, rng: &mut Rng) -> (String, Bytes) {
    let bytes = mutate::mutant(corpus, seed_index, rng);
    match rng.u8(..100) {
        0 => (Kind::ALL[rng.usize(..4)].type_url().to_owned(), bytes.into()),
        1..10 => {
            let any = mesh_xds::control_plane::proto::google::protobuf::Any {
                type_url: kind.type_url().to_owned(),
                value: bytes,
            };
            let wrapper = Wrapper { name: "wrapped".to_owned(), resource: Some(any), ..Wrapper::default() };
            (Wrapper::type_url(), wrapper.encode_to_vec().into())
        }
        _ => (kind.type_url().to_owned(), bytes.into()),
    }
}

// === What holds of everything that was taken ===

fn check(received: &Received) {
    let Ok(resource) = &received.value else { return };
    assert_eq!(received.name.as_deref(), Some(resource.name()));
    assert_eq!(reuse(resource, resource.clone()), *resource);
    match resource {
        Resource::RouteConfig(routes) => check_routes(routes),
        Resource::Endpoints(endpoints) => check_endpoints(endpoints),
        Resource::Listener(_) | Resource::Cluster(_) | Resource::Other(_) => {}
    }
}

fn check_routes(routes: &RouteConfig) {
    for route in routes.virtual_hosts.iter().flat_map(|host| &host.routes) {
        if let RouteAction::Forward(forward) = &route.action
            && let ClusterSpecifier::Weighted(clusters) = &forward.cluster
        {
            let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
            assert!(clusters.iter().all(|cluster| cluster.weight > 0) && (1..=u64::from(u32::MAX)).contains(&sum));
        }
    }
}

fn check_endpoints(endpoints: &ClusterLoadAssignment) {
    assert!(endpoints.priorities.iter().all(|localities| !localities.is_empty()));
    let mut seen = HashSet::new();
    for endpoint in endpoints.endpoints() {
        assert!(endpoint.weight > 0 && endpoint.addresses.iter().all(|address| seen.insert(address)));
    }
}
