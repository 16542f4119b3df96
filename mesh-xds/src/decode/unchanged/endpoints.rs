//! Load assignments: in each locality, only the endpoints between the first and the last that changed are decoded.

use crate::{
    decode::{
        DecodeContext,
        endpoints::{METADATA, endpoint, has_unread},
        scope::Scope,
        wire::{Split, split},
    },
    resource::{ClusterLoadAssignment, IgnoredField, Locality, Received, Resource},
};
use bytes::Bytes;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use prost::Message;
use rustc_hash::FxHashSet;
use std::{mem, net::SocketAddr, sync::Arc};

/// Of `ClusterLoadAssignment`.
const ENDPOINTS: u32 = 2;
/// Of `LocalityLbEndpoints`.
const LB_ENDPOINTS: u32 = 2;

/// Decodes a `ClusterLoadAssignment` with the endpoints of `previous` where their bytes are equal.
///
/// `None`: something is invalid or unclear, or more than endpoints changed.
pub(in crate::decode) fn load_assignment(
    raw: &Bytes,
    context: &DecodeContext,
    previous: &Received,
) -> Option<Received> {
    let Ok(Resource::Endpoints(old)) = &previous.value else { return None };
    // A skipped endpoint is reported, and its place in the values is not that in the bytes. Metadata skips nothing.
    let metadata_at = match previous.ignored.as_slice() {
        [] => None,
        [field] => Some(field.path.strip_suffix(METADATA)?),
        _ => return None,
    };
    let (before, now) = (split(&previous.raw, ENDPOINTS)?, split(raw, ENDPOINTS)?);
    if before.rest != now.rest || before.parts.len() != now.parts.len() {
        return None;
    }
    let mut priorities: Vec<Vec<Locality>> = old.priorities.iter().map(|old| Vec::with_capacity(old.len())).collect();
    let mut patch = Patch { scope: Scope::new(context), fresh: FxHashSet::default() };
    let mut is_first = true;
    for (index, (before, now)) in before.parts.into_iter().zip(now.parts).enumerate() {
        let (before, now) = (&previous.raw[before], &raw[now]);
        let (before, now) = (Parts::of(before)?, Parts::of(now)?);
        if before.split.rest != now.split.rest {
            return None;
        }
        let priority = usize::try_from(before.priority()?).ok()?;
        // Within a priority localities stand in the order of the message.
        let (done, old) = (priorities.get_mut(priority)?, old.priorities.get(priority)?);
        let old = old.get(done.len())?;
        done.push(patch.locality(old, &before, &now)?);
        if let Some(place) = metadata_at
            && mem::take(&mut is_first)
        {
            // The report names the first place, which must be at the very beginning, to stay what it is.
            let first = pb::LbEndpoint::decode(now.first()?).ok()?;
            let has_metadata = first.metadata.as_ref().is_some_and(has_unread);
            if !has_metadata || place != format!("endpoints[{index}].lb_endpoints[0].") {
                return None;
            }
        }
    }
    // A locality of weight zero has no value.
    if priorities.iter().zip(&old.priorities).any(|(new, old)| new.len() != old.len()) {
        return None;
    }
    patch.finds_nothing_wrong(&priorities, metadata_at.is_some()).then(|| {
        let value = ClusterLoadAssignment { name: old.name.clone(), priorities, drops: old.drops.clone() };
        Received {
            name: Some(old.name.clone()),
            value: Ok(Resource::Endpoints(Arc::new(value))),
            version: None,
            ignored: previous.ignored.clone(),
            raw: raw.clone(),
        }
    })
}

/// An encoded locality, taken apart.
struct Parts<'a> {
    bytes: &'a [u8],
    split: Split,
}

impl<'a> Parts<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        Some(Self { bytes, split: split(bytes, LB_ENDPOINTS)? })
    }

    /// `None` where endpoints may be elsewhere, too.
    fn priority(&self) -> Option<u32> {
        let rest = pb::LocalityLbEndpoints::decode(self.split.rest.as_slice()).ok()?;
        rest.lb_config.is_none().then_some(rest.priority)
    }

    fn first(&self) -> Option<&'a [u8]> {
        (self.len() > 0).then(|| self.endpoint(0))
    }

    fn len(&self) -> usize {
        self.split.parts.len()
    }

    fn endpoint(&self, index: usize) -> &'a [u8] {
        &self.bytes[self.split.parts[index].clone()]
    }
}

/// What is decoded anew.
struct Patch<'a> {
    scope: Scope<'a>,
    fresh: FxHashSet<SocketAddr>,
}

impl Patch<'_> {
    /// `old` with the endpoints that changed.
    fn locality(&mut self, old: &Locality, before: &Parts<'_>, now: &Parts<'_>) -> Option<Locality> {
        if old.endpoints.len() != before.len() {
            return None;
        }
        let shorter = before.len().min(now.len());
        let head = (0..shorter).take_while(|&index| before.endpoint(index) == now.endpoint(index)).count();
        let tail = (1..=shorter - head)
            .take_while(|back| before.endpoint(before.len() - back) == now.endpoint(now.len() - back))
            .count();
        let mut endpoints = Vec::with_capacity(now.len());
        endpoints.extend_from_slice(&old.endpoints[..head]);
        for index in head..now.len() - tail {
            let message = pb::LbEndpoint::decode(now.endpoint(index)).ok()?;
            endpoints.push(endpoint(message, &mut self.fresh, &mut self.scope).ok()??);
        }
        endpoints.extend_from_slice(&old.endpoints[before.len() - tail..]);
        let weight: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
        u32::try_from(weight).ok()?;
        Some(Locality { id: Arc::clone(&old.id), weight: old.weight, endpoints })
    }

    /// Nothing new to report, and no address twice: the fresh ones differ from each other already.
    fn finds_nothing_wrong(self, priorities: &[Vec<Locality>], has_metadata: bool) -> bool {
        let addresses =
            || priorities.iter().flatten().flat_map(|locality| &locality.endpoints).flat_map(|e| e.addresses.iter());
        let occurrences = || addresses().filter(|address| self.fresh.contains(address)).count();
        let is_known = |field: &IgnoredField| has_metadata && field.path == METADATA;
        (self.fresh.is_empty() || occurrences() == self.fresh.len()) && self.scope.into_ignored().iter().all(is_known)
    }
}
