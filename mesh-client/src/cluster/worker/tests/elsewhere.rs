//! A worker whose priorities below the one in use are asked for by retries, by script.

use super::*;
use std::num::NonZeroU32;

/// A call whose attempts go to another priority each time.
#[derive(Default)]
struct Retries {
    tried: Tried,
}

impl Retries {
    /// The next attempt: who gets it, or nobody yet. It fails.
    fn next(&mut self, script: &mut Script) -> Option<char> {
        let picked = script.worker.shared.try_pick(false, &self.tried);
        // Rung by whoever asks.
        script.worker.turn();
        let slot = picked?.expect("a slot");
        self.tried.add(&slot, None, NonZeroU32::new(1));
        self.tried.failed();
        Some(name(slot.peer()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_has_the_next_priority_connected_and_other_calls_stay() {
    let mut script = Script::round_robin("a/b/c");
    script.ready('a').await;
    let mut call = Retries::default();
    assert_eq!(call.next(&mut script), Some('a'));
    script.dials("");
    assert_eq!(call.next(&mut script), None);
    script.dials("b").picks("a");
    assert_eq!(call.next(&mut script), None, "still on its way");
    script.ready('b').await;
    script.picks("a");
    assert_eq!(call.next(&mut script), Some('b'));
    assert_eq!(call.next(&mut script), None);
    script.dials("c").ready('c').await;
    assert_eq!(call.next(&mut script), Some('c'));
    // Nothing is left: it starts over.
    assert_eq!([call.next(&mut script), call.next(&mut script)], [Some('a'), Some('b')]);
    script.picks("a");
}

#[tokio::test(start_paused = true)]
async fn a_priority_that_fails_or_takes_too_long_is_passed_over() {
    let mut script = Script::round_robin("a/b/c");
    script.ready('a').await;
    let mut call = Retries::default();
    assert_eq!([call.next(&mut script), call.next(&mut script)], [Some('a'), None]);
    script.fails('b').dials("");
    assert_eq!(call.next(&mut script), None);
    script.dials("c").after_seconds(10).await;
    assert_eq!(call.next(&mut script), Some('a'), "c is late");
    script.ready('c').await;
    assert_eq!(call.next(&mut script), Some('c'));
    // A priority without endpoints, and one that there is not any more.
    script.update("a/");
    let mut call = Retries::default();
    assert_eq!([call.next(&mut script), call.next(&mut script)], [Some('a'), Some('a')]);
    script.update("a");
    let mut call = Retries::default();
    assert_eq!([call.next(&mut script), call.next(&mut script)], [Some('a'), Some('a')]);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_is_let_go_15_minutes_after_its_last_use() {
    let mut script = Script::round_robin("a/b");
    script.ready('a').await;
    let retry = |script: &mut Script| {
        let mut call = Retries::default();
        (call.next(script), call.next(script))
    };
    assert_eq!(retry(&mut script), (Some('a'), None));
    let b = script.ready('b').await;
    script.after_seconds(15 * 60 - 1).await;
    assert_eq!(retry(&mut script), (Some('a'), Some('b')));
    script.after_seconds(15 * 60 - 1).await;
    assert!(b.slot(None).is_some() && script.worker.shared.offer.load().others.known.len() == 2);
    script.after_seconds(1).await;
    assert!(b.slot(None).is_none() && script.worker.shared.offer.load().others.known.is_empty());
    assert_eq!(script.in_state(EndpointState::Idle), "b");
    // And it can be asked for again.
    assert_eq!(retry(&mut script), (Some('a'), None));
    script.dials("b");
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_takes_over_when_it_is_needed() {
    let mut script = Script::round_robin("a/b");
    script.ready('a').await;
    let mut call = Retries::default();
    assert_eq!([call.next(&mut script), call.next(&mut script)], [Some('a'), None]);
    let b = script.ready('b').await;
    script.after_seconds(2).await.closes('a').fails('a').picks("b");
    script.after_seconds(20 * 60).await.picks("b");
    assert!(b.slot(None).is_some());
}

#[tokio::test(start_paused = true)]
async fn connections_come_and_go_in_a_priority_that_serves_retries() {
    let mut script = Script::round_robin("a/bc");
    script.ready('a').await;
    let mut call = Retries::default();
    assert_eq!([call.next(&mut script), call.next(&mut script)], [Some('a'), None]);
    script.ready('b').await;
    let second = |script: &mut Script| {
        let mut call = Retries::default();
        assert_eq!(call.next(script), Some('a'));
        call.next(script)
    };
    assert_eq!([second(&mut script), second(&mut script)], [Some('b'), Some('b')]);
    script.ready('c').await;
    let both = [second(&mut script), second(&mut script)];
    assert!(both == [Some('b'), Some('c')] || both == [Some('c'), Some('b')], "in turn: {both:?}");
    script.after_seconds(2).await.closes('b');
    assert_eq!([second(&mut script), second(&mut script)], [Some('c'), Some('c')]);
    script.update("a/c");
    assert_eq!([second(&mut script), second(&mut script)], [Some('c'), Some('c')]);
}

#[tokio::test(start_paused = true)]
async fn the_priorities_of_an_aggregate_are_those_of_its_leaves() {
    let mut script = Script::round_robin("");
    let (x, y) = (leaf("x", &LbPolicy::RoundRobin, "a"), leaf("y", &LbPolicy::RoundRobin, "b/a"));
    script.aggregate(&[&x, &leaf("w!", &LbPolicy::RoundRobin, "z"), &y]).ready('a').await;
    let mut call = Retries::default();
    // Passing over the one whose security cannot be honoured.
    assert_eq!([call.next(&mut script), call.next(&mut script), call.next(&mut script)], [Some('a'), None, None]);
    script.dials("b").ready('b').await;
    assert_eq!(call.next(&mut script), Some('b'));
    assert_eq!(call.next(&mut script), None, "the same address in another leaf is another endpoint");
    script.dials("a").picks("a");
}
