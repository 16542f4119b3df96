//! What the worker publishes: the picker of the priority that was chosen, those of others that retries have asked for, and
//! the list of endpoints.
//!
//! Equal inputs are no work, and what stayed equal is shared with what was published before. It does NOT change a state.

use super::Worker;
use crate::{
    balance::{
        Admission, Connections, Other, OtherPicker, Others, Picker, ReadyPicker,
        priority::{ConnectivityState, Standing},
    },
    cluster::{roster::Child, wanted::refusal},
};
use mesh_xds::{ClusterConfig, Leaves};
use std::sync::Arc;

/// What the published picker was made from: equal inputs are no work.
#[derive(Debug)]
pub(super) struct Published {
    config: Arc<ClusterConfig>,
    selected: Option<Child>,
    state: ConnectivityState,
    ready: u64,
    /// Of each locality; what follows from the fields above. Held no longer than the picker, which holds them, too.
    connections: Vec<Connections>,
    /// Of all priorities, while retries ask for others than the chosen one.
    others: Vec<OtherKey>,
}

/// A priority, how it stands, and the version of its READY endpoints.
type OtherKey = (Child, Standing, u64);

impl PartialEq for Published {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config)
            && (self.selected, self.state, self.ready) == (other.selected, other.state, other.ready)
            && self.others == other.others
    }
}

impl Worker {
    /// For `status()`.
    pub(super) fn list_endpoints(&self) {
        let list = self.roster.endpoints(&self.shared.roster.load());
        self.shared.roster.store(Arc::new(list));
    }

    /// What calls see from here on, if it is not what they see already.
    pub(super) fn publish(&mut self) {
        let selected = self.priorities.selected().copied();
        let position = selected.and_then(|child| self.roster.position(child)).unwrap_or_default();
        let mut key = Published {
            config: Arc::clone(&self.config),
            selected,
            state: self.roster.state(position),
            ready: self.roster.ready_version(position),
            connections: Vec::new(),
            others: self.others(),
        };
        if self.published.as_ref() == Some(&key) {
            return;
        }
        let picker = match &self.config.state {
            Err(error) => Picker::Fail(Arc::clone(&error.0)),
            Ok(leaves) => {
                let before = self.published.as_ref().filter(|before| before.selected == selected);
                let ready = self.roster.ready(position, before.map_or(&[], |before| &before.connections));
                key.connections = ready.iter().map(|(_, _, connections)| Arc::clone(connections)).collect();
                match ReadyPicker::new(self.roster.drops(position), ready) {
                    Some(ready) => Picker::Ready(self.loads.counting(ready, self.roster.place(position))),
                    None if key.state == ConnectivityState::TransientFailure => {
                        Picker::Fail(self.failure(leaves, position))
                    }
                    None => Picker::Wait,
                }
            }
        };
        let known = self.pickers_of_others(position, &key);
        let others = Others { count: self.roster.priorities(), chosen: position, known };
        self.shared.publish(picker, self.admission(position), others);
        self.published = Some(key);
        self.shared.applied.send_if_modified(|applied| {
            let changed = !applied.as_ref().is_some_and(|applied| Arc::ptr_eq(applied, &self.config));
            if changed {
                *applied = Some(Arc::clone(&self.config));
            }
            changed
        });
    }

    /// The circuit breaker of the leaf that a priority belongs to.
    fn admission(&self, position: usize) -> Option<Arc<Admission>> {
        let leaf = self.roster.place(position)?.leaf;
        self.admissions.get(leaf).map(Arc::clone)
    }

    /// How all priorities stand, while retries ask for others than the one that is chosen.
    fn others(&self) -> Vec<OtherKey> {
        if !self.priorities.is_asked() {
            return Vec::new();
        }
        let key = |(position, child)| (child, self.priorities.standing(&child), self.roster.ready_version(position));
        self.roster.children().enumerate().map(key).collect()
    }

    /// What retries can have of each; what stayed as it was is the same picker.
    fn pickers_of_others(&self, chosen: usize, key: &Published) -> Vec<Other> {
        let offer = self.shared.offer.load();
        let before = self.published.as_ref().filter(|before| Arc::ptr_eq(&before.config, &key.config));
        let before = |other: &OtherKey| {
            let position = before?.others.iter().position(|before| before == other)?;
            offer.others.known.get(position).filter(|known| matches!(known, Other::Ready(_))).cloned()
        };
        let picker = |(position, other @ (_, standing, _)): (usize, &OtherKey)| {
            if *standing != Standing::Works || position == chosen {
                return Other::None(*standing);
            }
            before(other).unwrap_or_else(|| {
                match ReadyPicker::new(self.roster.drops(position), self.roster.ready(position, &[])) {
                    Some(ready) => Other::Ready(Arc::new(OtherPicker {
                        admission: self.admission(position),
                        picker: self.loads.counting(ready, self.roster.place(position)),
                    })),
                    None => Other::None(Standing::Pending),
                }
            })
        };
        key.others.iter().enumerate().map(picker).collect()
    }

    /// Why there is no endpoint to call, with what is known of each leaf.
    fn failure(&self, leaves: &Leaves, position: usize) -> Arc<str> {
        let mut text = match (&self.last_failure, self.roster.ejected(position)) {
            (None, ejected @ 1..) => format!("no endpoint is left, {ejected} ejected"),
            (Some(last), ejected @ 1..) => format!("no endpoint is left, {ejected} ejected; last: {last}"),
            (Some(last), 0) if !self.roster.is_empty() => format!("no endpoint can be reached; last: {last}"),
            _ => "no endpoints".to_owned(),
        };
        for leaf in leaves.iter() {
            if let Some(why) = refusal(&leaf.cluster).or_else(|| leaf.note.clone()) {
                text.push_str(&format!(" ({why})"));
            }
        }
        text.into()
    }
}
