//! HTTP filters and their per-route overrides (A39).
//!
//! The router and the fault filter are known; an unknown filter is refused unless it is marked optional.

use super::{
    basics::{type_name, typed_struct, unpack},
    scope::Scope,
};
use crate::resource::{HttpFilter, HttpFilterConfig, Invalid};
use envoy_types::pb::{
    envoy::{
        config::route::v3::FilterConfig,
        extensions::filters::{
            http::{fault::v3::HttpFault, rbac::v3::RbacPerRoute, router::v3::Router},
            network::http_connection_manager::v3 as pb,
        },
    },
    google::protobuf::Any,
};
use prost::Name;
use std::collections::{BTreeMap, HashMap, HashSet};

const FAULT_HAS_NO_EFFECT: &str = "fault injection is not supported yet: has no effect";

/// A filter type that is known here.
enum Known {
    Router,
    Fault,
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
            known.push((index, filter.name, kind));
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
    for (index, name, kind) in known {
        match kind {
            Known::Router => {
                return Err(
                    scope.at("http_filters", index, |scope| scope.invalid("the router must be the last filter"))
                );
            }
            Known::Fault => chain.push(HttpFilter { name, config: HttpFilterConfig::Fault }),
        }
    }
    Ok(chain)
}

/// One filter; `None` for an unknown optional one.
fn http_filter(filter: &pb::HttpFilter, scope: &mut Scope<'_>) -> Result<Option<Known>, Invalid> {
    scope.unsupported(&[(filter.disabled, "disabled")]);
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
    let envelope = typed_struct(any, scope)?;
    let name = type_name(envelope.as_deref().unwrap_or(&any.type_url));
    if name == Router::full_name() {
        // "Router fields ignored" - A39; they still have to be a router's.
        if envelope.is_none() {
            unpack::<Router>(any, scope)?;
        }
        return Ok(Some(Known::Router));
    }
    if name == HttpFault::full_name() {
        if envelope.is_some() || unpack::<HttpFault>(any, scope)? != HttpFault::default() {
            scope.ignore_here(FAULT_HAS_NO_EFFECT);
        }
        return Ok(Some(Known::Fault));
    }
    Ok(None)
}

/// `typed_per_filter_config`: validated, without effect as long as no filter has one.
pub(super) fn overrides(configs: &HashMap<String, Any>, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    if configs.is_empty() {
        return Ok(());
    }
    // In order of their names, so that the same resource always fails at the same place.
    for (name, any) in configs.iter().collect::<BTreeMap<_, _>>() {
        scope.key("typed_per_filter_config", name, |scope| filter_override(any, scope))?;
    }
    Ok(())
}

fn filter_override(any: &Any, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    if type_name(&any.type_url) != FilterConfig::full_name() {
        return override_config(any, false, scope);
    }
    let wrapper: FilterConfig = unpack(any, scope)?;
    scope.unsupported(&[(wrapper.disabled, "disabled")]);
    match &wrapper.config {
        Some(config) => scope.within("config", |scope| override_config(config, wrapper.is_optional, scope)),
        // "disabled: true" needs no configuration.
        None if wrapper.disabled || wrapper.is_optional => Ok(()),
        None => Err(scope.invalid_at("config", "must be set")),
    }
}

fn override_config(any: &Any, optional: bool, scope: &mut Scope<'_>) -> Result<(), Invalid> {
    let name = type_name(&any.type_url);
    if name == RbacPerRoute::full_name() {
        // "Not NACK: a filter for the other side" - A39
        scope.ignore_here("a server's filter: has no effect on a client");
        return Ok(());
    }
    match known_type(any, scope)? {
        Some(Known::Fault) => Ok(()),
        Some(Known::Router) => Err(scope.invalid("the router takes no override")),
        None if optional => {
            scope.ignore_here("unknown filter override, optional: skipped");
            Ok(())
        }
        None => Err(scope.invalid(format!("override of the unknown filter type {:?}", any.type_url))),
    }
}
