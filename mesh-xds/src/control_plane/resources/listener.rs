//! Makers of listeners.
//!
//! Client listeners, as proxyless clients ask for them. They do NOT open sockets: see Envoy's `Listener.address` for that.

use super::pack;
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{AggregatedConfigSource, ApiVersion, ConfigSource, config_source::ConfigSourceSpecifier},
            listener::v3::{ApiListener, Listener},
            route::v3::RouteConfiguration,
        },
        extensions::filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
                http_filter::ConfigType,
            },
        },
    },
    google::protobuf::Any,
};

/// "Fetch it over the stream you have": the config source that gRPC accepts everywhere.
pub fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: ApiVersion::V3.into(),
        ..Default::default()
    }
}

/// A client listener: an `ApiListener` whose routes come from the RouteConfiguration `route_name`.
pub fn listener(name: &str, route_name: &str) -> Listener {
    listener_with(name, route_name, Vec::new())
}

/// The same with HTTP filters. The router comes behind them by itself.
pub fn listener_with(name: &str, route_name: &str, filters: Vec<HttpFilter>) -> Listener {
    let rds = Rds { config_source: Some(ads()), route_config_name: route_name.to_owned() };
    api_listener(name, RouteSpecifier::Rds(rds), filters)
}

/// An HTTP filter, whose instance name is what overrides of it name.
pub fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter { name: name.to_owned(), config_type: Some(ConfigType::TypedConfig(config)), ..Default::default() }
}

/// A client listener that carries its routes inside.
pub fn listener_inline(name: &str, routes: RouteConfiguration) -> Listener {
    api_listener(name, RouteSpecifier::RouteConfig(routes), Vec::new())
}

fn api_listener(name: &str, routes: RouteSpecifier, mut filters: Vec<HttpFilter>) -> Listener {
    filters.push(http_filter("router", pack(Router::default())));
    let manager = HttpConnectionManager { route_specifier: Some(routes), http_filters: filters, ..Default::default() };
    Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(pack(manager)) }),
        ..Default::default()
    }
}
