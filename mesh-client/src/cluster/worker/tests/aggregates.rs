//! A worker with the leaves of an aggregate (A37, A75), by script.

use super::*;

const ROUND_ROBIN: &LbPolicy = &LbPolicy::RoundRobin;

#[tokio::test(start_paused = true)]
async fn priorities_of_leaves_follow_each_other_and_fail_over() {
    let mut script = Script::round_robin("");
    script.aggregate(&[&leaf("x", ROUND_ROBIN, "a/b"), &leaf("y", ROUND_ROBIN, "c")]).dials("a");
    script.fails('a').dials("b").after_seconds(10).await.dials("abc");
    script.ready('c').await;
    script.picks("c");
    script.ready('b').await;
    script.picks("b");
    script.ready('a').await;
    script.picks("a");
}

#[tokio::test(start_paused = true)]
async fn a_leaf_without_endpoints_is_passed_over_at_once_and_taken_when_it_has_some() {
    let mut script = Script::round_robin("");
    let y = leaf("y", ROUND_ROBIN, "b");
    script.aggregate(&[&leaf("x", ROUND_ROBIN, ""), &y]).dials("b");
    let b = script.ready('b').await;
    script.picks("b");
    script.aggregate(&[&leaf("x", ROUND_ROBIN, "a"), &y]).dials("a").picks("b");
    script.ready('a').await;
    script.picks("a");
    script.aggregate(&[&leaf("x", ROUND_ROBIN, ""), &y]).picks("b").dials("");
    assert!(b.slot(None).is_some(), "the same connection all the time");
}

#[tokio::test(start_paused = true)]
async fn a_leaf_keeps_its_connections_wherever_it_moves() {
    let mut script = Script::round_robin("");
    let (x, y) = (leaf("x", ROUND_ROBIN, "a"), leaf("y", ROUND_ROBIN, "b"));
    script.aggregate(&[&x, &y]).fails('a').dials("b");
    let b = script.ready('b').await;
    // "whose timer is pending" (A56): the new one gets its ten seconds, and calls wait for it.
    script.aggregate(&[&leaf("w", ROUND_ROBIN, "c/d"), &leaf("x", ROUND_ROBIN, "a/e"), &y]).waits().dials("c");
    script.aggregate(&[&y, &x]).picks("b").dials("");
    assert!(b.slot(None).is_some());
    script.aggregate(&[&x]).refuses("no endpoint can be reached");
    assert!(b.slot(None).is_none(), "its leaf is gone: \"destroyed at once\" (A115)");
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_move_to_another_leaf_are_dialled_for_it_while_calls_wait() {
    let mut script = Script::round_robin("");
    script.aggregate(&[&leaf("x", ROUND_ROBIN, "a"), &leaf("y", ROUND_ROBIN, "")]);
    let a = script.ready('a').await;
    let in_flight = a.slot(None);
    script.aggregate(&[&leaf("x", ROUND_ROBIN, ""), &leaf("y", ROUND_ROBIN, "a")]).dials("a").waits();
    assert!(in_flight.is_some() && a.slot(None).is_none(), "drained, not cut");
    script.ready('a').await;
    script.picks("a");
}

#[tokio::test(start_paused = true)]
async fn each_leaf_has_its_own_policy_and_drops() {
    let mut script = Script::round_robin("");
    let mut x = ResolvedCluster::clone(&leaf("x", ROUND_ROBIN, "ab"));
    let drops = vec![DropOverload { category: "all".into(), rate: Millionths::ALL }];
    x.endpoints = Arc::new(ClusterLoadAssignment { drops, ..ClusterLoadAssignment::clone(&x.endpoints) });
    script.aggregate(&[&Arc::new(x), &leaf("y", &LbPolicy::PickFirst { shuffle: false }, "cd")]).dials("ab");
    script.ready('a').await;
    assert!(matches!(script.pick(), Picked::Dropped(_)));
    script.after_seconds(2).await.closes('a').fails('a').fails('b').dials("c");
    script.ready('c').await;
    script.picks("c");
}

#[tokio::test(start_paused = true)]
async fn a_leaf_whose_security_cannot_be_honoured_is_passed_over() {
    let mut script = Script::round_robin("");
    let y = leaf("y", ROUND_ROBIN, "b");
    script.aggregate(&[&leaf("x!", ROUND_ROBIN, "a"), &y]).dials("b");
    script.aggregate(&[&leaf("x!", ROUND_ROBIN, "a")]).dials("").refuses("tls is not supported");
}
