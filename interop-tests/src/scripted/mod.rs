//! An ADS server whose every word is the test's.
//!
//! The embedded control plane obeys the protocol even when it misbehaves. This one says what that would never say: it
//! refuses with any code, reports errors of single resources, answers and leaves, or says good-bye first. Scripts are
//! written in the words of state of the world; to a client that speaks delta they are said in its own (`delta`). It does
//! NOT remember what it answered.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use interop_tests::scripted::ScriptedServer;
//! use mesh_xds::{control_plane::{proto::google::protobuf::Any, resources::{listener, pack}}, resource::Kind};
//! use tonic::Status;
//! let mut server = ScriptedServer::start().await?;
//! // ... a client dials server.address() ...
//! server.call().await?.refuse(Status::unauthenticated("no token"));
//! let mut stream = server.stream().await?;
//! stream.request(Kind::Listener).await?;
//! stream.answer(Kind::Listener, vec![pack(listener("echo", "routes"))]);
//! stream.request(Kind::Listener).await?; // the ACK
//! stream.end(Status::ok("the end"));
//! # Ok(())
//! # }
//! ```

mod delta;

use delta::Subscriptions;
use futures_util::{StreamExt, stream::BoxStream};
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use mesh_xds::{
    control_plane::proto::{
        envoy::service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
        },
        google::protobuf::Any,
    },
    resource::Kind,
};
use std::{
    collections::VecDeque,
    io::{Error, ErrorKind, Result},
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet},
    time,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

/// How long a step waits for the client: longer than a client's first steps on its backoff curve.
const PATIENCE: Duration = Duration::from_secs(15);

/// A listening socket; what its streams say is written by the test. Dropping it breaks its connections.
#[derive(Debug)]
pub struct ScriptedServer {
    address: SocketAddr,
    calls: mpsc::UnboundedReceiver<Call>,
    /// How many times every connection was told to go away.
    good_byes: watch::Sender<u64>,
    serving: JoinHandle<()>,
}

/// A call of the ADS method that has no answer yet, not even headers.
#[derive(Debug)]
pub struct Call {
    metadata: MetadataMap,
    requests: Requests,
    verdict: oneshot::Sender<std::result::Result<Responses, Status>>,
}

/// An open stream.
#[derive(Debug)]
pub struct ScriptedStream {
    requests: Requests,
    /// Requests that a step for another type has passed over.
    passed: VecDeque<DiscoveryRequest>,
    responses: mpsc::UnboundedSender<std::result::Result<Said, Status>>,
    answers: u64,
}

/// What the client says, in either variant.
#[derive(Debug)]
enum Requests {
    Sotw(Streaming<DiscoveryRequest>),
    Delta(Streaming<DeltaDiscoveryRequest>, Subscriptions),
}

/// What the script says.
#[derive(Debug)]
struct Said {
    response: DiscoveryResponse,
    /// In state of the world, what is not in the response.
    removed: Vec<String>,
}

type Responses = UnboundedReceiverStream<std::result::Result<Said, Status>>;
type Answers<T> = BoxStream<'static, std::result::Result<T, Status>>;

impl ScriptedServer {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        // Unbounded: a call for each dial of one client. Closed when the test is over.
        let (sender, calls) = mpsc::unbounded_channel();
        let good_byes = watch::Sender::new(0);
        let serving = tokio::spawn(accept(listener, Ads(sender), good_byes.subscribe()));
        Ok(Self { address, calls, good_byes, serving })
    }

    /// Where clients dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next call.
    ///
    /// # Errors
    /// None comes within 15 s.
    pub async fn call(&mut self) -> Result<Call> {
        let call = bounded("a call", self.calls.recv()).await?;
        call.ok_or_else(|| Error::new(ErrorKind::BrokenPipe, "the server has ended"))
    }

    /// The next call, opened.
    ///
    /// # Errors
    /// As [`ScriptedServer::call`].
    pub async fn stream(&mut self) -> Result<ScriptedStream> {
        Ok(self.call().await?.open())
    }

    /// How many calls came that no step has taken.
    pub fn waiting(&self) -> usize {
        self.calls.len()
    }

    /// Sends GOAWAY on all connections: open streams go on, new ones need a new connection.
    pub fn go_away(&self) {
        self.good_byes.send_modify(|count| *count += 1);
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        // The connections' tasks are in a set that the accepting task owns.
        self.serving.abort();
    }
}

impl Call {
    /// The request's headers.
    pub fn metadata(&self) -> &MetadataMap {
        &self.metadata
    }

    /// Answers with the status alone, in headers.
    pub fn refuse(self, status: Status) {
        // A client that has left does not hear it.
        let _ = self.verdict.send(Err(status));
    }

    /// Answers with headers.
    pub fn open(self) -> ScriptedStream {
        // Unbounded: the script is finite.
        let (responses, outgoing) = mpsc::unbounded_channel();
        let _ = self.verdict.send(Ok(UnboundedReceiverStream::new(outgoing)));
        ScriptedStream { requests: self.requests, passed: VecDeque::new(), responses, answers: 0 }
    }
}

impl ScriptedStream {
    /// The next request of this type; those of others are kept for later.
    ///
    /// # Errors
    /// None comes within 15 s, or the client ends the stream.
    pub async fn request(&mut self, kind: Kind) -> Result<DiscoveryRequest> {
        if let Some(index) = self.passed.iter().position(|request| request.type_url == kind.type_url()) {
            return Ok(self.passed.remove(index).unwrap_or_default());
        }
        loop {
            let request = self.read().await?;
            if request.type_url == kind.type_url() {
                return Ok(request);
            }
            self.passed.push_back(request);
        }
    }

    /// The next request of any type.
    ///
    /// # Errors
    /// As [`ScriptedStream::request`].
    pub async fn next(&mut self) -> Result<DiscoveryRequest> {
        match self.passed.pop_front() {
            Some(request) => Ok(request),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<DiscoveryRequest> {
        let request = bounded("a request", self.requests.next()).await?;
        let request = request.map_err(|status| Error::other(status.to_string()))?;
        request.ok_or_else(|| Error::new(ErrorKind::UnexpectedEof, "the client ended the stream"))
    }

    /// Sends resources of one type, with a version and a nonce of their own. Returns the nonce.
    pub fn answer(&mut self, kind: Kind, resources: Vec<Any>) -> String {
        self.send(DiscoveryResponse { type_url: kind.type_url().to_owned(), resources, ..DiscoveryResponse::default() })
    }

    /// The same with any response, whose version and nonce are filled in. Returns the nonce.
    pub fn send(&mut self, response: DiscoveryResponse) -> String {
        self.say(response, Vec::new())
    }

    /// Says that a resource is not there: by a response without any, or, in delta, in so many words. Returns the nonce.
    pub fn remove(&mut self, kind: Kind, name: &str) -> String {
        let response = DiscoveryResponse { type_url: kind.type_url().to_owned(), ..DiscoveryResponse::default() };
        self.say(response, vec![name.to_owned()])
    }

    fn say(&mut self, response: DiscoveryResponse, removed: Vec<String>) -> String {
        self.answers += 1;
        let nonce = self.answers.to_string();
        let response = DiscoveryResponse { version_info: nonce.clone(), nonce: nonce.clone(), ..response };
        let _ = self.responses.send(Ok(Said { response, removed }));
        nonce
    }

    /// Waits for the ACK or NACK of a response.
    ///
    /// # Errors
    /// As [`ScriptedStream::request`].
    pub async fn verdict(&mut self, kind: Kind, nonce: &str) -> Result<DiscoveryRequest> {
        loop {
            let request = self.request(kind).await?;
            if request.response_nonce == nonce {
                return Ok(request);
            }
        }
    }

    /// Ends the stream with trailers.
    pub fn end(self, status: Status) {
        if status.code() != tonic::Code::Ok {
            let _ = self.responses.send(Err(status));
        }
    }
}

impl Requests {
    async fn next(&mut self) -> std::result::Result<Option<DiscoveryRequest>, Status> {
        match self {
            Self::Sotw(requests) => requests.message().await,
            Self::Delta(requests, subscriptions) => {
                Ok(requests.message().await?.map(|request| subscriptions.in_words_of_sotw(request)))
            }
        }
    }
}

// === Server ===

#[derive(Clone, Debug)]
struct Ads(mpsc::UnboundedSender<Call>);

impl Ads {
    /// Waits for what the script wants done with a call.
    async fn called(&self, metadata: MetadataMap, requests: Requests) -> std::result::Result<Responses, Status> {
        let (verdict, decided) = oneshot::channel();
        self.0.send(Call { metadata, requests, verdict }).map_err(|_| Status::unavailable("the test is over"))?;
        decided.await.map_err(|_| Status::unavailable("the test is over"))?
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> std::result::Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let responses = self.called(metadata, Requests::Sotw(requests)).await?;
        Ok(Response::new(responses.map(|said| said.map(|said| said.response)).boxed()))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> std::result::Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let responses = self.called(metadata, Requests::Delta(requests, Subscriptions::default())).await?;
        Ok(Response::new(responses.map(|said| said.map(delta::response)).boxed()))
    }
}

async fn accept(listener: TcpListener, ads: Ads, good_byes: watch::Receiver<u64>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        connections.spawn(serve(socket, ads.clone(), good_byes.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(socket: TcpStream, ads: Ads, mut good_byes: watch::Receiver<u64>) {
    if socket.set_nodelay(true).is_err() {
        return;
    }
    good_byes.mark_unchanged();
    let service = TowerToHyperService::new(AggregatedDiscoveryServiceServer::new(ads));
    let mut connection =
        pin!(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service));
    loop {
        tokio::select! {
            // However it ends, the client's side is what the test looks at.
            _ = connection.as_mut() => return,
            Ok(()) = good_byes.changed() => connection.as_mut().graceful_shutdown(),
        }
    }
}

async fn bounded<T>(what: &str, step: impl Future<Output = T>) -> Result<T> {
    let late = |_| Error::new(ErrorKind::TimedOut, format!("{what}: not within {PATIENCE:?}"));
    time::timeout(PATIENCE, step).await.map_err(late)
}
