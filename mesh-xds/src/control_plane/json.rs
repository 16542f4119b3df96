//! Protobuf-JSON to protobuf bytes, by descriptor, with the path of whatever is wrong.
//!
//! prost-reflect reads protobuf-JSON too, and reads the leaves here; but it cannot say *where* a mistake is, least of
//! all inside an `Any`, and it keeps maps in hash maps, so that the same file would encode differently each time and
//! look like a change. This walk builds the bytes bottom-up instead: fields by number, map entries by key.
//!
//! Both spellings of field names are understood, unknown fields are mistakes, enums go by name or number. Validation
//! rules (`validate.rules`) are NOT applied: the clients do that, with their own idea of them.

use crate::resource::Invalid;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor,
    prost::{Message, encoding},
    prost_types,
};
use serde::de::DeserializeSeed;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::LazyLock};

/// Every message that may appear in a resource; see `mesh-xds/tools/descriptors` for how the file is made.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!("descriptors.bin").as_slice())
        .expect("the committed descriptors are complete, which the tests of this file check")
});

/// A message that says its own type, in bytes.
#[derive(Debug, PartialEq)]
pub(super) struct Typed {
    pub(super) type_url: String,
    pub(super) value: Vec<u8>,
}

/// The message behind a type URL, if it is one that may appear in a resource.
pub(super) fn descriptor(type_url: &str) -> Option<MessageDescriptor> {
    POOL.get_message_by_name(type_url.rsplit('/').next()?)
}

/// Encodes an object that carries its type in `@type`.
pub(super) fn typed(value: &Value) -> Result<Typed, Invalid> {
    let object = object(value)?;
    let type_url = match object.get("@type") {
        Some(Value::String(url)) => url,
        Some(other) => return Err(expected("a type URL", other).within("@type")),
        None => return Err(Invalid::new("\"@type\" is missing")),
    };
    let descriptor = descriptor(type_url).ok_or_else(|| {
        let name = type_url.rsplit('/').next().unwrap_or_default();
        Invalid::new(format!("unknown type {name}")).within("@type")
    })?;
    // "If the embedded message type is well-known and has a custom JSON representation, that representation will be
    // embedded adding a field `value`" - google/protobuf/any.proto
    let value = if is_well_known(&descriptor) {
        message(&descriptor, object.get("value").unwrap_or(&Value::Null)).map_err(|invalid| invalid.within("value"))?
    } else {
        fields(&descriptor, object.iter().filter(|(key, _)| *key != "@type"))?
    };
    Ok(Typed { type_url: type_url.clone(), value })
}

fn message(descriptor: &MessageDescriptor, value: &Value) -> Result<Vec<u8>, Invalid> {
    match (descriptor.full_name(), value) {
        ("google.protobuf.Any", value) => {
            let Typed { type_url, value } = typed(value)?;
            Ok(prost_types::Any { type_url, value }.encode_to_vec())
        }
        ("google.protobuf.Struct", Value::Object(fields)) => Ok(structure(fields).encode_to_vec()),
        ("google.protobuf.ListValue", Value::Array(values)) => Ok(list(values).encode_to_vec()),
        ("google.protobuf.Value", value) => Ok(dynamic(value).encode_to_vec()),
        (_, Value::String(text)) if is_well_known(descriptor) => leaf(descriptor.clone(), value)
            .map_err(|Invalid { path, reason }| Invalid { path, reason: format!("{reason}, found {text:?}") }),
        _ if is_well_known(descriptor) => leaf(descriptor.clone(), value),
        _ => fields(descriptor, object(value)?.iter()),
    }
}

/// Types whose JSON is not an object of their fields.
fn is_well_known(descriptor: &MessageDescriptor) -> bool {
    descriptor.package_name() == "google.protobuf"
}

fn fields<'a>(
    descriptor: &MessageDescriptor,
    entries: impl Iterator<Item = (&'a String, &'a Value)>,
) -> Result<Vec<u8>, Invalid> {
    let mut encoded = BTreeMap::new();
    let mut chosen = BTreeMap::new();
    for (key, value) in entries {
        let field = descriptor
            .get_field_by_json_name(key)
            .or_else(|| descriptor.get_field_by_name(key))
            .ok_or_else(|| Invalid::new(format!("no such field in {}", descriptor.full_name())).within(key))?;
        // "null is an accepted value for all field types and treated as the default value" - ProtoJSON; a Value field
        // holds the null itself.
        if value.is_null() && !is_value(&field) {
            continue;
        }
        if let Some(oneof) = field.containing_oneof()
            && let Some(other) = chosen.insert(oneof.name().to_owned(), field.name().to_owned())
        {
            return Err(
                Invalid::new(format!("{other} is set already, and only one of them may be")).within(field.name())
            );
        }
        if encoded.insert(field.number(), self::field(&field, value)?).is_some() {
            return Err(Invalid::new("set twice, in two spellings").within(field.name()));
        }
    }
    Ok(encoded.into_values().flatten().collect())
}

fn is_value(field: &FieldDescriptor) -> bool {
    matches!(field.kind(), Kind::Message(message) if message.full_name() == "google.protobuf.Value") && !field.is_list()
}

fn field(field: &FieldDescriptor, value: &Value) -> Result<Vec<u8>, Invalid> {
    let name = field.name();
    if field.is_map() {
        return map(field, value).map_err(|invalid| invalid.within(name));
    }
    if !field.is_list() {
        return single(field, value).map_err(|invalid| invalid.within(name));
    }
    let Value::Array(values) = value else { return Err(expected("a list", value).within(name)) };
    let parts = values.iter().enumerate().map(|(index, value)| {
        if value.is_null() {
            return Err(expected("an element", value).at(index, name));
        }
        single(field, value).map_err(|invalid| invalid.at(index, name))
    });
    Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
}

fn map(field: &FieldDescriptor, value: &Value) -> Result<Vec<u8>, Invalid> {
    let Kind::Message(entry) = field.kind() else { return Err(Invalid::new("not a map")) };
    let mut bytes = vec![];
    // Sorted, whatever the JSON library does: the order must not depend on anything but the content.
    for (key, value) in object(value)?.iter().collect::<BTreeMap<_, _>>() {
        // The key is JSON text for every key type, which is how prost-reflect wants to read it inside a map.
        let key_bytes = leaf(entry.clone(), &json!({"key": key}))
            .or_else(|error| match serde_json::from_str::<Value>(key) {
                Ok(scalar) => leaf(entry.clone(), &json!({"key": scalar})),
                Err(_) => Err(error),
            })
            .map_err(|invalid| invalid.within(&format!("[{key:?}]")))?;
        let value_bytes = self::field(&entry.map_entry_value_field(), value).map_err(|invalid| {
            // The entry's field `value` is an artefact that JSON does not show.
            let path = invalid.path.strip_prefix("value").unwrap_or(&invalid.path).to_owned();
            Invalid { path: format!("[{key:?}]{path}"), reason: invalid.reason }
        })?;
        delimited(field.number(), &[key_bytes, value_bytes].concat(), &mut bytes);
    }
    Ok(bytes)
}

/// One value of a field, or one element of a repeated one, with its tag.
fn single(field: &FieldDescriptor, value: &Value) -> Result<Vec<u8>, Invalid> {
    if let Kind::Message(descriptor) = field.kind() {
        let mut bytes = vec![];
        delimited(field.number(), &message(&descriptor, value)?, &mut bytes);
        return Ok(bytes);
    }
    // A scalar is read as the only field of its message: prost-reflect knows all spellings of all scalar types.
    let wrapped = if field.is_list() { json!([value]) } else { value.clone() };
    let only = Value::Object(Map::from_iter([(field.json_name().to_owned(), wrapped)]));
    leaf(field.parent_message().clone(), &only)
}

fn leaf(descriptor: MessageDescriptor, value: &Value) -> Result<Vec<u8>, Invalid> {
    let read: Result<DynamicMessage, _> = descriptor.deserialize(value);
    read.map(|message| message.encode_to_vec()).map_err(|error| Invalid::new(error.to_string()))
}

fn delimited(number: u32, value: &[u8], bytes: &mut Vec<u8>) {
    encoding::encode_key(number, encoding::WireType::LengthDelimited, bytes);
    encoding::encode_varint(value.len() as u64, bytes);
    bytes.extend_from_slice(value);
}

// === Free-form JSON ===

fn structure(fields: &Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct { fields: fields.iter().map(|(key, value)| (key.clone(), dynamic(value))).collect() }
}

fn list(values: &[Value]) -> prost_types::ListValue {
    prost_types::ListValue { values: values.iter().map(dynamic).collect() }
}

fn dynamic(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        // serde_json gives every number as f64 unless it is built to keep arbitrary precision.
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(values) => Kind::ListValue(list(values)),
        Value::Object(fields) => Kind::StructValue(structure(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

// === Messages ===

pub(super) fn object(value: &Value) -> Result<&Map<String, Value>, Invalid> {
    value.as_object().ok_or_else(|| expected("an object", value))
}

pub(super) fn expected(wanted: &str, found: &Value) -> Invalid {
    let found = match found {
        Value::Null => "nothing".to_owned(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => format!("{found}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    Invalid::new(format!("expected {wanted}, found {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use prost::Name;
    use serde_json::json;

    fn cluster(value: Value) -> Result<Cluster, String> {
        let mut value = value;
        value["@type"] = Cluster::type_url().into();
        let typed = typed(&value).map_err(|invalid| invalid.to_string())?;
        Ok(Cluster::decode(typed.value.as_slice()).expect("what was encoded decodes"))
    }

    #[test]
    fn both_spellings_and_all_leaf_forms_are_read() {
        let camel = json!({
            "name": "a", "type": "EDS", "connectTimeout": "0.25s", "lbPolicy": "RING_HASH",
            "perConnectionBufferLimitBytes": 1024, "upstreamConfig": {"name": "x", "typedConfig": {
                "@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}},
            "metadata": {"filterMetadata": {"b": {"x": [1, "two", null, {"y": true}]}, "a": {}}},
            "ringHashLbConfig": {"minimumRingSize": "7"}, "respectDnsTtl": null
        });
        let snake = json!({
            "name": "a", "type": 3, "connect_timeout": "0.250s", "lb_policy": 2,
            "per_connection_buffer_limit_bytes": "1024", "upstream_config": {"name": "x", "typed_config": {
                "@type": "type.googleapis.com/google.protobuf.Duration", "value": "1.000s"}},
            "metadata": {"filter_metadata": {"a": {}, "b": {"x": [1, "two", null, {"y": true}]}}},
            "ring_hash_lb_config": {"minimum_ring_size": 7}
        });
        let cluster_a = cluster(camel).expect("camel case");
        assert_eq!(cluster_a, cluster(snake).expect("snake case"));
        assert_eq!(cluster_a.connect_timeout.expect("a duration").nanos, 250_000_000);
        assert_eq!(cluster_a.per_connection_buffer_limit_bytes.expect("a wrapper").value, 1024);
    }

    #[test]
    fn equal_files_encode_equally() {
        let value = || {
            let keys = (0..20).map(|index| (format!("key{index}"), json!({"x": 1, "y": 2, "z": 3})));
            json!({"@type": Cluster::type_url(), "metadata": {"filter_metadata": Map::from_iter(keys)}})
        };
        let first = typed(&value());
        (0..8).for_each(|_| assert_eq!(typed(&value()), first));
    }

    #[test]
    fn mistakes_are_named_by_their_place() {
        let wrapped = |inner: Value| json!({"typed_extension_protocol_options": {"a.b": inner}});
        let rows = [
            (json!({"nam": "a"}), "nam: no such field in envoy.config.cluster.v3.Cluster"),
            (json!({"name": 7}), "name: invalid type: integer `7`, expected a string"),
            (json!({"lb_policy": "FASTEST"}), "lb_policy: unrecognized enum value 'FASTEST'"),
            (json!({"connect_timeout": "soon"}), "connect_timeout: failed to parse duration, found \"soon\""),
            (json!({"health_checks": {}}), "health_checks: expected a list, found an object"),
            (json!({"health_checks": [{}, 1]}), "health_checks[1]: expected an object, found 1"),
            (json!({"health_checks": [{"timeout": []}]}), "health_checks[0].timeout: "),
            (json!({"type": "EDS", "cluster_type": {}}), "only one of them may be"),
            (json!({"lb_policy": 1, "lbPolicy": 2}), "lb_policy: set twice, in two spellings"),
            (wrapped(json!({})), r#"typed_extension_protocol_options["a.b"]: "@type" is missing"#),
            (
                wrapped(json!({"@type": "type.googleapis.com/no.Such"})),
                r#"typed_extension_protocol_options["a.b"].@type: unknown type no.Such"#,
            ),
            (
                wrapped(json!({"@type": "x/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "y": 1})),
                r#"typed_extension_protocol_options["a.b"].y: no such field in envoy.extensions.upstreams"#,
            ),
        ];
        for (value, expected) in rows {
            let error = cluster(value.clone()).expect_err(expected);
            assert!(error.contains(expected), "{value}\n  gives    {error}\n  expected {expected}");
        }
    }

    #[test]
    fn every_message_of_the_descriptors_is_resolved() {
        assert!(POOL.all_messages().count() > 500);
        assert!(POOL.all_messages().all(|message| message.fields().all(|field| !field.full_name().is_empty())));
    }
}
