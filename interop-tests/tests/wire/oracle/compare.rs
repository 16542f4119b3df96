//! Where two sides differ, and how far apart retries are on each.
//!
//! Instants are compared by class: two gaps are alike if both are short, or both about as long. Delays with jitter are
//! compared as shares of what they may be at most, all of them together. It does NOT know reasons.

use super::case::{Case, Compared, Got, Seen, Stand};
use std::{collections::BTreeMap, time::Duration};

/// A gap that is shorter is none: the machine may be busy.
const SHORT: Duration = Duration::from_millis(150);

/// What two sides differ in, for one call of a case, or for all of them together.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    pub(super) envoy: Seen,
    pub(super) ours: Seen,
    /// Which call of the case.
    pub(super) call: usize,
    pub(super) what: String,
    /// In nothing but a gap.
    pub(super) is_of_time: bool,
}

/// Compares what came of a case.
pub(super) fn differences(case: &Case, envoy: &[Seen], ours: &[Seen]) -> Vec<Difference> {
    let mut pairs = envoy.iter().zip(ours).enumerate();
    let difference = |(call, (envoy, ours)): (usize, (&Seen, &Seen)), (what, is_of_time)| Difference {
        envoy: envoy.clone(),
        ours: ours.clone(),
        call,
        what,
        is_of_time,
    };
    match case.compared {
        Compared::EachCall => {
            let differs = |pair: (usize, (&Seen, &Seen))| Some(difference(pair, of_call(case, pair.1.0, pair.1.1)?));
            pairs.filter_map(differs).collect()
        }
        Compared::Sums { slack } => {
            let what = of_sums(Sums::of(envoy), Sums::of(ours), slack);
            what.and_then(|what| Some(difference(pairs.next_back()?, (what, false)))).into_iter().collect()
        }
    }
}

/// What is different, and whether it is nothing but a gap.
fn of_call(case: &Case, envoy: &Seen, ours: &Seen) -> Option<(String, bool)> {
    if envoy.stand != ours.stand {
        return Some((format!("{:?} and {:?} while others are under way", envoy.stand, ours.stand), false));
    }
    let (theirs, mine) = (relabelled(&envoy.endpoints), relabelled(&ours.endpoints));
    if theirs != mine {
        return Some((format!("attempts at {theirs:?} and {mine:?}"), false));
    }
    if envoy.got != ours.got {
        return Some((format!("results {:?} and {:?}", envoy.got, ours.got), false));
    }
    let last = envoy.gaps.len() - 1;
    // When the gate opens is the pace of the calls beside it.
    if envoy.stand == Some(Stand::Held) {
        return None;
    }
    let unlike = (0..=last).find(|&gap| {
        let jittered = case.backoff.is_some() && gap > 0 && gap < last;
        !jittered && !alike(envoy.gaps[gap], ours.gaps[gap])
    });
    unlike.map(|gap| (format!("gap {gap} is {:?} and {:?}", envoy.gaps[gap], ours.gaps[gap]), true))
}

/// Endpoints by their first appearance.
fn relabelled(endpoints: &[usize]) -> Vec<usize> {
    let mut known = Vec::new();
    let label = |endpoint: &usize| {
        known.iter().position(|seen| seen == endpoint).unwrap_or_else(|| {
            known.push(*endpoint);
            known.len() - 1
        })
    };
    endpoints.iter().map(label).collect()
}

fn alike(a: Duration, b: Duration) -> bool {
    match (a < SHORT, b < SHORT) {
        (true, true) => true,
        (false, false) => a.abs_diff(b) < SHORT + a.max(b) / 4,
        _ => a.abs_diff(b) < SHORT / 2,
    }
}

// === Sums ===

#[derive(Debug)]
struct Sums {
    attempts: BTreeMap<usize, usize>,
    results: BTreeMap<Got, usize>,
}

impl Sums {
    fn of(calls: &[Seen]) -> Self {
        let mut sums = Self { attempts: BTreeMap::new(), results: BTreeMap::new() };
        for call in calls {
            for endpoint in &call.endpoints {
                *sums.attempts.entry(*endpoint).or_default() += 1;
            }
            *sums.results.entry(call.got.clone()).or_default() += 1;
        }
        sums
    }
}

fn of_sums(envoy: Sums, ours: Sums, slack: usize) -> Option<String> {
    let close = close(&envoy.attempts, &ours.attempts, slack) && close(&envoy.results, &ours.results, slack);
    (!close).then(|| format!("{envoy:?} and {ours:?}"))
}

fn close<K: Ord>(a: &BTreeMap<K, usize>, b: &BTreeMap<K, usize>, slack: usize) -> bool {
    let count = |of: &BTreeMap<K, usize>, key: &K| of.get(key).copied().unwrap_or(0);
    a.keys().chain(b.keys()).all(|key| count(a, key).abs_diff(count(b, key)) <= slack)
}

// === Jitter ===

/// Delays before retries, as shares of the longest there may be.
#[derive(Debug, Default)]
pub(super) struct Shares(Vec<f64>);

impl Shares {
    /// Adds those of one call whose attempts are answered at once.
    pub(super) fn add(&mut self, case: &Case, seen: &Seen) {
        let Some(backoff) = case.backoff else { return };
        let between = &seen.gaps[1..seen.gaps.len() - 1];
        let shares = between.iter().enumerate().map(|(index, gap)| gap.div_duration_f64(backoff.bound(index + 1)));
        self.0.extend(shares);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    pub(super) fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }
}
