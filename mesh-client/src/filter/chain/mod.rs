//! The filters of one route, in order, and a call's way through them.
//!
//! A chain is built when the configuration arrives and is never empty: a route without filters has none, and its calls do
//! nothing here. It does NOT know what a filter does.

use super::{Filter, FilterRequest, Reply, Verdict};
use crate::error::{Cause, ReplyForm};
use futures_util::FutureExt;
use http::{Response, request, response};
use mesh_xds::resource::{ClusterName, HttpFilterConfig};
use std::{
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// One filter as configured: it is kept from one configuration to the next while name and configuration stay.
pub(crate) struct Instance {
    pub(super) name: String,
    /// `None` of one that a program has put there itself, for good.
    pub(super) config: Option<HttpFilterConfig>,
    /// `None` when nothing can ever come of it, as of the fault filter that istiod puts everywhere.
    pub(super) filter: Option<Arc<dyn Filter>>,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("name", &self.name).field("config", &self.config).finish_non_exhaustive()
    }
}

/// At least one filter.
#[derive(Debug)]
pub(crate) struct Chain(Box<[Link]>);

struct Link {
    instance: Arc<Instance>,
    filter: Arc<dyn Filter>,
    sees_responses: bool,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.instance.fmt(f)
    }
}

impl Link {
    fn new(instance: Arc<Instance>, filter: Arc<dyn Filter>) -> Self {
        let sees_responses = filter.sees_responses();
        Self { instance, filter, sees_responses }
    }
}

impl Chain {
    /// Those of the instances that do anything; `None` without any.
    pub(super) fn of<'i>(instances: impl Iterator<Item = &'i Arc<Instance>>) -> Option<Arc<Self>> {
        let link =
            |instance: &Arc<Instance>| Some(Link::new(Arc::clone(instance), Arc::clone(instance.filter.as_ref()?)));
        let links: Box<[_]> = instances.filter_map(link).collect();
        if links.is_empty() { None } else { Some(Arc::new(Self(links))) }
    }

    /// One filter, of a program's own.
    pub(super) fn alone(name: &str, filter: Arc<dyn Filter>) -> Arc<Self> {
        let instance = Instance { name: name.to_owned(), config: None, filter: None };
        Arc::new(Self(Box::new([Link::new(Arc::new(instance), filter)])))
    }

    /// Whether any of them sees responses.
    pub(crate) fn sees_responses(&self) -> bool {
        self.0.iter().any(|link| link.sees_responses)
    }

    /// Whether these are the very same instances.
    pub(super) fn is(&self, other: &Self) -> bool {
        let same = |(one, other): (&Link, &Link)| Arc::ptr_eq(&one.instance, &other.instance);
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(same)
    }
}

/// How far a call came through its chain: whose response hooks are owed.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    chain: Option<Arc<Chain>>,
    cluster: Option<ClusterName>,
    filters: usize,
}

impl Passed {
    /// Whether the call has entered its chain, which it does once.
    pub(crate) fn has_begun(&self) -> bool {
        self.chain.is_some()
    }

    /// Whether a response is to go back through filters.
    pub(crate) fn awaits_response(&self) -> bool {
        self.chain.as_ref().is_some_and(|chain| self.filters > 0 && chain.sees_responses())
    }

    /// Sends a request through a chain: it goes on, or this is its answer.
    ///
    /// May be dropped at any time; the hooks of those that have let the request pass are owed all the same.
    pub(crate) async fn request(
        &mut self,
        chain: &Arc<Chain>,
        request: &mut FilterRequest<'_>,
    ) -> Result<Option<Reply>, Cause> {
        self.filters = 0;
        self.cluster = request.cluster().cloned();
        let chain = &**self.chain.insert(Arc::clone(chain));
        for Link { instance, filter, .. } in &chain.0 {
            let panicked = |_| Cause::FilterPanicked { filter: instance.name.clone() };
            // A panic leaves a half-changed head at worst, and that is not sent.
            let turn = &mut *request;
            let ask = move || {
                // Given away, since the verdict may hold it.
                let turn = turn;
                filter.request(turn)
            };
            let verdict = catch_unwind(AssertUnwindSafe(ask)).map_err(panicked)?;
            match verdict {
                Verdict::Continue => {}
                Verdict::Reply(reply) => return Ok(Some(reply)),
                Verdict::Wait(outcome) => {
                    if let Err(reply) = AssertUnwindSafe(outcome).catch_unwind().await.map_err(panicked)? {
                        return Ok(Some(reply));
                    }
                }
            }
            self.filters += 1;
        }
        Ok(None)
    }

    /// Sends the response back through those that have let the request pass.
    pub(crate) fn response<B>(
        &self,
        request: &mut request::Parts,
        form: ReplyForm,
        response: &mut Response<B>,
    ) -> Result<(), Cause> {
        let Some(chain) = self.chain.as_ref().filter(|_| self.awaits_response()) else {
            return Ok(());
        };
        let request = FilterRequest::new(request, form, self.cluster.as_ref());
        let mut head = take_head(response);
        for Link { instance, filter, .. } in chain.0[..self.filters].iter().rev().filter(|link| link.sees_responses) {
            let hook = |head: &mut response::Parts| filter.response(&request, head);
            catch_unwind(AssertUnwindSafe(|| hook(&mut head)))
                .map_err(|_| Cause::FilterPanicked { filter: instance.name.clone() })?;
        }
        put_head(response, head);
        Ok(())
    }
}

/// The head of a response whose body, which is large, stays where it is.
fn take_head<B>(response: &mut Response<B>) -> response::Parts {
    let (mut head, ()) = Response::new(()).into_parts();
    (head.status, head.version) = (response.status(), response.version());
    mem::swap(&mut head.headers, response.headers_mut());
    mem::swap(&mut head.extensions, response.extensions_mut());
    head
}

fn put_head<B>(response: &mut Response<B>, head: response::Parts) {
    (*response.status_mut(), *response.version_mut()) = (head.status, head.version);
    (*response.headers_mut(), *response.extensions_mut()) = (head.headers, head.extensions);
}

#[cfg(test)]
mod tests;
