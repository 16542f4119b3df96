//! Scripts of the wire in delta: what the server says, what the client answers, what time does.

use super::*;
use crate::resource::Kind::{Cluster, Endpoints, Listener};
use std::collections::{BTreeMap, VecDeque};

const TIMEOUT: Duration = Duration::from_secs(15);

/// A protocol machine, what is held, a clock, and the requests that no line of the script has looked at.
struct Ads {
    protocol: Protocol,
    held: BTreeMap<(Kind, String), Arc<str>>,
    now: Instant,
    requests: VecDeque<Request>,
}

fn shared(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

impl Ads {
    fn connected() -> Self {
        let protocol = Protocol::new(Transport::Delta, TIMEOUT);
        let mut ads = Self { protocol, held: BTreeMap::new(), now: Instant::now(), requests: VecDeque::new() };
        ads.connect();
        ads
    }

    fn collect(&mut self) -> &mut Self {
        self.requests.extend(self.protocol.take_requests());
        self
    }

    fn connect(&mut self) -> &mut Self {
        let held = |kind, name: &str| self.held.get(&(kind, name.to_owned())).cloned();
        self.protocol.connected(held);
        self.collect()
    }

    fn reconnect(&mut self) -> &mut Self {
        self.protocol.disconnected();
        self.collect().is_silent().connect()
    }

    fn wants(&mut self, kind: Kind, names: &[&str]) -> &mut Self {
        for name in shared(names) {
            self.protocol.want(kind, &name);
        }
        self.protocol.tell();
        self.collect()
    }

    fn drops(&mut self, kind: Kind, names: &[&str]) -> &mut Self {
        for name in shared(names) {
            if self.protocol.unwant(kind, &name) {
                self.held.remove(&(kind, name.to_string()));
            }
        }
        self.protocol.tell();
        self.collect()
    }

    /// The server answers with good resources, at a version of their own, and removes others.
    fn sends(&mut self, kind: Kind, push: &str, nonce: &str, names: &[&str], removed: &[&str]) -> &mut Self {
        for name in names {
            self.protocol.answered(kind, name);
            self.held.insert((kind, (*name).to_owned()), format!("{name}@{push}").into());
        }
        for name in removed {
            match self.held.remove(&(kind, (*name).to_owned())) {
                Some(_) => self.protocol.removed(kind, name, true),
                None => self.protocol.removed_early(kind, name),
            }
        }
        self.protocol.acknowledge(kind, &push.into(), &nonce.into(), Verdict::Ack);
        self.collect()
    }

    /// The server answers with resources that are refused.
    fn sends_bad(&mut self, kind: Kind, push: &str, nonce: &str, names: &[&str], why: &str) -> &mut Self {
        names.iter().for_each(|name| self.protocol.answered(kind, name));
        self.protocol.acknowledge(kind, &push.into(), &nonce.into(), Verdict::Nack(why.to_owned()));
        self.collect()
    }

    /// The next request answers nothing: it changes the subscription.
    #[track_caller]
    fn asks(&mut self, kind: Kind, subscribe: &[&str], unsubscribe: &[&str]) -> &mut Self {
        self.resumes(kind, subscribe, unsubscribe, &[])
    }

    #[track_caller]
    fn resumes(&mut self, kind: Kind, subscribe: &[&str], unsubscribe: &[&str], held: &[(&str, &str)]) -> &mut Self {
        let request = self.requests.pop_front().expect("a request");
        let held = held.iter().map(|(name, version)| (Arc::from(*name), Arc::from(*version))).collect();
        let asks = Asks::Change { subscribe: shared(subscribe), unsubscribe: shared(unsubscribe), held };
        assert_eq!((request.kind, &*request.nonce, request.nack, request.asks), (kind, "", None, asks));
        self
    }

    /// The next request answers a response, and says nothing about names.
    #[track_caller]
    fn answers(&mut self, kind: Kind, nonce: &str, nack: Option<&str>) -> &mut Self {
        let request = self.requests.pop_front().expect("a request");
        assert_eq!((request.kind, &*request.nonce, request.nack.as_deref()), (kind, nonce, nack));
        assert_eq!(request.asks, Asks::NOTHING);
        self
    }

    #[track_caller]
    fn acks(&mut self, kind: Kind, nonce: &str) -> &mut Self {
        self.answers(kind, nonce, None)
    }

    #[track_caller]
    fn is_silent(&mut self) -> &mut Self {
        assert_eq!(self.requests, []);
        self
    }

    /// The transport took everything so far.
    fn takes_all(&mut self, kind: Kind) -> &mut Self {
        self.protocol.sent(kind, u64::MAX, self.now);
        self
    }

    fn after(&mut self, time: Duration) -> Vec<(Kind, Arc<str>)> {
        self.now += time;
        self.protocol.expire(self.now)
    }
}

#[test]
fn only_differences_are_told_and_answers_carry_the_nonce_alone() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["b"]).asks(Cluster, &["b"], &[]);
    ads.sends(Cluster, "1", "n1", &["b"], &[]).acks(Cluster, "n1").is_silent();
    ads.wants(Cluster, &["a"]).asks(Cluster, &["a"], &[]);
    ads.drops(Cluster, &["b"]).asks(Cluster, &[], &["b"]);
    ads.sends(Cluster, "1", "n2", &["a"], &[]).acks(Cluster, "n2").is_silent();
}

#[test]
fn every_response_is_answered_by_its_own_nonce_even_after_a_newer_one() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["a", "b"]).asks(Cluster, &["a", "b"], &[]);
    ads.sends(Cluster, "1", "n1", &["a"], &[]).sends_bad(Cluster, "1", "n2", &["b"], "b: bad");
    ads.acks(Cluster, "n1").answers(Cluster, "n2", Some("b: bad")).is_silent();
}

#[test]
fn a_new_stream_asks_for_all_names_with_the_versions_held_and_tells_the_node_once() {
    let mut ads = Ads::connected();
    ads.wants(Endpoints, &["e"]).asks(Endpoints, &["e"], &[]);
    ads.wants(Cluster, &["a", "b", "c"]).asks(Cluster, &["a", "b", "c"], &[]);
    ads.sends(Cluster, "1", "n1", &["a", "b"], &[]).acks(Cluster, "n1");
    // What is refused is never what counts.
    ads.sends_bad(Cluster, "2", "n2", &["b", "c"], "bad").answers(Cluster, "n2", Some("bad"));
    ads.reconnect();
    assert!(ads.requests[0].with_node && !ads.requests[1].with_node);
    ads.resumes(Cluster, &["a", "b", "c"], &[], &[("a", "a@1"), ("b", "b@1")]);
    ads.asks(Endpoints, &["e"], &[]).is_silent();
}

#[test]
fn a_type_without_names_is_not_sent_since_that_would_be_a_wildcard() {
    let mut ads = Ads::connected();
    ads.is_silent();
    ads.wants(Listener, &["l"]).asks(Listener, &["l"], &[]);
    // The last name lingers: unsubscribing it is a wildcard to istiod.
    ads.drops(Listener, &["l"]).is_silent();
    assert!(ads.protocol.is_subscribed(Listener, "l"));
    ads.wants(Listener, &["m"]).asks(Listener, &["m"], &["l"]);
    ads.drops(Listener, &["m"]).is_silent().reconnect().is_silent();
}

#[test]
fn a_name_that_was_never_asked_for_cannot_be_given_up() {
    let mut ads = Ads::connected();
    ads.drops(Cluster, &["a"]).is_silent();
    ads.wants(Cluster, &["a"]).asks(Cluster, &["a"], &[]);
    // What is subscribed is the last name, and stays.
    ads.drops(Cluster, &["a", "b"]).is_silent();
    ads.drops(Cluster, &["a"]).is_silent();
    ads.wants(Cluster, &["c"]).asks(Cluster, &["c"], &["a"]);
}

#[test]
fn unsubscribing_and_subscribing_again_are_two_requests() {
    let mut ads = Ads::connected();
    ads.wants(Endpoints, &["a"]).asks(Endpoints, &["a"], &[]);
    ads.sends(Endpoints, "1", "n1", &["a"], &[]).acks(Endpoints, "n1");
    ads.drops(Endpoints, &["a"]).wants(Endpoints, &["a"]);
    ads.asks(Endpoints, &[], &["a"]).asks(Endpoints, &["a"], &[]).is_silent();
    // It has to come again: nobody kept it.
    assert_eq!(ads.takes_all(Endpoints).after(TIMEOUT), [(Endpoints, Arc::from("a"))]);
}

// === Removals ===

#[test]
fn what_a_push_removes_is_subscribed_again_behind_the_ack() {
    let mut ads = Ads::connected();
    ads.wants(Listener, &["l", "m"]).asks(Listener, &["l", "m"], &[]).takes_all(Listener);
    ads.sends(Listener, "1", "n1", &["l", "m"], &[]).acks(Listener, "n1");
    ads.sends(Listener, "2", "n2", &["l"], &["m"]).acks(Listener, "n2").asks(Listener, &["m"], &[]).is_silent();
    // Nothing is waited for: that it does not exist, is known.
    assert_eq!(ads.takes_all(Listener).after(TIMEOUT), []);
    // It says so again; which does not go on for ever.
    ads.sends(Listener, "2", "n3", &[], &["m"]).acks(Listener, "n3").is_silent();
    // The next push forgets the name once more, and the return is told.
    ads.sends(Listener, "3", "n4", &["l"], &["m"]).acks(Listener, "n4").asks(Listener, &["m"], &[]).is_silent();
    ads.sends(Listener, "3", "n5", &["m"], &[]).acks(Listener, "n5").is_silent();
}

#[test]
fn a_name_that_never_was_is_not_subscribed_again_and_its_timer_runs_on() {
    let mut ads = Ads::connected();
    ads.wants(Listener, &["l"]).asks(Listener, &["l"], &[]).takes_all(Listener);
    ads.sends(Listener, "1", "n1", &[], &["l"]).acks(Listener, "n1").is_silent();
    assert_eq!(ads.after(TIMEOUT), [(Listener, Arc::from("l"))]);
}

#[test]
fn a_server_that_answers_every_subscription_with_a_removal_is_not_asked_for_ever() {
    // Its versions are all new, or all the same.
    for version in ["", "v"] {
        let mut ads = Ads::connected();
        ads.wants(Cluster, &["a"]).sends(Cluster, "0", "n", &["a"], &[]);
        ads.requests.clear();
        let mut asked = 0;
        for round in 1..100 {
            let version = if version.is_empty() { round.to_string() } else { version.to_owned() };
            ads.sends(Cluster, &version, "n", &[], &["a"]).acks(Cluster, "n");
            if ads.requests.is_empty() {
                break;
            }
            ads.asks(Cluster, &["a"], &[]);
            asked += 1;
        }
        assert_eq!(asked, 1, "versions {version:?}");
    }
}

#[test]
fn what_goes_away_while_the_stream_is_down_is_subscribed_again() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["a", "b"]).sends(Cluster, "1", "n1", &["a"], &["b"]);
    ads.requests.clear();
    ads.reconnect().resumes(Cluster, &["a", "b"], &[], &[("a", "a@1")]);
    ads.sends(Cluster, "2", "n1", &[], &["a", "b"]).acks(Cluster, "n1").asks(Cluster, &["a"], &[]).is_silent();
    // istiod had it, so there was no answer to that; its next push removes both, and forgets them.
    ads.sends(Cluster, "3", "n2", &[], &["a", "b"]).acks(Cluster, "n2").asks(Cluster, &["a", "b"], &[]).is_silent();
}

#[test]
fn a_response_that_removes_what_it_brings_brings_it() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["a"]).asks(Cluster, &["a"], &[]).sends(Cluster, "1", "n1", &["a"], &[]).acks(Cluster, "n1");
    ads.protocol.removed(Cluster, "a", true);
    ads.sends(Cluster, "2", "n2", &["a"], &[]).acks(Cluster, "n2").is_silent();
}

// === A57's timers ===

#[test]
fn on_a_new_stream_timers_run_for_what_never_came_only() {
    let mut ads = Ads::connected();
    ads.wants(Cluster, &["a", "b", "c"]).takes_all(Cluster).sends(Cluster, "1", "n", &["a"], &["b"]);
    ads.requests.clear();
    ads.protocol.disconnected();
    assert_eq!(ads.after(TIMEOUT * 2), []);
    ads.connect().takes_all(Cluster);
    assert_eq!(ads.after(TIMEOUT), [(Cluster, Arc::from("b")), (Cluster, Arc::from("c"))]);
}
