//! Bootstrap JSON, key by key.
//!
//! Read by hand from a JSON tree rather than through derived types, so that what control planes really write is
//! tolerated (unknown keys, `null`, entries of other types in `server_features`) and a mistake is named with its
//! path. It does NOT look at keys of features that do not exist here yet.

use super::{
    Bootstrap, ChannelCredentials, Node, ServerAddress, TransportOptions, XdsServer,
    authority::{Authorities, Entry},
    credentials::{call_creds, certificate_provider, channel_creds},
};
use crate::resource::Invalid;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

pub(super) type Object = Map<String, Value>;

pub(super) fn bootstrap(json: &str) -> Result<Bootstrap, Invalid> {
    let root: Value = serde_json::from_str(json).map_err(|error| Invalid::new(format!("not JSON: {error}")))?;
    let Value::Object(root) = root else { return Err(Invalid::new("must be a JSON object")) };
    let servers = servers(&root)?;
    if servers.is_empty() {
        return Err(Invalid::new("must be a list of at least one server").within("xds_servers"));
    }
    let node = match present(&root, "node") {
        None => Node::default(),
        Some(node_value) => node(node_value).map_err(|invalid| invalid.within("node"))?,
    };
    let template = match string(&root, "client_default_listener_resource_name_template")? {
        "" => "%s",
        template => template,
    };
    let providers = match present(&root, "certificate_providers") {
        None => BTreeSet::new(),
        Some(value) => certificate_providers(value)?,
    };
    let mut authorities = Authorities::new(servers, template.to_owned());
    if let Some(value) = present(&root, "authorities") {
        for (name, value) in object(value).map_err(|invalid| invalid.within("authorities"))? {
            let added = authority(value).and_then(|entry| authorities.add(name, entry));
            added.map_err(|invalid| invalid.within(&format!("authorities[{name:?}]")))?;
        }
    }
    Ok(Bootstrap {
        authorities,
        node,
        certificate_providers: providers,
        transport: TransportOptions::default(),
        resolver: crate::dns::Resolver::default(),
        extensions: crate::Registry::default(),
    })
}

/// The names of those that are known.
fn certificate_providers(value: &Value) -> Result<BTreeSet<String>, Invalid> {
    let mut known = BTreeSet::new();
    for (name, provider) in object(value).map_err(|invalid| invalid.within("certificate_providers"))? {
        let at = |invalid: Invalid| invalid.within(&format!("certificate_providers[{name:?}]"));
        if certificate_provider(provider).map_err(at)? {
            known.insert(name.clone());
        }
    }
    Ok(known)
}

fn authority(value: &Value) -> Result<Entry, Invalid> {
    let value = object(value)?;
    let template = string(value, "client_listener_resource_name_template")?;
    let template = Some(template).filter(|template| !template.is_empty()).map(str::to_owned);
    Ok(Entry { servers: servers(value)?, template })
}

/// `xds_servers`; none when absent.
fn servers(parent: &Object) -> Result<Vec<XdsServer>, Invalid> {
    let entries = match present(parent, "xds_servers") {
        Some(Value::Array(entries)) => entries.as_slice(),
        None => &[],
        Some(_) => return Err(Invalid::new("must be a list of at least one server").within("xds_servers")),
    };
    let read = |(index, entry)| server(entry).map_err(|invalid| invalid.at(index, "xds_servers"));
    entries.iter().enumerate().map(read).collect()
}

fn server(entry: &Value) -> Result<XdsServer, Invalid> {
    let entry = object(entry)?;
    let uri = match string(entry, "server_uri")? {
        "" => return Err(Invalid::new("must not be empty").within("server_uri")),
        uri => uri,
    };
    let credentials =
        channel_creds(present(entry, "channel_creds")).map_err(|invalid| invalid.within("channel_creds"))?;
    let address = address(uri, &credentials).map_err(|invalid| invalid.within("server_uri"))?;
    let call_credentials = call_creds(present(entry, "call_creds")).map_err(|invalid| invalid.within("call_creds"))?;
    let features = match present(entry, "server_features") {
        Some(Value::Array(entries)) => entries.as_slice(),
        None => &[],
        Some(_) => return Err(Invalid::new("must be a list").within("server_features")),
    };
    let server = XdsServer { address, credentials, call_credentials, features: Vec::new() };
    // "entries of any JSON type it does not know are skipped" - A30.
    Ok(features.iter().filter_map(Value::as_str).fold(server, XdsServer::feature))
}

/// A URL that says how secure it is must not be contradicted: whoever writes `https://` does not want plaintext.
fn address(uri: &str, credentials: &ChannelCredentials) -> Result<ServerAddress, Invalid> {
    match (uri.split_once("://"), credentials) {
        // Port 443, as `dns:` has it, unless there is another.
        (Some(("https", rest)), ChannelCredentials::Tls(_)) => {
            let rest = rest.trim_end_matches('/');
            ServerAddress::parse(&format!("dns:///{rest}"))
                .map_err(|_| Invalid::new(format!("{uri:?}: must be https://host:port")))
        }
        (Some(("http", _)), ChannelCredentials::Tls(_)) => {
            Err(Invalid::new(format!("{uri:?}: says plaintext, and channel_creds say TLS")))
        }
        _ => ServerAddress::parse(uri),
    }
}

fn node(value: &Value) -> Result<Node, Invalid> {
    let node = object(value)?;
    let empty = Object::new();
    let child = |key: &str| match present(node, key) {
        None => Ok(&empty),
        Some(child) => object(child).map_err(|invalid| invalid.within(key)),
    };
    let locality = child("locality")?;
    let place = |key: &str| string(locality, key).map(str::to_owned).map_err(|invalid| invalid.within("locality"));
    Ok(Node {
        id: string(node, "id")?.to_owned(),
        cluster: string(node, "cluster")?.to_owned(),
        region: place("region")?,
        zone: place("zone")?,
        sub_zone: place("sub_zone")?,
        metadata: child("metadata")?.clone(),
    })
}

/// `null` is as good as absent: istio's agent writes some.
pub(super) fn present<'a>(object: &'a Object, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

pub(super) fn object(value: &Value) -> Result<&Object, Invalid> {
    value.as_object().ok_or_else(|| Invalid::new("must be an object"))
}

/// Empty when absent, as in protobuf.
pub(super) fn string<'a>(object: &'a Object, key: &str) -> Result<&'a str, Invalid> {
    match present(object, key) {
        None => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(Invalid::new("must be a string").within(key)),
    }
}
