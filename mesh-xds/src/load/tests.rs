//! The books: what is reported when, once, and until when anything is kept. Stories of calls, in words.

use super::{Books, ClusterReport, Key, LocalityReport, MAX_GONE, Wanted};
use crate::resource::{LoadReporting, LocalityId};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

fn key(cluster: &str) -> Key {
    Key { cluster: cluster.into(), service: None, reporting: LoadReporting::default() }
}

fn here() -> LocalityId {
    LocalityId { zone: "here".to_owned(), ..LocalityId::default() }
}

/// Books with one cluster `c`.
fn books() -> (Books, Instant) {
    let (mut books, now) = (Books::default(), Instant::now());
    books.join(&key("c"), now);
    (books, now)
}

/// The only locality of the only cluster.
#[track_caller]
fn only(reports: &[ClusterReport]) -> &LocalityReport {
    let [report] = reports else { panic!("{reports:?}") };
    report.localities.get(&here()).unwrap_or_else(|| panic!("{reports:?}"))
}

fn counts(report: &LocalityReport) -> (u64, u64, u64, u64) {
    (report.issued, report.succeeded, report.failed, report.in_progress)
}

#[tokio::test]
async fn a_report_has_what_happened_since_the_one_that_was_taken() {
    let (mut books, now) = books();
    let load = books.locality(&key("c"), &here());
    let mut good = load.clone().start();
    good.succeeded(true);
    let open = load.clone().start();
    drop((good, load.clone().start()));
    assert_eq!(counts(only(&books.report(&Wanted::All, now))), (3, 1, 1, 1));
    // Nobody took it: it is said again, with what came since.
    drop(load.clone().start());
    assert_eq!(counts(only(&books.report(&Wanted::All, now))), (4, 1, 2, 1));
    books.taken();
    assert_eq!(counts(only(&books.report(&Wanted::All, now))), (0, 0, 0, 1), "in progress is a level");
    books.taken();
    drop(open);
    assert_eq!(counts(only(&books.report(&Wanted::All, now))), (0, 0, 1, 0));
    books.taken();
    assert_eq!(books.report(&Wanted::All, now), [], "empty clusters are skipped");
}

#[tokio::test]
async fn the_interval_is_the_time_since_the_last_report_of_that_cluster() {
    let (mut books, now) = books();
    let load = books.locality(&key("c"), &here());
    let at = |seconds| now + Duration::from_secs(seconds);
    drop(load.clone().start());
    assert_eq!(books.report(&Wanted::All, at(2))[0].elapsed, Duration::from_secs(2));
    // Not taken, so the time goes on.
    assert_eq!(books.report(&Wanted::All, at(5))[0].elapsed, Duration::from_secs(5));
    books.taken();
    // Quiet intervals count, too.
    assert_eq!(books.report(&Wanted::All, at(6)), []);
    books.taken();
    drop(load.start());
    assert_eq!(books.report(&Wanted::All, at(9))[0].elapsed, Duration::from_secs(3));
}

#[tokio::test]
async fn drops_are_told_once_each_by_category() {
    let (mut books, now) = books();
    let (a, b) = (books.category(&key("c"), &"a".into()), books.category(&key("c"), &"b".into()));
    a.dropped();
    a.dropped();
    b.dropped();
    let dropped = books.report(&Wanted::All, now).remove(0).dropped;
    assert_eq!(dropped, [(Arc::from("a"), 2), (Arc::from("b"), 1)].into());
    books.taken();
    b.dropped();
    assert_eq!(books.report(&Wanted::All, now).remove(0).dropped, [(Arc::from("b"), 1)].into());
}

#[tokio::test]
async fn a_cluster_that_nobody_asks_for_counts_on() {
    let (mut books, now) = books();
    drop(books.locality(&key("c"), &here()).start());
    assert_eq!(books.report(&Wanted::Only(["d".to_owned()].into()), now), []);
    books.taken();
    let wanted = Wanted::Only(["c".to_owned()].into());
    assert_eq!(counts(only(&books.report(&wanted, now))), (1, 0, 1, 0));
}

#[tokio::test]
async fn one_cluster_with_two_sets_of_metrics_is_one_cluster_in_the_report() {
    let (mut books, now) = books();
    let other = Key { reporting: LoadReporting { cpu_utilization: true, ..LoadReporting::default() }, ..key("c") };
    books.join(&other, now);
    drop(books.locality(&key("c"), &here()).start());
    drop(books.locality(&other, &here()).start());
    assert_eq!(counts(only(&books.report(&Wanted::All, now))), (2, 0, 2, 0));
}

#[tokio::test]
async fn a_cluster_that_left_is_kept_until_its_last_call_is_reported() {
    let (mut books, now) = books();
    let call = books.locality(&key("c"), &here()).start();
    books.leave(&key("c"));
    assert_eq!(counts(only(&books.report(&Wanted::All, now))), (1, 0, 0, 1));
    books.taken();
    drop(call);
    assert_eq!(counts(only(&books.report(&Wanted::All, now))), (0, 0, 1, 0));
    books.taken();
    assert!(books.clusters.is_empty());
    assert!(books.close());
}

#[tokio::test]
async fn books_close_only_without_a_cluster() {
    let (mut books, _) = books();
    assert!(!books.close());
    books.leave(&key("c"));
    assert!(books.close());
    assert!(books.clusters.is_empty(), "what nobody reports is not kept");
}

#[tokio::test]
async fn an_outage_keeps_no_more_than_so_many_clusters_that_left() {
    let (mut books, now) = books();
    for number in 0..2 * MAX_GONE {
        let key = key(&number.to_string());
        books.join(&key, now);
        let call = books.locality(&key, &here()).start();
        books.leave(&key);
        drop(call);
    }
    assert_eq!(books.clusters.len(), MAX_GONE + 1);
}

#[tokio::test]
async fn a_locality_that_is_gone_is_forgotten_and_one_in_use_is_not() {
    let (mut books, now) = books();
    let there = LocalityId::default();
    drop(books.locality(&key("c"), &here()).start());
    let kept = books.locality(&key("c"), &there);
    books.report(&Wanted::All, now);
    books.taken();
    let entry = &books.clusters[&key("c")];
    assert_eq!(entry.localities.keys().collect::<Vec<_>>(), [&there]);
    drop(kept);
}
