//! The numbers of A50, and those of Envoy, one by one, and what holds whatever happens.

use super::{super::Tally, *};
use mesh_xds::resource::{Consecutive, FailurePercentage, LocalOrigin, SuccessRate};
use proptest::{collection::vec, prelude::*};

const SECOND: Duration = Duration::from_secs(1);

/// Never spares anybody, if there is anything to enforce.
fn low(_: u32) -> u32 {
    0
}

fn tally(succeeded: u32, failed: u32) -> Tally {
    Tally { succeeded, failed }
}

/// `good` hosts without a failure, 0 and up, and then `rest`.
fn hosts(good: usize, rest: &[Tally]) -> Vec<(usize, Tallies)> {
    let tallies = std::iter::repeat_n(tally(100, 0), good).chain(rest.iter().copied());
    tallies.map(external).enumerate().collect()
}

fn external(external: Tally) -> Tallies {
    Tallies { external, ..Tallies::default() }
}

fn detector(config: OutlierDetection) -> (Detector<usize>, Instant) {
    let now = Instant::now();
    (Detector::new(Arc::new(config), now), now)
}

fn ejected(changes: &[(usize, Change)]) -> Vec<usize> {
    changes.iter().filter(|(_, change)| *change == Change::Ejected).map(|(host, _)| *host).collect()
}

#[test]
fn of_five_any_deviation_is_an_outlier_and_of_four_none() {
    for (good, bad, expected) in [(4, tally(99, 1), vec![4]), (3, tally(0, 100), vec![])] {
        let (mut detector, now) = detector(OutlierDetection {
            success_rate: Some(SuccessRate { minimum_hosts: 4, ..SuccessRate::default() }),
            ..OutlierDetection::default()
        });
        assert_eq!(ejected(&detector.sweep(now + 10 * SECOND, &hosts(good, &[bad]), &mut low)), expected);
    }
}

#[test]
fn too_few_hosts_or_too_few_calls_are_no_base_for_a_comparison() {
    for hosts in [hosts(3, &[tally(0, 100)]), hosts(4, &[tally(0, 99)])] {
        let (mut detector, now) = detector(OutlierDetection::default());
        assert_eq!(detector.sweep(now + 10 * SECOND, &hosts, &mut low), []);
    }
}

#[test]
fn a_failure_percentage_must_be_above_its_threshold() {
    let rule = FailurePercentage { threshold: 85, ..FailurePercentage::default() };
    let config = OutlierDetection { success_rate: None, failure_percentage: Some(rule), ..OutlierDetection::default() };
    for (bad, expected) in [(tally(15, 85), vec![]), (tally(14, 86), vec![4])] {
        let (mut detector, now) = detector(config.clone());
        assert_eq!(ejected(&detector.sweep(now + 10 * SECOND, &hosts(4, &[bad]), &mut low)), expected);
    }
}

#[test]
fn two_bad_ones_of_five_go_one_at_a_time() {
    let rule = FailurePercentage::default();
    let (mut detector, now) =
        detector(OutlierDetection { failure_percentage: Some(rule), ..OutlierDetection::default() });
    let changes = detector.sweep(now + 10 * SECOND, &hosts(3, &[tally(0, 100); 2]), &mut low);
    assert_eq!(ejected(&changes), [3]);
    assert_eq!(detector.sweep(now + 20 * SECOND, &hosts(3, &[tally(0, 0), tally(0, 100)]), &mut low), []);
}

#[test]
fn the_dice_decide_how_often_an_ejection_is_made() {
    let rule = SuccessRate { enforcing: 30, ..SuccessRate::default() };
    for (drawn, expected) in [(29, vec![4]), (30, vec![])] {
        let (mut detector, now) =
            detector(OutlierDetection { success_rate: Some(rule), ..OutlierDetection::default() });
        let changes = detector.sweep(now + 10 * SECOND, &hosts(4, &[tally(0, 100)]), &mut |_| drawn);
        assert_eq!(ejected(&changes), expected);
    }
}

#[test]
fn each_ejection_is_longer_and_quiet_sweeps_make_up_for_it() {
    let (mut detector, start) = detector(OutlierDetection {
        interval: 2 * SECOND,
        base_ejection_time: 4 * SECOND,
        ..OutlierDetection::default()
    });
    let (bad, quiet) = (hosts(4, &[tally(0, 100)]), hosts(5, &[]));
    let mut sweeps = (1..).map(|sweep| start + sweep * 2 * SECOND);
    let mut next = |hosts: &[_]| detector.sweep(sweeps.next().expect("no end"), hosts, &mut low);
    assert_eq!(ejected(&next(&bad)), [4]);
    // 4 s have not passed after 4 s: "now > stamp + 4 s".
    assert_eq!([next(&quiet), next(&quiet), next(&quiet)], [vec![], vec![], vec![(4, Change::Returned)]]);
    assert_eq!(ejected(&next(&bad)), [4], "for twice as long");
    let quiet_sweeps: Vec<_> = (0..5).map(|_| next(&quiet).len()).collect();
    assert_eq!(quiet_sweeps, [0, 0, 0, 0, 1]);
}

#[test]
fn failures_in_a_row_eject_at_once_within_envoys_cap() {
    let config = |percent, always| OutlierDetection {
        max_ejection_percent: percent,
        always_eject_one_host: always,
        consecutive_5xx: Some(Consecutive::after(5)),
        ..OutlierDetection::default()
    };
    for (percent, always, first, second) in [
        (10, false, Trip::Capped, Trip::Capped),
        (10, true, Trip::Ejected, Trip::Capped),
        (50, false, Trip::Ejected, Trip::Ejected),
    ] {
        let (mut detector, now) = detector(config(percent, always));
        assert_eq!(detector.tripped(now, 0, Streak::Errors, 4, &mut low), first);
        assert_eq!(detector.tripped(now, 1, Streak::Errors, 4, &mut low), second);
        assert_eq!(detector.tripped(now, 2, Streak::GatewayFailures, 4, &mut low), Trip::Spared, "not configured");
    }
}

#[test]
fn an_ejection_is_longer_by_a_lot_that_is_drawn_each_time() {
    let jitter = OutlierDetection {
        base_ejection_time: 4 * SECOND,
        max_ejection_time_jitter: 3 * SECOND,
        max_ejection_percent: 100,
        consecutive_5xx: Some(Consecutive::after(5)),
        ..OutlierDetection::default()
    };
    let (mut detector, now) = detector(jitter);
    for (host, drawn) in [(0, 0), (1, 3000), (2, 1500)] {
        let draw = &mut |below| match below {
            100 => 0,
            3001 => drawn,
            other => panic!("nobody draws below {other}"),
        };
        assert_eq!(detector.tripped(now, host, Streak::Errors, 3, draw), Trip::Ejected);
    }
    for (millis, back) in [(4000, None), (4001, Some(0)), (5500, None), (5501, Some(2)), (7000, None), (7001, Some(1))]
    {
        let changes = detector.sweep(now + Duration::from_millis(millis), &[], &mut low);
        assert_eq!(changes, Vec::from_iter(back.map(|host| (host, Change::Returned))), "after {millis} ms");
    }
}

#[test]
fn errors_of_local_origin_are_judged_by_their_own_rules_and_by_envoys() {
    let rate = LocalOrigin { consecutive_failure: None, ..LocalOrigin::default() };
    let rule = FailurePercentage { threshold: 50, ..FailurePercentage::default() };
    let percentage = LocalOrigin { success_rate: None, failure_percentage: Some(rule), ..rate };
    let answers_fail = external(tally(0, 100));
    let local = |succeeded, failed| Tallies { local_origin: tally(succeeded, failed), ..Tallies::default() };
    let all_is_well = local(100, 0);
    for (what, rules, percent, bad, expected) in [
        ("far below the others", rate, 20, local(90, 10), vec![4]),
        ("half of them fail", percentage, 20, local(50, 50), vec![4]),
        ("fewer do", percentage, 20, local(51, 49), vec![]),
        ("more than Envoy's cap", rate, 19, local(0, 100), vec![]),
        ("an answer is an answer", rate, 100, answers_fail, vec![]),
        ("an answer is an answer", percentage, 100, answers_fail, vec![]),
    ] {
        let (mut detector, now) = detector(OutlierDetection {
            success_rate: None,
            max_ejection_percent: percent,
            local_origin: Some(rules),
            ..OutlierDetection::default()
        });
        let hosts: Vec<_> = [all_is_well, all_is_well, all_is_well, all_is_well, bad].into_iter().enumerate().collect();
        assert_eq!(ejected(&detector.sweep(now + 10 * SECOND, &hosts, &mut low)), expected, "{what}");
    }
}

proptest! {
    /// Never more are out than the cap lets go, each returns in time, and a multiplier never is more than the ejections.
    #[test]
    fn whatever_happens_the_cap_holds_and_everybody_returns(
        percent in 0..=100u32,
        sweeps in vec(vec((0..200u32, 0..200u32), 1..20), 1..40),
        dice in any::<u64>(),
    ) {
        let config = OutlierDetection {
            max_ejection_percent: percent,
            success_rate: Some(SuccessRate { minimum_hosts: 1, request_volume: 1, ..SuccessRate::default() }),
            failure_percentage: Some(FailurePercentage { threshold: 50, minimum_hosts: 1, request_volume: 1, enforcing: 80 }),
            max_ejection_time_jitter: 5 * SECOND,
            ..OutlierDetection::default()
        };
        let (mut detector, mut now) = detector(config);
        let mut random = fastrand::Rng::with_seed(dice);
        for sweep in sweeps {
            let hosts: Vec<_> = sweep.iter().map(|(good, bad)| external(tally(*good, *bad))).enumerate().collect();
            detector.retain(|host| *host < hosts.len());
            let before = detector.ejected().count();
            now += 10 * SECOND;
            detector.sweep(now, &hosts, &mut |below| random.u32(..below));
            let most = (percent as usize * hosts.len()).div_ceil(100);
            prop_assert!(detector.ejected().count() <= most.max(before), "{} of {}", detector.ejected().count(), hosts.len());
        }
        // Nothing is longer than `max_ejection_time` and its jitter, and a sweep later everybody is back.
        detector.sweep(now + 306 * SECOND, &[], &mut low);
        prop_assert_eq!(detector.ejected().count(), 0);
    }
}
