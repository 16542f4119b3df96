//! When each name is looked up, without a clock: what happened, and when, is passed in.
//!
//! ```text
//!           watch                 answered                  interval, TTL; an endpoint failed, and not too soon
//!  (none) ────────► Due ─► Looking ────────► Waiting ─────────────────────────────────────────────► Due
//!                            │ failed                       1 s x1.6 .. 120 s, or as the cluster says
//!                            └─────────────► Waiting ─────────────────────────────────────────────► Due
//! ```
//!
//! It does NOT keep answers.

use crate::{later::later, resource::DnsName};
use rustc_hash::FxHashMap;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

/// The least that a TTL counts for, as in Envoy: a name with TTL 0 must not make a hot loop.
const MIN_TTL: Duration = Duration::from_secs(1);

/// gRPC's curve, from and to what the cluster says.
const FACTOR: f64 = 1.6;
const JITTER: f64 = 0.2;

/// Every name that is needed.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    names: FxHashMap<DnsName, State>,
    /// Those that wait, by when they are due.
    due: BTreeSet<(Instant, DnsName)>,
    /// How soon after an answer endpoints that fail may have the name looked up again.
    min_between: Duration,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// In a row.
    failures: i32,
    answered: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Looking,
    /// For ever, unless an endpoint fails.
    Waiting(Option<Instant>),
}

impl Schedule {
    pub(crate) fn new(min_between: Duration) -> Self {
        Self { min_between, ..Self::default() }
    }

    // (none) => Due
    pub(crate) fn watch(&mut self, name: DnsName, now: Instant) {
        if !self.names.contains_key(&name) {
            let state = State { phase: Phase::Waiting(Some(now)), failures: 0, answered: None };
            self.names.insert(name.clone(), state);
            self.due.insert((now, name));
        }
    }

    // any => (none)
    pub(crate) fn unwatch(&mut self, name: &DnsName) {
        if let Some(State { phase: Phase::Waiting(Some(until)), .. }) = self.names.remove(name) {
            self.due.remove(&(until, name.clone()));
        }
    }

    // Due => Looking: what is to be looked up now, at most so many.
    pub(crate) fn start(&mut self, now: Instant, most: usize) -> Vec<DnsName> {
        let due: Vec<_> = self.due.iter().take_while(|(until, _)| *until <= now).take(most).cloned().collect();
        for entry in &due {
            self.due.remove(entry);
            if let Some(state) = self.names.get_mut(&entry.1) {
                state.phase = Phase::Looking;
            }
        }
        due.into_iter().map(|(_, name)| name).collect()
    }

    // Looking => Waiting. Whether the name is still needed.
    pub(crate) fn answered(&mut self, name: &DnsName, ttl: Option<Duration>, now: Instant) -> bool {
        let refresh = name.refresh;
        let ttl = ttl.filter(|_| refresh.respect_ttl).map(|ttl| ttl.max(MIN_TTL));
        self.wait(name, |state| {
            (state.failures, state.answered) = (0, Some(now));
            ttl.or(refresh.interval).map(|interval| later(now, interval))
        })
    }

    // Looking => Waiting, `random` is in `0.0..1.0`. Whether the name is still needed.
    pub(crate) fn failed(&mut self, name: &DnsName, random: f64, now: Instant) -> bool {
        let refresh = name.refresh;
        self.wait(name, |state| {
            let pause = refresh.failure_base.as_secs_f64() * FACTOR.powi(state.failures);
            state.failures = state.failures.saturating_add(1).min(64);
            let pause = pause.min(refresh.failure_max.as_secs_f64()) * (1.0 - JITTER + 2.0 * JITTER * random);
            Some(now + Duration::from_secs_f64(pause))
        })
    }

    // Waiting => Due, or soon: an endpoint behind the name failed.
    pub(crate) fn endpoint_failed(&mut self, name: &DnsName, now: Instant) {
        let Some(state) = self.names.get_mut(name) else { return };
        let Phase::Waiting(until) = state.phase else { return };
        // A lookup that failed is repeated on its own curve.
        let Some(answered) = state.answered.filter(|_| state.failures == 0) else { return };
        let soon = now.max(answered + self.min_between);
        if until.is_none_or(|until| soon < until) {
            if let Some(until) = until {
                self.due.remove(&(until, name.clone()));
            }
            state.phase = Phase::Waiting(Some(soon));
            self.due.insert((soon, name.clone()));
        }
    }

    /// When [`start`](Self::start) has something to start.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(until, _)| *until)
    }

    fn wait(&mut self, name: &DnsName, until: impl FnOnce(&mut State) -> Option<Instant>) -> bool {
        let Some(state) = self.names.get_mut(name) else { return false };
        if let Phase::Waiting(Some(before)) = state.phase {
            // It left and returned while an earlier lookup was on its way.
            self.due.remove(&(before, name.clone()));
        }
        let until = until(state);
        state.phase = Phase::Waiting(until);
        self.due.extend(until.map(|until| (until, name.clone())));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::DnsRefresh;

    const SECOND: Duration = Duration::from_secs(1);

    fn name(interval: Option<u64>, respect_ttl: bool) -> DnsName {
        let refresh = DnsRefresh {
            interval: interval.map(Duration::from_secs),
            failure_base: SECOND,
            failure_max: 120 * SECOND,
            respect_ttl,
        };
        DnsName { host: "db.example".into(), port: 1, refresh }
    }

    /// A schedule with one name, which is being looked up.
    fn looking(name: &DnsName, now: Instant) -> Schedule {
        let mut schedule = Schedule::new(30 * SECOND);
        schedule.watch(name.clone(), now);
        assert_eq!(schedule.start(now, 9), std::slice::from_ref(name));
        assert_eq!(schedule.next_deadline(), None);
        schedule
    }

    #[test]
    fn a_refresh_rate_is_kept_and_a_ttl_wins_where_it_is_respected() {
        let now = Instant::now();
        for (interval, respects, ttl, expected) in [
            (Some(5), false, None, Some(5)),
            (Some(5), false, Some(9), Some(5)),
            (Some(5), true, Some(9), Some(9)),
            (Some(5), true, Some(0), Some(1)),
            (Some(5), true, None, Some(5)),
            (None, false, None, None),
            (None, true, Some(9), Some(9)),
            // So long is never: a year.
            (None, true, Some(u64::MAX), Some(86_400 * 365)),
        ] {
            let name = name(interval, respects);
            let mut schedule = looking(&name, now);
            assert!(schedule.answered(&name, ttl.map(Duration::from_secs), now));
            let due = schedule.next_deadline().map(|due| (due - now).as_secs());
            assert_eq!(due, expected, "{interval:?} {respects} {ttl:?}");
        }
    }

    #[test]
    fn failures_are_repeated_on_the_curve_which_an_answer_resets() {
        let mut now = Instant::now();
        let name = name(None, false);
        let mut schedule = looking(&name, now);
        for expected in [1.0, 1.6, 2.56, 4.096] {
            schedule.failed(&name, 0.5, now);
            let due = schedule.next_deadline().expect("again");
            assert!(((due - now).as_secs_f64() - expected).abs() < 1e-6, "{expected}");
            schedule.endpoint_failed(&name, now);
            assert_eq!(schedule.next_deadline(), Some(due), "an endpoint that fails does not hurry it");
            now = due;
            assert_eq!(schedule.start(now, 9).len(), 1);
        }
        for _ in 0..100 {
            schedule.failed(&name, 1.0, now);
            assert!(schedule.next_deadline().expect("again") - now <= (120 * SECOND).mul_f64(1.2));
            now = schedule.next_deadline().expect("again");
            schedule.start(now, 9);
        }
        schedule.answered(&name, None, now);
        schedule.endpoint_failed(&name, now + 100 * SECOND);
        assert_eq!(schedule.start(now + 100 * SECOND, 9).len(), 1);
        schedule.failed(&name, 0.5, now);
        assert_eq!(schedule.next_deadline(), Some(now + SECOND));
    }

    #[test]
    fn an_endpoint_that_fails_has_its_name_looked_up_no_sooner_than_the_resolver_wants_after_the_last_answer() {
        let now = Instant::now();
        let name = name(None, false);
        let mut schedule = looking(&name, now);
        schedule.endpoint_failed(&name, now);
        assert_eq!(schedule.next_deadline(), None, "it is being looked up");
        schedule.answered(&name, None, now);
        schedule.endpoint_failed(&name, now + 7 * SECOND);
        schedule.endpoint_failed(&name, now + 9 * SECOND);
        assert_eq!(schedule.next_deadline(), Some(now + 30 * SECOND));
        assert_eq!(schedule.start(now + 29 * SECOND, 9), []);
        assert_eq!(schedule.start(now + 30 * SECOND, 9).len(), 1);
    }

    #[test]
    fn no_more_are_started_than_there_is_room_for_and_what_is_not_needed_never_is() {
        let now = Instant::now();
        let mut schedule = Schedule::new(30 * SECOND);
        let named = |host: &str| DnsName { host: host.into(), ..name(Some(5), false) };
        for host in ["a", "b", "c"] {
            schedule.watch(named(host), now);
        }
        schedule.unwatch(&named("b"));
        assert_eq!(schedule.start(now, 1), [named("a")]);
        assert_eq!(schedule.start(now, 9), [named("c")]);
        schedule.unwatch(&named("a"));
        assert!(!schedule.answered(&named("a"), None, now), "nobody needs the answer");
        assert_eq!(schedule.next_deadline(), None);
    }
}
