//! Endpoints, localities and drops.

use super::{context, received, reports};
use mesh_xds::{
    decode::decode_after,
    resource::{ClusterLoadAssignment, Health, Kind, Resource},
};
use std::sync::Arc;

fn assignment(yaml: &str) -> (Arc<ClusterLoadAssignment>, Vec<String>) {
    let received = received(Kind::Endpoints, yaml);
    let reports = reports(&received);
    match received.value {
        Ok(Resource::Endpoints(endpoints)) => (endpoints, reports),
        other => panic!("{other:?}"),
    }
}

/// One locality with these endpoints, written as flow mappings.
fn locality(endpoints: &str) -> (Arc<ClusterLoadAssignment>, Vec<String>) {
    assignment(&format!("endpoints: [{{locality: {{}}, load_balancing_weight: 1, lb_endpoints: [{endpoints}]}}]"))
}

fn at(address: &str) -> String {
    format!("{{endpoint: {{address: {address}}}}}")
}

#[test]
fn an_address_out_of_reach_costs_only_its_endpoint() {
    let endpoints = [
        at("{pipe: {path: /x}}"),
        at("{envoy_internal_address: {server_listener_name: l}}"),
        at("{socket_address: {address: 127.0.0.1, port_value: 0}}"),
        at("{socket_address: {protocol: UDP, address: 127.0.0.1, port_value: 53}}"),
        "{endpoint_name: n}".to_owned(),
        at("{socket_address: {address: '::1', port_value: 80}}"),
    ];
    let (assignment, reports) = locality(&endpoints.join(", "));
    let addresses: Vec<_> = assignment.endpoints().map(|endpoint| endpoint.addresses.first.to_string()).collect();
    assert_eq!(addresses, ["[::1]:80"]);
    assert_eq!(reports.len(), 5, "{reports:#?}");
    assert_eq!(
        reports[0],
        "endpoints[0].lb_endpoints[0].endpoint.address: Unix socket addresses are not supported: endpoint skipped"
    );
}

#[test]
fn health_is_read_and_an_unknown_value_gets_no_traffic() {
    let states = ["UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED", "77"];
    let endpoints: Vec<_> = (1..)
        .zip(states)
        .map(|(port, state)| {
            let address = format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
            format!("{{health_status: {state}, endpoint: {{address: {address}}}}}")
        })
        .collect();
    let (assignment, reports) = locality(&endpoints.join(", "));
    let health: Vec<_> = assignment.endpoints().map(|endpoint| endpoint.health).collect();
    use Health::{Degraded, Draining, Healthy, Timeout, Unhealthy, Unknown};
    assert_eq!(health, [Unknown, Healthy, Unhealthy, Draining, Timeout, Degraded, Unhealthy]);
    assert_eq!(reports.len(), 1);
}

#[test]
fn weights_addresses_and_names_are_kept_in_order() {
    let (assignment, _) = locality(
        "{load_balancing_weight: 7, endpoint: {hostname: h, address: {socket_address: {address: 10.0.0.1, port_value: 1}}, \
         additional_addresses: [{address: {socket_address: {address: '::1', port_value: 2}}}, \
         {address: {socket_address: {address: 10.0.0.1, port_value: 3}}}]}}, \
         {endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 1}}}}",
    );
    let endpoints: Vec<_> = assignment.endpoints().collect();
    let addresses: Vec<_> = endpoints[0].addresses.iter().map(|address| address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1:1", "[::1]:2", "10.0.0.1:3"]);
    assert_eq!((endpoints[0].weight, endpoints[0].hostname.as_deref()), (7, Some("h")));
    assert_eq!((endpoints[1].weight, endpoints[1].hostname.as_deref()), (1, None));
}

#[test]
fn localities_of_weight_zero_vanish_and_the_others_are_grouped_by_priority() {
    let (assignment, _) = assignment(
        "endpoints: [{locality: {region: b}, load_balancing_weight: 2, priority: 1}, {locality: {region: none}}, \
         {locality: {region: a, zone: z, sub_zone: s}, load_balancing_weight: 1}, \
         {locality: {region: zero}, load_balancing_weight: 0, priority: 9}]",
    );
    let ids: Vec<Vec<_>> = assignment
        .priorities
        .iter()
        .map(|localities| localities.iter().map(|locality| locality.id.to_string()).collect())
        .collect();
    assert_eq!(ids, [["a/z/s"], ["b//"]]);
}

#[test]
fn no_endpoints_at_all_is_valid() {
    let (assignment, _) = assignment("");
    assert!(assignment.priorities.is_empty());
}

#[test]
fn drops_keep_their_order_and_never_exceed_all_calls() {
    let (assignment, _) = assignment(
        "policy: {drop_overloads: [{category: b, drop_percentage: {numerator: 1000000, denominator: MILLION}}, \
         {category: a, drop_percentage: {numerator: 4000000, denominator: HUNDRED}}, {category: none}]}",
    );
    let drops: Vec<_> = assignment.drops.iter().map(|drop| (&*drop.category, drop.rate.get())).collect();
    assert_eq!(drops, [("b", 1_000_000), ("a", 1_000_000), ("none", 0)]);
}

#[test]
fn endpoints_that_come_by_another_way_are_none_yet() {
    let (assignment, reports) = assignment(
        "endpoints: [{locality: {}, load_balancing_weight: 1, lb_endpoints: [{}], \
         leds_cluster_locality_config: {leds_config: {self: {}}, leds_collection_name: c}}]",
    );
    assert_eq!(assignment.endpoints().count(), 0);
    assert_eq!(
        reports,
        ["endpoints[0].leds_cluster_locality_config: LEDS is not supported: the locality has no endpoints"]
    );
}

// === Updates ===

#[test]
fn an_update_decodes_to_the_same_as_from_scratch() {
    an_update_is_as_if_decoded_whole("{");
}

/// istiod tells the workload of each endpoint.
#[test]
fn an_update_of_endpoints_with_metadata_is_as_if_decoded_whole() {
    an_update_is_as_if_decoded_whole("{metadata: {filter_metadata: {istio: {workload: a}}}, ");
}

fn an_update_is_as_if_decoded_whole(each_with: &str) {
    let bare = |port: u32| at(&format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}"));
    let host = |port: u32| bare(port).replacen('{', each_with, 1);
    let weighted =
        |port: u32, weight: u32| host(port).replacen('{', &format!("{{load_balancing_weight: {weight}, "), 1);
    let locality = |region: &str, priority: u32, endpoints: &[String]| {
        format!(
            "{{locality: {{region: {region}}}, load_balancing_weight: 1, priority: {priority}, lb_endpoints: [{}]}}",
            endpoints.join(", ")
        )
    };
    let of = |localities: &[String]| format!("endpoints: [{}]", localities.join(", "));
    let two = |first: &[String], second: &[String]| of(&[locality("r", 1, second), locality("r", 0, first)]);
    let hosts = |ports: &[u32]| ports.iter().map(|port| host(*port)).collect::<Vec<_>>();
    let first = received(Kind::Endpoints, &two(&hosts(&[1, 2, 3]), &hosts(&[11, 12])));
    let unusable = at("{pipe: {path: /x}}");
    for (what, yaml) in [
        ("nothing", two(&hosts(&[1, 2, 3]), &hosts(&[11, 12]))),
        ("one changed", two(&hosts(&[1, 9, 3]), &hosts(&[11, 12]))),
        ("the first changed", two(&hosts(&[9, 2, 3]), &hosts(&[11, 12]))),
        ("the last changed", two(&hosts(&[1, 2, 9]), &hosts(&[11, 12]))),
        ("one in each", two(&hosts(&[1, 2, 9]), &hosts(&[19, 12]))),
        ("one bare", two(&[host(1), bare(2), host(3)], &hosts(&[11, 12]))),
        ("the first bare", two(&hosts(&[1, 2, 3]), &[bare(11), host(12)])),
        ("one removed", two(&hosts(&[1, 3]), &hosts(&[11, 12]))),
        ("all of one removed", two(&hosts(&[1, 2, 3]), &[])),
        ("added", two(&hosts(&[1, 2, 8, 9, 3]), &hosts(&[11, 12]))),
        ("moved", two(&hosts(&[3, 1, 2]), &hosts(&[11, 12]))),
        ("from one to the other", two(&hosts(&[1, 2]), &hosts(&[3, 11, 12]))),
        ("twice in one", two(&hosts(&[1, 2, 2]), &hosts(&[11, 12]))),
        ("twice in two", two(&hosts(&[1, 11, 3]), &hosts(&[11, 12]))),
        ("health", two(&hosts(&[1, 2, 3]), &[host(11), host(12).replacen('{', "{health_status: DRAINING, ", 1)])),
        ("an invalid weight", two(&[host(1), weighted(2, 0), host(3)], &hosts(&[11, 12]))),
        ("a sum too large", two(&[host(1), weighted(2, u32::MAX), host(3)], &hosts(&[11, 12]))),
        ("one that is skipped", two(&[host(1), unusable, host(3)], &hosts(&[11, 12]))),
        ("another priority", of(&[locality("r", 0, &hosts(&[11, 12])), locality("r", 1, &hosts(&[1, 2, 3]))])),
        ("a locality less", of(&[locality("r", 0, &hosts(&[1, 2, 3]))])),
        ("drops", two(&hosts(&[1, 2, 3]), &hosts(&[11])) + "\npolicy: {drop_overloads: [{category: c}]}"),
    ] {
        let whole = received(Kind::Endpoints, &yaml);
        let after = decode_after(&first, Kind::Endpoints, Kind::Endpoints.type_url(), &whole.raw, &context());
        assert_eq!(
            (&after.value, &after.name, &after.raw),
            (&whole.value, &whole.name, &whole.raw),
            "{what}, {each_with}"
        );
        assert_eq!(reports(&after), reports(&whole), "{what}, {each_with}");
    }
}
