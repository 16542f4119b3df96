//! Every rule of the NACK table refuses its bad resource at the named field, and only that one.

use bytes::Bytes;
use interop_tests::nack_table::{CERTIFICATE_PROVIDERS, rows};
use mesh_xds::{
    control_plane::proto::{
        envoy::{
            config::{
                cluster::v3::{
                    Cluster, LoadBalancingPolicy,
                    cluster::{ClusterDiscoveryType::ClusterType, CustomClusterType},
                    load_balancing_policy::Policy,
                },
                core::v3::{
                    Address, Locality, Metadata, TransportSocket, TypedExtensionConfig,
                    transport_socket::ConfigType as SocketConfig,
                },
                endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints},
                listener::v3::{ApiListener, Listener},
                route::v3::{FilterConfig, RouteConfiguration},
            },
            extensions::{
                clusters::aggregate::v3::ClusterConfig as AggregateConfig,
                filters::{
                    http::{fault::v3::HttpFault, router::v3::Router},
                    network::http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier,
                        http_filter::ConfigType,
                    },
                },
                load_balancing_policies::ring_hash::v3::RingHash,
                transport_sockets::tls::v3::UpstreamTlsContext,
                upstreams::http::v3::HttpProtocolOptions,
            },
        },
        google::protobuf::{Any, UInt32Value},
    },
    decode::{DecodeContext, decode},
    resource::{Kind, Received},
};
use prost::{Message, Name};
use std::collections::HashSet;

fn received(kind: Kind, any: &Any) -> Received {
    let context = DecodeContext {
        certificate_providers: CERTIFICATE_PROVIDERS.map(str::to_owned).into(),
        ..DecodeContext::default()
    };
    decode(kind, &any.type_url, &Bytes::from(any.value.clone()), &context)
}

#[test]
fn each_rule_refuses_the_bad_resource_at_its_field_and_takes_its_twin() {
    let mut failures = Vec::new();
    for row in rows() {
        match received(row.kind, &row.bad).value {
            Ok(_) => failures.push(format!("{}: the bad one was taken", row.rule)),
            Err(invalid) if invalid.path != row.path => {
                failures.push(format!("{}: refused at {:?} and not {:?}: {invalid}", row.rule, invalid.path, row.path));
            }
            Err(invalid) => assert!(!invalid.reason.is_empty(), "{}", row.rule),
        }
        if let Err(invalid) = received(row.kind, &row.good).value {
            failures.push(format!("{}: the good one was refused: {invalid}", row.rule));
        }
    }
    assert!(failures.is_empty(), "{} rules fail:\n{}", failures.len(), failures.join("\n"));
}

// === What YAML cannot say ===

fn empty(type_url: String) -> Any {
    Any { type_url, value: Vec::new() }
}

fn filter(name: &str, any: Any, is_optional: bool) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        is_optional,
        config_type: Some(ConfigType::TypedConfig(any)),
        ..HttpFilter::default()
    }
}

fn manager(http_filters: Vec<HttpFilter>) -> Any {
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration::default())),
        http_filters,
        ..HttpConnectionManager::default()
    };
    Any { type_url: HttpConnectionManager::type_url(), value: manager.encode_to_vec() }
}

fn listener(any: Option<Any>) -> Vec<u8> {
    let api = ApiListener { api_listener: any };
    Listener { name: "x".to_owned(), api_listener: Some(api), ..Listener::default() }.encode_to_vec()
}

/// Bytes that are no such message.
#[test]
fn a_message_that_cannot_be_read_is_refused_where_it_is_even_when_optional() {
    let broken = |type_url: String| Some(Any { type_url, value: b"\xff".to_vec() });
    let fault = filter("fault", broken(HttpFault::type_url()).unwrap(), true);
    let manager = Some(manager(vec![fault, filter("router", empty(Router::type_url()), false)]));
    let cluster = |cluster: Cluster| Cluster { name: "x".to_owned(), ..cluster }.encode_to_vec();
    let socket = TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: broken(UpstreamTlsContext::type_url()).map(SocketConfig::TypedConfig),
    };
    let options = HttpProtocolOptions::type_url();
    let extension = |any| TypedExtensionConfig { name: "e".to_owned(), typed_config: any };
    let policy = Policy { typed_extension_config: Some(extension(broken(RingHash::type_url()))) };
    let aggregate = CustomClusterType { name: "a".to_owned(), typed_config: broken(AggregateConfig::type_url()) };
    let key = "envoy.http11_proxy_transport_socket.proxy_address";
    let proxy = [(key.to_owned(), broken(Address::type_url()).unwrap())].into();
    let locality = LocalityLbEndpoints {
        locality: Some(Locality::default()),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        metadata: Some(Metadata { typed_filter_metadata: proxy, ..Metadata::default() }),
        ..LocalityLbEndpoints::default()
    };
    let endpoints =
        ClusterLoadAssignment { cluster_name: "x".to_owned(), endpoints: vec![locality], ..Default::default() };
    let table = [
        (Kind::Listener, "api_listener.api_listener", listener(broken(HttpConnectionManager::type_url()))),
        (Kind::Listener, "api_listener.api_listener.http_filters[0].typed_config", listener(manager)),
        (
            Kind::Cluster,
            "cluster_type.typed_config",
            cluster(Cluster { cluster_discovery_type: Some(ClusterType(aggregate)), ..Cluster::default() }),
        ),
        (
            Kind::Cluster,
            "transport_socket.typed_config",
            cluster(Cluster { transport_socket: Some(socket), ..Cluster::default() }),
        ),
        (
            Kind::Cluster,
            "load_balancing_policy.policies[0].typed_extension_config.typed_config",
            cluster(Cluster {
                load_balancing_policy: Some(LoadBalancingPolicy { policies: vec![policy] }),
                ..Cluster::default()
            }),
        ),
        (
            Kind::Cluster,
            "upstream_config.typed_config",
            cluster(Cluster { upstream_config: Some(extension(broken(options))), ..Cluster::default() }),
        ),
        (
            Kind::Endpoints,
            "endpoints[0].metadata.typed_filter_metadata[\"envoy.http11_proxy_transport_socket.proxy_address\"]",
            endpoints.encode_to_vec(),
        ),
    ];
    for (kind, path, value) in table {
        let invalid = received(kind, &Any { type_url: kind.type_url().to_owned(), value }).value.expect_err(path);
        assert_eq!(invalid.path, path);
        assert!(invalid.reason.contains("malformed"), "{invalid}");
    }
}

/// A filter that is known, and reads messages only: whatever the struct says. The loader has no descriptor of TypedStruct.
#[test]
fn a_filter_of_grpc_in_a_typed_struct_is_refused_even_when_optional() {
    /// Both spellings are the same on the wire.
    #[derive(Clone, PartialEq, Message)]
    struct TypedStruct {
        #[prost(string, tag = "1")]
        type_url: String,
    }
    let router = || filter("router", empty(Router::type_url()), false);
    for spelling in ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"] {
        let typed = |type_url| {
            let value = TypedStruct { type_url }.encode_to_vec();
            Any { type_url: format!("type.googleapis.com/{spelling}"), value }
        };
        let fault = || typed(HttpFault::type_url());
        let of_route = |says: Any| {
            let typed_per_filter_config = [("f".to_owned(), says)].into();
            RouteConfiguration { name: "x".to_owned(), typed_per_filter_config, ..Default::default() }.encode_to_vec()
        };
        let wrapper = FilterConfig { config: Some(fault()), is_optional: true, ..FilterConfig::default() };
        let wrapper = Any { type_url: FilterConfig::type_url(), value: wrapper.encode_to_vec() };
        let filters = "api_listener.api_listener.http_filters";
        let table = [
            (Kind::Listener, format!("{filters}[0].typed_config"), {
                listener(Some(manager(vec![filter("f", fault(), true), router()])))
            }),
            (Kind::Listener, format!("{filters}[0].typed_config"), {
                listener(Some(manager(vec![filter("router", typed(Router::type_url()), false)])))
            }),
            (Kind::RouteConfig, r#"typed_per_filter_config["f"]"#.to_owned(), of_route(fault())),
            (Kind::RouteConfig, r#"typed_per_filter_config["f"].config"#.to_owned(), of_route(wrapper)),
        ];
        for (kind, path, value) in table {
            let invalid = received(kind, &Any { type_url: kind.type_url().to_owned(), value }).value.expect_err(&path);
            assert_eq!(invalid.path, path);
            assert!(invalid.reason.ends_with("must not come in a TypedStruct"), "{invalid}");
        }
    }
}

#[test]
fn the_table_has_many_distinct_rules() {
    let rows = rows();
    let rules: HashSet<_> = rows.iter().map(|row| (row.kind, &row.rule)).collect();
    assert_eq!(rules.len(), rows.len(), "a rule is there twice");
    let places: HashSet<_> = rows.iter().map(|row| (row.kind, &row.path)).collect();
    assert!(places.len() >= 60, "only {} fields are covered", places.len());
}

#[test]
fn a_refused_resource_still_tells_its_name() {
    for row in rows().into_iter().filter(|row| !["name", "cluster_name"].contains(&row.path.as_str())) {
        assert!(received(row.kind, &row.bad).name.is_some(), "{}", row.rule);
    }
}
