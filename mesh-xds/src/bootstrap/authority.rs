//! Which servers answer for which names (A47), and in which order they are asked (A71).
//!
//! Every server of a bootstrap has one number, whoever lists it: "servers with equal {uri, creds, features} share one
//! channel across authorities" (A47). It does NOT choose among the servers of an authority: `client/core` does.

use super::{ServerId, XdsServer, percent_encode};
use crate::{name, resource::Invalid};
use std::collections::{BTreeMap, BTreeSet};

/// The servers of a bootstrap, each once, and the authorities that list them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Authorities {
    servers: Vec<XdsServer>,
    /// Those at each address, which differ in credentials or features.
    by_address: BTreeMap<String, Vec<ServerId>>,
    /// The first one is the top level's, which answers for plain names.
    all: Vec<Authority>,
    by_name: BTreeMap<String, AuthorityId>,
}

/// Names an authority within one bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct AuthorityId(usize);

#[derive(Clone, Debug, PartialEq)]
struct Authority {
    /// At least one, in order of preference.
    servers: Vec<ServerId>,
    /// Of the names of client listeners; `%s` stands for the target.
    template: String,
}

/// An entry of `authorities`, as it is written.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// None: those of the top level.
    pub(super) servers: Vec<XdsServer>,
    pub(super) template: Option<String>,
}

impl Authorities {
    /// The top level alone; `template` is `client_default_listener_resource_name_template`.
    pub(super) fn new(servers: Vec<XdsServer>, template: String) -> Self {
        let mut authorities =
            Self { servers: Vec::new(), by_address: BTreeMap::new(), all: Vec::new(), by_name: BTreeMap::new() };
        let servers = authorities.numbered(servers);
        authorities.all.push(Authority { servers, template });
        authorities
    }

    /// Adds `authorities["name"]`.
    ///
    /// # Errors
    /// "a configured template must start with `xdstp://AUTH/` or bootstrap fails" - A47.
    pub(super) fn add(&mut self, name: &str, entry: Entry) -> Result<(), Invalid> {
        let prefix = format!("xdstp://{}/", percent_encode(name));
        let template = entry.template.unwrap_or_else(|| format!("{prefix}envoy.config.listener.v3.Listener/%s"));
        if !template.starts_with(&prefix) {
            let reason = format!("must start with {prefix:?}");
            return Err(Invalid::new(reason).within("client_listener_resource_name_template"));
        }
        // "`xds_servers` missing in an authority: top-level list" - A47.
        let servers = match self.numbered(entry.servers) {
            none if none.is_empty() => self.all.first().map(|top| top.servers.clone()).unwrap_or_default(),
            servers => servers,
        };
        self.by_name.insert(name.to_owned(), AuthorityId(self.all.len()));
        self.all.push(Authority { servers, template });
        Ok(())
    }

    fn numbered(&mut self, servers: Vec<XdsServer>) -> Vec<ServerId> {
        let mut seen = BTreeSet::new();
        let numbers = servers.into_iter().map(|server| self.number(server));
        numbers.filter(|id| seen.insert(*id)).collect()
    }

    fn number(&mut self, server: XdsServer) -> ServerId {
        let there = self.by_address.entry(server.to_string()).or_default();
        if let Some(known) = there.iter().find(|id| self.servers[id.index()] == server) {
            return *known;
        }
        let id = ServerId(self.servers.len());
        there.push(id);
        self.servers.push(server);
        id
    }

    /// Every server, in the order of their numbers.
    pub(crate) fn servers(&self) -> impl Iterator<Item = (ServerId, &XdsServer)> {
        (0..).map(ServerId).zip(&self.servers)
    }

    pub(super) fn servers_mut(&mut self) -> impl Iterator<Item = &mut XdsServer> {
        self.servers.iter_mut()
    }

    pub(crate) fn server(&self, id: ServerId) -> Option<&XdsServer> {
        self.servers.get(id.index())
    }

    /// How many authorities there are, the top level included.
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// Whether both lead the same names to the same servers; templates only make names.
    pub(super) fn is_same_client(&self, other: &Self) -> bool {
        let lists = |authorities: &Self| authorities.all.iter().map(|one| one.servers.clone()).collect::<Vec<_>>();
        (&self.servers, lists(self), &self.by_name) == (&other.servers, lists(other), &other.by_name)
    }

    /// Who answers for a resource; nobody for a name of an authority that the bootstrap does not have.
    pub(crate) fn of(&self, resource: &str) -> Option<AuthorityId> {
        match name::authority(resource) {
            None => Some(AuthorityId(0)),
            Some(authority) => self.by_name.get(authority).copied(),
        }
    }

    /// The server of an authority at a place in its list.
    pub(crate) fn choice(&self, authority: AuthorityId, position: usize) -> Option<ServerId> {
        self.all.get(authority.0)?.servers.get(position).copied()
    }

    /// Whether some authority likes this server best.
    pub(crate) fn is_preferred(&self, id: ServerId) -> bool {
        self.all.iter().any(|authority| authority.servers.first() == Some(&id))
    }

    /// The Listener's name for a target at the top level, or at a named authority.
    pub(crate) fn listener_name(&self, authority: Option<&str>, target: &str) -> Option<String> {
        let id = match authority {
            None => AuthorityId(0),
            Some(authority) => *self.by_name.get(authority)?,
        };
        let template = &self.all.get(id.0)?.template;
        // "`%s` is percent-encoded only when the template starts with `xdstp:`; `/` is left alone" - A47.
        Some(match template.starts_with("xdstp:") {
            true => template.replace("%s", &percent_encode(target)),
            false => template.replace("%s", target),
        })
    }
}

impl AuthorityId {
    pub(crate) fn index(self) -> usize {
        self.0
    }
}
