//! Every response that an istiod 1.14 sent decodes as gRPC would have it, and without a loss that nobody is told of.
//!
//! The bytes are recordings (see `fixtures/istiod/README.md`), so this is the old shape that must stay accepted:
//! deprecated TLS fields, presence matches without a specifier, retry policies everywhere. It does NOT replay them.

mod fields;

use bytes::Bytes;
use interop_tests::recordings::{responses, scenarios};
use mesh_xds::{
    decode::{DecodeContext, decode},
    resource::{Kind, ListenerKind, Received, Resource, RouteAction, RouteSource, TransportSocket},
};
use std::collections::BTreeMap;

/// A resource as it came.
#[derive(Clone, Debug)]
struct Recorded {
    /// Scenario and file.
    file: String,
    kind: Kind,
    bytes: Bytes,
}

/// The resources of a scenario.
fn scenario(name: &str) -> Vec<Recorded> {
    let of_response = |response: interop_tests::recordings::Response| {
        let (file, kind) = (response.file, response.kind);
        let recorded = move |any: envoy_types::pb::google::protobuf::Any| Recorded {
            file: file.clone(),
            kind,
            bytes: any.value.into(),
        };
        response.resources.into_values().map(recorded).collect::<Vec<_>>()
    };
    responses(name).unwrap().into_iter().flat_map(of_response).collect()
}

/// The resources of all scenarios.
fn all() -> Vec<Recorded> {
    let scenarios = scenarios().unwrap();
    assert_eq!(scenarios.len(), 57);
    scenarios.iter().flat_map(|name| scenario(name)).collect()
}

fn decoded(resource: &Recorded) -> Received {
    // The provider that istiod names in its TLS contexts.
    let context = DecodeContext { certificate_providers: ["default".to_owned()].into(), ..DecodeContext::default() };
    decode(resource.kind, resource.kind.type_url(), &resource.bytes, &context)
}

fn resources(name: &str) -> Vec<Resource> {
    scenario(name).iter().map(|resource| decoded(resource).value.unwrap()).collect()
}

/// What gRPC refuses of it: the clusters of sidecars that go where the connection went before (`ORIGINAL_DST` with
/// `CLUSTER_PROVIDED`), which no gRPC node is sent. By scenario and name, with our words. Everything else is accepted.
const REFUSED: &[(&str, &str, &str)] = &[
    ("70", "InboundPassthroughClusterIpv4", CLUSTER_PROVIDED),
    ("70", "PassthroughCluster", CLUSTER_PROVIDED),
    ("71", "InboundPassthroughClusterIpv4", CLUSTER_PROVIDED),
    ("71", "PassthroughCluster", CLUSTER_PROVIDED),
    ("71", "inbound|17070||", CLUSTER_PROVIDED),
    ("71", "inbound|18080||", CLUSTER_PROVIDED),
    ("72", "InboundPassthroughClusterIpv4", CLUSTER_PROVIDED),
    ("72", "PassthroughCluster", CLUSTER_PROVIDED),
];

const CLUSTER_PROVIDED: &str = "lb_policy: unknown policy 6";

#[test]
fn nothing_is_refused_that_grpc_accepts() {
    let mut refused = BTreeMap::new();
    let all = all();
    assert!(all.len() > 500, "only {} resources found", all.len());
    for resource in all {
        let received = decoded(&resource);
        let name = received.name.unwrap_or_else(|| panic!("{}: a resource without a name", resource.file));
        if let Err(invalid) = received.value {
            let scenario = resource.file.split('-').next().unwrap().to_owned();
            refused.insert((scenario, name), invalid.to_string());
        }
    }
    let expected =
        REFUSED.iter().map(|(scenario, name, why)| (((*scenario).to_owned(), (*name).to_owned()), (*why).to_owned()));
    assert_eq!(refused, expected.collect());
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
    let mut paths: Vec<_> = scenario("08-rewrite-redirect-headers-cors")
        .iter()
        .flat_map(|resource| decoded(resource).ignored)
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
