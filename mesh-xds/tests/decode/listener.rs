//! Listeners and their HTTP connection managers.

use super::{received, reports};
use mesh_xds::resource::{
    HttpConnectionManager, HttpFault, HttpFilter, HttpFilterConfig, Kind, ListenerKind, Received, Resource, RouteSource,
};
use std::{sync::Arc, time::Duration};

fn api(routes: &str, filters: &str, rest: &str) -> (HttpConnectionManager, Vec<String>) {
    let manager =
        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let received = received(
        Kind::Listener,
        &format!(
            "api_listener: {{api_listener: {{\"@type\": {manager}, {routes}, http_filters: [{filters} {ROUTER}] {rest}}}}}"
        ),
    );
    let reports = reports(&received);
    match kind(received) {
        ListenerKind::Api(http) => (http, reports),
        ListenerKind::Socket => panic!("a socket listener"),
    }
}

fn kind(received: Received) -> ListenerKind {
    match received.value {
        Ok(Resource::Listener(listener)) => listener.kind.clone(),
        other => panic!("{other:?}"),
    }
}

const RDS: &str = "rds: {config_source: {self: {}}, route_config_name: routes}";
const ROUTER: &str =
    r#"{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"#;
const FAULT: &str = r#""@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"#;

fn fault(fault: HttpFault) -> HttpFilter {
    HttpFilter { name: "f".to_owned(), config: HttpFilterConfig::Fault(Arc::new(fault)), disabled: false }
}

#[test]
fn a_manager_is_its_routes_its_limit_and_its_filters() {
    let (http, reports) = api(
        RDS,
        &format!("{{name: f, typed_config: {{{FAULT}}}}},"),
        ", common_http_protocol_options: {max_stream_duration: 0s}",
    );
    assert_eq!(http.routes, RouteSource::Rds("routes".to_owned()));
    // Zero means none and is not the same as unset (A31).
    assert_eq!(http.max_stream_duration, Some(Duration::ZERO));
    assert_eq!(http.filters, [fault(HttpFault::default())]);
    assert_eq!(reports, [""; 0]);
}

#[test]
fn inline_routes_need_no_name() {
    let (http, _) = api("route_config: {virtual_hosts: [{name: v, domains: [a]}]}", "", "");
    let RouteSource::Inline(routes) = http.routes else { panic!("{:?}", http.routes) };
    assert_eq!((routes.name.as_str(), routes.virtual_hosts.len()), ("", 1));
}

#[test]
fn an_unknown_optional_filter_is_skipped_and_reported() {
    let (http, reports) = api(RDS, "{name: f, is_optional: true, config_discovery: {}},", ", access_log: [{name: a}]");
    assert_eq!(http.filters, []);
    assert_eq!(
        reports,
        [
            "api_listener.api_listener.access_log: not supported: has no effect",
            "api_listener.api_listener.http_filters[0]: unknown filter, optional: skipped"
        ]
    );
}

#[test]
fn a_listener_with_an_address_is_for_servers() {
    let socket = received(Kind::Listener, "address: {socket_address: {address: 0.0.0.0, port_value: 80}}");
    assert_eq!(kind(socket), ListenerKind::Socket);
}
