//! Delta, driven by hand.

use super::*;

// === Subscriptions ===

#[test]
fn what_is_subscribed_is_sent_once() {
    let mut rig = Rig::delta(&assignments(&[("a", 1), ("b", 1), ("c", 1)]));
    assert_eq!(rig.subscribes(EDS, &["a", "b"]), Verdict::Request);
    rig.tells(EDS, "1", &["a", "b"], &[]);
    assert_eq!(rig.acks(EDS, "1"), Verdict::Ack);
    rig.tells_nothing();
    rig.subscribes(EDS, &["c"]);
    rig.tells(EDS, "2", &["c"], &[]);
}

#[test]
fn a_name_without_a_resource_is_told_to_be_removed() {
    let mut rig = Rig::delta(&assignments(&[("a", 1)]));
    rig.subscribes(EDS, &["a", "b"]);
    rig.tells(EDS, "1", &["a"], &["b"]);
    rig.tells_nothing();
    rig.set(&assignments(&[("a", 1), ("b", 1)]));
    rig.tells(EDS, "2", &["b"], &[]);
}

#[test]
fn a_name_that_is_subscribed_again_is_sent_again() {
    let mut rig = Rig::delta(&assignments(&[("a", 1), ("b", 1)]));
    rig.subscribes(EDS, &["a", "b", "c"]);
    rig.tells(EDS, "1", &["a", "b"], &["c"]);
    rig.subscribes(EDS, &["b", "c"]);
    rig.tells(EDS, "2", &["b"], &["c"]);
    rig.tells_nothing();
}

#[test]
fn unsubscribed_names_are_not_sent_until_they_are_wanted_again() {
    let mut rig = Rig::delta(&assignments(&[("a", 1), ("b", 1)]));
    rig.subscribes(EDS, &["a", "b"]);
    rig.tells(EDS, "1", &["a", "b"], &[]);
    rig.unsubscribes(EDS, &["b"]);
    rig.set(&assignments(&[("a", 2), ("b", 2)]));
    rig.tells(EDS, "2", &["a"], &[]);
    rig.set(&assignments(&[("a", 2)]));
    rig.tells_nothing();
    rig.subscribes(EDS, &["b"]);
    rig.tells(EDS, "3", &[], &["b"]);
}

#[test]
fn unsubscribe_and_subscribe_in_one_turn_is_no_silence() {
    let mut rig = Rig::delta(&assignments(&[("a", 1)]));
    rig.subscribes(EDS, &["a"]);
    rig.tells(EDS, "1", &["a"], &[]);
    rig.unsubscribes(EDS, &["a"]);
    rig.subscribes(EDS, &["a"]);
    rig.tells(EDS, "2", &["a"], &[]);
}

#[test]
fn a_removal_that_nobody_waits_for_any_more_is_not_told() {
    let mut rig = Rig::delta(&assignments(&[("a", 1)]));
    rig.subscribes(EDS, &["a"]);
    rig.tells(EDS, "1", &["a"], &[]);
    rig.set(&assignments(&[]));
    rig.unsubscribes(EDS, &["a"]);
    rig.tells_nothing();
}

// === Wildcards ===

#[test]
fn a_first_request_without_names_is_a_wildcard_for_clusters_only() {
    for (kind, is_wildcard) in [(CDS, true), (LDS, true), (EDS, false), (RDS, false)] {
        let mut rig = Rig::delta(&Resources::default());
        rig.subscribes(kind, &[]);
        assert_eq!(rig.session.wants(kind, "any"), is_wildcard, "{kind}");
        assert_eq!(rig.delta_answer().is_some(), is_wildcard, "an empty world is news: {kind}");
        rig.tells_nothing();
    }
}

#[test]
fn a_wildcard_follows_everything() {
    for star in [&[][..], &["*"]] {
        let mut rig = Rig::delta(&clusters(&["a"]));
        rig.subscribes(CDS, star);
        rig.tells(CDS, "1", &["a"], &[]);
        rig.acks(CDS, "1");
        rig.set(&clusters(&["b"]));
        rig.tells(CDS, "2", &["b"], &[]);
        rig.tells(CDS, "3", &[], &["a"]);
        rig.tells_nothing();
        rig.set(&clusters(&["a", "b"]));
        rig.tells(CDS, "4", &["a"], &[]);
    }
}

#[test]
fn the_first_name_ends_a_wildcard_that_was_never_said() {
    let mut rig = Rig::delta(&clusters(&["a", "b"]));
    rig.subscribes(CDS, &[]);
    rig.tells(CDS, "1", &["a", "b"], &[]);
    rig.subscribes(CDS, &["a"]);
    rig.tells(CDS, "2", &["a"], &[]);
    assert!(!rig.session.wants(CDS, "b"));
    rig.unsubscribes(CDS, &["a"]);
    rig.subscribes(CDS, &[]);
    rig.tells_nothing();
}

#[test]
fn a_wildcard_that_was_said_stays_beside_names() {
    let mut rig = Rig::delta(&clusters(&["a", "b"]));
    rig.subscribes(CDS, &["*"]);
    rig.tells(CDS, "1", &["a", "b"], &[]);
    rig.subscribes(CDS, &["b", "c"]);
    rig.tells(CDS, "2", &["b"], &["c"]);
    assert!(rig.session.wants(CDS, "a"));
    rig.unsubscribes(CDS, &["*"]);
    rig.set(&clusters(&["c"]));
    rig.tells(CDS, "3", &["c"], &[]);
    rig.tells(CDS, "4", &[], &["b"]);
    rig.tells_nothing();
}

#[test]
fn a_name_that_leaves_a_wildcard_is_told_how_it_is() {
    let mut rig = Rig::delta(&clusters(&["a"]));
    rig.subscribes(CDS, &["*", "a", "b"]);
    rig.tells(CDS, "1", &["a"], &["b"]);
    rig.unsubscribes(CDS, &["a", "b"]);
    rig.tells(CDS, "2", &["a"], &[]);
    rig.tells(CDS, "3", &[], &["b"]);
    rig.tells_nothing();
}

// === Resumption ===

#[test]
fn a_client_that_comes_back_is_told_the_difference() {
    let mut before = Rig::delta(&assignments(&[("same", 1), ("changed", 1), ("gone", 1)]));
    let versions: Vec<_> = ["same", "changed", "gone"].map(|name| (name, before.version(EDS, name))).into();
    let held: Vec<_> = versions.iter().map(|(name, version)| (*name, version.as_str())).collect();
    before.set(&assignments(&[("same", 1), ("changed", 2), ("new", 1)]));
    let mut rig = before;
    rig.resumes(EDS, &["same", "changed", "gone", "new"], &held);
    rig.tells(EDS, "1", &["changed", "new"], &[]);
    rig.tells(EDS, "2", &[], &["gone"]);
    rig.tells_nothing();
    assert!(rig.has_acked(EDS, "same"), "it said that it has it");
    assert!(!rig.has_acked(EDS, "changed"));
}

#[test]
fn a_wildcard_that_comes_back_is_told_the_difference() {
    let mut rig = Rig::delta(&clusters(&["a", "b"]));
    let version = rig.version(CDS, "a");
    rig.resumes(CDS, &[], &[("a", &version), ("old", "1")]);
    rig.tells(CDS, "1", &["b"], &[]);
    rig.tells(CDS, "2", &[], &["old"]);
    rig.tells_nothing();
}

#[test]
fn a_client_that_comes_back_to_the_same_world_is_told_nothing() {
    let mut rig = Rig::delta(&clusters(&["a"]));
    let version = rig.version(CDS, "a");
    rig.resumes(CDS, &[], &[("a", &version)]);
    rig.tells_nothing();
}

#[test]
fn held_versions_of_later_requests_mean_nothing() {
    let mut rig = Rig::delta(&clusters(&["a"]));
    let version = rig.version(CDS, "a");
    rig.subscribes(CDS, &["b"]);
    rig.tells(CDS, "1", &[], &["b"]);
    rig.resumes(CDS, &["a"], &[("a", &version)]);
    rig.tells(CDS, "2", &["a"], &[]);
}

// === Verdicts ===

#[test]
fn each_response_is_judged_by_its_own_nonce() {
    let mut rig = Rig::delta(&assignments(&[("a", 1), ("b", 1)]));
    rig.subscribes(EDS, &["a"]);
    rig.tells(EDS, "1", &["a"], &[]);
    rig.subscribes(EDS, &["b"]);
    rig.tells(EDS, "2", &["b"], &[]);
    assert_eq!(rig.nacks(EDS, "1", "bad a"), Verdict::Nack { message: "bad a".into() });
    assert_eq!(rig.session.nack(EDS), Some("bad a"));
    assert_eq!(rig.acks(EDS, "2"), Verdict::Ack);
    assert!(!rig.has_acked(EDS, "a"));
    assert!(rig.has_acked(EDS, "b"));
    rig.tells_nothing();
    rig.set(&assignments(&[("a", 2), ("b", 1)]));
    rig.tells(EDS, "3", &["a"], &[]);
    rig.acks(EDS, "3");
    assert!(rig.has_acked(EDS, "a"));
}

#[test]
fn a_removal_is_acknowledged_too() {
    let mut rig = Rig::delta(&assignments(&[("a", 1)]));
    rig.subscribes(EDS, &["a"]);
    rig.tells(EDS, "1", &["a"], &[]);
    rig.acks(EDS, "1");
    rig.set(&assignments(&[]));
    assert!(!rig.has_acked(EDS, "a"));
    rig.tells(EDS, "2", &[], &["a"]);
    assert!(!rig.has_acked(EDS, "a"));
    rig.acks(EDS, "2");
    assert!(rig.has_acked(EDS, "a"));
}

#[test]
fn names_count_whatever_nonce_comes_with_them() {
    let mut rig = Rig::delta(&assignments(&[("a", 1), ("b", 1), ("c", 1)]));
    rig.subscribes(EDS, &["a"]);
    rig.tells(EDS, "1", &["a"], &[]);
    assert_eq!(rig.says(EDS, &["b"], &[], "17", None), Verdict::Stale);
    rig.tells(EDS, "2", &["b"], &[]);
    rig.says(EDS, &["c"], &["a"], "2", Some("no"));
    rig.tells(EDS, "3", &["c"], &[]);
    assert!(!rig.session.wants(EDS, "a"));
}

// === Order and size ===

fn world(names: &[&str], route_to: &str) -> Resources {
    names.iter().fold(Resources::default(), |all, name| {
        let hosts = vec![resources::virtual_host("*", route_to)];
        all.with(resources::cluster_eds(name))
            .with(resources::endpoints(name, &[]))
            .with(resources::listener("l", "r"))
            .with(resources::route_config("r", hosts))
    })
}

#[test]
fn the_new_is_made_before_the_old_is_broken() {
    let mut rig = Rig::delta(&world(&["old"], "old"));
    for (kind, names) in [(LDS, &["l"][..]), (RDS, &["r"]), (CDS, &[]), (EDS, &["old", "new"])] {
        rig.subscribes(kind, names);
        rig.delta_answer().expect("an answer");
    }
    rig.set(&world(&["new"], "new"));
    rig.tells(CDS, "5", &["new"], &[]);
    rig.tells(EDS, "6", &["new"], &[]);
    rig.tells(RDS, "7", &["r"], &[]);
    rig.tells(CDS, "8", &[], &["old"]);
    rig.tells(EDS, "9", &[], &["old"]);
    rig.tells_nothing();
    rig.set(&Resources::default());
    for (kind, nonce, name) in [(LDS, "10", "l"), (RDS, "11", "r"), (CDS, "12", "new"), (EDS, "13", "new")] {
        rig.tells(kind, nonce, &[], &[name]);
    }
}

#[test]
fn much_is_told_in_several_responses() {
    let addresses: Vec<_> = (0..10_000_u16).map(|index| ([10, 0, 0, 1], 1_000 + index).into()).collect();
    let names: Vec<_> = (0..20).map(|n| format!("cluster-{n}")).collect();
    let all = names.iter().fold(Resources::default(), |all, name| all.with(resources::endpoints(name, &addresses)));
    let mut rig = Rig::delta(&all);
    rig.subscribes(EDS, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut told = vec![];
    while let Some(answer) = rig.delta_answer() {
        assert!(answer.encoded_len() < 4 << 20, "gRPC's limit");
        told.extend(answer.resources.into_iter().map(|resource| resource.name));
    }
    assert!(rig.session.nonces > 1);
    told.sort_unstable();
    let mut names = names;
    names.sort_unstable();
    assert_eq!(told, names);
}

// === Hooks ===

#[test]
fn withheld_names_are_neither_sent_nor_removed() {
    let mut rig = Rig::delta(&clusters(&["a", "b"]));
    let withhold = |hooks: &mut Hooks| drop(hooks.withheld.insert(CDS.into(), ["b".into(), "c".into()].into()));
    rig.hook(withhold);
    rig.subscribes(CDS, &["a", "b", "c"]);
    rig.tells(CDS, "1", &["a"], &[]);
    rig.hook(|hooks| hooks.withheld.clear());
    rig.tells(CDS, "2", &["b"], &["c"]);
    rig.hook(withhold);
    rig.set(&clusters(&["a"]));
    rig.tells_nothing();
    rig.hook(|hooks| hooks.withheld.clear());
    rig.tells(CDS, "3", &[], &["b"]);
}

#[test]
fn a_held_type_does_not_keep_others_waiting() {
    let mut rig = Rig::delta(&world(&["a"], "a"));
    rig.hook(|hooks| assert!(hooks.held.insert(CDS.into())));
    rig.subscribes(CDS, &[]);
    rig.subscribes(EDS, &["a"]);
    rig.tells(EDS, "1", &["a"], &[]);
    rig.tells_nothing();
    rig.hook(|hooks| hooks.held.clear());
    rig.tells(CDS, "2", &["a"], &[]);
}

#[test]
fn a_hand_made_response_has_the_names_of_its_resources() {
    let mut rig = Rig::delta(&clusters(&["a"]));
    let resources = vec![resources::pack(resources::cluster_eds("b"))];
    rig.session.push_raw(Raw { type_url: CDS.into(), version: "raw".into(), resources: resources.clone() });
    let answer = rig.session.next(&rig.snapshot, &rig.hooks, false).expect("an answer");
    let answer = DeltaDiscoveryResponse::decode(answer.pieces.concat().as_slice()).expect("well-formed");
    assert_eq!((answer.resources[0].name.as_str(), answer.resources[0].version.as_str()), ("b", "raw"));
    assert_eq!(answer.resources[0].resource, resources.into_iter().next());
    assert_eq!(rig.nacks(CDS, "1", "no"), Verdict::Nack { message: "no".into() });
}
