//! Seeded simulations: one client against models of one to three control planes and of DNS, in thousands of interleavings
//! of pushes, deletions, refused and withheld resources, answers out of order, cuts, changes of server, watches, lookups
//! that fail or come late, and clock steps.
//!
//! ```text
//! seed ─► script ─► Run: Core ◄─► links ◄─► servers (SotW or delta, with or without istiod's manners) ─► checks, rest
//!            │             └────► lookups (DNS)
//!            └────── a failing script is made shorter, as long as it fails, and printed
//! ```
//!
//! Names are plain or of two authorities (A47), which may share servers, each may be another's fallback (A71).
//!
//! `SIMULATIONS=20000` runs more of them, `SIMULATION_SEED=7` one alone. Real streams are NOT simulated: `tests/client`
//! and the wire tests have them.

mod checks;
mod lookups;
mod rest;
mod run;
mod script;
mod servers;
mod slices;
mod world;

use fastrand::Rng;
use run::Run;
use script::{Setting, Step};
use std::{
    env,
    panic::{self, AssertUnwindSafe},
};
use world::{HOSTS, NAMES, Well};

fn simulate(setting: Setting, script: &[Step], well: &Well) {
    let mut run = Run::new(setting);
    script.iter().for_each(|step| run.happens(*step));
    run.come_to_rest(setting.reachable);
    // The same worlds, whole and good, for this client, for one that knows nothing of the past, and for one that
    // speaks the other variant.
    run.all_is_well(well);
    for setting in [setting, setting.in_the_other_variant()] {
        let mut fresh = Run::new(setting);
        run.subjects.values().for_each(|(subject, _)| fresh.watch(subject.clone()));
        fresh.all_is_well(well);
        assert_eq!(run.outcomes(), fresh.outcomes(), "two clients are told the same and differ");
    }
    run.an_outage_passes();
    run.ends_with_nothing();
}

fn drawn(seed: u64) -> (Setting, Vec<Step>, Well) {
    let mut random = Rng::with_seed(seed);
    let setting = Setting::random(&mut random);
    let script = script::random(&mut random);
    let mut world = || {
        let all = crate::resource::Kind::ALL.into_iter().flat_map(|kind| NAMES.map(|name| (kind, name)));
        all.map(|key| (key, script::good_number(&mut random))).collect()
    };
    let worlds = [world(), world(), world()];
    (setting, script, Well { worlds, dns: HOSTS.map(|host| (host, script::good_answer(&mut random))).into() })
}

/// What went wrong, if something did.
fn failure(run: impl FnOnce()) -> Option<String> {
    let cause = panic::catch_unwind(AssertUnwindSafe(run)).err()?;
    let text = cause.downcast_ref::<String>().cloned();
    Some(text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
}

/// The script without what is not needed for it to fail: ever smaller parts are left out.
fn shortened(mut script: Vec<Step>, fails: impl Fn(&[Step]) -> bool) -> Vec<Step> {
    let mut size = script.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < script.len() {
            let mut shorter = script.clone();
            shorter.drain(at..(at + size).min(script.len()));
            if fails(&shorter) {
                script = shorter;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    script
}

#[test]
fn any_interleaving_keeps_what_is_good_and_ends_like_a_fresh_client() {
    let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATIONS").unwrap_or(2000),
    };
    for seed in seeds {
        let (setting, script, well) = drawn(seed);
        if failure(|| simulate(setting, &script, &well)).is_some() {
            let hook = panic::take_hook();
            panic::set_hook(Box::new(|_| {}));
            let fails = |script: &[Step]| failure(|| simulate(setting, script, &well)).is_some();
            let short = shortened(script, fails);
            let cause = failure(|| simulate(setting, &short, &well)).unwrap_or_default();
            panic::set_hook(hook);
            let steps: Vec<_> = short.iter().map(|step| format!("  {step:?}")).collect();
            panic!("seed {seed}: {cause}\n{setting:?}\n{}", steps.join("\n"));
        }
    }
}

#[test]
fn a_failing_script_is_made_as_short_as_it_can_be() {
    let script: Vec<_> = (0..100).map(|seconds| Step::Wait { seconds }).collect();
    let fails = |script: &[Step]| {
        let has = |seconds| script.contains(&Step::Wait { seconds });
        has(17) && has(62)
    };
    assert_eq!(shortened(script, fails), [Step::Wait { seconds: 17 }, Step::Wait { seconds: 62 }]);
}
