//! Scripts of the wire in SotW: what the server says, what the client answers, what time does.

use super::*;
use crate::resource::Kind::{Cluster, Endpoints, Listener, RouteConfig};
use std::collections::{BTreeSet, VecDeque};

const TIMEOUT: Duration = Duration::from_secs(15);

/// A protocol machine, its clock, and the requests it made that no line of the script has looked at.
struct Ads {
    protocol: Protocol,
    now: Instant,
    requests: VecDeque<Request>,
}

fn shared(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

/// The list of a request, and the version in it.
fn listed(request: &Request) -> (Vec<&str>, &str) {
    let Asks::All { names, version } = &request.asks else { panic!("not SotW: {request:?}") };
    (names.iter().map(|name| &**name).collect(), version)
}

impl Ads {
    fn new() -> Self {
        Self { protocol: Protocol::new(Transport::Sotw, TIMEOUT), now: Instant::now(), requests: VecDeque::new() }
    }

    fn connected() -> Self {
        let mut ads = Self::new();
        ads.connect();
        ads
    }

    fn collect(&mut self) -> &mut Self {
        self.requests.extend(self.protocol.take_requests());
        self
    }

    fn connect(&mut self) -> &mut Self {
        self.protocol.connected(|_, _| None);
        self.collect()
    }

    fn disconnect(&mut self) -> &mut Self {
        self.protocol.disconnected();
        self.collect()
    }

    fn wants(&mut self, kind: Kind, names: &[&str]) -> &mut Self {
        for name in shared(names) {
            self.protocol.want(kind, &name);
        }
        self.protocol.tell();
        self.collect()
    }

    /// Returns what is forgotten.
    fn drops(&mut self, kind: Kind, names: &[&str]) -> Vec<Arc<str>> {
        let mut left = shared(names);
        left.retain(|name| self.protocol.unwant(kind, name));
        self.protocol.tell();
        self.collect();
        left
    }

    /// The server answers with good resources of these names.
    fn sends(&mut self, kind: Kind, version: &str, nonce: &str, names: &[&str]) -> &mut Self {
        names.iter().for_each(|name| self.protocol.answered(kind, name));
        self.protocol.acknowledge(kind, &version.into(), &nonce.into(), Verdict::Ack);
        self.collect()
    }

    /// The server answers with something that is refused.
    fn sends_bad(&mut self, kind: Kind, version: &str, nonce: &str, why: &str) -> &mut Self {
        self.protocol.acknowledge(kind, &version.into(), &nonce.into(), Verdict::Nack(why.to_owned()));
        self.collect()
    }

    /// The next request.
    #[track_caller]
    fn asks(&mut self, kind: Kind, names: &[&str], version: &str, nonce: &str) -> &mut Self {
        let request = self.requests.pop_front().expect("a request");
        assert_eq!((request.kind, &*request.nonce, &request.nack), (kind, nonce, &None));
        assert_eq!(listed(&request), (names.to_vec(), version));
        self
    }

    #[track_caller]
    fn nacks(&mut self, kind: Kind, names: &[&str], version: &str, nonce: &str, why: &str) -> &mut Self {
        let request = self.requests.pop_front().expect("a request");
        assert_eq!((request.kind, &*request.nonce, request.nack.as_deref()), (kind, nonce, Some(why)));
        assert_eq!(listed(&request), (names.to_vec(), version));
        self
    }

    #[track_caller]
    fn is_silent(&mut self) -> &mut Self {
        assert_eq!(self.requests, []);
        self
    }

    /// The transport took everything up to a serial.
    fn takes(&mut self, kind: Kind, serial: u64) -> &mut Self {
        self.protocol.sent(kind, serial, self.now);
        self
    }

    fn after(&mut self, time: Duration) -> Vec<(Kind, Arc<str>)> {
        self.now += time;
        self.protocol.expire(self.now)
    }
}

#[test]
fn an_ack_carries_version_nonce_and_the_full_list() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["b"]).asks(Cluster, &["b"], "", "");
    ads.wants(Cluster, &["a"]).asks(Cluster, &["a", "b"], "", "");
    ads.sends(Cluster, "1", "n1", &["a", "b"]).asks(Cluster, &["a", "b"], "1", "n1").is_silent();
}

#[test]
fn a_nack_keeps_the_last_accepted_version() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["a"]).asks(Cluster, &["a"], "", "");
    ads.sends(Cluster, "1", "n1", &["a"]).asks(Cluster, &["a"], "1", "n1");
    ads.sends_bad(Cluster, "2", "n2", "a: bad").nacks(Cluster, &["a"], "1", "n2", "a: bad").is_silent();
    ads.wants(Cluster, &["b"]).asks(Cluster, &["a", "b"], "1", "n2");
}

#[test]
fn after_a_nack_a_list_that_may_have_been_dropped_is_said_again() {
    let mut ads = Ads::connected();
    ads.wants(RouteConfig, &["a"]).asks(RouteConfig, &["a"], "", "");
    ads.sends_bad(RouteConfig, "0", "n0", "bad").nacks(RouteConfig, &["a"], "", "n0", "bad").is_silent();
    ads.wants(RouteConfig, &["b"]).asks(RouteConfig, &["a", "b"], "", "n0");
    // n1 and n2 were on their way before the server read any of our requests.
    ads.sends(RouteConfig, "1", "n1", &["a"]).asks(RouteConfig, &["a", "b"], "1", "n1");
    ads.sends_bad(RouteConfig, "2", "n2", "bad").nacks(RouteConfig, &["a", "b"], "1", "n2", "bad");
    ads.asks(RouteConfig, &["a", "b"], "1", "n2").is_silent();
}

#[test]
fn a_new_stream_asks_in_reference_order_with_old_versions_and_no_nonce() {
    let mut ads = Ads::connected();
    for (kind, name) in [(Endpoints, "e"), (Listener, "l"), (Cluster, "c")] {
        ads.wants(kind, &[name]).asks(kind, &[name], "", "");
    }
    ads.sends(Listener, "7", "n1", &["l"]).asks(Listener, &["l"], "7", "n1");
    ads.disconnect().is_silent().connect();
    assert!(ads.requests[0].with_node && !ads.requests[1].with_node && !ads.requests[2].with_node);
    ads.asks(Listener, &["l"], "7", "").asks(Cluster, &["c"], "", "").asks(Endpoints, &["e"], "", "").is_silent();
}

#[test]
fn a_type_that_was_not_asked_for_on_this_stream_is_unknown() {
    let mut ads = Ads::connected();
    assert!(!ads.protocol.asked(Cluster));
    ads.wants(Cluster, &["a"]);
    assert!(ads.protocol.asked(Cluster) && ads.protocol.is_subscribed(Cluster, "a"));
    assert!(!ads.protocol.is_subscribed(Cluster, "b") && !ads.protocol.is_subscribed(Listener, "a"));
    ads.disconnect();
    assert!(!ads.protocol.asked(Cluster));
}

#[test]
fn nothing_is_sent_without_a_stream() {
    let mut ads = Ads::new();
    ads.wants(Cluster, &["a"]).is_silent();
    assert_eq!(ads.drops(Cluster, &["a"]), shared(&["a"]));
    ads.connect().is_silent();
}

#[test]
fn unsubscribing_and_subscribing_again_are_two_requests() {
    let mut ads = Ads::connected();
    ads.wants(Endpoints, &["a", "b"]).asks(Endpoints, &["a", "b"], "", "");
    assert_eq!(ads.drops(Endpoints, &["a"]), shared(&["a"]));
    ads.wants(Endpoints, &["a"]);
    ads.asks(Endpoints, &["b"], "", "").asks(Endpoints, &["a", "b"], "", "").is_silent();
}

#[test]
fn a_name_that_came_back_while_responses_crossed_leaves_and_comes_back_once_more() {
    let mut ads = Ads::connected();
    ads.wants(Endpoints, &["a", "b"]).sends(Endpoints, "1", "n1", &["a", "b"]);
    ads.drops(Endpoints, &["a"]);
    ads.wants(Endpoints, &["a"]);
    ads.requests.clear();
    // The server sent this before it read that: it saw neither, and would see no change in the ACK.
    ads.sends(Endpoints, "2", "n2", &["b"]).asks(Endpoints, &["a", "b"], "2", "n2");
    ads.asks(Endpoints, &["b"], "2", "n2").asks(Endpoints, &["a", "b"], "2", "n2").is_silent();
    ads.sends(Endpoints, "3", "n3", &["a"]).asks(Endpoints, &["a", "b"], "3", "n3").is_silent();
}

#[test]
fn the_last_cluster_lingers_until_another_replaces_it() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["a"]).asks(Cluster, &["a"], "", "");
    assert_eq!(ads.drops(Cluster, &["a"]), []);
    ads.is_silent();
    assert!(ads.protocol.is_subscribed(Cluster, "a"));
    // Wanted again, it never was away.
    ads.wants(Cluster, &["a"]).is_silent();
    assert_eq!(ads.drops(Cluster, &["a"]), []);
    assert_eq!(ads.protocol.want(Cluster, &"b".into()), Some("a".into()));
    ads.protocol.tell();
    ads.collect().asks(Cluster, &["b"], "", "").is_silent();
}

#[test]
fn of_several_last_listeners_one_lingers_and_a_new_stream_starts_without_it() {
    let mut ads = Ads::connected();
    ads.wants(Listener, &["a", "b", "c"]).asks(Listener, &["a", "b", "c"], "", "");
    assert_eq!(ads.drops(Listener, &["a", "b", "c"]), shared(&["a", "b"]));
    ads.asks(Listener, &["c"], "", "").is_silent();
    assert_eq!(ads.protocol.disconnected(), [(Listener, Arc::from("c"))]);
    ads.connect().is_silent();
    assert!(!ads.protocol.has_subscriptions());
}

#[test]
fn an_empty_list_of_endpoints_is_said() {
    let mut ads = Ads::connected();
    ads.wants(Endpoints, &["a"]).asks(Endpoints, &["a"], "", "");
    assert_eq!(ads.drops(Endpoints, &["a"]), shared(&["a"]));
    ads.asks(Endpoints, &[], "", "").is_silent();
}

// === A57's timers ===

#[test]
fn the_timer_runs_from_the_moment_the_transport_took_the_request() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["a"]);
    assert_eq!(ads.after(TIMEOUT * 10), [], "not on the wire yet");
    ads.takes(Cluster, 0);
    assert_eq!(ads.protocol.next_deadline(), Some(ads.now + TIMEOUT));
    assert_eq!(ads.after(TIMEOUT - Duration::from_millis(1)), []);
    assert_eq!(ads.after(Duration::from_millis(1)), [(Cluster, Arc::from("a"))]);
    assert_eq!(ads.after(TIMEOUT), [], "once");
}

#[test]
fn an_answer_stops_the_timer_even_before_the_request_is_reported_as_sent() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["a", "b"]).takes(Cluster, 0).sends(Cluster, "1", "n", &["a"]);
    ads.wants(Cluster, &["c"]).sends(Cluster, "2", "n", &["c"]).takes(Cluster, 2);
    assert_eq!(ads.after(TIMEOUT), [(Cluster, Arc::from("b"))]);
    assert_eq!(ads.protocol.next_deadline(), None);
}

#[test]
fn a_broken_stream_stops_the_timers_and_a_new_one_starts_them_for_the_unanswered() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["a", "b"]).takes(Cluster, 0).sends(Cluster, "1", "n", &["a"]);
    ads.disconnect();
    assert_eq!(ads.after(TIMEOUT * 10), []);
    ads.connect().takes(Cluster, 0);
    // "not armed on a new stream for a resource already cached" - A57.
    assert_eq!(ads.after(TIMEOUT), [(Cluster, Arc::from("b"))]);
}

#[test]
fn an_unsubscribed_name_has_no_timer() {
    let mut ads = Ads::connected();
    ads.wants(Endpoints, &["a", "b"]).takes(Endpoints, 0);
    ads.drops(Endpoints, &["a"]);
    assert_eq!(ads.after(TIMEOUT), [(Endpoints, Arc::from("b"))]);
    // Dropped before the transport took it.
    ads.wants(Endpoints, &["c"]);
    ads.drops(Endpoints, &["c"]);
    ads.takes(Endpoints, 9);
    assert_eq!(ads.protocol.next_deadline(), None);
}

#[test]
fn an_acknowledgement_shares_the_list_of_the_request_before() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["a"]).sends(Cluster, "1", "n", &["a"]);
    let lists = ads.requests.iter().map(|request| match &request.asks {
        Asks::All { names, .. } => Arc::as_ptr(names),
        Asks::Change { .. } => panic!("not SotW"),
    });
    assert_eq!(lists.collect::<BTreeSet<_>>().len(), 1);
}
