//! The task that keeps one ADS stream: dial, carry requests and responses, dial again.
//!
//! ```text
//!  ┌─► connect ──► Event::Connected(requests) ──► open the call ──► Event::Response ... ─┐
//!  │      │ cause                                      │ cause        stream ended       │
//!  │      ▼                                            ▼                                 ▼
//!  │   Event::Disconnected(cause), A57's backoff ◄── before any response     at once, with jitter
//!  └──────┴──────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Protobuf ends here and in `messages`: the driver gets `Received`. The task is the same for both variants of ADS, and it
//! does NOT know subscriptions, versions or nonces.

use super::{
    asked::{Asked, Names},
    backoff::{Again, Backoff},
    codec::{AdsCodec, Named},
    connect::Dialer,
    connection::Connection,
    decoder::{Decoder, Incoming},
    messages::{self, Frame},
    protocol::Request,
    wire::{Outgoing, wire},
};
use crate::{
    bootstrap::{Bootstrap, Node, ServerId, Transport},
    decode::DecodeContext,
    resource::{Kind, Received, ReportedError},
};
use bytes::Bytes;
use futures_util::{FutureExt, Stream, TryStreamExt};
use prost::{DecodeError, Message};
use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        watch,
    },
    task::JoinHandle,
    time::{Instant, sleep},
};
use tonic::{Status, client::Grpc, codegen::http::uri::PathAndQuery};

/// What the generated client calls, with names that need no copy, and responses that are taken apart here.
const SOTW: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Between a panic of the task and its next start.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// What happened on the stream.
#[derive(Debug)]
pub(crate) enum Event {
    /// Nothing is dialled, since nothing is subscribed; what was last said of the server is old.
    Idle,
    /// A dial begins.
    Connecting,
    /// HTTP/2 is up: requests may be put in. They reach this stream only; the sender of an earlier one leads nowhere.
    Connected(UnboundedSender<Request>),
    /// The transport took a request.
    Sent { kind: Kind, serial: u64 },
    /// A response of a known type, decoded.
    Response(Response),
    /// The stream ended. With a cause when that is a connectivity error: nothing was received on it (A57), or the server
    /// answers and closes again and again.
    Disconnected { cause: Option<String> },
}

/// A decoded `DiscoveryResponse` or `DeltaDiscoveryResponse`.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) kind: Kind,
    /// Of the whole; a resource may have its own.
    pub(crate) version: Arc<str>,
    pub(crate) nonce: Arc<str>,
    pub(crate) resources: Vec<Received>,
    /// Delta: what is not there, or not any more.
    pub(crate) removed: Vec<String>,
    pub(crate) errors: Vec<ReportedError>,
}

/// Owns the task: dropping it closes the stream.
#[derive(Debug)]
pub(crate) struct StreamTask(JoinHandle<()>);

impl StreamTask {
    /// `wanted` says whether anything is subscribed: without that nothing is dialled.
    pub(crate) fn spawn(
        runtime: &Handle,
        bootstrap: Arc<Bootstrap>,
        server: ServerId,
        events: mpsc::Sender<Event>,
        wanted: watch::Receiver<bool>,
        seed: u64,
    ) -> Self {
        let context = DecodeContext {
            certificate_providers: bootstrap.certificate_providers.clone(),
            trusted: bootstrap.servers().any(|(id, known)| id == server && known.is_trusted()),
            extensions: bootstrap.extensions.clone(),
        };
        let stream = move || {
            let stream = AdsStream {
                bootstrap: Arc::clone(&bootstrap),
                server,
                events: events.clone(),
                wanted: wanted.clone(),
                decoder: Decoder::new(context.clone()),
                backoff: Backoff::default(),
                random: fastrand::Rng::with_seed(seed),
            };
            (stream.events.clone(), stream.run())
        };
        Self(runtime.spawn(supervised(stream)))
    }
}

impl Drop for StreamTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs what `start` makes, and again whenever that panics: a client has no other stream.
async fn supervised<F: Future<Output = ()>>(start: impl Fn() -> (mpsc::Sender<Event>, F)) {
    loop {
        let (events, run) = start();
        // Unwind safety: a stream that panicked is dropped whole, and the next one starts from nothing.
        if AssertUnwindSafe(run).catch_unwind().await.is_ok() {
            return;
        }
        tracing::error!("the ADS stream's task panicked and starts again");
        let cause = Some("the stream's task panicked".to_owned());
        if events.send(Event::Disconnected { cause }).await.is_err() {
            return;
        }
        sleep(RESTART_DELAY).await;
    }
}

struct AdsStream {
    bootstrap: Arc<Bootstrap>,
    server: ServerId,
    events: mpsc::Sender<Event>,
    wanted: watch::Receiver<bool>,
    decoder: Decoder,
    backoff: Backoff,
    random: fastrand::Rng,
}

/// How a stream ended.
enum End {
    /// There was none.
    Undialled(String),
    /// With a response or more, or without any.
    Over { opened: Instant, answered: bool, why: String },
    /// Nobody listens any more.
    Orphaned,
}

impl AdsStream {
    async fn run(mut self) {
        let Some(server) = self.bootstrap.authorities.server(self.server) else { return };
        let (dialer, transport) = (Dialer::new(server, &self.bootstrap.transport), server.transport());
        loop {
            if !*self.wanted.borrow_and_update() && self.events.send(Event::Idle).await.is_err() {
                return;
            }
            if self.wanted.wait_for(|wanted| *wanted).await.is_err()
                || self.events.send(Event::Connecting).await.is_err()
            {
                return;
            }
            let (cause, delay) = match self.one_stream(&dialer, transport).await {
                End::Orphaned => return,
                End::Undialled(cause) => (Some(cause), self.backoff.failed(self.random.f64())),
                End::Over { opened, answered, why } => self.after(opened, answered, why),
            };
            if self.events.send(Event::Disconnected { cause }).await.is_err() {
                return;
            }
            sleep(delay).await;
        }
    }

    /// What is to be told of a stream that is over, and the wait before the next one.
    fn after(&mut self, opened: Instant, answered: bool, why: String) -> (Option<String>, Duration) {
        let (now, random) = (Instant::now(), self.random.f64());
        if !answered {
            return (Some(why), self.backoff.unanswered(opened, now, random));
        }
        match self.backoff.answered(opened, now, random) {
            // "not an error, retry immediately with backoff reset" - A57.
            Again::AtOnce(delay) => {
                tracing::debug!(%why, "the ADS stream ended after a response");
                (None, delay)
            }
            Again::Flapping(delay) => (Some(format!("it answers and closes, again and again: {why}")), delay),
        }
    }

    async fn one_stream(&mut self, dialer: &Dialer, transport: Transport) -> End {
        let connection = match dialer.dial().await {
            Ok(connection) => connection,
            Err(cause) => return End::Undialled(cause),
        };
        // Unbounded: one entry per response and per change of subscriptions on this stream, and gone with it.
        let (requests, outbox) = mpsc::unbounded_channel();
        if self.events.send(Event::Connected(requests)).await.is_err() {
            return End::Orphaned;
        }
        let largest = self.bootstrap.transport.max_message_size;
        let client = Grpc::with_origin(connection, dialer.origin()).max_decoding_message_size(largest);
        match transport {
            Transport::Sotw => self.converse(client, SOTW, outbox, messages::sotw, Frame::sotw).await,
            Transport::Delta => self.converse(client, DELTA, outbox, messages::delta, Frame::delta).await,
        }
    }

    /// Both directions of one stream, whichever its messages are.
    async fn converse<M: Message + 'static>(
        &mut self,
        mut client: Grpc<Connection>,
        method: &'static str,
        outbox: UnboundedReceiver<Request>,
        message: fn(Request, &Node) -> Option<Named<M>>,
        frame: fn(Bytes) -> Result<Frame, DecodeError>,
    ) -> End {
        let opened = Instant::now();
        let asked = Asked::default();
        let (to_wire, messages) = wire();
        let write = write(outbox, to_wire, message, self.events.clone(), &self.bootstrap.node, &asked);
        let read = async {
            // A connection that was just made is ready.
            let method = PathAndQuery::from_static(method);
            match client.streaming(tonic::Request::new(messages), method, AdsCodec::default()).await {
                Ok(responses) => {
                    let responses = responses.into_inner();
                    read(responses, frame, opened, &mut self.decoder, &self.events, &asked).await
                }
                Err(status) => End::Over { opened, answered: false, why: describe(&status) },
            }
        };
        tokio::select! {
            end = read => end,
            // Ends only when nobody listens: a wire that is closed is the reader's to report.
            () = write => End::Orphaned,
        }
    }
}

/// Carries requests to the transport and reports each one that it took.
async fn write<M>(
    mut outbox: UnboundedReceiver<Request>,
    wire: Outgoing<M>,
    message: fn(Request, &Node) -> Option<M>,
    events: mpsc::Sender<Event>,
    node: &Node,
    asked: &Asked,
) {
    while let Some(request) = outbox.recv().await {
        let (kind, serial) = (request.kind, request.serial);
        asked.note(&request);
        // The machine behind this stream speaks its variant; in any other words there is nothing to say.
        let Some(message) = message(request, node) else { continue };
        if !wire.take(message).await {
            return std::future::pending().await;
        }
        if events.send(Event::Sent { kind, serial }).await.is_err() {
            return;
        }
    }
}

async fn read(
    responses: impl Stream<Item = Result<Bytes, Status>>,
    frame: fn(Bytes) -> Result<Frame, DecodeError>,
    opened: Instant,
    decoder: &mut Decoder,
    events: &mpsc::Sender<Event>,
    asked: &Asked,
) -> End {
    let mut responses = pin!(responses);
    let mut answered = false;
    loop {
        let bytes = match responses.try_next().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let why = if answered { "the server ended it" } else { "the stream ended without a response" };
                return End::Over { opened, answered, why: why.to_owned() };
            }
            Err(status) => return End::Over { opened, answered, why: describe(&status) },
        };
        let response = async { decoded(frame(bytes)?, decoder, asked).await };
        let response = match response.await {
            Ok(response) => response,
            Err(error) => return End::Over { opened, answered, why: describe(&malformed(&error)) },
        };
        answered = true;
        let Some(response) = response else { continue };
        // One slot: "do not read the next ADS message until all watchers have processed the previous one" - A57.
        if events.send(Event::Response(response)).await.is_err() {
            return End::Orphaned;
        }
    }
}

/// What a frame says; `None` if it is of a type that was never requested.
pub(super) async fn decoded(
    frame: Frame,
    decoder: &mut Decoder,
    asked: &Asked,
) -> Result<Option<Response>, DecodeError> {
    let Some(kind) = asked.kind(&frame.type_url) else {
        tracing::debug!(type_url = frame.type_url, "response of a type that was never requested");
        return Ok(None);
    };
    asked.with(kind, |names| decoder.retain(kind, names));
    let is_worth_it = |incoming: &Incoming| asked.with(kind, |names| is_worth_decoding(incoming, names));
    let resources = decoder.decode(kind, frame.resources(), is_worth_it).await?;
    let Frame { version, nonce, removed, errors, .. } = frame;
    Ok(Some(Response { kind, version, nonce, resources, removed, errors }))
}

/// A message that is none, as tonic puts it.
fn malformed(error: &DecodeError) -> Status {
    Status::internal(error.to_string())
}

/// A delta subscription of which istiod has forgotten the last name brings everything there is.
fn is_worth_decoding(incoming: &Incoming, names: &Names) -> bool {
    match incoming {
        Incoming::Any(..) => true,
        Incoming::Wrapped(wrapped) => wrapped.name.is_empty() || names.contains(&wrapped.name),
    }
}

/// "Control-plane status codes must not leak" (A54): they become words.
pub(crate) fn describe(status: &Status) -> String {
    format!("the stream failed with {:?}: {}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_panics_is_a_connectivity_error_and_starts_again() {
        let (events, mut seen) = mpsc::channel(1);
        let starts = Cell::new(0);
        supervised(|| {
            starts.set(starts.get() + 1);
            let first = starts.get() == 1;
            (events.clone(), async move { assert!(!first, "the first one panics") })
        })
        .await;
        assert_eq!(starts.get(), 2);
        assert!(matches!(seen.try_recv(), Ok(Event::Disconnected { cause: Some(_) })));
    }
}
