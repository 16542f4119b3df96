//! What a cluster is made of: endpoints and their health, drops, and the kinds of clusters (A27, A37), over the wire.
//!
//! All calls go to cluster `a` unless a scenario says otherwise. It does NOT test which of several endpoints is picked.

use crate::{
    balancing::{first_endpoint_is_silent, in_turn, one_locality},
    features::{check, fails, features, from, get, grpc, only, share},
};
use mesh_xds::resource::Kind;
use std::time::Duration;
use tokio::time::{self, Instant};

/// A cluster with a transport socket that nobody here can honour.
const TLS: &str = "{transport_socket: {name: envoy.transport_sockets.tls, typed_config: {
    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext,
    common_tls_context: {validation_context: {system_root_certs: {}}}}}}";

features! {
    // === Endpoints ===

    health_status {
        row: "endpoints by health: HEALTHY and UNKNOWN, no other", source: "A27, `LbEndpoint.health_status`",
        config: concat!("endpoints: {a: {", one_locality!("[
                    {$a, health_status: HEALTHY}, {$b, health_status: UNKNOWN}, {$c, health_status: UNHEALTHY},
                    {$d, health_status: DRAINING}, {$e, health_status: TIMEOUT}, {$f, health_status: DEGRADED}]"), "}}"),
        strip: [("/endpoints/a/endpoints/0/lb_endpoints/2/health_status", "")],
        |world| {
            world.ready("a", 2).await?;
            let counts = world.calls(60, grpc()).await;
            check(counts.keys().eq(["a", "b"]), format!("a and b, and not {counts:?}"))?;
            world.update("/endpoints/a/endpoints/0/lb_endpoints/0/health_status", "DRAINING").await?;
            only("b", &world.calls(60, grpc()).await)
        }
    }

    unusable_address {
        row: "an endpoint whose address can not be used is skipped, and reported", source: "Envoy, `Address.pipe`",
        config: concat!("endpoints: {a: {", one_locality!("[{endpoint: {address: {pipe: {path: /x}}}}, {$b}]"), "}}"),
        strip: [("/endpoints/a/endpoints/0/lb_endpoints/0", "")],
        |world| {
            only("b", &world.calls(60, grpc()).await)?;
            world.ignores(Kind::Endpoints, "a", "endpoints[0].lb_endpoints[0].endpoint.address")
        }
    }

    additional_addresses {
        row: "an endpoint with several addresses: the next one when the first refuses",
        source: "A61, `Endpoint.additional_addresses`",
        config: concat!("endpoints: {a: {", one_locality!("[{endpoint: {
                    address: {socket_address: {address: 127.0.0.1, port_value: 1}},
                    additional_addresses: [{address: {socket_address: {address: 127.0.0.1, port_value: %b}}}]}}]"), "}}"),
        strip: [("/endpoints/a/endpoints/0/lb_endpoints/0/endpoint/additional_addresses", "")],
        |world| {
            only("b", &world.calls(60, grpc()).await)
        }
    }

    endpoint_weights {
        row: "weights of endpoints have no effect on round_robin, and say so", source: "A27, `LbEndpoint.load_balancing_weight`",
        config: concat!("endpoints: {a: {", one_locality!("[{$a, load_balancing_weight: 100}, {$b}, {$c}]"), "}}"),
        strip: [("/endpoints/a/endpoints/0/lb_endpoints/0/load_balancing_weight", "")],
        |world| {
            check(in_turn(world).await?, "any three calls in a row at three backends")?;
            world.ignores(Kind::Endpoints, "a", "endpoints[0].lb_endpoints[0].load_balancing_weight")
        }
    }

    drops {
        row: "drops by category, each with a draw of its own; a drop is never retried", source: "A27, A6, `ClusterLoadAssignment.policy.drop_overloads`",
        config: "{endpoints: {a: {policy: {drop_overloads: [
                    {category: x, drop_percentage: {numerator: 50}},
                    {category: y, drop_percentage: {numerator: 500000, denominator: MILLION}}]}}},
                  routes: [{match: {prefix: ''}, route: {cluster: a, retry_policy: {retry_on: 'unavailable,5xx', num_retries: 3,
                      retry_back_off: {base_interval: 0.001s}}}}]}",
        strip: [("/endpoints/a/policy", "")],
        |world| {
            // Retried three times, that would be 0.32.
            share("Unavailable", 0.75, &world.calls(1875, grpc()).await)?;
            share("503", 0.75, &world.calls(1875, get("/")).await)?;
            world.update("/endpoints/a/policy/drop_overloads/1/drop_percentage/numerator", "1000000").await?;
            world.update("/endpoints/a/policy/drop_overloads/0/drop_percentage/numerator", "0").await?;
            only("Unavailable", &world.calls(60, grpc()).await)?;
            fails("Unavailable", &["\"a\"", "dropped", "\"y\"", "in-process"], world.call(grpc()).await)
        }
    }

    service_name {
        row: "endpoints under another name than the cluster's", source: "A27, `Cluster.eds_cluster_config.service_name`",
        config: "clusters: {a: {eds_cluster_config: {service_name: b}}}",
        strip: [("/clusters/a/eds_cluster_config/service_name", "")],
        |world| {
            from("b", world.call(grpc()).await)
        }
    }

    connect_timeout {
        row: "the time that a connection may take", source: "Envoy, `Cluster.connect_timeout`",
        config: concat!("{clusters: {a: {connect_timeout: 5s}}, endpoints: {a: {", one_locality!("[{$a}]"), "}}}"),
        strip: [("/clusters/a/connect_timeout", "")],
        |world| {
            let _silent = first_endpoint_is_silent(world).await?;
            // The call waits, and the clock leaps to whatever ends that: after 20 s if nobody says otherwise.
            time::pause();
            let begin = Instant::now();
            let (answer, waited) = (world.call(grpc()).await, begin.elapsed());
            time::resume();
            fails("Unavailable", &["\"a\"", "within the connect timeout", "in-process"], answer)?;
            check(waited < Duration::from_secs(6), format!("5 s, and not {waited:?}"))
        }
    }

    // === Kinds of clusters ===

    static_cluster {
        row: "STATIC clusters", source: "Envoy, `Cluster.load_assignment`",
        config: "clusters: {a: {type: STATIC, eds_cluster_config: null, load_assignment: {cluster_name: a,
                    endpoints: [{lb_endpoints: [{$b}]}]}}}",
        strip: [("/clusters/a", "{}")],
        |world| {
            from("b", world.call(grpc()).await)
        }
    }

    static_cluster_without_endpoints {
        row: "an empty STATIC cluster fails its calls", source: "Envoy, `Cluster.type: STATIC`",
        config: "clusters: {a: {type: STATIC, eds_cluster_config: null}}",
        strip: [("/clusters/a", "{}")],
        |world| {
            fails("Unavailable", &["\"a\"", "no endpoints", "in-process"], world.call(grpc()).await)
        }
    }

    no_endpoints {
        row: "an empty assignment fails its calls at once, also as an update", source: "A27, `ClusterLoadAssignment.endpoints`",
        config: "endpoints: {a: {endpoints: []}}",
        strip: [("/endpoints/a", "{}")],
        |world| {
            fails("Unavailable", &["\"a\"", "no endpoints", "in-process"], world.call(grpc()).await)?;
            world.update("/endpoints/a/endpoints", "[{locality: {region: r}, load_balancing_weight: 1, lb_endpoints: [{$b}]}]").await?;
            from("b", world.call(grpc()).await)?;
            world.update("/endpoints/a/endpoints", "[]").await?;
            fails("Unavailable", &["\"a\"", "no endpoints", "in-process"], world.call(grpc()).await)
        }
    }

    // === What is not supported ===

    without_effect {
        row: "fields of a cluster that have no effect yet are validated and reported",
        source: "Envoy, `CircuitBreakers.thresholds[].max_connection_pools`, `OutlierDetection.detect_degraded_hosts`",
        config: "clusters: {a: {outlier_detection: {detect_degraded_hosts: true}, circuit_breakers: {thresholds: [{max_connection_pools: 1}]}}}",
        strip: [("/clusters/a/outlier_detection", "")],
        |world| {
            from("a", world.call(grpc()).await)?;
            for field in ["outlier_detection.detect_degraded_hosts", "circuit_breakers.thresholds[0].max_connection_pools"] {
                world.ignores(Kind::Cluster, "a", field)?;
            }
            Ok(())
        }
    }

    transport_socket {
        row: "TLS, not supported yet, fails closed: no connection, never plaintext, also in an update",
        source: "A29, `Cluster.transport_socket`",
        config: "{clusters: {a: {transport_socket: {name: envoy.transport_sockets.tls, typed_config: {
                    '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext,
                    common_tls_context: {validation_context: {system_root_certs: {}}}}}}},
                  routes: [{match: {prefix: /b}, route: {cluster: b}}, {match: {prefix: ''}, route: {cluster: a}}]}",
        strip: [("/clusters/a", "{}")],
        |world| {
            fails("Unavailable", &["\"a\"", "transport_socket", "in-process"], world.call(grpc()).await)?;
            check(world.a.counters().connections == 0, "no connection")?;
            from("b", world.call(get("/b")).await)?;
            let before = world.b.counters().connections;
            world.update("/clusters/b", TLS).await?;
            fails("503", &["\"b\"", "transport_socket", "in-process"], world.call(get("/b")).await)?;
            let closed = world.b.wait_for(|counters| counters.open_connections == 0).await;
            check(closed.is_ok_and(|counters| counters.connections == before), format!("no new connection: {closed:?}"))
        }
    }

    transport_socket_matches {
        row: "TLS by metadata of the endpoint, not supported yet, fails closed as well",
        source: "Envoy, `Cluster.transport_socket_matches`",
        config: "clusters: {a: {transport_socket_matches: [{name: plain, transport_socket: {name: envoy.transport_sockets.raw_buffer}}]}}",
        strip: [("/clusters/a", "{}")],
        |world| {
            fails("Unavailable", &["\"a\"", "transport_socket_matches", "in-process"], world.call(grpc()).await)?;
            check(world.a.counters().connections == 0, "no connection")
        }
    }

    raw_buffer {
        row: "plaintext that is asked for by name", source: "Envoy, `Cluster.transport_socket` with `raw_buffer`",
        config: "clusters: {a: {transport_socket: {name: envoy.transport_sockets.raw_buffer}}}",
        strip: [("/clusters/a", TLS)],
        |world| {
            from("a", world.call(grpc()).await)
        }
    }
}
