//! SotW, driven by hand.

use super::*;

#[test]
fn an_ack_is_answered_with_nothing() {
    let mut rig = Rig::sotw(&clusters(&["a"]));
    assert_eq!(rig.asks(CDS, &["a"], ""), Verdict::Request);
    rig.answers(CDS, "1", &["a"]);
    assert_eq!(rig.asks(CDS, &["a"], "1"), Verdict::Ack);
    assert_eq!(rig.answer(), None);
}

#[test]
fn a_nack_is_answered_with_nothing_until_something_changes() {
    let mut rig = Rig::sotw(&clusters(&["a"]));
    rig.asks(CDS, &["a", "b"], "");
    rig.answers(CDS, "1", &["a"]);
    let nack = Verdict::Nack { message: "bad".into() };
    assert_eq!(rig.request(CDS, &["a", "b"], "1", Some("bad")), nack);
    assert_eq!(rig.session.nack(CDS), Some("bad"));
    assert_eq!(rig.answer(), None);
    rig.set(&clusters(&["a", "b"]));
    rig.answers(CDS, "2", &["a", "b"]);
    assert_eq!(rig.session.nack(CDS), None);
}

#[test]
fn a_stale_nonce_changes_nothing() {
    let mut rig = Rig::sotw(&clusters(&["a", "b"]));
    rig.asks(CDS, &["a"], "");
    rig.answers(CDS, "1", &["a"]);
    rig.asks(CDS, &["a", "b"], "1");
    rig.answers(CDS, "2", &["a", "b"]);
    assert_eq!(rig.asks(CDS, &["a", "b", "c"], "1"), Verdict::Stale);
    assert!(!rig.session.wants(CDS, "c"));
}

#[test]
fn names_are_changed_before_the_first_answer_arrived() {
    let mut rig = Rig::sotw(&clusters(&["a", "b"]));
    rig.asks(CDS, &["a"], "");
    rig.answers(CDS, "1", &["a"]);
    assert_eq!(rig.asks(CDS, &["a", "b"], ""), Verdict::Request);
    rig.answers(CDS, "2", &["a", "b"]);
}

#[test]
fn a_nonce_of_an_earlier_stream_is_a_first_request() {
    let mut rig = Rig::sotw(&clusters(&["a"]));
    assert_eq!(rig.asks(CDS, &["a"], "17"), Verdict::Request);
    rig.answers(CDS, "1", &["a"]);
}

#[test]
fn no_names_are_all_clusters() {
    let mut rig = Rig::sotw(&clusters(&["a", "b"]));
    rig.asks(CDS, &[], "");
    rig.answers(CDS, "1", &["a", "b"]);
    rig.asks(CDS, &[], "1");
    rig.set(&clusters(&["b"]));
    rig.answers(CDS, "2", &["b"]);
}

#[test]
fn no_names_after_some_names_are_no_clusters() {
    let mut rig = Rig::sotw(&clusters(&["a", "b"]));
    rig.asks(CDS, &["a"], "");
    rig.answers(CDS, "1", &["a"]);
    rig.asks(CDS, &[], "1");
    assert_eq!(rig.answer(), None);
    assert!(!rig.session.wants(CDS, "a"));
}

#[test]
fn no_names_are_no_endpoints() {
    let mut rig = Rig::sotw(&assignments(&[("a", 1)]));
    rig.asks(EDS, &[], "");
    assert_eq!(rig.answer(), None);
}

#[test]
fn an_absent_name_is_answered_at_once() {
    let mut rig = Rig::sotw(&clusters(&[]));
    rig.asks(CDS, &["a"], "");
    rig.answers(CDS, "1", &[]);
}

#[test]
fn a_change_sends_all_clusters_and_only_changed_endpoints() {
    let mut first = clusters(&["a", "b"]);
    first.extend(assignments(&[("a", 1), ("b", 1)]));
    let mut rig = Rig::sotw(&first);
    rig.asks(CDS, &["a", "b"], "");
    rig.answers(CDS, "1", &["a", "b"]);
    rig.asks(EDS, &["a", "b"], "");
    rig.answers(EDS, "2", &["a", "b"]);
    let mut second = clusters(&["a"]);
    second.extend(assignments(&[("a", 1), ("b", 2)]));
    rig.set(&second);
    rig.answers(EDS, "3", &["b"]);
    rig.answers(CDS, "4", &["a"]);
    assert_eq!(rig.answer(), None);
}

#[test]
fn a_name_that_is_wanted_again_is_sent_again() {
    let mut rig = Rig::sotw(&assignments(&[("a", 1), ("b", 1)]));
    rig.asks(EDS, &["a", "b"], "");
    rig.answers(EDS, "1", &["a", "b"]);
    rig.asks(EDS, &["b"], "1");
    assert_eq!(rig.answer(), None);
    rig.asks(EDS, &["a", "b"], "1");
    rig.answers(EDS, "2", &["a"]);
}

#[test]
fn types_are_pushed_clusters_first() {
    let everything = clusters(&["a"])
        .with(resources::listener("l", "r"))
        .with(resources::route_config("r", vec![]))
        .with(resources::endpoints("a", &[]));
    let mut rig = Rig::sotw(&Resources::default());
    for kind in Kind::ALL {
        rig.asks(kind.type_url(), &["l", "r", "a"], "");
        rig.answer().expect("an empty answer");
    }
    rig.set(&everything);
    let order: Vec<_> = std::iter::from_fn(|| rig.answer()).map(|(type_url, ..)| type_url).collect();
    let kinds = [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::RouteConfig];
    assert_eq!(order, kinds.map(|kind| kind.type_url().to_owned()));
}

#[test]
fn withheld_names_stay_as_the_client_knows_them() {
    let mut rig = Rig::sotw(&clusters(&["a", "b"]));
    rig.hook(|hooks| drop(hooks.withheld.insert(CDS.into(), ["b".to_owned()].into())));
    rig.asks(CDS, &["a", "b"], "");
    rig.answers(CDS, "1", &["a"]);
    rig.hook(|hooks| hooks.withheld.clear());
    rig.answers(CDS, "2", &["a", "b"]);
    rig.hook(|hooks| drop(hooks.withheld.insert(CDS.into(), ["b".to_owned()].into())));
    rig.set(&clusters(&["a"]));
    assert_eq!(rig.answer(), None);
    rig.hook(|hooks| hooks.withheld.clear());
    rig.answers(CDS, "3", &["a"]);
}

#[test]
fn a_held_type_is_answered_when_it_is_released() {
    let mut rig = Rig::sotw(&clusters(&["a"]));
    rig.hook(|hooks| assert!(hooks.held.insert(CDS.into())));
    rig.asks(CDS, &["a"], "");
    assert_eq!(rig.answer(), None);
    rig.hook(|hooks| hooks.held.clear());
    rig.answers(CDS, "1", &["a"]);
}

#[test]
fn a_hand_made_answer_is_judged_by_its_nonce() {
    let mut rig = Rig::sotw(&clusters(&["a"]));
    rig.asks(CDS, &["a"], "");
    rig.answers(CDS, "1", &["a"]);
    rig.session.push_raw(Raw { type_url: CDS.into(), version: "bad".into(), resources: vec![Any::default()] });
    rig.answers(CDS, "2", &[]);
    assert_eq!(rig.asks(CDS, &["a"], "1"), Verdict::Stale);
    assert_eq!(rig.request(CDS, &["a"], "2", Some("no")), Verdict::Nack { message: "no".into() });
    assert_eq!(rig.answer(), None);
}

#[test]
fn acknowledged_means_the_current_content() {
    let mut rig = Rig::sotw(&assignments(&[("a", 1)]));
    let acked = |rig: &Rig, name: &str| rig.session.has_acked(EDS, name, rig.snapshot.entry(EDS, name));
    rig.asks(EDS, &["a"], "");
    rig.answers(EDS, "1", &["a"]);
    assert!(!acked(&rig, "a"));
    rig.asks(EDS, &["a"], "1");
    assert!(acked(&rig, "a"));
    rig.set(&assignments(&[("a", 2)]));
    assert!(!acked(&rig, "a"));
}

#[test]
fn a_cluster_goes_after_the_routes_to_it() {
    let world =
        |name: &str| clusters(&[name]).with(resources::route_config("r", vec![resources::virtual_host("*", name)]));
    let mut rig = Rig::sotw(&world("old"));
    rig.asks(CDS, &["old", "new"], "");
    rig.answers(CDS, "1", &["old"]);
    rig.asks(RDS, &["r"], "");
    rig.answers(RDS, "2", &["r"]);
    rig.set(&world("new"));
    rig.answers(CDS, "3", &["new", "old"]);
    rig.answers(RDS, "4", &["r"]);
    rig.answers(CDS, "5", &["new"]);
    assert_eq!(rig.answer(), None);
}

#[test]
fn istiod_drops_the_names_of_a_nack_and_has_no_empty_list() {
    let mut rig = Rig::sotw(&clusters(&["a", "b"]));
    rig.hook(|hooks| hooks.manners = Manners::Istiod);
    rig.asks(CDS, &["a"], "");
    rig.answers(CDS, "1", &["a"]);
    rig.request(CDS, &["a", "b"], "1", Some("bad"));
    assert!(!rig.session.wants(CDS, "b"));
    rig.asks(CDS, &[], "1");
    rig.answers(CDS, "2", &["a", "b"]);
}
