//! New leaves for a roster: who stays, who comes, who goes.
//!
//! An update of a leaf zips the old and the new list from both ends and hashes only what is between, so that one changed
//! endpoint of ten thousand costs two walks and no rebuild. It does NOT dial anybody.

use super::{Child, Counted, Id, Leaf, Locality, Priority, Roster};
use crate::{
    balance::Turn,
    cluster::{
        backend::Backend,
        wanted::{Wanted, joined, refusal},
    },
};
use mesh_xds::{
    ResolvedCluster,
    resource::{Addresses, Cluster, Discovery, LbPolicy},
};
use rustc_hash::FxHashMap;
use std::{mem, sync::Arc};

impl Roster {
    /// Takes new leaves. Endpoints whose leaf and addresses stay keep their connection; a leaf that is the same value is
    /// not looked into. Returns how many dials were stopped.
    pub(in crate::cluster) fn update<'a>(
        &mut self,
        leaves: impl IntoIterator<Item = &'a Arc<ResolvedCluster>>,
    ) -> usize {
        let mut old_leaves = mem::take(&mut self.leaves);
        let mut old_priorities: Vec<_> = mem::take(&mut self.priorities).into_iter().map(Some).collect();
        let mut stopped = 0;
        for source in leaves {
            let old = old_leaves.iter().position(|old| old.source.cluster.name == source.cluster.name);
            let old = old.map(|position| old_leaves.swap_remove(position));
            let range = old.as_ref().map_or(0..0, |old| old.priorities.clone());
            let before: Vec<_> = old_priorities[range].iter_mut().filter_map(Option::take).collect();
            stopped += match old {
                Some(old) if Arc::ptr_eq(&old.source, source) => self.keep_leaf(old, before),
                Some(old) => self.set_leaf(source, old.order, old.named, before),
                None => self.set_leaf(source, Vec::new(), false, before),
            };
        }
        let gone = old_leaves.into_iter().flat_map(|leaf| leaf.order);
        stopped += self.retire(gone);
        for index in 0..self.priorities.len() {
            self.recount(index);
        }
        stopped
    }

    fn keep_leaf(&mut self, leaf: Leaf, priorities: Vec<Priority>) -> usize {
        let start = self.priorities.len();
        let position = self.leaves.len();
        self.priorities.extend(priorities.into_iter().map(|priority| Priority { leaf: position, ..priority }));
        self.leaves.push(Leaf { priorities: start..self.priorities.len(), ..leaf });
        0
    }

    fn set_leaf(
        &mut self,
        source: &Arc<ResolvedCluster>,
        old: Vec<Id>,
        was_named: bool,
        before: Vec<Priority>,
    ) -> usize {
        let policy = &source.cluster.lb_policy;
        let joined = joined(policy, &source.endpoints);
        // No connection may be made or kept for a cluster whose security cannot be honoured.
        let wanted = match refusal(&source.cluster) {
            None => Wanted::new(&source.endpoints, joined.as_deref()),
            Some(_) => Wanted::nothing(),
        };
        let (order, stopped) = self.reconcile(outlives_its_list(&source.cluster), &old, &wanted.addresses);
        let named = !wanted.hostnames.is_empty();
        if named || was_named {
            self.name(&order, &wanted.hostnames);
        }
        let (leaf, start) = (self.leaves.len(), self.priorities.len());
        let mut next = 0;
        for (index, localities) in wanted.priorities.into_iter().enumerate() {
            let old = before.get(index);
            let child = old.map(|old| old.child).unwrap_or_else(|| {
                self.last_child += 1;
                Child(self.last_child)
            });
            let mut priority = Priority {
                child,
                leaf,
                localities: Vec::with_capacity(localities.len()),
                active: old.is_some_and(|old| old.active),
                has_strays: false,
                ready: 0,
                failed: 0,
                total: 0,
                ready_version: old.map_or(0, |old| old.ready_version) + 1,
            };
            for (position, (weight, len)) in localities.into_iter().enumerate() {
                let members = next..next + len;
                next = members.end;
                // The counter goes on where it was, so that small updates do not favour the first endpoints.
                let turn = old
                    .and_then(|old| old.localities.get(position))
                    .map(|locality| &locality.turn)
                    .filter(|turn| turn.serves(policy))
                    .map_or_else(|| Turn::of(policy, fastrand::usize(..1 << 16)), Clone::clone);
                priority.localities.push(Locality { weight, turn, members });
            }
            self.priorities.push(priority);
        }
        let (source, drops) = (Arc::clone(source), source.endpoints.drops.as_slice().into());
        self.leaves.push(Leaf { source, order, drops, named, priorities: start..self.priorities.len() });
        stopped
    }

    /// Gives each endpoint its hostname, or takes away the one that it had.
    fn name(&self, order: &[Id], hostnames: &[Option<&str>]) {
        for (position, id) in order.iter().enumerate() {
            if let Some(backend) = self.backends.get(*id) {
                backend.endpoint.set_hostname(hostnames.get(position).copied().flatten());
            }
        }
    }

    /// Lets go of endpoints that no leaf names any more. Returns how many dials were stopped.
    fn retire(&mut self, gone: impl IntoIterator<Item = Id>) -> usize {
        let gone = gone.into_iter().filter_map(|id| self.backends.remove(id));
        gone.inspect(|backend| backend.endpoint.set_priority(None)).filter(|backend| backend.retire()).count()
    }

    /// Ids for `wanted`, in order: those of `old` where the addresses are known; the rest of `old` is retired.
    fn reconcile(&mut self, outlives: bool, old: &[Id], wanted: &[&Addresses]) -> (Vec<Id>, usize) {
        let same = |id: &Id, addresses: &Addresses| {
            self.backends.get(*id).is_some_and(|backend| backend.addresses() == addresses)
        };
        let head = old.iter().zip(wanted).take_while(|(id, addresses)| same(id, addresses)).count();
        let tail = old[head..]
            .iter()
            .rev()
            .zip(wanted[head..].iter().rev())
            .take_while(|(id, addresses)| same(id, addresses))
            .count();
        let between = &old[head..old.len() - tail];
        let mut known = FxHashMap::default();
        let mut gone = Vec::new();
        for id in between {
            let Some(backend) = self.backends.get(*id) else { continue };
            // Of two with the same addresses one can be found again.
            gone.extend(known.insert(backend.addresses().clone(), *id));
        }
        let mut order = Vec::with_capacity(wanted.len());
        order.extend_from_slice(&old[..head]);
        for &addresses in &wanted[head..wanted.len() - tail] {
            let same = known.remove(addresses);
            let kept = same.or_else(|| outlives.then(|| self.outlives(&mut known, addresses)).flatten());
            order.push(kept.unwrap_or_else(|| self.backends.insert(Backend::new(Addresses::clone(addresses)))));
        }
        order.extend_from_slice(&old[old.len() - tail..]);
        gone.extend(known.into_values());
        let stopped = self.retire(gone);
        (order, stopped)
    }

    /// "If the currently selected subchannel's address is in the new list, keep it" (A61, as grpc-go does).
    fn outlives(&mut self, known: &mut FxHashMap<Addresses, Id>, addresses: &Addresses) -> Option<Id> {
        let among = |(old, id): (&Addresses, &Id)| {
            let peer = self.backends.get(*id)?.connection()?.peer;
            addresses.iter().any(|address| address == peer).then(|| (old.clone(), *id))
        };
        let (old, id) = known.iter().find_map(among)?;
        known.remove(&old);
        self.backends.get_mut(id)?.succeeded_by(addresses.clone());
        Some(id)
    }

    fn recount(&mut self, index: usize) {
        let priority = &mut self.priorities[index];
        (priority.ready, priority.failed, priority.total) = (0, 0, 0);
        priority.has_strays = false;
        for id in &self.leaves[priority.leaf].order[priority.members()] {
            let Some(backend) = self.backends.get_mut(*id) else { continue };
            backend.priority = index;
            backend.endpoint.set_priority(Some(index));
            backend.counted = backend.counts_as();
            priority.total += 1;
            priority.has_strays |= !priority.active && !backend.is_idle();
            match backend.counted {
                Counted::Ready => priority.ready += 1,
                Counted::Failed => priority.failed += 1,
                Counted::Other => {}
            }
        }
    }
}

/// Whether a connection stays while its address is in the newest list, whatever else is there: what pick_first does (A61),
/// and what a LOGICAL_DNS name wants, whose servers rotate their answers.
fn outlives_its_list(cluster: &Cluster) -> bool {
    matches!(cluster.lb_policy, LbPolicy::PickFirst { .. }) || matches!(cluster.discovery, Discovery::LogicalDns { .. })
}
