//! A56 and A115 as scripts: the checks of the specification, and the slips that other implementations made.

use super::{
    ConnectivityState::{self, Connecting, Idle, Ready, TransientFailure},
    Priorities, Standing,
};
use proptest::{collection::vec, prelude::*, sample::select};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// A machine and its clock. Children are named by letters, and a list of them is a string.
struct Script {
    priorities: Priorities<char>,
    now: Instant,
}

impl Script {
    fn new(children: &str) -> Self {
        let mut script = Self { priorities: Priorities::default(), now: Instant::now() };
        script.update(children, &[]);
        script
    }

    fn update(&mut self, children: &str, reports: &[(char, ConnectivityState)]) -> &mut Self {
        self.priorities.update(children.chars(), reports.iter().copied(), self.now);
        self
    }

    fn report(&mut self, child: char, state: ConnectivityState) -> &mut Self {
        self.priorities.report(&child, state, self.now);
        self
    }

    fn ask(&mut self, child: char) -> &mut Self {
        self.priorities.ask(&child, self.now);
        self
    }

    /// Lets time pass as the worker does: the timer is called at each deadline.
    fn after(&mut self, time: Duration) -> &mut Self {
        let end = self.now + time;
        while let Some(deadline) = self.priorities.next_deadline().filter(|&deadline| deadline <= end) {
            assert!(deadline > self.now, "a deadline is later than the last event");
            self.now = deadline;
            self.priorities.timer(deadline);
        }
        self.now = end;
        self
    }

    /// Who is selected, and who is active.
    #[track_caller]
    fn is(&mut self, selected: impl Into<Option<char>>, active: &str) -> &mut Self {
        let is_active = |child: &char| self.priorities.is_active(child);
        let all: String = ('a'..='z').filter(is_active).collect();
        assert_eq!((self.priorities.selected().copied(), all.as_str()), (selected.into(), active));
        self
    }

    #[track_caller]
    fn waits(&mut self, seconds: impl Into<Option<u64>>) -> &mut Self {
        let left = self.priorities.next_deadline().map(|deadline| deadline - self.now);
        assert_eq!(left, seconds.into().map(Duration::from_secs));
        self
    }
}

const S: fn(u64) -> Duration = Duration::from_secs;
const MINUTE: u64 = 60;

// === The rules of A56 ===

#[test]
fn children_are_created_lazily() {
    Script::new("abc").is('a', "a").waits(10).report('a', Ready).is('a', "a").waits(None);
}

#[test]
fn a_child_that_fails_is_passed_over_at_once() {
    Script::new("abc").report('a', TransientFailure).is('b', "ab").report('b', Ready).is('b', "ab").waits(None);
}

#[test]
fn a_child_that_does_not_answer_is_passed_over_after_10_s() {
    let mut script = Script::new("ab");
    script.after(Duration::from_millis(9_999)).is('a', "a");
    script.after(Duration::from_millis(1)).is('b', "ab").waits(10);
}

#[test]
fn a_child_that_recovers_is_selected_at_once_and_the_lower_one_kept_for_15_minutes() {
    let mut script = Script::new("ab");
    script.report('a', TransientFailure).report('b', Ready).is('b', "ab");
    script.report('a', Ready).is('a', "ab").waits(15 * MINUTE);
    script.after(S(15 * MINUTE - 1)).is('a', "ab");
    script.after(S(1)).is('a', "a").waits(None);
}

#[test]
fn a_deactivated_child_that_is_needed_again_stays() {
    let mut script = Script::new("ab");
    script.report('a', TransientFailure).report('b', Ready).report('a', Ready).after(S(14 * MINUTE));
    script.report('a', TransientFailure).is('b', "ab").waits(None);
    script.after(S(60 * MINUTE)).is('b', "ab");
}

#[test]
fn a_second_deactivation_does_not_extend_the_first() {
    let mut script = Script::new("ab");
    script.report('a', TransientFailure).report('b', Ready).report('a', Ready).after(S(10 * MINUTE));
    script.report('a', Idle).report('a', Ready).update("ab", &[]).waits(5 * MINUTE);
}

#[test]
fn a_deactivated_child_whose_time_is_up_just_when_it_is_needed_stays() {
    let mut script = Script::new("ab");
    script.report('a', TransientFailure).report('b', Ready).report('a', Ready).after(S(15 * MINUTE - 10));
    script.report('a', Connecting).after(S(10)).is('b', "ab").waits(None);
}

#[test]
fn connecting_starts_the_timer_only_after_ready_or_idle() {
    for (before, selected, seconds) in [(Ready, 'a', Some(10)), (Idle, 'a', Some(10)), (TransientFailure, 'b', None)] {
        let mut script = Script::new("ab");
        script.report('a', TransientFailure).report('b', Ready);
        script.report('a', before).report('a', Connecting);
        assert_eq!(script.priorities.selected(), Some(&selected), "{before:?}");
        // What remains is the lower child's retention, where it was deactivated.
        script.waits(seconds);
    }
}

#[test]
fn ready_idle_and_transient_failure_cancel_the_timer() {
    for state in [Ready, Idle, TransientFailure] {
        Script::new("a").waits(10).report('a', state).is('a', "a").waits(None);
    }
}

#[test]
fn a_connection_that_is_lost_has_10_s_to_come_back_while_the_lower_child_is_left_alone() {
    let mut script = Script::new("ab");
    script.report('a', TransientFailure).report('b', Ready).report('a', Ready).after(S(MINUTE));
    script.report('a', Connecting).is('a', "ab").waits(10);
    script.after(S(10)).is('b', "ab").waits(None);
}

#[test]
fn of_children_that_all_fail_a_connecting_one_is_selected_or_else_the_last() {
    let mut script = Script::new("abc");
    script.report('a', TransientFailure).report('b', TransientFailure).report('c', TransientFailure).is('c', "abc");
    script.report('b', Connecting).is('b', "abc").waits(None);
    script.report('a', Connecting).is('a', "abc");
    script.report('a', TransientFailure).report('b', TransientFailure).is('c', "abc");
}

#[test]
fn children_that_are_all_late_leave_the_first_selected() {
    Script::new("abc").after(S(30)).is('a', "abc").waits(None);
}

#[test]
fn a_late_child_is_selected_when_it_makes_it_after_all() {
    Script::new("ab").after(S(10)).report('b', Ready).is('b', "ab").report('a', Ready).is('a', "ab");
}

#[test]
fn a_child_that_moves_to_another_priority_keeps_its_state() {
    let mut script = Script::new("ab");
    script.report('a', TransientFailure).report('b', Ready).is('b', "ab");
    script.update("ba", &[]).is('b', "ab");
}

#[test]
fn an_empty_list_selects_nothing() {
    Script::new("").is(None, "").waits(None);
}

// === A115 ===

#[test]
fn a_child_that_leaves_the_config_is_destroyed_at_once() {
    let mut script = Script::new("ab");
    script.report('a', TransientFailure).report('b', Ready).update("a", &[]).is('a', "a");
    // Also while it is deactivated, and it comes back as a new one.
    script.update("ab", &[]).report('b', Ready).report('a', Ready).is('a', "ab");
    script.update("a", &[]).is('a', "a").waits(None);
    script.update("ab", &[]).report('a', TransientFailure).is('b', "ab").waits(10);
}

#[test]
fn flapping_configs_leave_nothing_behind() {
    let mut script = Script::new("ab");
    for _ in 0..100 {
        script.report('a', TransientFailure).update("abc", &[]).report('b', TransientFailure).is('c', "abc");
        script.update("a", &[]).report('a', Ready).is('a', "a").waits(None);
    }
}

// === Asked for ===

#[test]
fn a_child_that_is_asked_for_is_created_and_not_selected() {
    let mut script = Script::new("abc");
    script.report('a', Ready).ask('b').is('a', "ab").waits(10);
    assert!(script.priorities.is_asked());
    script.report('b', Ready).is('a', "ab").waits(15 * MINUTE);
    // And so it is there when it is needed.
    script.report('a', TransientFailure).is('b', "ab");
}

#[test]
fn a_child_that_is_asked_for_again_is_kept_15_minutes_more() {
    let mut script = Script::new("ab");
    script.report('a', Ready).ask('b').report('b', Ready).after(S(14 * MINUTE)).ask('b').waits(15 * MINUTE);
    script.after(S(15 * MINUTE - 1)).is('a', "ab").after(S(1)).is('a', "a").waits(None);
    assert!(!script.priorities.is_asked());
}

#[test]
fn a_child_that_others_still_need_survives_the_last_question() {
    let mut script = Script::new("ab");
    script.report('a', TransientFailure).report('b', Ready).ask('b').ask('x').after(S(15 * MINUTE)).is('b', "ab");
    assert!(!script.priorities.is_asked());
    // It is deactivated later than it was asked for: A56's 15 minutes begin then.
    script.ask('b').after(S(MINUTE)).report('a', Ready).after(S(15 * MINUTE - 1)).is('a', "ab");
    script.after(S(1)).is('a', "a");
}

#[test]
fn how_a_child_stands() {
    let mut script = Script::new("ab");
    script.report('a', Ready);
    let standing = |script: &Script, child| script.priorities.standing(&child);
    assert_eq!((standing(&script, 'a'), standing(&script, 'b')), (Standing::Works, Standing::Absent));
    assert_eq!(standing(script.ask('b'), 'b'), Standing::Pending);
    assert_eq!(standing(script.after(S(10)), 'b'), Standing::Failed, "late");
    assert_eq!(standing(script.report('b', Ready), 'b'), Standing::Works);
    assert_eq!(standing(script.report('b', TransientFailure), 'b'), Standing::Failed);
    assert_eq!(standing(script.report('b', Connecting), 'b'), Standing::Failed);
}

// === What went wrong elsewhere ===

/// grpc-go #8813.
#[test]
fn connecting_again_does_not_restart_the_timer() {
    let mut script = Script::new("ab");
    for _ in 0..9 {
        script.after(S(1)).report('a', Connecting).is('a', "a");
    }
    script.after(S(1)).is('b', "ab");
    // Nor does it start one for a child that is late.
    script.report('b', Ready).report('a', Connecting).is('b', "ab").waits(None);
}

/// grpc-go #4801.
#[test]
fn an_idle_child_is_selected() {
    Script::new("ab").report('a', Idle).is('a', "a").waits(None).after(S(60)).is('a', "a");
}

/// grpc-go #3830.
#[test]
fn a_list_that_becomes_empty_while_the_timer_runs_takes_the_timer_along() {
    let mut script = Script::new("ab");
    script.after(S(5)).update("", &[]).is(None, "").waits(None);
    script.priorities.timer(script.now + S(5));
    script.is(None, "").update("ab", &[]).is('a', "a").waits(10);
}

/// grpc-go #5417.
#[test]
fn an_update_chooses_once_when_every_child_has_seen_it() {
    let mut script = Script::new("ab");
    script.report('a', TransientFailure).report('b', Ready);
    // One by one, these reports would create c before a is READY.
    script.update("abc", &[('b', TransientFailure), ('a', Ready)]).is('a', "ab");
}

#[test]
fn a_report_of_a_child_that_is_not_active_is_ignored() {
    Script::new("ab").report('b', Ready).report('x', Ready).is('a', "a").waits(10);
}

#[test]
fn a_name_that_comes_twice_is_one_child() {
    Script::new("aab").report('a', TransientFailure).is('b', "ab");
}

#[test]
fn a_report_that_outruns_a_timer_that_is_due_finds_it_fired() {
    let mut script = Script::new("ab");
    script.now += S(11);
    script.report('a', Connecting).is('b', "ab").waits(10);
}

// === Any order of events ===

#[derive(Clone, Debug)]
enum Event {
    Update(Vec<char>, Vec<(char, ConnectivityState)>),
    Report(char, ConnectivityState),
    Ask(char),
    Timer,
}

fn any_event() -> impl Strategy<Value = Event> {
    let child = || select(vec!['a', 'b', 'c', 'd', 'e']);
    let report = || (child(), select(vec![Idle, Connecting, Ready, TransientFailure]));
    prop_oneof![
        1 => (vec(child(), 0..6), vec(report(), 0..4)).prop_map(|(children, reports)| Event::Update(children, reports)),
        4 => report().prop_map(|(child, state)| Event::Report(child, state)),
        1 => child().prop_map(Event::Ask),
        1 => Just(Event::Timer),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_happens_a_higher_child_that_is_ready_is_selected(
        events in vec((any_event(), select(vec![0, 1, 9, 10, 11, 899, 900])), 1..60),
    ) {
        let mut machine = Priorities::default();
        let (mut now, mut list) = (Instant::now(), Vec::new());
        // What each active child reported last.
        let mut states = BTreeMap::new();
        for (event, seconds) in events {
            now += S(seconds);
            let reports = match event {
                Event::Update(children, reports) => {
                    list.clone_from(&children);
                    states.retain(|child, _| children.contains(child));
                    machine.update(children, reports.clone(), now);
                    reports
                }
                Event::Report(child, state) => {
                    machine.report(&child, state, now);
                    vec![(child, state)]
                }
                Event::Ask(child) => {
                    machine.ask(&child, now);
                    vec![]
                }
                Event::Timer => {
                    machine.timer(now);
                    vec![]
                }
            };
            for (child, state) in reports {
                states.entry(child).and_modify(|last| *last = state);
            }
            states.retain(|child, _| machine.is_active(child));
            for &child in list.iter().filter(|child| machine.is_active(child)) {
                // Created by this event at the latest, and CONNECTING until it reports.
                states.entry(child).or_insert(Connecting);
            }

            let first_ready = list.iter().find(|child| states.get(child) == Some(&Ready));
            let selected = machine.selected().copied();
            let rank = |child: &char| list.iter().position(|other| other == child);
            prop_assert_eq!(selected.is_none(), list.is_empty());
            prop_assert!(selected.is_none_or(|child| machine.is_active(&child)));
            prop_assert!(first_ready.is_none_or(|ready| rank(&selected.expect("the list has a child")) <= rank(ready)));
            prop_assert!(machine.next_deadline().is_none_or(|deadline| deadline > now));

            // Choosing again changes nothing.
            let outcome = |machine: &Priorities<char>| {
                let active: Vec<_> = list.iter().map(|child| machine.is_active(child)).collect();
                (machine.selected().copied(), machine.next_deadline(), active)
            };
            let seen = outcome(&machine);
            machine.timer(now);
            prop_assert_eq!(seen, outcome(&machine));
        }
    }
}
