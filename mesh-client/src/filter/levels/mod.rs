//! Which filters run where: the declared ones, as each part of the routes overrides them (A39).
//!
//! ```text
//!  listener's http_filters ─► RouteConfiguration ─► virtual host ─► route ─► share of a traffic split
//! ```
//!
//! A level says something of some filters; of the others it says what the level above says. A level that says nothing is
//! the level above. From one configuration to the next a level finds its counterpart by what it says: filters whose name
//! and configuration stayed are kept with whatever they have counted, and chains of the same filters keep their `Arc`.
//! Nothing here is asked while a call is under way.

use super::{
    Makers,
    chain::{Chain, Instance},
};
use mesh_xds::resource::{FilterOverride, FilterOverrides, HttpFilter, HttpFilterConfig};
use rustc_hash::FxHashSet;
use std::sync::Arc;

/// One part of the configuration that says something of filters.
#[derive(Debug)]
pub(crate) struct Level {
    says: FilterOverrides,
    /// By index of the declared filters, also those that are off.
    instances: Box<[Arc<Instance>]>,
    is_on: Box<[bool]>,
    chain: Option<Arc<Chain>>,
}

impl Level {
    /// What the calls of this part pass.
    pub(crate) fn chain(&self) -> Option<Arc<Chain>> {
        self.chain.clone()
    }
}

/// How far from its place the counterpart of a level is looked for: ten thousand routes that all change must not be
/// compared with each other. What moved farther than that begins anew.
const REACH: usize = 256;

/// Builds the levels of one virtual host, the listener's first.
#[derive(Debug)]
pub(crate) struct LevelBuilder<'a> {
    declared: &'a [HttpFilter],
    makers: &'a Makers,
    /// Those of the configuration before, each until it has found its successor.
    before: Vec<Option<&'a Arc<Level>>>,
    /// Behind the one that was found last: order rarely changes.
    next: usize,
    /// Instances of levels, old and new: each has one place.
    placed: FxHashSet<*const Instance>,
    levels: Vec<Arc<Level>>,
}

impl<'a> LevelBuilder<'a> {
    /// `before` is what [`finish`](Self::finish) returned for the configuration before.
    pub(crate) fn new(declared: &'a [HttpFilter], makers: &'a Makers, before: &'a [Arc<Level>]) -> Self {
        let before = before.iter().map(Some).collect();
        Self { declared, makers, before, next: 0, placed: FxHashSet::default(), levels: Vec::new() }
    }

    /// The filters as the listener declares them. To be called first.
    pub(crate) fn root(&mut self) -> Arc<Level> {
        let before = self.before.first_mut().and_then(Option::take);
        self.next = 1;
        let instances =
            self.declared.iter().map(|filter| self.instance(&filter.name, &filter.config, before)).collect();
        let is_on = self.declared.iter().map(|filter| !filter.disabled).collect();
        self.add(FilterOverrides::default(), instances, is_on, before)
    }

    /// What is below `above`, and says this.
    pub(crate) fn below(&mut self, above: &Arc<Level>, says: &FilterOverrides) -> Arc<Level> {
        if says.is_empty() {
            return Arc::clone(above);
        }
        let before = self.counterpart(says);
        let declared = self.declared.iter().enumerate();
        let instances = declared.clone().map(|(index, filter)| match says.of(&filter.name) {
            Some(FilterOverride::Config(config)) if config.is_same_type(&filter.config) => {
                self.instance(&filter.name, config, before)
            }
            // Another type under this name can not stand in for it, and a route configuration does not know which filters
            // a listener has: "not NACK: key names an instance that does not exist, or a filter for the other side" (A39).
            _ => Arc::clone(&above.instances[index]),
        });
        let instances = instances.collect();
        let is_on = declared.map(|(index, filter)| match says.of(&filter.name) {
            None => above.is_on[index],
            Some(FilterOverride::Disabled) => false,
            Some(FilterOverride::Enabled | FilterOverride::Config(_)) => true,
        });
        let is_on = is_on.collect();
        self.add(says.clone(), instances, is_on, before)
    }

    /// All levels, for the next configuration.
    pub(crate) fn finish(self) -> Vec<Arc<Level>> {
        self.levels
    }

    fn add(
        &mut self,
        says: FilterOverrides,
        instances: Box<[Arc<Instance>]>,
        is_on: Box<[bool]>,
        before: Option<&Arc<Level>>,
    ) -> Arc<Level> {
        let mut chain =
            Chain::of(instances.iter().zip(&is_on).filter(|(_, is_on)| **is_on).map(|(instance, _)| instance));
        if let (Some(new), Some(old)) = (&chain, before.and_then(|before| before.chain.as_ref()))
            && new.is(old)
        {
            chain = Some(Arc::clone(old));
        }
        let level = Arc::new(Level { says, instances, is_on, chain });
        self.levels.push(Arc::clone(&level));
        level
    }

    /// The level before that said the same, or else the one that is at this place and may say something of it.
    fn counterpart(&mut self, says: &FilterOverrides) -> Option<&'a Arc<Level>> {
        let count = self.before.len();
        let mut order = (self.next..count).chain(1..self.next.min(count)).take(REACH);
        match order.find(|at| self.before[*at].is_some_and(|level| level.says == *says)) {
            Some(at) => {
                self.next = at + 1;
                self.before[at].take()
            }
            None => self.before.get(self.next).copied().flatten(),
        }
    }

    /// The instance that the level before had for the same, or a new one.
    fn instance(&mut self, name: &str, config: &HttpFilterConfig, before: Option<&Arc<Level>>) -> Arc<Instance> {
        let mut kept = before.into_iter().flat_map(|level| &level.instances);
        let is_same = |kept: &Instance| kept.name == name && kept.config.as_ref() == Some(config);
        let kept = kept.find(|kept| is_same(kept) && !self.placed.contains(&Arc::as_ptr(kept)));
        let instance = kept.map(Arc::clone).unwrap_or_else(|| {
            let filter = self.makers.make(name, config);
            Arc::new(Instance { name: name.to_owned(), config: Some(config.clone()), filter })
        });
        self.placed.insert(Arc::as_ptr(&instance));
        instance
    }
}

#[cfg(test)]
mod tests;
