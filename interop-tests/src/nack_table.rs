//! The rules for which a resource is refused, each with a resource that breaks it and a valid twin.
//!
//! The rows are files (`fixtures/nack/`), so that one table serves the test of decoding and the tests over the wire.
//! This module reads them; it does NOT know what a client does with them.

use mesh_xds::{
    control_plane::{
        Resources,
        proto::{
            envoy::config::{
                cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
                route::v3::RouteConfiguration,
            },
            google::protobuf::Any,
        },
    },
    resource::Kind,
};
use prost::{Message, Name};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::fs;

/// The names of `certificate_providers` that the rows about TLS expect in the bootstrap.
pub const CERTIFICATE_PROVIDERS: [&str; 2] = ["certs", "roots"];

/// One rule.
#[derive(Clone, Debug)]
pub struct Row {
    /// Of both resources.
    pub kind: Kind,
    /// The sentence, with the gRFC it is from.
    pub rule: String,
    /// Where `bad` is bad.
    pub path: String,
    /// Must be NACKed.
    pub bad: Any,
    /// Must be ACKed.
    pub good: Any,
}

/// A file of the table.
#[derive(Deserialize)]
struct File {
    base: Value,
    rows: Vec<Patches>,
}

#[derive(Deserialize)]
struct Patches {
    rule: String,
    path: String,
    bad: Value,
    good: Value,
}

/// All rows of all kinds.
///
/// # Panics
/// When a file of the table has a mistake, with the rule and the reason.
pub fn rows() -> Vec<Row> {
    Kind::ALL.into_iter().flat_map(rows_of).collect()
}

fn rows_of(kind: Kind) -> Vec<Row> {
    let name = match kind {
        Kind::Listener => "listener",
        Kind::RouteConfig => "route",
        Kind::Cluster => "cluster",
        Kind::Endpoints => "endpoints",
        Kind::Other(_) => unreachable!("the table has the four of Kind::ALL"),
    };
    let path = format!("{}/fixtures/nack/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let File { base, rows } = serde_norway::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
    rows.into_iter()
        .map(|Patches { rule, path, bad, good }| {
            let patched = |patch: Value| {
                let mut resource = base.clone();
                merge(&mut resource, patch);
                encode(kind, resource).unwrap_or_else(|error| panic!("{rule}: {error}"))
            };
            let (bad, good) = (patched(bad), patched(good));
            Row { kind, rule, path, bad, good }
        })
        .collect()
}

/// JSON merge patch (RFC 7386).
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, value) in patch {
        let Some(target) = target.as_object_mut() else { return };
        if value.is_null() {
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Encodes a resource, also one whose name is empty, which the loader refuses.
fn encode(kind: Kind, resource: Value) -> Result<Any, String> {
    match kind {
        Kind::Listener => encode_as::<Listener>(resource, "name", |listener| listener.name.clear()),
        Kind::RouteConfig => encode_as::<RouteConfiguration>(resource, "name", |routes| routes.name.clear()),
        Kind::Cluster => encode_as::<Cluster>(resource, "name", |cluster| cluster.name.clear()),
        Kind::Endpoints => {
            encode_as::<ClusterLoadAssignment>(resource, "cluster_name", |endpoints| endpoints.cluster_name.clear())
        }
        Kind::Other(_) => unreachable!("the table has the four of Kind::ALL"),
    }
}

fn encode_as<M: Message + Name + Default>(
    mut resource: Value,
    name_field: &str,
    clear_name: fn(&mut M),
) -> Result<Any, String> {
    let object = resource.as_object_mut().ok_or("not an object")?;
    object.insert("@type".to_owned(), M::type_url().into());
    let name = object.get(name_field).and_then(Value::as_str).unwrap_or_default().to_owned();
    if name.is_empty() {
        object.insert(name_field.to_owned(), "unnamed".into());
    }
    let resources = Resources::from_yaml(&resource.to_string()).map_err(|error| error.to_string())?;
    let key = if name.is_empty() { "unnamed" } else { &name };
    let mut message: M = resources.message(key).ok_or("lost on the way")?;
    if name.is_empty() {
        clear_name(&mut message);
    }
    Ok(Any { type_url: M::type_url(), value: message.encode_to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patches_merge_maps_replace_lists_and_delete_by_null() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "d": [1, 2]});
        merge(&mut target, json!({"a": {"b": null, "e": {"f": 3}}, "d": [4]}));
        assert_eq!(target, json!({"a": {"c": 2, "e": {"f": 3}}, "d": [4]}));
    }
}
