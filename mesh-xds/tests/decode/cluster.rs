//! Clusters.

use super::{received, reports};
use mesh_xds::resource::{
    CircuitBreakers, Cluster, Consecutive, Discovery, DnsFamily, FailurePercentage, HttpProtocol, Kind, LbPolicy,
    LocalOrigin, OutlierDetection, Resource, RetryBudget, SuccessRate, TransportSocket,
};
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
    let Discovery::LogicalDns { name, family } = &dns.discovery else { panic!("{:?}", dns.discovery) };
    assert_eq!((name.to_string().as_str(), *family), ("db.example:5432", DnsFamily::All));
    assert_eq!(name.refresh.interval, None, "only when its endpoint fails");
    let (aggregate, _) = cluster(
        "cluster_type: {name: envoy.clusters.aggregate, typed_config: {'@type': \
         type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [a, b]}}",
    );
    assert_eq!(aggregate.discovery, Discovery::Aggregate(["a".into(), "b".into()].into()));
}

/// A cluster with one endpoint of this name.
fn dns(fields: &str) -> (Arc<Cluster>, Vec<String>) {
    cluster(&format!(
        "{fields}\nload_assignment: {{endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: \
         db.example, port_value: 5432}}}}}}}}]}}]}}"
    ))
}

#[test]
fn a_strict_dns_cluster_keeps_its_assignment_with_names_for_addresses() {
    let (cluster, _) = cluster(
        "type: STRICT_DNS\nload_assignment: {endpoints: [\
         {locality: {region: r}, load_balancing_weight: 3, lb_endpoints: [{endpoint: {hostname: h, address: {socket_address: \
         {address: x.example, port_value: 1}}}}]}, \
         {locality: {region: s}, priority: 1, lb_endpoints: [{health_status: DRAINING, endpoint: {address: {socket_address: \
         {address: 10.0.0.1, port_value: 2}}}}]}], policy: {drop_overloads: [{category: c, drop_percentage: {numerator: 5}}]}}",
    );
    let Discovery::StrictDns { assignment, family } = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    assert_eq!((assignment.name.as_str(), *family, assignment.drops.len()), ("x", DnsFamily::Auto, 1));
    let [first, second] = assignment.priorities.as_slice() else { panic!("{assignment:?}") };
    assert_eq!((first[0].weight, first[0].id.region.as_str(), second[0].weight), (3, "r", 1));
    let names: Vec<_> = assignment.endpoints().map(|endpoint| endpoint.addresses.to_string()).collect();
    assert_eq!(names, ["x.example:1", "10.0.0.1:2"]);
    let (empty, _) = self::cluster("type: STRICT_DNS");
    let Discovery::StrictDns { assignment, .. } = &empty.discovery else { panic!("{:?}", empty.discovery) };
    assert_eq!(assignment.endpoints().count(), 0);
}

#[test]
fn how_often_names_are_looked_up_is_as_the_fields_say() {
    let milliseconds = Duration::from_millis;
    for (fields, interval, base, max) in [
        ("type: LOGICAL_DNS", None, 1_000, 120_000),
        ("type: LOGICAL_DNS\ndns_refresh_rate: 60s", Some(60_000), 1_000, 120_000),
        ("type: STRICT_DNS", Some(5_000), 5_000, 5_000),
        ("type: STRICT_DNS\ndns_refresh_rate: 0.001s", Some(1), 1, 1),
        ("type: STRICT_DNS\ndns_failure_refresh_rate: {base_interval: 2s}", Some(5_000), 2_000, 20_000),
        ("type: LOGICAL_DNS\ndns_failure_refresh_rate: {base_interval: 2s, max_interval: 2s}", None, 2_000, 2_000),
    ] {
        let (cluster, reports) = dns(fields);
        let refresh = match &cluster.discovery {
            Discovery::LogicalDns { name, .. } => name.refresh,
            Discovery::StrictDns { assignment, .. } => assignment.endpoints().next().expect("one").addresses.refresh,
            other => panic!("{other:?}"),
        };
        let found = (refresh.interval, refresh.failure_base, refresh.failure_max);
        assert_eq!(found, (interval.map(milliseconds), milliseconds(base), milliseconds(max)), "{fields}");
        assert_eq!(reports, [""; 0], "{fields}");
    }
}

#[test]
fn families_are_those_of_the_field_and_a_logical_name_has_both_unless_it_says_otherwise() {
    for (field, strict, logical) in [
        ("AUTO", DnsFamily::Auto, DnsFamily::All),
        ("V4_ONLY", DnsFamily::V4Only, DnsFamily::V4Only),
        ("V6_ONLY", DnsFamily::V6Only, DnsFamily::V6Only),
        ("V4_PREFERRED", DnsFamily::V4Preferred, DnsFamily::V4Preferred),
        ("ALL", DnsFamily::All, DnsFamily::All),
    ] {
        for (kind, expected) in [("STRICT_DNS", strict), ("LOGICAL_DNS", logical)] {
            let (cluster, _) = dns(&format!("type: {kind}\ndns_lookup_family: {field}"));
            let (Discovery::StrictDns { family, .. } | Discovery::LogicalDns { family, .. }) = &cluster.discovery
            else {
                panic!("{:?}", cluster.discovery)
            };
            assert_eq!(*family, expected, "{kind} {field}");
        }
    }
}

/// The same by `DnsCluster`.
fn dns_extension(config: &str, fields: &str) -> (Arc<Cluster>, Vec<String>) {
    dns(&format!(
        "cluster_type: {{name: envoy.clusters.dns, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster, {config}}}}}\n{fields}"
    ))
}

#[test]
fn a_dns_cluster_has_one_endpoint_or_one_for_each_address_as_it_says() {
    let (strict, reports) = dns_extension("", "");
    let Discovery::StrictDns { assignment, family } = &strict.discovery else { panic!("{:?}", strict.discovery) };
    assert_eq!((assignment.name.as_str(), *family, reports), ("x", DnsFamily::Auto, vec![]));
    let name = &assignment.endpoints().next().expect("one").addresses;
    assert_eq!((name.to_string().as_str(), name.refresh.interval), ("db.example:5432", Some(Duration::from_secs(5))));
    let (logical, _) = dns_extension(
        "all_addresses_in_single_endpoint: true, dns_refresh_rate: 60s, dns_failure_refresh_rate: {base_interval: 2s}, \
         respect_dns_ttl: true, dns_lookup_family: V4_ONLY",
        "",
    );
    let Discovery::LogicalDns { name, family } = &logical.discovery else { panic!("{:?}", logical.discovery) };
    let found = (name.refresh.interval, name.refresh.failure_base, name.refresh.failure_max, name.refresh.respect_ttl);
    let seconds = Duration::from_secs;
    assert_eq!((found, *family), ((Some(seconds(60)), seconds(2), seconds(20), true), DnsFamily::V4Only));
}

#[test]
fn the_families_of_a_dns_cluster_are_those_of_its_own_field() {
    for (field, strict, logical) in [
        ("UNSPECIFIED", DnsFamily::Auto, DnsFamily::All),
        ("AUTO", DnsFamily::Auto, DnsFamily::All),
        ("V4_ONLY", DnsFamily::V4Only, DnsFamily::V4Only),
        ("V6_ONLY", DnsFamily::V6Only, DnsFamily::V6Only),
        ("V4_PREFERRED", DnsFamily::V4Preferred, DnsFamily::V4Preferred),
        ("ALL", DnsFamily::All, DnsFamily::All),
    ] {
        for (single, expected) in [(false, strict), (true, logical)] {
            let config = format!("dns_lookup_family: {field}, all_addresses_in_single_endpoint: {single}");
            let (cluster, _) = dns_extension(&config, "");
            let (Discovery::StrictDns { family, .. } | Discovery::LogicalDns { family, .. }) = &cluster.discovery
            else {
                panic!("{:?}", cluster.discovery)
            };
            assert_eq!(*family, expected, "{config}");
        }
    }
}

#[test]
fn what_a_dns_cluster_replaces_or_cannot_have_is_reported() {
    let (cluster, reports) = dns_extension(
        "respect_dns_ttl: true, dns_jitter: 1s, dns_min_refresh_rate: 1s",
        "dns_refresh_rate: 1s\nrespect_dns_ttl: true\ndns_lookup_family: V4_ONLY",
    );
    let Discovery::StrictDns { assignment, family } = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    let interval = assignment.endpoints().next().expect("one").addresses.refresh.interval;
    assert_eq!((*family, interval), (DnsFamily::Auto, Some(Duration::from_secs(5))), "its own fields count");
    let fields: Vec<_> = reports.iter().filter_map(|report| Some(report.split_once(": ")?.0)).collect();
    let in_config = ["respect_dns_ttl", "dns_jitter", "dns_min_refresh_rate"];
    let in_config = in_config.map(|field| format!("cluster_type.typed_config.{field}"));
    assert_eq!(fields[..3], ["dns_refresh_rate", "respect_dns_ttl", "dns_lookup_family"]);
    assert_eq!(fields[3..], in_config);
}

#[test]
fn what_a_resolver_would_have_to_do_is_reported() {
    let (_, reports) = dns("type: STRICT_DNS\nrespect_dns_ttl: true\nuse_tcp_for_dns_lookups: true\ndns_jitter: 1s");
    assert_eq!(reports.len(), 3, "{reports:?}");
    assert!(reports[0].starts_with("respect_dns_ttl: the system's resolver tells no TTL"), "{reports:?}");
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
fn the_first_default_thresholds_are_the_limits() {
    let (cluster, reports) = cluster(&format!(
        "{EDS}connect_timeout: 0.25s\ncircuit_breakers: {{thresholds: [{{priority: HIGH, max_requests: 1}}, \
         {{max_connections: 9, max_requests: 0, max_pending_requests: 7, max_retries: 4, track_remaining: true}}, {{max_requests: 3}}]}}"
    ));
    let limits = CircuitBreakers {
        max_connections: Some(9),
        max_requests: Some(0),
        max_pending_requests: Some(7),
        max_retries: Some(4),
        retry_budget: None,
    };
    assert_eq!(cluster.circuit_breakers, limits);
    assert_eq!(cluster.connect_timeout, Some(Duration::from_millis(250)));
    assert_eq!(reports.len(), 1, "the thresholds that do not count are not reported: {reports:?}");
    assert!(reports[0].starts_with("circuit_breakers.thresholds[1].track_remaining: "), "{reports:?}");
}

#[test]
fn a_retry_budget_has_envoys_defaults() {
    for (fields, percent, min_concurrency) in
        [("{}", 20.0, 3), ("{budget_percent: {value: 0.5}, min_retry_concurrency: 0}", 0.5, 0)]
    {
        let (cluster, reports) =
            cluster(&format!("{EDS}circuit_breakers: {{thresholds: [{{retry_budget: {fields}}}]}}"));
        assert_eq!(cluster.circuit_breakers.retry_budget, Some(RetryBudget { percent, min_concurrency }), "{fields}");
        assert_eq!(reports, [""; 0]);
    }
}

#[test]
fn unset_and_zero_are_two_things_to_outlier_detection() {
    let detection =
        |fields: &str| cluster(&format!("{EDS}outlier_detection: {{{fields}}}")).0.outlier_detection.clone();
    assert_eq!(cluster(EDS).0.outlier_detection, None);
    let detection = |fields| OutlierDetection::clone(&detection(fields).expect("set"));
    let default = OutlierDetection::default();
    assert_eq!(detection(""), default, "success rate alone");
    assert_eq!(detection("enforcing_success_rate: 0").success_rate, None);
    let half = FailurePercentage { enforcing: 50, ..FailurePercentage::default() };
    assert_eq!(detection("enforcing_failure_percentage: 50").failure_percentage, Some(half));
    assert_eq!(detection("failure_percentage_threshold: 50").failure_percentage, None, "not enforced");
    assert_eq!(detection("consecutive_5xx: 3").consecutive_5xx, Some(Consecutive::after(3)));
    assert_eq!(detection("consecutive_5xx: 0").consecutive_5xx, None);
    assert_eq!(detection("consecutive_5xx: 3, enforcing_consecutive_5xx: 0").consecutive_5xx, None);
    assert_eq!(detection("consecutive_gateway_failure: 3").consecutive_gateway_failure, None, "not enforced, in Envoy");
    let gateway = detection("enforcing_consecutive_gateway_failure: 100").consecutive_gateway_failure;
    assert_eq!(gateway, Some(Consecutive::after(5)));
    assert!(!detection("enforcing_success_rate: 0").is_active());
    assert_eq!(detection("max_ejection_time_jitter: 2s").max_ejection_time_jitter, Duration::from_secs(2));
}

#[test]
fn errors_of_local_origin_are_judged_where_they_are_split_off() {
    let detection = |fields: &str| {
        let (cluster, reports) = cluster(&format!("{EDS}outlier_detection: {{{fields}}}"));
        (cluster.outlier_detection.as_ref().expect("set").local_origin, reports)
    };
    let split = |fields: &str| detection(&format!("split_external_local_origin_errors: true, {fields}"));
    let default = LocalOrigin::default();
    assert_eq!(split(""), (Some(default), vec![]));
    let three = LocalOrigin { consecutive_failure: Some(Consecutive::after(3)), ..default };
    assert_eq!(split("consecutive_local_origin_failure: 3"), (Some(three), vec![]));
    let never = "enforcing_consecutive_local_origin_failure: 0, enforcing_local_origin_success_rate: 0";
    let nothing = LocalOrigin { consecutive_failure: None, success_rate: None, failure_percentage: None };
    assert_eq!(split(never), (Some(nothing), vec![]), "they count by themselves, for nothing");
    // The numbers are those of the others; how often an ejection is made is their own.
    let numbers = "success_rate_minimum_hosts: 3, failure_percentage_threshold: 50, enforcing_success_rate: 0, \
                   enforcing_failure_percentage: 0, enforcing_local_origin_success_rate: 40, \
                   enforcing_failure_percentage_local_origin: 60";
    let rate = SuccessRate { minimum_hosts: 3, enforcing: 40, ..SuccessRate::default() };
    let percentage = FailurePercentage { threshold: 50, enforcing: 60, ..FailurePercentage::default() };
    let both = LocalOrigin { success_rate: Some(rate), failure_percentage: Some(percentage), ..default };
    assert_eq!(split(numbers), (Some(both), vec![]));
    for field in [
        "consecutive_local_origin_failure",
        "enforcing_consecutive_local_origin_failure",
        "enforcing_local_origin_success_rate",
        "enforcing_failure_percentage_local_origin",
    ] {
        let report = format!("outlier_detection.{field}: has no effect without split_external_local_origin_errors");
        assert_eq!(detection(&format!("{field}: 3")), (None, vec![report]));
    }
}
