//! HTTP filters and their overrides (A39).
//!
//! The router, the fault filter and the types that the program has registered are known; an unknown filter is refused
//! unless it is marked optional.

use super::{
    basics::{TypedStruct, type_name, unpack},
    fault::http_fault,
    scope::Scope,
};
use crate::resource::{
    CustomFilter, FilterOverride, FilterOverrides, FilterType, HttpFilter, HttpFilterConfig, Invalid,
};
use envoy_types::pb::{
    envoy::{
        config::route::v3::FilterConfig,
        extensions::filters::{
            http::{fault::v3::HttpFault as HttpFaultPb, rbac::v3::RbacPerRoute, router::v3::Router},
            network::http_connection_manager::v3 as pb,
        },
    },
    google::protobuf::Any,
};
use prost::Name;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// A filter type that is known here.
enum Known {
    Router,
    Filter(HttpFilterConfig),
}

/// `http_filters`, without the router at its end.
pub(super) fn http_filters(filters: Vec<pb::HttpFilter>, scope: &mut Scope<'_>) -> Result<Vec<HttpFilter>, Invalid> {
    let mut names = HashSet::new();
    let mut known = Vec::new();
    for (index, filter) in filters.into_iter().enumerate() {
        let kind = scope.at("http_filters", index, |scope| {
            if filter.name.is_empty() {
                return Err(scope.invalid_at("name", "must not be empty"));
            }
            if !names.insert(filter.name.clone()) {
                return Err(scope.invalid_at("name", format!("{:?} is used twice", filter.name)));
            }
            http_filter(&filter, scope)
        })?;
        if let Some(kind) = kind {
            known.push((index, filter, kind));
        }
    }
    // "list empty (also empty after dropping optional unknowns)" is refused (A39).
    let Some((last, _, terminal)) = known.pop() else {
        return Err(scope.invalid_at("http_filters", "no filter left: the router must be there"));
    };
    // "last filter not terminal", "terminal filter not last" - A39
    if !matches!(terminal, Known::Router) {
        return Err(scope.at("http_filters", last, |scope| scope.invalid("the last filter must be the router")));
    }
    let mut chain = Vec::new();
    for (index, filter, kind) in known {
        match kind {
            Known::Router => {
                return Err(
                    scope.at("http_filters", index, |scope| scope.invalid("the router must be the last filter"))
                );
            }
            Known::Filter(config) => chain.push(HttpFilter { name: filter.name, config, disabled: filter.disabled }),
        }
    }
    Ok(chain)
}

/// One filter; `None` for an unknown optional one.
fn http_filter(filter: &pb::HttpFilter, scope: &mut Scope<'_>) -> Result<Option<Known>, Invalid> {
    let known = match &filter.config_type {
        Some(pb::http_filter::ConfigType::TypedConfig(any)) => {
            scope.within("typed_config", |scope| known_type(any, scope))?
        }
        Some(pb::http_filter::ConfigType::ConfigDiscovery(_)) | None => None,
    };
    match known {
        Some(known) => Ok(Some(known)),
        None if filter.is_optional => {
            scope.ignore_here("unknown filter, optional: skipped");
            Ok(None)
        }
        None => {
            let url = match &filter.config_type {
                Some(pb::http_filter::ConfigType::TypedConfig(any)) => any.type_url.as_str(),
                Some(pb::http_filter::ConfigType::ConfigDiscovery(_)) => "config_discovery",
                None => "nothing",
            };
            Err(scope.invalid_at("typed_config", format!("unknown required filter: holds {url:?}")))
        }
    }
}

// "config rejected by the filter (even when optional)" is refused (A39), so known types are decoded.
fn known_type(any: &Any, scope: &mut Scope<'_>) -> Result<Option<Known>, Invalid> {
    let envelope = TypedStruct::unpack(any, scope)?;
    let name = type_name(envelope.as_ref().map_or(&any.type_url, |envelope| &envelope.type_url));
    let is_router = name == Router::full_name();
    if is_router || name == HttpFaultPb::full_name() {
        // The type in the envelope finds the filter, which is handed the TypedStruct (A39). gRPC's own read messages
        // only: grpc-go's and C-core's refuse it.
        if envelope.is_some() {
            return Err(scope.invalid(format!("{name} must not come in a TypedStruct")));
        }
        if is_router {
            // "Router fields ignored" - A39; they still have to be a router's.
            unpack::<Router>(any, scope)?;
            return Ok(Some(Known::Router));
        }
        let fault = http_fault(unpack(any, scope)?, scope)?;
        return Ok(Some(Known::Filter(HttpFilterConfig::Fault(Arc::new(fault)))));
    }
    let Some(kind) = scope.context.extensions.filter(name) else {
        return Ok(None);
    };
    let config = custom(kind, any, envelope).map_err(|invalid| scope.found(invalid))?;
    Ok(Some(Known::Filter(HttpFilterConfig::Custom(config))))
}

/// A filter of a type that the program has registered.
fn custom(kind: FilterType, any: &Any, envelope: Option<TypedStruct>) -> Result<CustomFilter, Invalid> {
    match envelope {
        None => kind.decode(&any.value),
        // The user's path is one of fields of the struct.
        Some(envelope) => kind.decode_json(&envelope.json()).map_err(|invalid| invalid.within("value")),
    }
}

/// `typed_per_filter_config`.
pub(super) fn overrides(configs: &HashMap<String, Any>, scope: &mut Scope<'_>) -> Result<FilterOverrides, Invalid> {
    let mut overrides = Vec::new();
    // In order of their names, so that the same resource is always the same value, and fails at the same place.
    for (name, any) in configs.iter().collect::<BTreeMap<_, _>>() {
        let says = scope.key("typed_per_filter_config", name, |scope| filter_override(any, scope))?;
        overrides.extend(says.map(|says| (name.clone(), says)));
    }
    Ok(overrides.into_iter().collect())
}

/// One entry; `None` when it is for the other side.
fn filter_override(any: &Any, scope: &mut Scope<'_>) -> Result<Option<FilterOverride>, Invalid> {
    if type_name(&any.type_url) != FilterConfig::full_name() {
        return override_config(any, false, scope);
    }
    let wrapper: FilterConfig = unpack(any, scope)?;
    match &wrapper.config {
        // "If true, the filter is disabled in the override or initial configuration scope, and the config field will be
        // ignored" (Envoy, `FilterConfig.disabled`).
        _ if wrapper.disabled => Ok(Some(FilterOverride::Disabled)),
        // "If the field `config` is configured but is empty, we treat the filter is enabled explicitly" (Envoy,
        // `PerFilterConfigs`).
        Some(config) if config.type_url.is_empty() => Ok(Some(FilterOverride::Enabled)),
        Some(config) => scope.within("config", |scope| override_config(config, wrapper.is_optional, scope)),
        None if wrapper.is_optional => Ok(Some(FilterOverride::Enabled)),
        None => Err(scope.invalid_at("config", "must be set")),
    }
}

fn override_config(any: &Any, optional: bool, scope: &mut Scope<'_>) -> Result<Option<FilterOverride>, Invalid> {
    let name = type_name(&any.type_url);
    if name == RbacPerRoute::full_name() {
        // "Not NACK: a filter for the other side" - A39
        scope.ignore_here("a server's filter: has no effect on a client");
        return Ok(None);
    }
    match known_type(any, scope)? {
        Some(Known::Filter(config)) => Ok(Some(FilterOverride::Config(config))),
        Some(Known::Router) => Err(scope.invalid("the router takes no override")),
        None if optional => {
            scope.ignore_here("unknown filter override, optional: skipped");
            // "If a filter is explicitly configured we treat it as enabled. The config may be nullptr because the filter
            // could be optional" (Envoy, `PerFilterConfigs`).
            Ok(Some(FilterOverride::Enabled))
        }
        None => Err(scope.invalid(format!("override of the unknown filter type {:?}", any.type_url))),
    }
}
