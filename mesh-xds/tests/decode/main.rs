//! What valid resources become: values, reports, and what is left out.
//!
//! Resources are written as YAML in Envoy's own format. What is refused is NOT tested here but by the NACK table of
//! the interop-tests package.
#![cfg(feature = "control-plane")]

mod cluster;
mod endpoints;
mod filter;
mod listener;
mod route;

use bytes::Bytes;
use mesh_xds::{
    control_plane::{
        Resources,
        proto::{
            envoy::{
                config::{
                    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
                    route::v3::RouteConfiguration,
                },
                service::discovery::v3::Resource as Wrapper,
            },
            google::protobuf::Any,
        },
    },
    decode::{DecodeContext, decode},
    resource::{Kind, Received, Resource},
};
use prost::{Message, Name};

/// Decodes the resource `yaml`, without its `@type` and named `x`.
fn received(kind: Kind, yaml: &str) -> Received {
    let name = if kind == Kind::Endpoints { "cluster_name" } else { "name" };
    let yaml = format!("\"@type\": {}\n{name}: x\n{yaml}", kind.type_url());
    let resources = Resources::from_yaml(&yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    fn bytes<M: Message + Name + Default>(resources: &Resources) -> Bytes {
        resources.message::<M>("x").expect("just read").encode_to_vec().into()
    }
    let bytes = match kind {
        Kind::Listener => bytes::<Listener>(&resources),
        Kind::RouteConfig => bytes::<RouteConfiguration>(&resources),
        Kind::Cluster => bytes::<Cluster>(&resources),
        Kind::Endpoints => bytes::<ClusterLoadAssignment>(&resources),
        Kind::Other(_) => unreachable!("no table has another"),
    };
    decode(kind, kind.type_url(), &bytes, &context())
}

fn context() -> DecodeContext {
    DecodeContext { certificate_providers: ["default".to_owned()].into(), ..DecodeContext::default() }
}

/// What was reported, as an operator reads it.
fn reports(received: &Received) -> Vec<String> {
    received.ignored.iter().map(ToString::to_string).collect()
}

fn eds(name: &str) -> Any {
    let assignment = ClusterLoadAssignment { cluster_name: name.to_owned(), ..Default::default() };
    Any { type_url: ClusterLoadAssignment::type_url(), value: assignment.encode_to_vec() }
}

#[test]
fn a_resource_in_a_wrapper_is_the_resource() {
    let bare = eds("e");
    let wrapper = Wrapper { name: "ignored".to_owned(), resource: Some(bare.clone()), ..Wrapper::default() };
    let received = decode(Kind::Endpoints, &Wrapper::type_url(), &wrapper.encode_to_vec().into(), &context());
    assert_eq!(received.name.as_deref(), Some("e"));
    assert_eq!(received.raw, bare.value);
    assert_eq!(received.value.as_ref().map(Resource::name), Ok("e"));
}

#[test]
fn a_wrapper_names_what_cannot_be_read() {
    let resource = Any { value: b"\xff".to_vec(), ..eds("e") };
    let wrapper = Wrapper { name: "e".to_owned(), resource: Some(resource), ..Wrapper::default() };
    let received = decode(Kind::Endpoints, &Wrapper::type_url(), &wrapper.encode_to_vec().into(), &context());
    assert_eq!(received.name.as_deref(), Some("e"));
    assert!(received.value.is_err());
    let empty = Wrapper { name: "e".to_owned(), ..Wrapper::default() };
    let received = decode(Kind::Endpoints, &Wrapper::type_url(), &empty.encode_to_vec().into(), &context());
    assert_eq!(received.value.unwrap_err().path, "resource");
}

#[test]
fn garbage_has_no_name() {
    for type_url in [Kind::Cluster.type_url(), &Wrapper::type_url()] {
        let received = decode(Kind::Cluster, type_url, &Bytes::from_static(b"\x0a\xff"), &context());
        assert_eq!(received.name, None);
        assert!(received.value.is_err());
    }
}

#[test]
fn another_type_is_refused_and_another_prefix_is_not() {
    let Any { type_url, value } = eds("e");
    let value = Bytes::from(value);
    let wrong = decode(Kind::Cluster, &type_url, &value, &context());
    assert!(wrong.value.unwrap_err().reason.contains("ClusterLoadAssignment"));
    let v2 = decode(Kind::Endpoints, "type.googleapis.com/envoy.api.v2.ClusterLoadAssignment", &value, &context());
    assert!(v2.value.is_err());
    // "The content after the last slash names the type" (Any).
    let prefix =
        decode(Kind::Endpoints, "example.com/envoy.config.endpoint.v3.ClusterLoadAssignment", &value, &context());
    assert!(prefix.value.is_ok());
}
