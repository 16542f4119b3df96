//! A bootstrap made in code, for programs that know their control plane without a file.
//!
//! It says the same things as the JSON, and the in-process control plane, which JSON cannot name. It does NOT
//! check more or less than the parser does.

use super::{Bootstrap, BootstrapError, Feature, Node, Server, ServerAddress, TransportOptions};
use crate::resource::Invalid;
use std::collections::BTreeSet;

/// Made by [`Bootstrap::builder`].
///
/// ```
/// use mesh_xds::{Bootstrap, ServerAddress};
/// let bootstrap = Bootstrap::builder()
///     .node_id("client-1")
///     .server(ServerAddress::parse("unix:///run/xds.sock").unwrap())
///     .build()?;
/// assert_eq!(bootstrap.node_id(), "client-1");
/// # Ok::<(), mesh_xds::BootstrapError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct BootstrapBuilder {
    servers: Vec<Server>,
    features: Vec<Feature>,
    node: Node,
    listener_template: Option<String>,
}

impl BootstrapBuilder {
    /// Adds a control plane; the first one is preferred. Plaintext.
    pub fn server(mut self, address: impl Into<ServerAddress>) -> Self {
        self.servers.push(Server { address: address.into(), features: Vec::new() });
        self
    }

    /// A `server_features` entry for every server; unknown ones are ignored, as in the JSON.
    pub fn server_feature(mut self, feature: &str) -> Self {
        self.features.extend(Feature::parse(feature));
        self
    }

    /// `node.id`.
    pub fn node_id(mut self, id: impl Into<String>) -> Self {
        self.node.id = id.into();
        self
    }

    /// `node.cluster`.
    pub fn node_cluster(mut self, cluster: impl Into<String>) -> Self {
        self.node.cluster = cluster.into();
        self
    }

    /// `node.locality`.
    pub fn locality(mut self, region: impl Into<String>, zone: impl Into<String>, sub_zone: impl Into<String>) -> Self {
        (self.node.region, self.node.zone, self.node.sub_zone) = (region.into(), zone.into(), sub_zone.into());
        self
    }

    /// One entry of `node.metadata`.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.node.metadata.insert(key.into(), serde_json::Value::String(value.into()));
        self
    }

    /// `client_default_listener_resource_name_template`; `%s` unless set.
    pub fn listener_template(mut self, template: impl Into<String>) -> Self {
        self.listener_template = Some(template.into());
        self
    }

    /// Finishes.
    ///
    /// # Errors
    /// [`BootstrapError::Invalid`] without a server.
    pub fn build(mut self) -> Result<Bootstrap, BootstrapError> {
        if self.servers.is_empty() {
            return Err(BootstrapError::Invalid(Invalid::new("at least one is needed").within("xds_servers")));
        }
        for server in &mut self.servers {
            server.features.clone_from(&self.features);
        }
        Ok(Bootstrap {
            servers: self.servers,
            node: self.node,
            listener_template: self.listener_template.unwrap_or_else(|| "%s".to_owned()),
            certificate_providers: BTreeSet::new(),
            transport: TransportOptions::default(),
        })
    }
}
