//! A bootstrap made in code, for programs that know their control plane without a file.
//!
//! It says the same things as the JSON, and the in-process control plane, which JSON cannot name. It does NOT
//! check more or less than the parser does.

use super::{
    Bootstrap, BootstrapError, Node, TransportOptions, XdsServer,
    authority::{Authorities, Entry},
};
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
    servers: Vec<XdsServer>,
    features: Vec<String>,
    node: Node,
    listener_template: Option<String>,
    authorities: Vec<(String, Authority)>,
}

/// An entry of `authorities` (A47): who answers for the names `xdstp://authority/...`.
///
/// ```
/// use mesh_xds::{Authority, Bootstrap, ServerAddress};
/// let own = ServerAddress::parse("127.0.0.1:18000").unwrap();
/// let partner = ServerAddress::parse("xds.partner.example:443").unwrap();
/// let bootstrap = Bootstrap::builder()
///     .server(own)
///     .authority("partner.example", Authority::default().server(partner))
///     .build()?;
/// let name = "xdstp://partner.example/envoy.config.listener.v3.Listener/shop:80";
/// assert_eq!(bootstrap.listener_name_at("partner.example", "shop:80").as_deref(), Some(name));
/// # Ok::<(), mesh_xds::BootstrapError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Authority(Entry);

impl Authority {
    /// Adds a control plane; the first one is preferred, the others are fallbacks (A71). Without any, those of the top
    /// level answer.
    pub fn server(mut self, server: impl Into<XdsServer>) -> Self {
        self.0.servers.push(server.into());
        self
    }

    /// `client_listener_resource_name_template`; must start with `xdstp://authority/`. Unless set:
    /// `xdstp://authority/envoy.config.listener.v3.Listener/%s`.
    pub fn listener_template(mut self, template: impl Into<String>) -> Self {
        self.0.template = Some(template.into());
        self
    }
}

impl BootstrapBuilder {
    /// Adds a control plane, or just its address; the first one is preferred, the others are fallbacks (A71).
    pub fn server(mut self, server: impl Into<XdsServer>) -> Self {
        self.servers.push(server.into());
        self
    }

    /// A `server_features` entry for every server of the top level; unknown ones are ignored, as in the JSON.
    pub fn server_feature(mut self, feature: &str) -> Self {
        self.features.push(feature.to_owned());
        self
    }

    /// Adds an entry of `authorities` (A47).
    pub fn authority(mut self, name: impl Into<String>, authority: Authority) -> Self {
        self.authorities.push((name.into(), authority));
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
    /// [`BootstrapError::Invalid`] without a server, or with an authority whose template is not its own.
    pub fn build(self) -> Result<Bootstrap, BootstrapError> {
        if self.servers.is_empty() {
            return Err(BootstrapError::Invalid(Invalid::new("at least one is needed").within("xds_servers")));
        }
        let with_features = |server| self.features.iter().fold(server, |server: XdsServer, name| server.feature(name));
        let servers = self.servers.into_iter().map(with_features).collect();
        let template = self.listener_template.unwrap_or_else(|| "%s".to_owned());
        let mut authorities = Authorities::new(servers, template);
        for (name, Authority(entry)) in self.authorities {
            let added = authorities.add(&name, entry);
            added.map_err(|invalid| BootstrapError::Invalid(invalid.within(&format!("authorities[{name:?}]"))))?;
        }
        Ok(Bootstrap {
            authorities,
            node: self.node,
            certificate_providers: BTreeSet::new(),
            transport: TransportOptions::default(),
            resolver: crate::dns::Resolver::default(),
            extensions: crate::Registry::default(),
        })
    }
}
