//! Clusters.

use super::{received, reports};
use mesh_xds::resource::{Cluster, Discovery, HttpProtocol, Kind, LbPolicy, Resource, TransportSocket};
use std::{sync::Arc, time::Duration};

fn cluster(yaml: &str) -> (Arc<Cluster>, Vec<String>) {
    let received = received(Kind::Cluster, yaml);
    let reports = reports(&received);
    match received.value {
        Ok(Resource::Cluster(cluster)) => (cluster, reports),
        other => panic!("{other:?}"),
    }
}

const POLICY: &str = "type.googleapis.com/envoy.extensions.load_balancing_policies";

const EDS: &str = "type: EDS\neds_cluster_config: {eds_config: {ads: {}}}\n";

// === Discovery ===

#[test]
fn an_eds_cluster_asks_for_its_own_name_unless_it_says_otherwise() {
    let (own, reports) = cluster(EDS);
    assert_eq!(own.discovery, Discovery::Eds { service_name: "x".to_owned() });
    assert_eq!(own.lb_policy, LbPolicy::RoundRobin);
    assert_eq!(own.transport_socket, TransportSocket::Plaintext);
    assert_eq!(reports, [""; 0]);
    let (other, _) = cluster("type: EDS\neds_cluster_config: {eds_config: {self: {}}, service_name: s}");
    assert_eq!(other.discovery, Discovery::Eds { service_name: "s".to_owned() });
}

#[test]
fn a_static_cluster_needs_neither_locality_nor_weight() {
    let (cluster, _) = cluster(
        "type: STATIC\nload_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: \
         {address: 127.0.0.1, port_value: 80}}}}]}]}",
    );
    let Discovery::Static(endpoints) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    assert_eq!(endpoints.name, "x");
    assert_eq!(endpoints.priorities[0][0].weight, 1);
    assert_eq!(endpoints.endpoints().count(), 1);
}

#[test]
fn a_cluster_without_type_is_static_and_may_be_empty() {
    let (cluster, _) = cluster("");
    let Discovery::Static(endpoints) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    assert_eq!(endpoints.endpoints().count(), 0);
}

#[test]
fn dns_and_aggregate_clusters_say_what_they_stand_for() {
    let (dns, _) = cluster(
        "type: LOGICAL_DNS\nload_assignment: {cluster_name: x, endpoints: [{lb_endpoints: [{endpoint: {address: \
         {socket_address: {address: db.example, port_value: 5432}}}}]}]}",
    );
    assert_eq!(dns.discovery, Discovery::LogicalDns { host: "db.example".to_owned(), port: 5432 });
    let (aggregate, _) = cluster(
        "cluster_type: {name: envoy.clusters.aggregate, typed_config: {'@type': \
         type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [a, b]}}",
    );
    assert_eq!(aggregate.discovery, Discovery::Aggregate(["a".into(), "b".into()].into()));
}

// === Load-balancing policy ===

#[test]
fn a_policy_that_is_known_and_missing_runs_as_round_robin() {
    for policy in ["LEAST_REQUEST", "RING_HASH", "MAGLEV"] {
        let (cluster, reports) = cluster(&format!("{EDS}lb_policy: {policy}"));
        assert_eq!(cluster.lb_policy, LbPolicy::RoundRobin);
        assert_eq!(reports, ["lb_policy: not supported yet: runs as round robin"]);
    }
    let (random, reports) = cluster(&format!("{EDS}lb_policy: RANDOM"));
    assert_eq!((&random.lb_policy, reports.len()), (&LbPolicy::Random, 0));
}

#[test]
fn the_first_supported_policy_of_the_list_wins() {
    let typed = |name: &str, rest: &str| {
        format!("{{typed_extension_config: {{name: p, typed_config: {{'@type': {POLICY}.{name}{rest}}}}}}}")
    };
    let picking = format!(", endpoint_picking_policy: {{policies: [{}]}}", typed("random.v3.Random", ""));
    for (policies, expected, reported) in [
        (
            typed("pick_first.v3.PickFirst", ", shuffle_address_list: true"),
            LbPolicy::PickFirst { shuffle: true },
            false,
        ),
        (typed("wrr_locality.v3.WrrLocality", &picking), LbPolicy::Random, false),
        (
            [typed("subset.v3.Subset", ""), typed("ring_hash.v3.RingHash", ""), typed("random.v3.Random", "")]
                .join(", "),
            LbPolicy::RoundRobin,
            true,
        ),
        (
            ["{}", "{typed_extension_config: {name: custom}}", &typed("random.v3.Random", "")].join(", "),
            LbPolicy::Random,
            false,
        ),
    ] {
        // It "overrides lb_policy whenever present" (A52), also an invalid one.
        let (cluster, reports) =
            cluster(&format!("{EDS}lb_policy: CLUSTER_PROVIDED\nload_balancing_policy: {{policies: [{policies}]}}"));
        assert_eq!((&cluster.lb_policy, !reports.is_empty()), (&expected, reported), "{policies}");
    }
}

// === Transport ===

#[test]
fn only_a_raw_buffer_is_plaintext() {
    let raw = "typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}";
    let (cluster, _) = cluster(&format!("{EDS}transport_socket: {{name: anything, {raw}}}"));
    assert_eq!(cluster.transport_socket, TransportSocket::Plaintext);
}

#[test]
fn tls_of_any_shape_is_never_plaintext() {
    let context = "'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
                   common_tls_context: {validation_context: {ca_certificate_provider_instance: {instance_name: default}}}";
    let tls = format!("{{name: envoy.transport_sockets.tls, typed_config: {{{context}}}}}");
    let proxied = format!(
        "{{name: envoy.transport_sockets.http_11_proxy, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.transport_sockets.http_11_proxy.v3.Http11ProxyUpstreamTransport, \
         transport_socket: {tls}}}}}"
    );
    for (yaml, field) in [
        (format!("transport_socket: {tls}"), "transport_socket: envoy.transport_sockets.tls"),
        (format!("transport_socket: {proxied}"), "transport_socket: envoy.transport_sockets.http_11_proxy"),
        (
            format!("transport_socket_matches: [{{name: m, match: {{}}, transport_socket: {tls}}}]"),
            "transport_socket_matches",
        ),
        ("transport_socket_matches: [{name: plaintext}]".to_owned(), "transport_socket_matches"),
    ] {
        let (cluster, _) = cluster(&format!("{EDS}{yaml}"));
        assert_eq!(cluster.transport_socket, TransportSocket::Unsupported { field: field.to_owned() });
    }
}

#[test]
fn the_http_version_comes_from_new_and_old_fields() {
    let options = |rest: &str| {
        let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        format!("typed_extension_protocol_options: {{{name}: {{'@type': type.googleapis.com/{name}, {rest}}}}}")
    };
    for (yaml, expected) in [
        (String::new(), HttpProtocol::Unspecified),
        (options("explicit_http_config: {http_protocol_options: {}}"), HttpProtocol::Http1),
        (options("explicit_http_config: {http2_protocol_options: {}}"), HttpProtocol::Http2),
        (options("explicit_http_config: {http3_protocol_options: {}}"), HttpProtocol::Http2),
        (options("use_downstream_protocol_config: {}"), HttpProtocol::Downstream),
        (options("auto_config: {}"), HttpProtocol::Auto),
        ("http2_protocol_options: {}".to_owned(), HttpProtocol::Http2),
        ("protocol_selection: USE_DOWNSTREAM_PROTOCOL".to_owned(), HttpProtocol::Downstream),
    ] {
        let (cluster, _) = cluster(&format!("{EDS}{yaml}"));
        assert_eq!(cluster.http_protocol, expected, "{yaml}");
    }
}

#[test]
fn the_first_default_threshold_limits_requests() {
    let (cluster, reports) = cluster(&format!(
        "{EDS}connect_timeout: 0.25s\ncircuit_breakers: {{thresholds: [{{priority: HIGH, max_requests: 1}}, \
         {{max_requests: 0, max_connections: 5}}, {{max_requests: 3}}]}}"
    ));
    assert_eq!(cluster.max_requests, Some(0));
    assert_eq!(cluster.connect_timeout, Some(Duration::from_millis(250)));
    let reported = |field: &str| format!("circuit_breakers.thresholds[1].{field}: ");
    assert_eq!(reports.len(), 2, "the thresholds that do not count are not reported: {reports:?}");
    assert!(reports[0].starts_with(&reported("max_requests")) && reports[1].starts_with(&reported("max_connections")));
}
