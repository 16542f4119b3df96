//! A worker under anything that can happen, in any order: its books are right all the same.

use super::*;
use proptest::{collection::vec, prelude::*, sample::select};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Event {
    Update(String),
    /// Leaves by name; of two with the same name the first counts.
    Aggregate(Vec<(&'static str, String)>),
    Policy(LbPolicy),
    /// Of the dial with this share of all that ever were.
    Fails(f64),
    Closes(f64),
    Ready(f64),
    After(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    let policies = vec![LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::PickFirst { shuffle: true }];
    prop_oneof![
        2 => "[a-f]{0,4}([/|][a-f]{0,3}){0,2}".prop_map(Event::Update),
        2 => vec((select(vec!["x", "y", "z!"]), "[a-f]{0,3}(/[a-f]{0,2})?"), 1..4).prop_map(Event::Aggregate),
        1 => select(policies).prop_map(Event::Policy),
        3 => (0.0..1.0).prop_map(Event::Fails),
        3 => (0.0..1.0).prop_map(Event::Closes),
        4 => (0.0..1.0).prop_map(Event::Ready),
        2 => (0..20u64).prop_map(Event::After),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens in whatever order: what is counted is what there is, and only what the configuration names
    /// gets calls.
    #[test]
    fn the_books_are_right_after_any_events(events in vec(any_event(), 1..60)) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(any_events(events));
    }
}

async fn any_events(events: Vec<Event>) {
    let mut script = Script::round_robin("abc");
    let mut named = "abc".to_owned();
    // Every dial that ever was, also those of endpoints that are gone: their news may be late.
    let mut dials = BTreeMap::new();
    for event in events {
        for id in script.worker.roster.ids() {
            if let Some(backend) = script.worker.roster.get_mut(id) {
                dials.insert((id, backend.dial()), Arc::clone(&backend.endpoint));
            }
        }
        let which = |share: f64| dials.iter().nth((dials.len() as f64 * share) as usize).expect("a share of one");
        match event {
            Event::Update(endpoints) => {
                script.update(&endpoints);
                named = endpoints;
            }
            Event::Aggregate(mut leaves) => {
                let mut seen = std::collections::BTreeSet::new();
                leaves.retain(|(name, _)| seen.insert(*name));
                let running: Vec<_> = leaves.iter().map(|(name, list)| leaf(name, &script.policy, list)).collect();
                script.aggregate(&running.iter().collect::<Vec<_>>());
                let usable = leaves.into_iter().filter(|(name, _)| !name.ends_with('!'));
                named = usable.map(|(_, endpoints)| endpoints).collect::<Vec<_>>().join("/");
            }
            Event::Policy(policy) => {
                script.policy = policy;
                script.update(&named);
            }
            Event::Fails(share) if !dials.is_empty() => {
                script.event(*which(share).0, ConnectionEvent::Failed("refused".to_owned()));
            }
            Event::Closes(share) if !dials.is_empty() => {
                script.event(*which(share).0, ConnectionEvent::Closed("GOAWAY".to_owned()));
            }
            Event::Ready(share) if !dials.is_empty() => {
                let (dial, endpoint) = which(share);
                let connection = connection(Arc::clone(endpoint), 9).await;
                script.event(*dial, ConnectionEvent::Ready(connection));
            }
            Event::After(seconds) => {
                script.after_seconds(seconds).await;
            }
            Event::Fails(_) | Event::Closes(_) | Event::Ready(_) => {}
        }
        check(&mut script, &named);
    }
}

fn check(script: &mut Script, named: &str) {
    let mut dialled = 0;
    for id in script.worker.roster.ids() {
        let Some(backend) = script.worker.roster.get_mut(id) else { continue };
        dialled += usize::from(backend.is_dialled_by(backend.dial()));
        let (idle, priority, address) = (backend.is_idle(), backend.priority, backend.endpoint.addresses.first);
        assert_ne!(idle, script.worker.roster.is_active(priority), "{}: idle if and only if unwanted", name(address));
    }
    assert_eq!(script.worker.dials, dialled, "dials in flight");
    if let Some(slot) = script.slot() {
        assert!(named.contains(name(slot.peer())), "{} is not in {named:?}", name(slot.peer()));
    }
    let failing = matches!(script.pick(), Picked::Fail(_));
    assert!(!failing || script.in_state(EndpointState::Ready).is_empty(), "calls fail while an endpoint is READY");
}
