//! CDS: clusters (A27, A29, A32, A37, A50, A75, A105).

use super::{
    basics::{ads_or_self, optional_duration, type_name, unpack},
    circuit_breakers::circuit_breakers,
    dns::{dns_cluster, logical_dns, strict_dns},
    endpoints::inline_endpoints,
    lb_policy::lb_policy,
    load::load_reporting,
    outlier_detection::outlier_detection,
    scope::Scope,
    tls::transport_socket,
};
use crate::{
    name::{canonical, canonical_string},
    resource::{Cluster, ClusterLoadAssignment, ClusterName, Discovery, HttpProtocol, Invalid},
};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                self as pb,
                cluster::{ClusterDiscoveryType, ClusterProtocolSelection, CustomClusterType, DiscoveryType},
            },
            core::v3::HttpProtocolOptions as CommonOptions,
        },
        extensions::{
            clusters::{aggregate::v3::ClusterConfig as AggregateConfig, dns::v3::DnsCluster},
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
            },
        },
    },
    google::protobuf::Any,
};
use prost::Name;
use std::{sync::Arc, time::Duration};

/// A `Cluster`.
pub(super) fn cluster(cluster: pb::Cluster, scope: &mut Scope<'_>) -> Result<Cluster, Invalid> {
    if cluster.name.is_empty() {
        return Err(scope.invalid_at("name", "must not be empty"));
    }
    report_unsupported(&cluster, scope);
    let lb_policy = lb_policy(&cluster, scope)?;
    let transport_socket = transport_socket(&cluster, scope)?;
    let http_protocol = http_protocol(&cluster, scope)?;
    let load_reporting = load_reporting(&cluster, scope)?;
    let outlier_detection = outlier_detection(&cluster, scope)?;
    let circuit_breakers = circuit_breakers(&cluster, scope)?;
    let connect_timeout = optional_duration(cluster.connect_timeout, "connect_timeout", scope)?;
    let name = ClusterName::new(canonical(&cluster.name));
    Ok(Cluster {
        name,
        discovery: discovery(cluster, scope)?,
        lb_policy,
        transport_socket,
        http_protocol,
        circuit_breakers,
        outlier_detection,
        load_reporting,
        connect_timeout: connect_timeout.filter(|timeout| *timeout > Duration::ZERO),
    })
}

// === Discovery ===

// "cluster type other than EDS / LOGICAL_DNS / aggregate" is refused (A27); STATIC, STRICT_DNS and DnsCluster are
// accepted besides.
fn discovery(mut cluster: pb::Cluster, scope: &mut Scope<'_>) -> Result<Discovery, Invalid> {
    let kind = match cluster.cluster_discovery_type.take() {
        Some(ClusterDiscoveryType::ClusterType(custom)) => return extension(cluster, &custom, scope),
        Some(ClusterDiscoveryType::Type(kind)) => kind,
        // In the proto as in Envoy, no type is STATIC.
        None => DiscoveryType::Static as i32,
    };
    match DiscoveryType::try_from(kind) {
        Ok(DiscoveryType::Eds) => eds(cluster, scope),
        Ok(DiscoveryType::Static) => fixed(cluster, scope),
        Ok(DiscoveryType::LogicalDns) => logical_dns(&cluster, scope),
        // gRPC refuses STRICT_DNS ("cluster type other than EDS / LOGICAL_DNS / aggregate", A27). Envoy has it, and what it
        // means is plain, so it is served as Envoy serves it.
        Ok(DiscoveryType::StrictDns) => strict_dns(cluster, scope),
        Ok(DiscoveryType::OriginalDst) => Err(scope.invalid_at("type", "ORIGINAL_DST is not supported")),
        Err(_) => Err(scope.invalid_at("type", format!("unknown value {kind}"))),
    }
}

fn eds(cluster: pb::Cluster, scope: &mut Scope<'_>) -> Result<Discovery, Invalid> {
    let config = cluster.eds_cluster_config.unwrap_or_default();
    scope.within("eds_cluster_config", |scope| {
        ads_or_self(config.eds_config.as_ref(), "eds_config", scope)?;
        // "CDS resource with an xdstp: name and type EDS must set service_name" - A47
        match (config.service_name.is_empty(), cluster.name.starts_with("xdstp:")) {
            (false, _) => Ok(Discovery::Eds { service_name: canonical_string(config.service_name) }),
            (true, false) => Ok(Discovery::Eds { service_name: cluster.name }),
            (true, true) => Err(scope.invalid_at("service_name", "must be set: the cluster has an xdstp name")),
        }
    })
}

fn fixed(cluster: pb::Cluster, scope: &mut Scope<'_>) -> Result<Discovery, Invalid> {
    let empty = || ClusterLoadAssignment { name: String::new(), priorities: Vec::new(), drops: Vec::new() };
    let mut assignment = match cluster.load_assignment {
        Some(assignment) => scope.within("load_assignment", |scope| inline_endpoints(assignment, scope))?,
        None => empty(),
    };
    if assignment.name.is_empty() {
        assignment.name = cluster.name;
    }
    Ok(Discovery::Static(Arc::new(assignment)))
}

/// The type of the configuration decides; names of extensions are for people.
fn extension(cluster: pb::Cluster, custom: &CustomClusterType, scope: &mut Scope<'_>) -> Result<Discovery, Invalid> {
    let is = |any: &&Any, name: String| type_name(&any.type_url) == name;
    let typed = custom.typed_config.as_ref();
    if let Some(any) = typed.filter(|any| is(any, DnsCluster::full_name())) {
        return dns_cluster(cluster, any, scope);
    }
    scope.within("cluster_type", |scope| match typed.filter(|any| is(any, AggregateConfig::full_name())) {
        Some(any) => scope.within("typed_config", |scope| aggregate(any, scope)),
        None => Err(scope.invalid(format!("{:?} is not supported", custom.name))),
    })
}

fn aggregate(config: &Any, scope: &Scope<'_>) -> Result<Discovery, Invalid> {
    let config: AggregateConfig = unpack(config, scope)?;
    // "aggregate list empty" is refused (A37).
    if config.clusters.is_empty() {
        return Err(scope.invalid_at("clusters", "must not be empty"));
    }
    Ok(Discovery::Aggregate(config.clusters.iter().map(|name| ClusterName::new(canonical(name))).collect()))
}

// === HTTP version ===

fn http_protocol(cluster: &pb::Cluster, scope: &mut Scope<'_>) -> Result<HttpProtocol, Invalid> {
    if let Some(extension) = &cluster.upstream_config {
        // "NACK when that extension has another type or the duration is out of range" - A75
        scope.within("upstream_config", |scope| match &extension.typed_config {
            Some(any) => scope.within("typed_config", |scope| {
                let options: HttpProtocolOptions = unpack(any, scope)?;
                common_options(options.common_http_protocol_options.as_ref(), scope)
            }),
            None => Err(scope.invalid_at("typed_config", "must be set")),
        })?;
        scope.ignore("upstream_config", "session affinity is not supported: has no effect");
    }
    match cluster.typed_extension_protocol_options.get(&HttpProtocolOptions::full_name()) {
        Some(any) => scope.key("typed_extension_protocol_options", &HttpProtocolOptions::full_name(), |scope| {
            let options = unpack(any, scope)?;
            protocol_options(&options, scope)
        }),
        // The fields that HttpProtocolOptions has replaced.
        None if cluster.protocol_selection == ClusterProtocolSelection::UseDownstreamProtocol as i32 => {
            Ok(HttpProtocol::Downstream)
        }
        None if cluster.http2_protocol_options.is_some() => Ok(HttpProtocol::Http2),
        None if cluster.http_protocol_options.is_some() => Ok(HttpProtocol::Http1),
        None => Ok(HttpProtocol::Unspecified),
    }
}

fn protocol_options(options: &HttpProtocolOptions, scope: &mut Scope<'_>) -> Result<HttpProtocol, Invalid> {
    common_options(options.common_http_protocol_options.as_ref(), scope)?;
    scope.unsupported(&[
        (!options.http_filters.is_empty(), "http_filters"),
        (options.outlier_detection.is_some(), "outlier_detection"),
        (!options.request_mirror_policies.is_empty(), "request_mirror_policies"),
        (!options.hash_policy.is_empty(), "hash_policy"),
        (options.retry_policy.is_some(), "retry_policy"),
    ]);
    match &options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            scope.within("explicit_http_config", |scope| match &explicit.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(options)) => {
                    report_settings(Some(options), "http_protocol_options", scope);
                    Ok(HttpProtocol::Http1)
                }
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                    report_settings(Some(options), "http2_protocol_options", scope);
                    Ok(HttpProtocol::Http2)
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    scope.ignore("http3_protocol_options", "HTTP/3 is not supported: HTTP/2 is used");
                    Ok(HttpProtocol::Http2)
                }
                None => Err(scope.invalid("no protocol is set")),
            })
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
            scope.within("use_downstream_protocol_config", |scope| {
                report_settings(config.http_protocol_options.as_ref(), "http_protocol_options", scope);
                report_settings(config.http2_protocol_options.as_ref(), "http2_protocol_options", scope);
                report_settings(config.http3_protocol_options.as_ref(), "http3_protocol_options", scope);
            });
            Ok(HttpProtocol::Downstream)
        }
        Some(UpstreamProtocolOptions::AutoConfig(config)) => {
            scope.within("auto_config", |scope| {
                report_settings(config.http_protocol_options.as_ref(), "http_protocol_options", scope);
                report_settings(config.http2_protocol_options.as_ref(), "http2_protocol_options", scope);
                report_settings(config.http3_protocol_options.as_ref(), "http3_protocol_options", scope);
            });
            Ok(HttpProtocol::Auto)
        }
        // "upstream_protocol_options: required" (Envoy).
        None => Err(scope.invalid("no upstream protocol options are set")),
    }
}

/// That there are options says which protocol; their settings are another matter.
fn report_settings<M: Default + PartialEq>(options: Option<&M>, field: &'static str, scope: &mut Scope<'_>) {
    if options.is_some_and(|options| *options != M::default()) {
        scope.ignore(field, "its settings are not supported: have no effect");
    }
}

fn common_options(options: Option<&CommonOptions>, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    let Some(options) = options else {
        return Ok(());
    };
    scope.within("common_http_protocol_options", |scope| {
        let idle_timeout = optional_duration(options.idle_timeout, "idle_timeout", scope)?;
        scope.unsupported(&[
            (idle_timeout.is_some(), "idle_timeout"),
            (options.max_connection_duration.is_some(), "max_connection_duration"),
            (options.max_stream_duration.is_some(), "max_stream_duration"),
            (options.max_requests_per_connection.is_some(), "max_requests_per_connection"),
        ]);
        Ok(())
    })
}

// === Reports ===

fn report_unsupported(cluster: &pb::Cluster, scope: &mut Scope<'_>) {
    scope.unsupported(&[
        (!cluster.health_checks.is_empty(), "health_checks"),
        (cluster.max_requests_per_connection.is_some(), "max_requests_per_connection"),
        (cluster.common_http_protocol_options.is_some(), "common_http_protocol_options"),
        (cluster.upstream_bind_config.is_some(), "upstream_bind_config"),
        (cluster.lb_subset_config.is_some(), "lb_subset_config"),
        (cluster.upstream_connection_options.is_some(), "upstream_connection_options"),
        (cluster.close_connections_on_host_health_failure, "close_connections_on_host_health_failure"),
        (!cluster.filters.is_empty(), "filters"),
        (cluster.preconnect_policy.is_some(), "preconnect_policy"),
        (cluster.connection_pool_per_downstream_connection, "connection_pool_per_downstream_connection"),
        (cluster.metadata.is_some(), "metadata"),
    ]);
    if let Some(common) = &cluster.common_lb_config {
        scope.within("common_lb_config", |scope| {
            scope.unsupported(&[
                (common.healthy_panic_threshold.is_some_and(|share| share.value > 0.0), "healthy_panic_threshold"),
                (common.close_connections_on_host_set_change, "close_connections_on_host_set_change"),
                (common.override_host_status.is_some(), "override_host_status"),
            ]);
        });
    }
}
