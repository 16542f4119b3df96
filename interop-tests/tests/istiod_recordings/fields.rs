//! No field that an istiod sends is dropped in silence: it matters, or it is reported, or it is listed here with a reason.
//!
//! Nobody keeps a list of what is understood. Each field that is set in a resource is taken out, in all its places at
//! once, and the rest is decoded again: if value, verdict and reports stay the same, it was dropped in silence. This
//! does NOT tell whether a field is understood rightly; the wire tests do.

use super::{all, decoded};
use mesh_xds::resource::{Kind, Received, Resource, TransportSocket};
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage, Value, prost::Message};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

/// The messages that our control plane can read from YAML.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let descriptors = include_bytes!("../../../mesh-xds/src/control_plane/descriptors.bin");
    DescriptorPool::decode(descriptors.as_slice()).expect("committed and complete")
});

/// Fields without a word about them, and why none is needed: they say what is done without them.
const SAID_ALREADY: &[(Kind, &str, &str)] = &[
    (Kind::RouteConfig, "virtual_hosts.routes.match.case_sensitive", "true, as if it were not set"),
    (Kind::RouteConfig, "virtual_hosts.routes.match.headers.string_match.safe_regex.google_re2", "the only engine"),
    (Kind::RouteConfig, "virtual_hosts.routes.match.safe_regex.google_re2", "the only engine"),
    (Kind::RouteConfig, "virtual_hosts.routes.route.retry_policy.retry_host_predicate.name", "its type says the same"),
    (Kind::RouteConfig, "virtual_hosts.routes.route.retry_policy.retry_priority.name", "its type says the same"),
    (
        Kind::RouteConfig,
        "virtual_hosts.routes.route.retry_policy.retry_host_predicate.typed_config",
        "its name says the same",
    ),
    (Kind::Cluster, "common_lb_config.healthy_panic_threshold", "0: no panic, and we have none"),
    (Kind::Cluster, "common_lb_config.locality_weighted_lb_config", "localities are always weighted"),
    (Kind::Cluster, "eds_cluster_config.eds_config.resource_api_version", "V3, and there is no other"),
    (Kind::Cluster, "eds_cluster_config.service_name", "the cluster's own name, as if it were not set"),
    (Kind::Cluster, "outlier_detection.base_ejection_time", "30 s, as if it were not set"),
    (Kind::Cluster, "outlier_detection.enforcing_consecutive_5xx", "100, as if it were not set"),
    (Kind::Cluster, "ring_hash_lb_config.minimum_ring_size", "1024, as if it were not set"),
    (Kind::Cluster, "type", "STATIC, as if it were not set"),
    (Kind::Endpoints, "endpoints.lb_endpoints.load_balancing_weight", "1, as if it were not set"),
];

#[test]
fn every_field_matters_or_is_reported() {
    let mut silent = BTreeMap::<(Kind, String), String>::new();
    for resource in all() {
        let before = decoded(&resource);
        let Ok(value) = &before.value else { continue };
        let mut reported: Vec<_> = before.ignored.iter().map(|field| without_places(&field.path)).collect();
        if let Resource::Cluster(cluster) = value
            && let TransportSocket::Unsupported { field } = &cluster.transport_socket
        {
            // Its calls fail, and name this field.
            reported.extend(field.split(':').next().map(str::to_owned));
        }
        let name = resource.kind.type_url().rsplit('/').next().expect("a name");
        let descriptor = POOL.get_message_by_name(name).expect("an xDS type");
        let message = DynamicMessage::decode(descriptor, resource.bytes.clone()).expect("recorded");
        let mut paths = BTreeSet::new();
        collect(&message, "", &mut paths);
        for path in paths {
            let is_reported = |reported: &String| {
                // An empty path is the whole resource.
                let rest = path.strip_prefix(reported.as_str());
                reported.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            if reported.iter().any(is_reported) {
                continue;
            }
            let mut rest = message.clone();
            take_out(&mut rest, &path.split('.').collect::<Vec<_>>());
            let mut changed = resource.clone();
            changed.bytes = rest.encode_to_vec().into();
            if is_same(&decoded(&changed), &before) {
                silent.entry((resource.kind, path)).or_insert_with(|| resource.file.clone());
            }
        }
    }
    let listed: BTreeSet<_> = SAID_ALREADY.iter().map(|(kind, path, _)| (*kind, (*path).to_owned())).collect();
    let unlisted: Vec<_> = silent.iter().filter(|(field, _)| !listed.contains(*field)).collect();
    let unlisted: Vec<_> = unlisted.iter().map(|((kind, path), file)| format!("{kind} {path} in {file}")).collect();
    assert!(unlisted.is_empty(), "dropped in silence:\n{}", unlisted.join("\n"));
    let stale: Vec<_> = listed.iter().filter(|field| !silent.contains_key(*field)).collect();
    assert!(stale.is_empty(), "listed for nothing: {stale:#?}");
}

fn is_same(one: &Received, other: &Received) -> bool {
    (&one.name, &one.value, &one.ignored) == (&other.name, &other.value, &other.ignored)
}

/// `routes[3].typed_per_filter_config["x"].y` is `routes.typed_per_filter_config.y`.
fn without_places(path: &str) -> String {
    let mut rest = path;
    let mut plain = String::new();
    while let Some((before, after)) = rest.split_once('[') {
        plain.push_str(before);
        // A key is quoted, and may hold a bracket.
        let end =
            if after.starts_with('"') { after.find("\"]").map(|at| at + 2) } else { after.find(']').map(|at| at + 1) };
        rest = &after[end.unwrap_or(after.len())..];
    }
    plain + rest
}

/// The paths of what is set, without indices and keys. An `Any` is as if its content stood in its place.
fn collect(message: &DynamicMessage, path: &str, paths: &mut BTreeSet<String>) {
    if let Some(content) = content(message) {
        return collect(&content, path, paths);
    }
    let mut is_empty = true;
    // Google's own types are values: a duration, a wrapper, free-form metadata.
    if !message.descriptor().full_name().starts_with("google.protobuf.") {
        for (field, value) in message.fields() {
            is_empty = false;
            let path = if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) };
            match value {
                Value::Message(inner) => collect(inner, &path, paths),
                Value::List(values) => collect_all(values.iter(), &path, paths),
                Value::Map(values) => collect_all(values.values(), &path, paths),
                _ => drop(paths.insert(path)),
            }
        }
    }
    if is_empty && !path.is_empty() {
        paths.insert(path.to_owned());
    }
}

fn collect_all<'a>(values: impl Iterator<Item = &'a Value>, path: &str, paths: &mut BTreeSet<String>) {
    for value in values {
        match value {
            Value::Message(inner) => collect(inner, path, paths),
            _ => drop(paths.insert(path.to_owned())),
        }
    }
}

/// Takes the field at `path` out of every place.
fn take_out(message: &mut DynamicMessage, path: &[&str]) {
    if let Some(mut content) = content(message) {
        take_out(&mut content, path);
        message.set_field_by_name("value", Value::Bytes(content.encode_to_vec().into()));
        return;
    }
    let Some((first, rest)) = path.split_first() else { return };
    let Some(field) = message.descriptor().get_field_by_name(first) else { return };
    if rest.is_empty() {
        return message.clear_field(&field);
    }
    if !message.has_field(&field) {
        return;
    }
    match message.get_field_mut(&field) {
        Value::Message(inner) => take_out(inner, rest),
        Value::List(values) => values.iter_mut().for_each(|value| take_out_of(value, rest)),
        Value::Map(values) => values.values_mut().for_each(|value| take_out_of(value, rest)),
        _ => {}
    }
}

fn take_out_of(value: &mut Value, path: &[&str]) {
    if let Value::Message(inner) = value {
        take_out(inner, path);
    }
}

/// What is in an `Any` of a known type.
fn content(message: &DynamicMessage) -> Option<DynamicMessage> {
    if message.descriptor().full_name() != "google.protobuf.Any" {
        return None;
    }
    let type_url = message.get_field_by_name("type_url")?.as_str()?.to_owned();
    let descriptor = POOL.get_message_by_name(type_url.rsplit('/').next()?)?;
    let value = message.get_field_by_name("value")?.as_bytes()?.clone();
    DynamicMessage::decode(descriptor, value).ok()
}
