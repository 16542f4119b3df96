//! The SotW machine, driven by hand.

use super::*;
use crate::control_plane::resources::{self, Resources};
use envoy_types::pb::{envoy::config::core::v3::Node, google::rpc::Status};

const CDS: &str = Kind::Cluster.type_url();
const EDS: &str = Kind::Endpoints.type_url();

/// One session with what it is served.
struct Rig {
    session: Session,
    snapshot: Snapshot,
    hooks: Arc<Hooks>,
}

impl Rig {
    fn new(resources: &Resources) -> Self {
        let snapshot = Snapshot::next(&Snapshot::default(), resources);
        Self { session: Session::new(1), snapshot, hooks: Arc::default() }
    }

    fn set(&mut self, resources: &Resources) {
        self.snapshot = Snapshot::next(&self.snapshot, resources);
    }

    fn hook(&mut self, change: impl FnOnce(&mut Hooks)) {
        let mut hooks = Hooks::clone(&self.hooks);
        change(&mut hooks);
        self.hooks = Arc::new(hooks);
    }

    fn asks(&mut self, type_url: &str, names: &[&str], nonce: &str) -> Verdict {
        self.request(type_url, names, nonce, None)
    }

    fn request(&mut self, type_url: &str, names: &[&str], nonce: &str, error: Option<&str>) -> Verdict {
        let event = self.session.received(DiscoveryRequest {
            node: Some(Node { id: "node".into(), ..Default::default() }),
            type_url: type_url.into(),
            resource_names: names.iter().map(|name| (*name).into()).collect(),
            response_nonce: nonce.into(),
            error_detail: error.map(|message| Status { message: message.into(), ..Default::default() }),
            ..Default::default()
        });
        match event {
            Event::Request { verdict, .. } => verdict,
            other => panic!("not a request: {other:?}"),
        }
    }

    /// The next answer, as (type, nonce, names), checked against its bytes.
    fn answer(&mut self) -> Option<(String, String, Vec<String>)> {
        let answer = self.session.next(&self.snapshot, &self.hooks, true)?;
        let response = DiscoveryResponse::decode(answer.pieces.concat().as_slice()).expect("a DiscoveryResponse");
        match answer.event {
            Some(Event::Response { type_url, nonce, names, version, .. }) => {
                assert_eq!(
                    (&response.type_url, &response.nonce, &response.version_info),
                    (&type_url, &nonce, &version)
                );
                Some((type_url, nonce, names))
            }
            other => panic!("not a response: {other:?}"),
        }
    }

    #[track_caller]
    fn answers(&mut self, type_url: &str, nonce: &str, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(self.answer(), Some((type_url.to_owned(), nonce.to_owned(), names)));
    }
}

fn clusters(names: &[&str]) -> Resources {
    names.iter().fold(Resources::default(), |all, name| all.with(resources::cluster_eds(name)))
}

fn assignments(ports: &[(&str, u16)]) -> Resources {
    ports.iter().fold(Resources::default(), |all, (name, port)| {
        all.with(resources::endpoints(name, &[([127, 0, 0, 1], *port).into()]))
    })
}

#[test]
fn an_ack_is_answered_with_nothing() {
    let mut rig = Rig::new(&clusters(&["a"]));
    assert_eq!(rig.asks(CDS, &["a"], ""), Verdict::Request);
    rig.answers(CDS, "1", &["a"]);
    assert_eq!(rig.asks(CDS, &["a"], "1"), Verdict::Ack);
    assert_eq!(rig.answer(), None);
}

#[test]
fn a_nack_is_answered_with_nothing_until_something_changes() {
    let mut rig = Rig::new(&clusters(&["a"]));
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
    let mut rig = Rig::new(&clusters(&["a", "b"]));
    rig.asks(CDS, &["a"], "");
    rig.answers(CDS, "1", &["a"]);
    rig.asks(CDS, &["a", "b"], "1");
    rig.answers(CDS, "2", &["a", "b"]);
    assert_eq!(rig.asks(CDS, &["a", "b", "c"], "1"), Verdict::Stale);
    assert!(!rig.session.wants(CDS, "c"));
}

#[test]
fn names_are_changed_before_the_first_answer_arrived() {
    let mut rig = Rig::new(&clusters(&["a", "b"]));
    rig.asks(CDS, &["a"], "");
    rig.answers(CDS, "1", &["a"]);
    assert_eq!(rig.asks(CDS, &["a", "b"], ""), Verdict::Request);
    rig.answers(CDS, "2", &["a", "b"]);
}

#[test]
fn a_nonce_of_an_earlier_stream_is_a_first_request() {
    let mut rig = Rig::new(&clusters(&["a"]));
    assert_eq!(rig.asks(CDS, &["a"], "17"), Verdict::Request);
    rig.answers(CDS, "1", &["a"]);
}

#[test]
fn no_names_are_all_clusters() {
    let mut rig = Rig::new(&clusters(&["a", "b"]));
    rig.asks(CDS, &[], "");
    rig.answers(CDS, "1", &["a", "b"]);
    rig.asks(CDS, &[], "1");
    rig.set(&clusters(&["b"]));
    rig.answers(CDS, "2", &["b"]);
}

#[test]
fn no_names_after_some_names_are_no_clusters() {
    let mut rig = Rig::new(&clusters(&["a", "b"]));
    rig.asks(CDS, &["a"], "");
    rig.answers(CDS, "1", &["a"]);
    rig.asks(CDS, &[], "1");
    assert_eq!(rig.answer(), None);
    assert!(!rig.session.wants(CDS, "a"));
}

#[test]
fn no_names_are_no_endpoints() {
    let mut rig = Rig::new(&assignments(&[("a", 1)]));
    rig.asks(EDS, &[], "");
    assert_eq!(rig.answer(), None);
}

#[test]
fn an_absent_name_is_answered_at_once() {
    let mut rig = Rig::new(&clusters(&[]));
    rig.asks(CDS, &["a"], "");
    rig.answers(CDS, "1", &[]);
}

#[test]
fn a_change_sends_all_clusters_and_only_changed_endpoints() {
    let mut first = clusters(&["a", "b"]);
    first.extend(assignments(&[("a", 1), ("b", 1)]));
    let mut rig = Rig::new(&first);
    rig.asks(CDS, &["a", "b"], "");
    rig.answers(CDS, "1", &["a", "b"]);
    rig.asks(EDS, &["a", "b"], "");
    rig.answers(EDS, "2", &["a", "b"]);
    let mut second = clusters(&["a"]);
    second.extend(assignments(&[("a", 1), ("b", 2)]));
    rig.set(&second);
    rig.answers(CDS, "3", &["a"]);
    rig.answers(EDS, "4", &["b"]);
    assert_eq!(rig.answer(), None);
}

#[test]
fn a_name_that_is_wanted_again_is_sent_again() {
    let mut rig = Rig::new(&assignments(&[("a", 1), ("b", 1)]));
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
    let mut rig = Rig::new(&Resources::default());
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
    let mut rig = Rig::new(&clusters(&["a", "b"]));
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
    let mut rig = Rig::new(&clusters(&["a"]));
    rig.hook(|hooks| assert!(hooks.held.insert(CDS.into())));
    rig.asks(CDS, &["a"], "");
    assert_eq!(rig.answer(), None);
    rig.hook(|hooks| hooks.held.clear());
    rig.answers(CDS, "1", &["a"]);
}

#[test]
fn a_hand_made_answer_is_judged_by_its_nonce() {
    let mut rig = Rig::new(&clusters(&["a"]));
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
    let mut rig = Rig::new(&assignments(&[("a", 1)]));
    let acked = |rig: &Rig, name: &str| rig.session.has_acked(EDS, name, rig.snapshot.entry(EDS, name));
    rig.asks(EDS, &["a"], "");
    rig.answers(EDS, "1", &["a"]);
    assert!(!acked(&rig, "a"));
    rig.asks(EDS, &["a"], "1");
    assert!(acked(&rig, "a"));
    rig.set(&assignments(&[("a", 2)]));
    assert!(!acked(&rig, "a"));
}
