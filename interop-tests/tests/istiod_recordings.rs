//! Every response that an istiod 1.14 sent to a proxyless client decodes without a refusal.
//!
//! The bytes are recordings (see `fixtures/istiod/README.md`), so this is the old shape that must stay accepted:
//! deprecated TLS fields, presence matches without a specifier, retry policies everywhere.

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use mesh_xds::{
    decode::{DecodeContext, decode},
    resource::{Kind, ListenerKind, Received, Resource, RouteAction, RouteSource, TransportSocket},
};
use prost::Message;
use std::{fs, path::Path};

fn scenario(folder: &Path) -> Vec<(String, Received)> {
    // The provider that istiod names in its TLS contexts.
    let context = DecodeContext { certificate_providers: ["default".to_owned()].into() };
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut received = Vec::new();
    for file in files {
        let response = DiscoveryResponse::decode(Bytes::from(fs::read(&file).unwrap())).unwrap();
        let kind = Kind::from_type_url(&response.type_url).unwrap();
        for any in response.resources {
            received.push((file.display().to_string(), decode(kind, &any.type_url, &any.value.into(), &context)));
        }
    }
    received
}

fn recordings() -> impl AsRef<Path> {
    concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/istiod")
}

fn resources(name: &str) -> Vec<Resource> {
    scenario(&recordings().as_ref().join(name)).into_iter().map(|(_, received)| received.value.unwrap()).collect()
}

#[test]
fn no_resource_is_refused() {
    let mut count = 0;
    for entry in fs::read_dir(recordings()).unwrap().map(|entry| entry.unwrap().path()) {
        if !entry.is_dir() {
            continue;
        }
        for (file, received) in scenario(&entry) {
            let name = received.name.as_deref();
            assert!(name.is_some(), "{file}: a resource without a name");
            if let Err(invalid) = received.value {
                panic!("{file}: {name:?}: {invalid}");
            }
            count += 1;
        }
    }
    assert!(count > 250, "only {count} resources found");
}

#[test]
fn a_plain_service_has_all_four_kinds() {
    let resources = resources("01-plain");
    let kinds: Vec<_> = resources.iter().map(Resource::kind).collect();
    assert_eq!(kinds, Kind::ALL);
    let Resource::Listener(listener) = &resources[0] else { panic!("{:?}", resources[0]) };
    let ListenerKind::Api(http) = &listener.kind else { panic!("{:?}", listener.kind) };
    assert_eq!(http.routes, RouteSource::Rds(resources[1].name().to_owned()));
    let Resource::Endpoints(endpoints) = &resources[3] else { panic!("{:?}", resources[3]) };
    assert_eq!(endpoints.priorities.len(), 1);
    assert_eq!(endpoints.priorities[0].len(), 2, "two localities");
}

#[test]
fn what_has_no_effect_is_reported_once_per_field() {
    let mut paths: Vec<_> = scenario(&recordings().as_ref().join("08-rewrite-redirect-headers-cors"))
        .into_iter()
        .flat_map(|(_, received)| received.ignored)
        .map(|field| field.path)
        .collect();
    paths.sort();
    let fields: Vec<_> = paths.iter().filter_map(|path| path.rsplit('.').next()).collect();
    for expected in ["cors", "prefix_rewrite", "redirect", "request_headers_to_add", "host_rewrite_literal"] {
        assert!(fields.contains(&expected), "{expected} is missing in {paths:#?}");
    }
    assert!(paths.len() < 40, "{paths:#?}");
}

#[test]
fn a_redirect_is_kept_as_a_route_that_fails() {
    let found = resources("08-rewrite-redirect-headers-cors").into_iter().any(|resource| match resource {
        Resource::RouteConfig(routes) => routes
            .virtual_hosts
            .iter()
            .flat_map(|host| &host.routes)
            .any(|route| route.action == RouteAction::Unsupported("redirect")),
        _ => false,
    });
    assert!(found);
}

#[test]
fn mutual_tls_is_understood_and_never_plaintext() {
    let socket = resources("10-istio-mutual").into_iter().find_map(|resource| match resource {
        Resource::Cluster(cluster) => Some(cluster.transport_socket.clone()),
        _ => None,
    });
    let field = "transport_socket: envoy.transport_sockets.tls".to_owned();
    assert_eq!(socket, Some(TransportSocket::Unsupported { field }));
}
