//! The outlier detection of each leaf (A50), which counts over all of its priorities (A75).
//!
//! It watches endpoints, lets the detector judge, and tells whose state has changed. It does NOT publish.

use super::roster::{Id, Roster};
use crate::outlier::{Change, Detector};
use mesh_xds::resource::{ClusterName, LbPolicy, OutlierDetection};
use std::sync::Arc;
use tokio::{sync::Notify, time::Instant};

/// The leaves that detect outliers.
#[derive(Debug, Default)]
pub(super) struct Outliers {
    leaves: Vec<Leaf>,
    /// Rung by endpoints with too many failures in a row.
    alarm: Arc<Notify>,
}

#[derive(Debug)]
struct Leaf {
    name: ClusterName,
    config: Arc<OutlierDetection>,
    detector: Detector<Id>,
    hosts: Vec<Id>,
}

impl Outliers {
    pub(super) fn alarm(&self) -> Arc<Notify> {
        Arc::clone(&self.alarm)
    }

    /// Follows the roster's leaves; `otherwise` is for those that do not say. Returns who is back.
    pub(super) fn configure(
        &mut self,
        roster: &Roster,
        otherwise: Option<&Arc<OutlierDetection>>,
        now: Instant,
    ) -> Vec<(Id, Change)> {
        let mut before = std::mem::take(&mut self.leaves);
        let mut changes = Vec::new();
        for (source, hosts) in roster.leaves() {
            let old = before.iter().position(|leaf| leaf.name == source.cluster.name);
            let old = old.map(|position| before.swap_remove(position));
            // "no effect when pick_first is the direct child" (A50).
            let allowed = !matches!(source.cluster.lb_policy, LbPolicy::PickFirst { .. });
            let config = source.cluster.outlier_detection.as_ref().or(otherwise);
            let Some(config) = config.filter(|config| allowed && config.is_active()) else {
                changes.extend(old.into_iter().flat_map(Leaf::returned));
                self.watch(roster, hosts, None);
                continue;
            };
            let mut detector = match old {
                Some(mut old) => {
                    old.detector.reconfigure(Arc::clone(config));
                    old.detector
                }
                None => Detector::new(Arc::clone(config), now),
            };
            detector.retain(|id| roster.endpoint(*id).is_some());
            self.watch(roster, hosts, Some(config));
            let (name, config, hosts) = (source.cluster.name.clone(), Arc::clone(config), hosts.to_vec());
            self.leaves.push(Leaf { name, config, detector, hosts });
        }
        changes
    }

    fn watch(&self, roster: &Roster, hosts: &[Id], config: Option<&Arc<OutlierDetection>>) {
        for endpoint in hosts.iter().filter_map(|id| roster.endpoint(*id)) {
            if config.is_some() || endpoint.outcomes.is_watched() {
                endpoint.watch(config.map(AsRef::as_ref), &self.alarm);
            }
        }
    }

    /// An endpoint has other addresses now: it starts afresh.
    pub(super) fn renewed(&mut self, id: Id, roster: &Roster) {
        let Some(leaf) = self.leaves.iter_mut().find(|leaf| leaf.hosts.contains(&id)) else { return };
        leaf.detector.retain(|other| *other != id);
        if let Some(endpoint) = roster.endpoint(id) {
            endpoint.watch(Some(&leaf.config), &self.alarm);
        }
    }

    pub(super) fn next_sweep(&self) -> Option<Instant> {
        self.leaves.iter().map(|leaf| leaf.detector.next_sweep()).min()
    }

    /// Sweeps the leaves whose time has come.
    pub(super) fn sweep(&mut self, roster: &Roster, now: Instant) -> Vec<(Id, Change)> {
        let mut changes = Vec::new();
        for leaf in self.leaves.iter_mut().filter(|leaf| leaf.detector.next_sweep() <= now) {
            let endpoint = |id: &Id| Some((*id, roster.endpoint(*id)?.outcomes.take()));
            let hosts: Vec<_> = leaf.hosts.iter().filter_map(endpoint).collect();
            changes.extend(leaf.detector.sweep(now, &hosts, &mut |below| fastrand::u32(..below)));
            for endpoint in leaf.hosts.iter().filter_map(|id| roster.endpoint(*id)) {
                endpoint.outcomes.swept();
            }
        }
        for endpoint in changes.iter().filter_map(|(id, _)| roster.endpoint(*id)) {
            endpoint.outcomes.forgive();
        }
        changes
    }

    /// The alarm was rung: looks who has failed too often in a row.
    pub(super) fn alarmed(&mut self, roster: &Roster, now: Instant) -> Vec<(Id, Change)> {
        let mut changes = Vec::new();
        for leaf in &mut self.leaves {
            for (id, endpoint) in leaf.hosts.iter().filter_map(|id| Some((*id, roster.endpoint(*id)?))) {
                let (detector, draw) = (&mut leaf.detector, &mut |below| fastrand::u32(..below));
                if endpoint.outcomes.judged(|streak| detector.tripped(now, id, streak, leaf.hosts.len(), draw)) {
                    changes.push((id, Change::Ejected));
                }
            }
        }
        changes
    }
}

impl Leaf {
    /// "switching to no-op unejects all" - A50
    fn returned(self) -> Vec<(Id, Change)> {
        self.detector.ejected().map(|id| (id, Change::Returned)).collect()
    }
}
