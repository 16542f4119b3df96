//! Large resources as a control plane would send them, and the smallest change of each.
//!
//! They are encoded protobuf, so that a bench starts where the wire ends. This file does NOT decode.

use bytes::Bytes;
use mesh_xds::{
    control_plane::resources::{endpoints, route_config, virtual_host},
    decode::{DecodeContext, decode},
    resource::{Kind, Resource},
};
use prost::Message;
use std::net::{Ipv4Addr, SocketAddr};

/// Whether a resource is the first version or the next one, which differs in one entry in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// As first sent.
    First,
    /// One entry differs.
    OneChanged,
}

/// EDS: `count` endpoints of one locality; the change is another port.
pub fn assignment(count: usize, version: Version) -> Bytes {
    let mut addresses: Vec<_> =
        (0..count as u32).map(|n| SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + n), 8080))).collect();
    if version == Version::OneChanged {
        addresses[count / 2].set_port(8081);
    }
    encoded(&endpoints("greeter", &addresses))
}

/// RDS: `count` virtual hosts with a domain and a route each; the change is another cluster.
pub fn virtual_hosts(count: usize, version: Version) -> Bytes {
    let host = |n: usize| {
        let changed = version == Version::OneChanged && n == count / 2;
        let cluster = if changed { "other".to_owned() } else { format!("cluster-{n}") };
        virtual_host(&format!("service-{n}.prod.svc.cluster.local:8080"), &cluster)
    };
    encoded(&route_config("routes", (0..count).map(host).collect()))
}

/// Decodes what the functions above made.
///
/// # Panics
/// When it is refused: the inputs are valid.
pub fn decoded(kind: Kind, bytes: &Bytes) -> Resource {
    let received = decode(kind, kind.type_url(), bytes, &DecodeContext::default());
    received.value.unwrap_or_else(|invalid| panic!("the input is valid: {invalid}"))
}

fn encoded(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}
