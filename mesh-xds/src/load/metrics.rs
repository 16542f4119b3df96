//! Sums of what backends say about themselves: added to by calls, taken by reports, without a lock.
//!
//! Which metrics are summed up is known when the cluster is configured (A85); only `named_metrics.*` can meet a name
//! that is new. This file does NOT read trailers.

use crate::{
    orca::BackendMetrics,
    resource::{LoadReporting, NamedMetrics},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Names that `named_metrics.*` may bring into one locality. "this should be used only with trusted backends" (Envoy);
/// a backend that puts a number into its names must not fill the memory of its clients.
const MAX_NAMES: usize = 256;

/// How many calls had a metric, and what it added up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sum {
    pub(super) count: u64,
    pub(super) total: f64,
}

/// The metrics of one locality in one report.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct MetricSums {
    pub(super) cpu_utilization: Sum,
    pub(super) mem_utilization: Sum,
    pub(super) application_utilization: Sum,
    pub(super) named_metrics: BTreeMap<Arc<str>, Sum>,
}

impl MetricSums {
    /// Adds those of other calls.
    pub(super) fn add(&mut self, other: &Self) {
        self.cpu_utilization += other.cpu_utilization;
        self.mem_utilization += other.mem_utilization;
        self.application_utilization += other.application_utilization;
        for (name, sum) in &other.named_metrics {
            *self.named_metrics.entry(Arc::clone(name)).or_default() += *sum;
        }
    }
}

/// The same while calls add to it.
#[derive(Debug)]
pub(super) struct Metrics {
    cpu_utilization: Option<Adder>,
    mem_utilization: Option<Adder>,
    application_utilization: Option<Adder>,
    named_metrics: Names,
}

impl Metrics {
    /// `None` if none is to be reported.
    pub(super) fn of(wanted: &LoadReporting) -> Option<Self> {
        wanted.wants_metrics().then(|| Self {
            cpu_utilization: wanted.cpu_utilization.then(Adder::default),
            mem_utilization: wanted.mem_utilization.then(Adder::default),
            application_utilization: wanted.application_utilization.then(Adder::default),
            named_metrics: Names::of(&wanted.named_metrics),
        })
    }

    pub(super) fn add(&self, metrics: &BackendMetrics) {
        for (adder, value) in [
            (&self.cpu_utilization, metrics.cpu_utilization),
            (&self.mem_utilization, metrics.mem_utilization),
            (&self.application_utilization, metrics.application_utilization),
        ] {
            if let (Some(adder), Some(value)) = (adder, value) {
                adder.add(value);
            }
        }
        for (name, value) in &metrics.named_metrics {
            if let Some(adder) = self.named_metrics.find(name) {
                adder.add(*value);
            }
        }
    }

    /// Moves what was added since the last time into `sums`.
    pub(super) fn take(&self, sums: &mut MetricSums) {
        for (adder, sum) in [
            (&self.cpu_utilization, &mut sums.cpu_utilization),
            (&self.mem_utilization, &mut sums.mem_utilization),
            (&self.application_utilization, &mut sums.application_utilization),
        ] {
            if let Some(adder) = adder {
                *sum += adder.take();
            }
        }
        for entry in self.named_metrics.iter() {
            let sum = entry.adder.take();
            if sum.count > 0 {
                *sums.named_metrics.entry(Arc::clone(&entry.name)).or_default() += sum;
            }
        }
    }
}

impl std::ops::AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.total += other.total;
    }
}

// === Adder ===

#[derive(Debug, Default)]
struct Adder {
    count: AtomicU64,
    /// The bits of an `f64`.
    total: AtomicU64,
}

impl Adder {
    fn add(&self, value: f64) {
        let sum = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // Cannot fail: the closure always has a next value.
        let _ = self.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum);
        self.count.fetch_add(1, Ordering::Release);
    }

    /// A value that is added meanwhile may be in this report and its count in the next; never the other way round, and
    /// none is lost.
    fn take(&self) -> Sum {
        let count = self.count.swap(0, Ordering::Acquire);
        Sum { count, total: f64::from_bits(self.total.swap(0, Ordering::Relaxed)) }
    }
}

// === Names ===

/// A list that only grows, so that it can be walked while it grows.
#[derive(Debug)]
struct Names {
    first: OnceLock<Box<Name>>,
    /// How many names there may be.
    room: usize,
}

#[derive(Debug)]
struct Name {
    name: Arc<str>,
    adder: Adder,
    next: OnceLock<Box<Self>>,
}

impl Names {
    fn of(wanted: &NamedMetrics) -> Self {
        match wanted {
            NamedMetrics::All => Self { first: OnceLock::new(), room: MAX_NAMES },
            NamedMetrics::Keys(keys) => {
                let names = Self { first: OnceLock::new(), room: keys.len() };
                for key in keys {
                    names.find(key);
                }
                Self { room: 0, ..names }
            }
        }
    }

    /// The sum of that name, which is made if there is room for one more.
    fn find(&self, name: &str) -> Option<&Adder> {
        let (mut place, mut len) = (&self.first, 0);
        loop {
            let entry = match place.get() {
                Some(entry) => entry,
                None if len >= self.room => return None,
                // Somebody else's, if it was faster.
                None => place.get_or_init(|| Box::new(Name::new(name))),
            };
            if &*entry.name == name {
                return Some(&entry.adder);
            }
            (place, len) = (&entry.next, len + 1);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Name> {
        std::iter::successors(self.first.get(), |entry| entry.next.get()).map(|entry| &**entry)
    }
}

impl Name {
    fn new(name: &str) -> Self {
        Self { name: name.into(), adder: Adder::default(), next: OnceLock::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_NAMES, MetricSums, Metrics, Sum};
    use crate::{
        orca::BackendMetrics,
        resource::{LoadReporting, NamedMetrics},
    };

    fn named(entries: &[(&str, f64)]) -> BackendMetrics {
        let named_metrics = entries.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        BackendMetrics { cpu_utilization: Some(0.5), named_metrics, ..BackendMetrics::default() }
    }

    fn taken(metrics: &Metrics) -> MetricSums {
        let mut sums = MetricSums::default();
        metrics.take(&mut sums);
        sums
    }

    #[test]
    fn nothing_is_kept_for_a_cluster_that_wants_nothing() {
        assert!(Metrics::of(&LoadReporting::default()).is_none());
    }

    #[test]
    fn only_what_is_wanted_is_summed_and_a_report_starts_over() {
        let keys = NamedMetrics::Keys(["a".into(), "b".into()].into());
        let wanted = LoadReporting { cpu_utilization: true, named_metrics: keys, ..LoadReporting::default() };
        let metrics = Metrics::of(&wanted).expect("some are wanted");
        metrics.add(&named(&[("a", 1.0), ("c", 9.0)]));
        metrics.add(&named(&[("a", 2.0)]));
        let expected = MetricSums {
            cpu_utilization: Sum { count: 2, total: 1.0 },
            named_metrics: [("a".into(), Sum { count: 2, total: 3.0 })].into(),
            ..MetricSums::default()
        };
        assert_eq!(taken(&metrics), expected);
        assert_eq!(taken(&metrics), MetricSums::default());
    }

    #[test]
    fn names_without_end_are_cut_off() {
        let wanted = LoadReporting { named_metrics: NamedMetrics::All, ..LoadReporting::default() };
        let metrics = Metrics::of(&wanted).expect("all are wanted");
        for number in 0..2 * MAX_NAMES {
            metrics.add(&named(&[(&number.to_string(), 1.0)]));
        }
        metrics.add(&named(&[("7", 1.0)]));
        let sums = taken(&metrics);
        assert_eq!(sums.named_metrics.len(), MAX_NAMES);
        assert_eq!(sums.named_metrics["7"], Sum { count: 2, total: 2.0 });
        assert_eq!(sums.cpu_utilization, Sum::default());
    }
}
