//! Where a call goes: the current table, what matchers see of a request, and the decision that all its attempts share.
//!
//! Made once, unless the cluster leaves the routes while the call waits for it. It does NOT balance.

use super::{Inner, Use, terms::Terms};
use crate::{
    apply::{Action, AuthorityOf, Destination, RoutingTable, Table, Way},
    balance::Tried,
    cluster::{Backends, NoPick},
    deadline::Limits,
    endpoint::Slot,
    error::{Cause, ReplyForm},
    filter::Chain,
    retry::Plan,
    route::RequestHead,
};
use http::{request, uri::Authority};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// A call's decision: made once, kept for all its attempts.
pub(super) struct Routed {
    pub(super) backends: Arc<Backends>,
    pub(super) limits: Limits,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) authority: AuthorityOf,
    pub(super) retry: Option<Plan>,
    pub(super) filters: Option<Arc<Chain>>,
}

impl Routed {
    /// Where the next attempt goes.
    pub(super) async fn pick(&self, waits: bool, tried: &mut Tried) -> Result<Slot, NoPick> {
        let limit = self.retry.as_ref().and_then(Plan::per_try_timeout);
        if let Some(limit) = limit.filter(|_| tried.avoids_priorities()) {
            // An attempt that takes so long is given up: so is the wait for a priority that is to be connected for it.
            match timeout(limit, self.backends.pick(waits, tried)).await {
                Ok(picked) => return picked,
                Err(_elapsed) => tried.hurry(),
            }
        }
        self.backends.pick(waits, tried).await
    }
}

impl Inner {
    /// Routes by the current table; `None` while there is none to wait for.
    pub(super) fn try_route(&self, head: &request::Parts, terms: &Terms) -> Option<Result<Routed, Cause>> {
        match &**self.shared.table() {
            Table::Ready(table) => Some(self.decide(table, head, terms)),
            Table::Pending(_) => None,
            Table::Failed(_) if terms.waits => None,
            Table::Failed(reason) => Some(Err(Cause::NoConfig(Arc::clone(reason)))),
            Table::ShutDown => Some(Err(Cause::ShuttingDown)),
        }
    }

    /// Waits for the first table, until the control plane fails or the time is up, and routes by it.
    pub(super) async fn route_later(&self, head: &request::Parts, terms: &Terms) -> Result<Routed, Cause> {
        let routed = self.shared.wakeups.wait_unless(|| self.try_route(head, terms));
        if terms.waits {
            return routed.await;
        }
        let waited = self.options.config_timeout;
        timeout(waited, routed)
            .await
            .unwrap_or_else(|_elapsed| Err(Cause::ConfigTimeout { missing: self.shared.missing(), waited }))
    }

    fn decide(&self, table: &RoutingTable, head: &request::Parts, terms: &Terms) -> Result<Routed, Cause> {
        let Some(host) = &table.host else {
            return Err(Cause::NoVirtualHost {
                routes: table.snapshot.routes.name.clone(),
                authority: self.target.to_string(),
            });
        };
        let request = self.request_head(head, terms);
        let action = host.matcher.find(&request, &mut || fastrand::u32(..1_000_000)).map(|index| &host.actions[index]);
        let (destination, limits, idle_timeout, authority, retry) = match action {
            Some(Action::Forward { destination, limits, idle_timeout, authority, retry }) => {
                (destination, limits, *idle_timeout, *authority, retry)
            }
            Some(Action::Unsupported(route, action)) => {
                return Err(Cause::UnsupportedAction { route: route.clone(), action });
            }
            None => return Err(Cause::NoRoute { virtual_host: host.name().to_owned() }),
        };
        let Way { cluster, filters } = match destination {
            Destination::One(way) => way,
            Destination::Split(choice, ways) => &ways[choice.choose(fastrand::u64(..choice.total()))],
        };
        let backends = Arc::clone(cluster.backends(self.shared.protocol(cluster, Use::of(head.version, terms.form))));
        let retry = retry.clone().filter(|_| self.options.retries);
        Ok(Routed { backends, limits: *limits, idle_timeout, authority, retry, filters: filters.clone() })
    }

    /// What matchers see of a request.
    pub(super) fn request_head<'a>(&'a self, head: &'a request::Parts, terms: &'a Terms) -> RequestHead<'a> {
        RequestHead {
            method: &head.method,
            path: head.uri.path(),
            query: head.uri.query(),
            scheme: "http",
            authority: self.authority(terms).as_str(),
            headers: &head.headers,
            is_grpc: terms.form == ReplyForm::Grpc,
        }
    }

    /// The application's own word for this call, or the channel's. There is no certificate to hold it against (A81): what
    /// asks for TLS is not called.
    pub(super) fn authority<'a>(&'a self, terms: &'a Terms) -> &'a Authority {
        terms.authority.as_ref().unwrap_or(&self.options.authority)
    }
}
