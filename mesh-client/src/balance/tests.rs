//! Picks by script: draws are given, so each outcome is exact, and only `random` is judged by its spread.

use super::{Admission, Connections, Offer, Picked, Picker, ReadyPicker, Tried, Turn};
use crate::{
    breaker::{Breaker, Full},
    endpoint::{Connection, Endpoint, Slot, tests::connection},
};
use mesh_xds::resource::{Addresses, CircuitBreakers, DropOverload, LbPolicy, Millionths};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

/// READY connections, named by letters, each with room for `quota` streams.
pub(super) async fn connections(names: &str, quota: usize) -> Vec<Arc<Connection>> {
    let mut connections = Vec::new();
    for name in names.bytes() {
        let address = SocketAddr::from(([10, 0, 0, name], 80));
        connections.push(connection(Arc::new(Endpoint::new(Addresses::one(address))), quota).await);
    }
    connections
}

pub(super) fn round_robin() -> Turn {
    Turn::of(&LbPolicy::RoundRobin, 0)
}

pub(super) type Locality = (u32, Turn, Vec<Arc<Connection>>);

pub(super) fn chunked((weight, turn, connections): Locality) -> (u32, Turn, Connections) {
    (weight, turn, Arc::new(connections.into_iter().collect()))
}

fn picker(localities: impl IntoIterator<Item = Locality>) -> Offer {
    let localities = localities.into_iter().map(chunked);
    Offer::open(Picker::Ready(ReadyPicker::new(Arc::default(), localities).expect("a READY connection")))
}

/// A draw for pickers that need none.
pub(super) fn no_draw(_: u32) -> u32 {
    panic!("nothing is left to chance here")
}

pub(super) fn name(slot: &Slot) -> char {
    match slot.peer() {
        SocketAddr::V4(address) => char::from(address.ip().octets()[3]),
        SocketAddr::V6(_) => '?',
    }
}

/// Who gets the next call, which ends at once.
#[track_caller]
fn next(picker: &Offer, mut draw: impl FnMut(u32) -> u32) -> char {
    match picker.pick(&Tried::default(), &mut draw) {
        Picked::Slot(slot) => name(&slot),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn round_robin_takes_turns() {
    let picker = picker([(1, round_robin(), connections("abc", 9).await)]);
    let order: String = (0..7).map(|_| next(&picker, no_draw)).collect();
    assert_eq!(order, "abcabca");
}

#[tokio::test]
async fn a_new_picker_goes_on_where_the_old_one_was() {
    let (turn, all) = (round_robin(), connections("abc", 9).await);
    let order: String = (0..6).map(|_| next(&picker([(1, turn.clone(), all.clone())]), no_draw)).collect();
    assert_eq!(order, "abcabc");
}

#[tokio::test]
async fn a_connection_that_was_lost_or_is_full_is_passed_over() {
    let all = connections("abc", 1).await;
    all[0].retire();
    let picker = picker([(1, round_robin(), all)]);
    let Picked::Slot(first) = picker.pick(&Tried::default(), &mut no_draw) else { panic!("b is free") };
    let Picked::Slot(second) = picker.pick(&Tried::default(), &mut no_draw) else { panic!("c is free") };
    assert_eq!((name(&first), name(&second)), ('b', 'c'));
    assert!(matches!(picker.pick(&Tried::default(), &mut no_draw), Picked::Wait), "all streams are taken");
    drop(second);
    assert_eq!(next(&picker, no_draw), 'c');
}

#[tokio::test]
async fn every_point_of_the_weights_has_its_locality() {
    let localities = [
        (3, round_robin(), connections("a", 9).await),
        (1, round_robin(), connections("b", 9).await),
        (6, round_robin(), connections("c", 9).await),
    ];
    let picker = picker(localities);
    let order: String =
        (0..10).map(|point| next(&picker, |below| (point < below).then_some(point).expect("of 10"))).collect();
    assert_eq!(order, "aaabcccccc");
}

#[tokio::test]
async fn weights_that_fill_u32_are_weighed() {
    let localities =
        [(u32::MAX - 1, round_robin(), connections("a", 9).await), (1, round_robin(), connections("b", 9).await)];
    let picker = picker(localities);
    assert_eq!(
        (next(&picker, |_| 0), next(&picker, |below| below - 2), next(&picker, |below| below - 1)),
        ('a', 'a', 'b')
    );
}

#[tokio::test]
async fn the_weight_of_a_locality_without_ready_connections_goes_to_the_others() {
    let localities = [(90, round_robin(), Vec::new()), (10, round_robin(), connections("b", 9).await)];
    let picker = picker(localities);
    // One is left: nothing to draw.
    assert_eq!(next(&picker, no_draw), 'b');
}

#[tokio::test]
async fn a_locality_whose_connections_were_all_lost_fails_no_call() {
    let lost = connections("a", 9).await;
    lost[0].retire();
    let picker = picker([(1, round_robin(), lost), (1, round_robin(), connections("b", 9).await)]);
    assert_eq!((next(&picker, |_| 0), next(&picker, |_| 1)), ('b', 'b'));
}

#[tokio::test]
async fn random_spreads_evenly() {
    let picker = picker([(1, Turn::of(&LbPolicy::Random, 0), connections("abcd", 9).await)]);
    let mut dice = fastrand::Rng::with_seed(7);
    let mut counts = BTreeMap::<char, u32>::new();
    for _ in 0..4_000 {
        *counts.entry(next(&picker, |below| dice.u32(..below))).or_default() += 1;
    }
    let distance: f64 = counts.values().map(|&count| (f64::from(count) - 1000.0).powi(2) / 1000.0).sum();
    // Chi-square with three degrees of freedom exceeds this once in 10,000 seeds.
    assert!(counts.len() == 4 && distance < 21.1, "{counts:?}");
}

#[tokio::test]
async fn drop_categories_are_tried_in_order_each_with_its_own_draw() {
    let category = |category: &str, rate| DropOverload {
        category: category.into(),
        rate: Millionths::from_ratio(rate, 1_000_000),
    };
    let drops = [category("first", 100_000), category("second", 500_000)].as_slice().into();
    let ready = ReadyPicker::new(drops, [chunked((1, round_robin(), connections("a", 9).await))]).expect("READY");
    let picker = Offer::open(Picker::Ready(ready));
    let outcome = |first, second| {
        let mut draws = [first, second].into_iter();
        match picker.pick(&Tried::default(), &mut |_| draws.next().expect("two categories")) {
            Picked::Dropped(category) => category.to_string(),
            Picked::Slot(slot) => name(&slot).to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(outcome(99_999, 0), "first");
    assert_eq!(outcome(100_000, 499_999), "second");
    assert_eq!(outcome(100_000, 500_000), "a");
}

#[test]
fn nothing_ready_is_no_picker() {
    assert!(ReadyPicker::new(Arc::default(), [chunked((1, round_robin(), Vec::new()))]).is_none());
}

/// A call that has tried these endpoints.
fn tried(connections: &[Arc<Connection>], names: &str, looks: Option<u32>) -> Tried {
    let mut tried = Tried::default();
    for index in names.bytes().map(|name| usize::from(name - b'a')) {
        tried.add(&connections[index].slot(None).expect("there is room"), looks, None);
    }
    tried
}

#[tokio::test]
async fn a_retry_goes_to_an_endpoint_that_was_not_tried_as_far_as_it_may_look() {
    let connections = connections("abc", 9).await;
    // (tried, looks, whose turn it is, who gets the call)
    for (names, looks, turn, expected) in
        [("", 1, 1, 'b'), ("b", 1, 1, 'c'), ("b", 1, 0, 'a'), ("bc", 1, 1, 'c'), ("bc", 2, 1, 'a'), ("abc", 3, 1, 'b')]
    {
        let picker = picker([(1, Turn::of(&LbPolicy::RoundRobin, turn), connections.clone())]);
        match picker.pick(&tried(&connections, names, Some(looks)), &mut no_draw) {
            Picked::Slot(slot) => assert_eq!(name(&slot), expected, "{names} {looks} {turn}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_retry_that_need_not_go_elsewhere_takes_its_turn() {
    let connections = connections("ab", 9).await;
    let picker = picker([(1, round_robin(), connections.clone())]);
    match picker.pick(&tried(&connections, "a", None), &mut no_draw) {
        Picked::Slot(slot) => assert_eq!(name(&slot), 'a'),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_retry_goes_to_another_locality_rather_than_to_the_same_endpoint() {
    let connections = connections("ab", 9).await;
    let localities = [(1, round_robin(), connections[..1].to_vec()), (1, round_robin(), connections[1..].to_vec())];
    match picker(localities).pick(&tried(&connections, "a", Some(1)), &mut |_| 0) {
        Picked::Slot(slot) => assert_eq!(name(&slot), 'b'),
        other => panic!("{other:?}"),
    }
}

// === Circuit breaker ===

#[tokio::test]
async fn drops_come_before_the_breaker_and_who_waits_gives_its_place_back() {
    let half = DropOverload { category: "half".into(), rate: Millionths::from_ratio(1, 2) };
    let ready = ReadyPicker::new([half].into(), [chunked((1, round_robin(), connections("a", 1).await))]);
    let counters = Arc::default();
    let limits = CircuitBreakers { max_requests: Some(1), ..CircuitBreakers::default() };
    let admission = |limits| Some(Arc::new(Admission::new(Breaker::new(Arc::clone(&counters), limits), None)));
    let picker = Offer { admission: admission(limits), ..Offer::open(Picker::Ready(ready.expect("READY"))) };
    let Picked::Slot(slot) = picker.pick(&Tried::default(), &mut |_| 999_999) else { panic!("the first") };
    assert!(matches!(picker.pick(&Tried::default(), &mut |_| 0), Picked::Dropped(_)), "dropped before it is refused");
    assert!(matches!(picker.pick(&Tried::default(), &mut |_| 999_999), Picked::CircuitOpen(Full { max: 1 })));

    let wider = CircuitBreakers { max_requests: Some(9), ..limits };
    let picker = Offer { admission: admission(wider), ..picker };
    assert!(matches!(picker.pick(&Tried::default(), &mut |_| 999_999), Picked::Wait), "all streams are taken");
    assert_eq!(counters.in_use().requests, 1);
    drop(slot);
    assert_eq!(counters.in_use().requests, 0);
}

#[test]
fn a_breaker_that_is_full_refuses_before_there_is_an_endpoint() {
    let nothing = CircuitBreakers { max_requests: Some(0), ..CircuitBreakers::default() };
    for picker in [Picker::Wait, Picker::Fail("none".into())] {
        let admission = Some(Arc::new(Admission::new(Breaker::new(Arc::default(), nothing), None)));
        assert!(matches!(
            Offer { admission, ..Offer::open(picker) }.pick(&Tried::default(), &mut no_draw),
            Picked::CircuitOpen(Full { max: 0 })
        ));
    }
}
