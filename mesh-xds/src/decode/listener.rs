//! LDS: listeners and HTTP connection managers (A27, A31, A39).

use super::{
    basics::{ads_or_self, optional_duration, unpack},
    filter::http_filters,
    route::route_config,
    scope::Scope,
};
use crate::{
    name::canonical_string,
    resource::{HttpConnectionManager, Invalid, Listener, ListenerKind, RouteSource},
};
use envoy_types::pb::envoy::{
    config::listener::v3 as pb,
    extensions::filters::network::http_connection_manager::v3::{
        self as hcm, HttpConnectionManager as Hcm, http_connection_manager::RouteSpecifier,
    },
};
use std::sync::Arc;

/// A `Listener`.
pub(super) fn listener(listener: pb::Listener, scope: &mut Scope<'_>) -> Result<Listener, Invalid> {
    if listener.name.is_empty() {
        return Err(scope.invalid_at("name", "must not be empty"));
    }
    if listener.api_listener.is_some() {
        report_socket(&listener, scope);
    }
    let kind = match listener.api_listener {
        Some(api) => ListenerKind::Api(scope.within("api_listener", |scope| match &api.api_listener {
            Some(any) => scope.within("api_listener", |scope| {
                let manager = unpack(any, scope)?;
                connection_manager(manager, scope)
            }),
            None => Err(scope.invalid_at("api_listener", "must be set")),
        })?),
        None if listener.address.is_some() || listener.listener_specifier.is_some() => {
            scope.ignore_here("a listener with sockets is for servers, which are not supported yet: has no effect");
            ListenerKind::Socket
        }
        None => return Err(scope.invalid("neither api_listener nor address is set")),
    };
    Ok(Listener { name: canonical_string(listener.name), kind })
}

fn connection_manager(manager: Hcm, scope: &mut Scope<'_>) -> Result<HttpConnectionManager, Invalid> {
    // Both would make somebody else's word the client's address (A41).
    if manager.xff_num_trusted_hops != 0 {
        return Err(scope.invalid_at("xff_num_trusted_hops", "must be 0"));
    }
    if !manager.original_ip_detection_extensions.is_empty() {
        return Err(scope.invalid_at("original_ip_detection_extensions", "must be empty"));
    }
    report_unsupported(&manager, scope);
    let max_stream_duration = match manager.common_http_protocol_options {
        Some(options) => scope.within("common_http_protocol_options", |scope| {
            scope.unsupported(&[
                (options.idle_timeout.is_some(), "idle_timeout"),
                (options.max_connection_duration.is_some(), "max_connection_duration"),
                (options.max_requests_per_connection.is_some(), "max_requests_per_connection"),
            ]);
            optional_duration(options.max_stream_duration, "max_stream_duration", scope)
        })?,
        None => None,
    };
    let routes = route_source(manager.route_specifier, scope)?;
    let filters = http_filters(manager.http_filters, scope)?;
    Ok(HttpConnectionManager { routes, max_stream_duration, filters })
}

fn route_source(specifier: Option<RouteSpecifier>, scope: &mut Scope<'_>) -> Result<RouteSource, Invalid> {
    match specifier {
        Some(RouteSpecifier::Rds(rds)) => scope.within("rds", |scope| rds_source(rds, scope)),
        Some(RouteSpecifier::RouteConfig(routes)) => {
            let routes = scope.within("route_config", |scope| route_config(routes, scope))?;
            Ok(RouteSource::Inline(Arc::new(routes)))
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            Err(scope.invalid_at("scoped_routes", "scoped routes are not supported"))
        }
        None => Err(scope.invalid("no route specifier: rds or route_config must be set")),
    }
}

fn rds_source(rds: hcm::Rds, scope: &mut Scope<'_>) -> Result<RouteSource, Invalid> {
    ads_or_self(rds.config_source.as_ref(), "config_source", scope)?;
    if rds.route_config_name.is_empty() {
        return Err(scope.invalid_at("route_config_name", "must not be empty"));
    }
    Ok(RouteSource::Rds(canonical_string(rds.route_config_name)))
}

/// An `api_listener` listens nowhere.
fn report_socket(listener: &pb::Listener, scope: &mut Scope<'_>) {
    let fields = [
        (listener.address.is_some(), "address"),
        (!listener.additional_addresses.is_empty(), "additional_addresses"),
        (!listener.filter_chains.is_empty(), "filter_chains"),
        (listener.default_filter_chain.is_some(), "default_filter_chain"),
        (!listener.listener_filters.is_empty(), "listener_filters"),
        (!listener.access_log.is_empty(), "access_log"),
    ];
    for (_, field) in fields.into_iter().filter(|(set, _)| *set) {
        scope.ignore(field, "an api_listener has no socket: has no effect");
    }
}

fn report_unsupported(manager: &Hcm, scope: &mut Scope<'_>) {
    scope.unsupported(&[
        (!manager.access_log.is_empty(), "access_log"),
        (manager.tracing.is_some(), "tracing"),
        (manager.stream_idle_timeout.is_some(), "stream_idle_timeout"),
        (manager.request_timeout.is_some(), "request_timeout"),
        (manager.request_headers_timeout.is_some(), "request_headers_timeout"),
        (manager.local_reply_config.is_some(), "local_reply_config"),
        (!manager.upgrade_configs.is_empty(), "upgrade_configs"),
        (!manager.via.is_empty(), "via"),
        (manager.add_user_agent.is_some_and(|add| add.value), "add_user_agent"),
        (!manager.early_header_mutation_extensions.is_empty(), "early_header_mutation_extensions"),
        (manager.normalize_path.is_some_and(|normalize| normalize.value), "normalize_path"),
        (manager.merge_slashes, "merge_slashes"),
        (manager.strip_matching_host_port, "strip_matching_host_port"),
        (manager.strip_port_mode.is_some(), "strip_any_host_port"),
    ]);
}
