//! THE client stack, written in one place, outermost first.
//!
//! ```text
//!  tonic / hyper ─► MeshChannel        always ready: there is no queue in front of a call; what can be waited for
//!    error          causes → status    (configuration, a connection) is waited for inside the call, bounded
//!    route          table → cluster
//!    deadline       A31, or Envoy's timeout
//!    attempts       repeated when nothing was sent, or the server says that it did not look
//!      pick         one synchronous step, repeated for each new picker
//!      load         counted for load reports, where the cluster makes any
//!      endpoint     authority, streams, bytes
//! ```
//!
//! The path is one async fn, boxed once. A call reads: an `ArcSwap` load, a match, a pick, a send.

use super::{Inner, Use};
use crate::{
    apply::{Action, Destination, RoutingTable, Table},
    call::{ResponseBody, WaitForReady},
    cluster::{Backends, NoPick},
    deadline::{self, Deadline, GRPC_TIMEOUT, Limits, within},
    endpoint::{SendFailure, Upload},
    error::{Cause, MeshError, ReplyForm},
    load::Attempt,
    route::RequestHead,
};
use http::{
    HeaderMap, Method, Request, Response, Uri,
    header::{self, HeaderName},
    request,
    uri::{PathAndQuery, Scheme},
};
use http_body::Body;
use std::{fmt, sync::Arc};
use tokio::{
    task::coop::consume_budget,
    time::{Instant, timeout},
};

/// How much of a request body is kept for transparent retries: refcounted DATA, no copies.
const REPLAY_CAP: usize = 64 * 1024;

// === Route ===

/// A call's decision: made once, kept for all its attempts.
pub(super) struct Routed {
    pub(super) backends: Arc<Backends>,
    limits: Limits,
}

impl Inner {
    /// Routes by the current table; `None` while there is none to wait for.
    pub(super) fn try_route(
        &self,
        head: &request::Parts,
        form: ReplyForm,
        waits: bool,
    ) -> Option<Result<Routed, Cause>> {
        match &**self.shared.table() {
            Table::Ready(table) => Some(self.decide(table, head, form)),
            Table::Pending(_) => None,
            Table::Failed(_) if waits => None,
            Table::Failed(reason) => Some(Err(Cause::NoConfig(Arc::clone(reason)))),
            Table::ShutDown => Some(Err(Cause::ShuttingDown)),
        }
    }

    /// Routes, and waits for the first table if need be: until the control plane fails, or the time is up.
    async fn route(&self, head: &request::Parts, form: ReplyForm, waits: bool) -> Result<Routed, Cause> {
        if let Some(routed) = self.try_route(head, form, waits) {
            return routed;
        }
        let routed = self.shared.wakeups.wait_unless(|| self.try_route(head, form, waits));
        if waits {
            return routed.await;
        }
        let waited = self.options.config_timeout;
        timeout(waited, routed)
            .await
            .unwrap_or_else(|_elapsed| Err(Cause::ConfigTimeout { missing: self.shared.missing(), waited }))
    }

    fn decide(&self, table: &RoutingTable, head: &request::Parts, form: ReplyForm) -> Result<Routed, Cause> {
        let Some(host) = &table.host else {
            return Err(Cause::NoVirtualHost {
                routes: table.snapshot.routes.name.clone(),
                authority: self.target.to_string(),
            });
        };
        let request = RequestHead {
            method: &head.method,
            path: head.uri.path(),
            query: head.uri.query(),
            scheme: "http",
            authority: self.options.authority.as_str(),
            headers: &head.headers,
            is_grpc: form == ReplyForm::Grpc,
        };
        let action = host.matcher.find(&request, &mut || fastrand::u32(..1_000_000)).map(|index| &host.actions[index]);
        let (destination, limits) = match action {
            Some(Action::Forward { destination, limits }) => (destination, limits),
            Some(Action::Unsupported(route, action)) => {
                return Err(Cause::UnsupportedAction { route: route.clone(), action });
            }
            None => return Err(Cause::NoRoute { virtual_host: host.name().to_owned() }),
        };
        let cluster = match destination {
            Destination::One(cluster) => cluster,
            Destination::Split(choice, clusters) => &clusters[choice.choose(fastrand::u64(..choice.total()))],
        };
        let backends = Arc::clone(cluster.backends(self.shared.protocol(cluster, Use::of(head.version, form))));
        Ok(Routed { backends, limits: *limits })
    }
}

// === Call ===

impl Inner {
    /// The whole client path.
    pub(super) async fn call<B>(self: Arc<Self>, request: Request<B>) -> Response<ResponseBody>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        let (head, body) = request.into_parts();
        let form = form(&head.headers);
        match self.attempts(head, body, form).await {
            Ok(response) => response,
            Err(cause) => {
                // A caller that tries again at once must not keep the workers from running: nothing on the way to a
                // failure has to wait for anything.
                consume_budget().await;
                MeshError::new(cause, Arc::clone(&self.node)).into_response(form)
            }
        }
    }

    async fn attempts<B>(
        &self,
        mut head: request::Parts,
        body: B,
        form: ReplyForm,
    ) -> Result<Response<ResponseBody>, Cause>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: fmt::Display,
    {
        let started = Instant::now();
        self.shared.used(Use::of(head.version, form));
        let waits = head.extensions.get::<WaitForReady>().is_some();
        self.address(&mut head, form)?;
        // Until a route adds its own limit, the caller's holds: it covers the wait for configuration, too.
        let own = deadline::limit(true, &head.headers, &Limits::default()).filter(|_| form == ReplyForm::Grpc);
        let mut deadline = own.map(|limit| Deadline::new(started, limit));
        let mut upload = Some(Upload::new(body, REPLAY_CAP));
        let mut refused = false;
        loop {
            let routed = within(&mut deadline, self.route(&head, form, waits)).await;
            let routed = routed.map_err(|late| late.waiting_for(|| self.shared.missing()))??;
            let limit = deadline::limit(form == ReplyForm::Grpc, &head.headers, &routed.limits);
            if limit != deadline.as_ref().map(Deadline::limit) {
                deadline = limit.map(|limit| Deadline::new(started, limit));
                if let (ReplyForm::Grpc, Some(limit)) = (form, limit) {
                    head.headers.insert(GRPC_TIMEOUT, deadline::grpc_timeout(limit));
                }
            }
            loop {
                let picked = within(&mut deadline, routed.backends.pick(waits)).await;
                let mut slot = match picked.map_err(|late| late.waiting_for(|| routed.backends.missing()))? {
                    Ok(slot) => slot,
                    Err(NoPick::Failed(cause)) => return Err(cause),
                    // The cluster left the routes while the call waited for it: nothing was sent, so route again.
                    Err(NoPick::Removed) => break,
                };
                let mut attempt = Attempt::begin(slot.take_load(), form);
                let failure = match within(&mut deadline, slot.send(&head, &mut upload)).await? {
                    Ok((parts, body)) => {
                        attempt.head(&parts, body.is_end_stream());
                        let body = ResponseBody::live(body, slot, attempt, deadline, form, Arc::clone(&self.node));
                        return Ok(Response::from_parts(parts, body));
                    }
                    Err(failure) => failure,
                };
                let again = match failure {
                    SendFailure::Unsent(_) => true,
                    // "transparent once, then policy" (A6).
                    SendFailure::Refused | SendFailure::GoneAway => !std::mem::replace(&mut refused, true),
                    _ => false,
                };
                match &mut upload {
                    Some(upload) if again && upload.can_replay() => upload.rewind(),
                    _ => return Err(Cause::from_send(failure, slot.cluster().clone(), slot.peer())),
                }
            }
        }
    }

    /// Writes the service's name into the URI, and takes out what belongs to the caller's own hop.
    fn address(&self, head: &mut request::Parts, form: ReplyForm) -> Result<(), Cause> {
        let mut uri = std::mem::take(&mut head.uri).into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.options.authority.clone());
        uri.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
        head.uri = Uri::from_parts(uri).map_err(|error| Cause::InvalidRequest(error.to_string()))?;
        match form {
            ReplyForm::Grpc => {
                head.headers.entry(header::USER_AGENT).or_insert_with(|| self.options.user_agent.clone());
            }
            ReplyForm::Http if head.method == Method::CONNECT => {
                return Err(Cause::InvalidRequest("CONNECT asks for a tunnel, and a mesh has none".to_owned()));
            }
            ReplyForm::Http => {
                for name in &HOP_BY_HOP {
                    head.headers.remove(name);
                }
            }
        }
        Ok(())
    }
}

/// "Connection-specific header fields" (RFC 9113, 8.2.2), and `host`, which the authority replaces.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::HOST,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Whether a request is gRPC, which decides how it is answered.
pub(crate) fn form(headers: &HeaderMap) -> ReplyForm {
    match headers.get(header::CONTENT_TYPE) {
        Some(value) if value.as_bytes().starts_with(b"application/grpc") => ReplyForm::Grpc,
        _ => ReplyForm::Http,
    }
}
