//! Route configurations: virtual hosts are told apart by their bytes, and taken over with their identity.

use crate::{
    decode::{
        DecodeContext,
        route::{named_route_config, virtual_host},
        scope::Scope,
        wire::split,
    },
    resource::{IgnoredField, Received, Resource, RouteConfig},
};
use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3 as pb;
use prost::Message;
use rustc_hash::FxHashMap;
use std::sync::Arc;

const VIRTUAL_HOSTS: u32 = 2;

/// Decodes a `RouteConfiguration` with the virtual hosts of `previous` where their bytes are equal.
///
/// `None`: something is invalid or unclear.
pub(in crate::decode) fn route_config(raw: &Bytes, context: &DecodeContext, previous: &Received) -> Option<Received> {
    let Ok(Resource::RouteConfig(old)) = &previous.value else { return None };
    let (before, now) = (split(&previous.raw, VIRTUAL_HOSTS)?, split(raw, VIRTUAL_HOSTS)?);
    // Every virtual host is kept in its place, so bytes and values correspond.
    if before.parts.len() != old.virtual_hosts.len() {
        return None;
    }
    let old_bytes = |index: usize| before.parts.get(index).map(|part| &previous.raw[part.clone()]);
    let mut scope = Scope::new(context);
    let rest = named_route_config(pb::RouteConfiguration::decode(now.rest.as_slice()).ok()?, &mut scope).ok()?;
    let mut moved_to = FxHashMap::default();
    let mut by_bytes: Option<FxHashMap<&[u8], usize>> = None;
    let mut virtual_hosts = Vec::with_capacity(now.parts.len());
    for (index, part) in now.parts.into_iter().enumerate() {
        let bytes = &raw[part];
        let from = if old_bytes(index) == Some(bytes) {
            Some(index)
        } else {
            // Built only when something changed or moved.
            let by_bytes =
                by_bytes.get_or_insert_with(|| (0..).map_while(|index| Some((old_bytes(index)?, index))).collect());
            by_bytes.get(bytes).copied()
        };
        virtual_hosts.push(match from {
            Some(from) => {
                moved_to.insert(from, index);
                old.virtual_hosts[from].clone()
            }
            None => {
                let host = pb::VirtualHost::decode(bytes).ok()?;
                Arc::new(scope.at("virtual_hosts", index, |scope| virtual_host(host, scope)).ok()?)
            }
        });
    }
    let mut ignored = scope.into_ignored();
    for field in &previous.ignored {
        // The first place stands for all (see `Scope`): if it is gone, only decoding everything finds the next.
        let Some((from, within)) = of_virtual_host(&field.path) else { continue };
        let path = format!("virtual_hosts[{}]{within}", moved_to.get(&from)?);
        if !ignored
            .iter()
            .any(|other| other.reason == field.reason && without_indices(&other.path) == without_indices(&path))
        {
            ignored.push(IgnoredField { path, reason: field.reason });
        }
    }
    let name = rest.name.clone();
    let value = Resource::RouteConfig(Arc::new(RouteConfig { virtual_hosts, ..rest }));
    Some(Received { name: Some(name), value: Ok(value), version: None, ignored, raw: raw.clone() })
}

/// The index and the rest of a path below `virtual_hosts`.
fn of_virtual_host(path: &str) -> Option<(usize, &str)> {
    let (index, within) = path.strip_prefix("virtual_hosts[")?.split_once(']')?;
    Some((index.parse().ok()?, within))
}

fn without_indices(path: &str) -> String {
    path.chars().filter(|character| !character.is_ascii_digit()).collect()
}
