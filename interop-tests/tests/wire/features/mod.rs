//! Features, proved one by one: each by a scenario over the wire that fails as soon as the feature's field is gone.
//!
//! A scenario that also passed without the field would prove nothing, so every one runs twice: with its configuration,
//! which must do, and with the field stripped, which must NOT. The table in README.md has a row for each.

mod world;

pub(crate) use world::{Answer, Call, SERVICE, World, check, fails, from, get, grpc, only, share};

use futures_util::future::BoxFuture;
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// One row of the feature table.
pub(crate) struct Feature {
    /// The module and the function of its test.
    pub(crate) test: &'static str,
    /// What it is, in the table.
    pub(crate) row: &'static str,
    /// The gRFC, and the field.
    pub(crate) source: &'static str,
    /// See [`World`].
    pub(crate) config: &'static str,
    /// What takes the feature's field out: places, and what to put there (nothing removes the field).
    pub(crate) strip: &'static [(&'static str, &'static str)],
    pub(crate) scenario: Scenario,
}

pub(crate) type Scenario = for<'a> fn(&'a mut World) -> BoxFuture<'a, Result<(), String>>;

impl Feature {
    /// Runs the scenario with and without the feature's field.
    pub(crate) async fn prove(&self) {
        let mut with = World::start(self.config, &[]).await;
        if let Err(failure) = (self.scenario)(&mut with).await {
            panic!("{}: expected {failure}", self.row);
        }
        let mut without = World::start(self.config, self.strip).await;
        let leapt = without.leapt();
        let outcome = tokio::select! {
            biased;
            outcome = (self.scenario)(&mut without) => outcome,
            () = patience(leapt) => Err("it waits for what can not come".to_owned()),
        };
        assert!(outcome.is_err(), "{}: the scenario also holds without {:?}", self.row, self.strip);
    }
}

/// Twenty seconds, and those that the scenario leaps over.
async fn patience(leapt: Arc<AtomicU64>) {
    let begin = Instant::now();
    let end = || begin + Duration::from_secs(20 + leapt.load(Ordering::Relaxed));
    while Instant::now() < end() {
        sleep_until(end()).await;
    }
}

/// Declares features: a test for each, and the module's part of the table.
macro_rules! features {
    ($($name:ident {
        row: $row:expr, source: $source:expr, config: $config:expr, strip: $strip:expr,
        |$world:ident| $body:block
    })+) => {
        /// This module's part of the feature table.
        pub(crate) const FEATURES: &[$crate::features::Feature] = &[$($crate::features::Feature {
            test: concat!(module_path!(), "::", stringify!($name)),
            row: $row,
            source: $source,
            config: $config,
            strip: &$strip,
            scenario: {
                async fn scenario($world: &mut $crate::features::World) -> Result<(), String> $body
                |world| Box::pin(scenario(world))
            },
        }),+];

        $(#[tokio::test]
        async fn $name() {
            let test = concat!(module_path!(), "::", stringify!($name));
            let feature = FEATURES.iter().find(|feature| feature.test == test).expect("declared above");
            feature.prove().await;
        })+
    };
}
pub(crate) use features;

// === The table ===

/// Every feature of every module.
fn all() -> impl Iterator<Item = &'static Feature> {
    [
        crate::routing::FEATURES,
        crate::headers::FEATURES,
        crate::balancing::FEATURES,
        crate::clusters::FEATURES,
        crate::circuit_breaking::FEATURES,
        crate::connection_limits::FEATURES,
        crate::outlier_detection::FEATURES,
        crate::outlier_sweeps::FEATURES,
        crate::aggregate::FEATURES,
        crate::deadlines::FEATURES,
        crate::retries::FEATURES,
        crate::retry_priorities::FEATURES,
        crate::filters::FEATURES,
        crate::faults::FEATURES,
        crate::protocols::FEATURES,
        crate::own_layers::FEATURES,
    ]
    .into_iter()
    .flatten()
}

/// A row as the table has it.
fn row(feature: &Feature) -> String {
    let test = feature.test.strip_prefix("wire::").unwrap_or(feature.test);
    format!("| {} | {} | `{test}` |", feature.row, feature.source)
}

fn table() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("README.md")).expect("README.md has the feature table");
    let begin = text.find("\n## Features\n").expect("a section `## Features`");
    let section = text[begin + 1..].split("\n## ").next().unwrap_or_default();
    let rows =
        section.lines().filter(|line| line.starts_with("| ")).skip_while(|line| !line.starts_with("| ---")).skip(1);
    rows.map(str::to_owned).collect()
}

#[test]
fn every_feature_has_its_row() {
    let table = table();
    let missing: Vec<_> = all().map(row).filter(|row| !table.contains(row)).collect();
    assert!(missing.is_empty(), "not in README.md:\n{}", missing.join("\n"));
}

/// Rows for what is no scenario name a test over the wire, all the same.
#[test]
fn every_row_names_a_test_that_exists() {
    let scenarios: Vec<_> = all().map(row).collect();
    let mut tests = BTreeSet::new();
    collect_tests(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut tests);
    for row in table().into_iter().filter(|row| !scenarios.contains(row)) {
        let cell = row.trim_end_matches(" |").rsplit("| ").next().unwrap_or_default().trim_matches('`');
        let mut parts = cell.rsplit("::");
        let (name, module) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        assert!(tests.contains(&(module.to_owned(), name.to_owned())), "no such test: {row}");
    }
}

/// The functions of all files below `folder`, with the name of their module: of their file, or of its folder.
fn collect_tests(folder: &Path, tests: &mut BTreeSet<(String, String)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_tests(&path, tests);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let of_folder = ["mod", "main", "tests"].contains(&&*stem);
            let module = if of_folder { folder.file_name().unwrap_or_default().to_string_lossy() } else { stem };
            let source = fs::read_to_string(&path).unwrap_or_default();
            let functions = source.split("fn ").skip(1).filter_map(|rest| Some(rest.split_once("()")?.0.to_owned()));
            tests.extend(functions.map(|function| (module.clone().into_owned(), function)));
        }
    }
}
