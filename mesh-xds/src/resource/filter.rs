//! LDS and RDS: HTTP filters, and what parts of the routes say about them (A39).
//!
//! A filter instance is known by its name; a route configuration, a virtual host, a route or a share of a traffic split
//! may switch it off, on, or give it another configuration. Which of these wins is decided where filters run, not here.

use super::{CustomFilter, HttpFault};
use std::sync::Arc;

/// One HTTP filter instance that this library knows (A39). Unknown optional ones are reported and skipped.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpFilter {
    /// Instance name: the key of overrides.
    pub name: String,
    /// What it does where no override says otherwise.
    pub config: HttpFilterConfig,
    /// `disabled`: off, unless an override switches it on (Envoy).
    pub disabled: bool,
}

/// Filter types that decode knows.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum HttpFilterConfig {
    /// `envoy.extensions.filters.http.fault.v3.HTTPFault` (A33).
    Fault(Arc<HttpFault>),
    /// Of a type that the program has registered.
    Custom(CustomFilter),
}

impl HttpFilterConfig {
    /// Whether both are of one type, so that one may stand in for the other.
    pub fn is_same_type(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fault(_), Self::Fault(_)) => true,
            (Self::Custom(one), Self::Custom(other)) => one.kind() == other.kind(),
            (Self::Fault(_), Self::Custom(_)) | (Self::Custom(_), Self::Fault(_)) => false,
        }
    }
}

/// `typed_per_filter_config` of a route configuration, a virtual host, a route or a share of a traffic split.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FilterOverrides(Box<[(String, FilterOverride)]>);

impl FilterOverrides {
    /// What is said of the instance of this name; often nothing.
    pub fn of(&self, name: &str) -> Option<&FilterOverride> {
        self.0.iter().find(|(of, _)| of == name).map(|(_, says)| says)
    }

    /// Whether nothing is said of any filter.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One for each name.
impl FromIterator<(String, FilterOverride)> for FilterOverrides {
    fn from_iter<I: IntoIterator<Item = (String, FilterOverride)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

/// What one place says of one filter instance.
#[derive(Clone, Debug, PartialEq)]
pub enum FilterOverride {
    /// `FilterConfig.disabled`: the filter is off.
    Disabled,
    /// The filter is on, with the configuration that it has otherwise.
    Enabled,
    /// The filter is on, with this configuration.
    Config(HttpFilterConfig),
}
