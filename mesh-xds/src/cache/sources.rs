//! The caches of all servers, seen through a choice of one server for each authority (A47, A71).
//!
//! A resource is looked up at the server that was chosen for its name's authority, and nowhere else: what two servers
//! say is never mixed within one authority. It does NOT choose.

use super::{Cache, Lookup};
use crate::{
    bootstrap::{Authorities, AuthorityId, ServerId},
    name,
    resource::Kind,
};
use std::{fmt, sync::Arc};

/// For each authority, the place of its server in the authority's list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Choice(Arc<[usize]>);

/// See the file's first line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sources<'a> {
    caches: &'a [Cache],
    authorities: &'a Authorities,
    choice: &'a Choice,
}

impl Choice {
    /// The preferred server of every authority.
    pub(crate) fn preferred(authorities: &Authorities) -> Self {
        Self(std::iter::repeat_n(0, authorities.count()).collect())
    }

    /// The choice that takes the next server for each of `exhausted` that has one; `None` when none has.
    pub(crate) fn next(
        &self,
        authorities: &Authorities,
        exhausted: impl IntoIterator<Item = AuthorityId>,
    ) -> Option<Self> {
        let mut places = self.0.to_vec();
        for authority in exhausted {
            let next = self.0.get(authority.index())? + 1;
            if authorities.choice(authority, next).is_some() {
                places[authority.index()] = next;
            }
        }
        (*places != *self.0).then(|| Self(places.into()))
    }

    /// The server that is asked for a resource; `None` when nobody knows its authority.
    pub(crate) fn server(&self, authorities: &Authorities, resource: &str) -> Option<ServerId> {
        let authority = authorities.of(resource)?;
        authorities.choice(authority, *self.0.get(authority.index())?)
    }
}

impl<'a> Sources<'a> {
    /// `caches` are in the order of the servers' numbers.
    pub(crate) fn new(caches: &'a [Cache], authorities: &'a Authorities, choice: &'a Choice) -> Self {
        Self { caches, authorities, choice }
    }

    /// What to do with a resource.
    pub(crate) fn lookup(&self, kind: Kind, name: &str) -> Lookup<'a> {
        match self.server(name).and_then(|server| self.caches.get(server.index())) {
            Some(cache) => cache.lookup(kind, name),
            None => {
                let authority = name::authority(name).unwrap_or_default();
                let what = format_args!("the bootstrap has no authority {authority:?}");
                Lookup::Failed(self.text(kind, name, what))
            }
        }
    }

    /// Who is asked for a resource.
    pub(crate) fn server(&self, name: &str) -> Option<ServerId> {
        self.choice.server(self.authorities, name)
    }

    /// The authority of a name.
    pub(crate) fn authority(&self, name: &str) -> Option<AuthorityId> {
        self.authorities.of(name)
    }

    /// `Cluster "c": what (xDS node id "n")`.
    pub(crate) fn text(&self, kind: Kind, name: &str, what: impl fmt::Display) -> Arc<str> {
        // All caches are of one node, and there is one for each server, of which there is at least one.
        self.caches.first().map(|cache| cache.text(kind, name, what)).unwrap_or_default()
    }
}
