//! Which priority each attempt of a call goes to, as a table; the worker's part is its own tests'.

use super::{Other, OtherPicker, Others, Tried};
use crate::{
    balance::{
        Admission, Offer, Picked, Picker, ReadyPicker,
        priority::Standing,
        tests::{chunked, connections, name, no_draw, round_robin},
    },
    breaker::{Breaker, Full},
};
use mesh_xds::resource::CircuitBreakers;
use std::{num::NonZeroU32, sync::Arc};

/// Priorities with an endpoint each, a, b, c .., by how they stand: `W`orks, `F`ailed, `P`ending, `A`bsent. The first that
/// works is the one for all calls.
async fn offer(standings: &str) -> Offer {
    let chosen = standings.find('W').unwrap_or_default();
    let mut offer = Offer::open(Picker::Wait);
    offer.others = Others { count: standings.len(), chosen, known: Vec::new() };
    for (priority, (standing, letter)) in standings.bytes().zip('a'..).enumerate() {
        let standing = match standing {
            b'W' => Standing::Works,
            b'F' => Standing::Failed,
            b'P' => Standing::Pending,
            _ => Standing::Absent,
        };
        let mut known = Other::None(standing);
        if standing == Standing::Works {
            let connections = connections(&letter.to_string(), 9).await;
            connections[0].endpoint.set_priority(Some(priority));
            let picker = ReadyPicker::new(Arc::default(), [chunked((1, round_robin(), connections))]).expect("READY");
            match priority == chosen {
                true => offer.picker = Picker::Ready(picker),
                false => known = Other::Ready(Arc::new(OtherPicker { admission: None, picker })),
            }
        }
        offer.others.known.push(known);
    }
    offer
}

/// Who gets six attempts that fail. `?b` asks for b, and `.` waits, both until the call has had enough of it.
fn attempts(offer: &Offer, every: u32) -> String {
    let (mut tried, mut seen, mut count) = (Tried::default(), String::new(), 0);
    while count < 6 {
        match offer.pick(&tried, &mut no_draw) {
            Picked::Slot(slot) => {
                seen.push(name(&slot));
                tried.add(&slot, None, NonZeroU32::new(every));
                tried.failed();
                count += 1;
            }
            Picked::Ask(priority) => {
                seen.extend(['?', char::from(b'a' + u8::try_from(priority).expect("few"))]);
                tried.hurry();
            }
            Picked::Wait => {
                seen.push('.');
                tried.hurry();
            }
            other => panic!("{other:?}"),
        }
    }
    seen
}

#[tokio::test]
async fn every_so_many_attempts_the_priorities_of_those_before_are_excluded_until_none_is_left() {
    for (standings, every, expected) in [
        // Without the policy, and with one priority.
        ("WW", 0, "aaaaaa"),
        ("W", 1, "aaaaaa"),
        // Each in turn, and from scratch.
        ("WW", 1, "ababab"),
        ("WWW", 1, "abcabc"),
        ("WW", 2, "aabbaa"),
        ("WWW", 2, "aabbcc"),
        ("WW", 3, "aaabbb"),
        ("WW", 9, "aaaaaa"),
        // What has failed is passed over, above and below.
        ("WFW", 1, "acacac"),
        ("FWW", 1, "bcbcbc"),
        ("FWF", 1, "bbbbbb"),
        ("WFF", 2, "aaaaaa"),
        // What may work is waited for, and passed over by a call that has had enough of that.
        ("WP", 1, "a.aaaaa"),
        ("WPW", 1, "a.cacac"),
        // What nobody has needed yet is asked for.
        ("WA", 2, "aa?baaaa"),
        ("WFA", 1, "a?caaaaa"),
        ("WAW", 1, "a?bcacac"),
    ] {
        assert_eq!(attempts(&offer(standings).await, every), expected, "{standings} {every}");
    }
}

#[tokio::test]
async fn what_was_never_asked_for_is_absent() {
    let mut offer = offer("WW").await;
    offer.others.known.clear();
    assert_eq!(attempts(&offer, 3), "aaa?baaa");
}

#[tokio::test]
async fn what_is_sent_again_because_nobody_has_seen_it_stays() {
    let offer = offer("WW").await;
    let mut tried = Tried::default();
    for _ in 0..3 {
        let Picked::Slot(slot) = offer.pick(&tried, &mut no_draw) else { panic!("a is free") };
        assert_eq!(name(&slot), 'a');
        tried.add(&slot, None, NonZeroU32::new(1));
    }
}

#[tokio::test]
async fn an_endpoint_that_moves_takes_its_exclusion_along_and_one_that_leaves_does_not_count() {
    let offer = offer("WWW").await;
    let mut tried = Tried::default();
    let Picked::Slot(slot) = offer.pick(&tried, &mut no_draw) else { panic!("a is free") };
    tried.add(&slot, None, NonZeroU32::new(1));
    tried.failed();
    let next = || match offer.pick(&tried, &mut no_draw) {
        Picked::Slot(slot) => name(&slot),
        other => panic!("{other:?}"),
    };
    assert_eq!(next(), 'b');
    slot.endpoint().set_priority(Some(1));
    assert_eq!(next(), 'a');
    slot.endpoint().set_priority(None);
    assert_eq!(next(), 'a');
}

#[tokio::test]
async fn a_cluster_that_has_failed_or_is_gone_says_so_to_retries_too() {
    let mut offer = offer("WA").await;
    let mut tried = Tried::default();
    let Picked::Slot(slot) = offer.pick(&tried, &mut no_draw) else { panic!("a is free") };
    tried.add(&slot, None, NonZeroU32::new(1));
    tried.failed();
    offer.picker = Picker::Fail("all of it".into());
    assert!(matches!(offer.pick(&tried, &mut no_draw), Picked::Fail(_)));
    offer.picker = Picker::Removed;
    assert!(matches!(offer.pick(&tried, &mut no_draw), Picked::Removed));
}

/// "Circuit breaker [...] settings come from the leaf" (A37).
#[tokio::test]
async fn a_retry_is_admitted_where_it_goes() {
    let mut offer = offer("WW").await;
    let nothing = CircuitBreakers { max_requests: Some(0), ..CircuitBreakers::default() };
    let Other::Ready(b) = &mut offer.others.known[1] else { panic!("b works") };
    Arc::get_mut(b).expect("one holder").admission =
        Some(Arc::new(Admission::new(Breaker::new(Arc::default(), nothing), None)));
    let mut tried = Tried::default();
    let Picked::Slot(slot) = offer.pick(&tried, &mut no_draw) else { panic!("a admits all") };
    tried.add(&slot, None, NonZeroU32::new(1));
    tried.failed();
    assert!(matches!(offer.pick(&tried, &mut no_draw), Picked::CircuitOpen(Full { max: 0 })));
}
