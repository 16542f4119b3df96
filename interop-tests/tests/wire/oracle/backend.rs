//! Backends that play scripts, over HTTP/2 and HTTP/1.1 with prior knowledge on one port.
//!
//! HTTP/2 is h2's, so that a script can reset a stream with any code, before headers and after them. It does NOT know
//! who calls.

use super::script::{Act, Answer, Arrival, CALL, Grpc, Stage};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    future::{pending, poll_fn},
    io::{Error, Result},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time,
};

/// The response header that tells which attempt was answered.
pub(super) const ATTEMPT: &str = "x-oracle-attempt";

/// The trailer that only a backend sends, not a client on its own.
pub(super) const END: &str = "x-oracle-end";

/// A gRPC message without fields: not compressed, of length 0.
pub(super) const MESSAGE: Bytes = Bytes::from_static(&[0; 5]);

/// One endpoint; it ends with this value.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Backend {
    /// Starts the endpoint of this number.
    pub(super) async fn start(number: usize, stage: Stage) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(Self { address, serving: tokio::spawn(accept(listener, Endpoint { number, stage })) })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // The connections' tasks are in a set that the accepting task owns.
        self.serving.abort();
    }
}

#[derive(Clone, Debug)]
struct Endpoint {
    number: usize,
    stage: Stage,
}

async fn accept(listener: TcpListener, endpoint: Endpoint) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        // However a connection ends, the clients' sides are what the test looks at.
        connections.spawn(serve(socket, endpoint.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(socket: TcpStream, endpoint: Endpoint) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut begin = [0; 3];
    while socket.peek(&mut begin).await? < begin.len() {
        socket.readable().await?;
    }
    if &begin == b"PRI" { serve_http2(socket, endpoint).await } else { serve_http1(socket, endpoint).await }
}

impl Endpoint {
    fn task<B>(&self, request: &Request<B>) -> Result<Arrival> {
        let call = request.headers().get(CALL).and_then(|value| value.to_str().ok());
        let task = call.and_then(|call| self.stage.arrived(call, self.number));
        task.ok_or_else(|| Error::other("a call that nobody expects"))
    }
}

impl Arrival {
    /// Until the caller has the headers: a reset overtakes bytes that are not out yet. One that gave up waits for nothing.
    async fn begun(&mut self) {
        let _ = self.begun.wait_for(|begun| *begun).await;
    }

    /// Waits for what the script waits for: the answer, or what else is to be done.
    async fn answer(&mut self, is_grpc: bool) -> std::result::Result<Answer, Act> {
        let success = if is_grpc { Answer::grpc(Grpc::Trailers(0)) } else { Answer::status(200) };
        match &self.act {
            Act::Answer(answer) => {
                time::sleep(answer.delay).await;
                Ok(answer.clone())
            }
            // A gate that was dropped belongs to a test that is over.
            Act::Gate => self.gate.wait_for(|open| *open).await.map(|_| success).map_err(|_| Act::Silence),
            Act::Broken(_) => Ok(success),
            other => Err(other.clone()),
        }
    }

    fn head(&self, answer: &Answer) -> Result<Response<()>> {
        let mut head = Response::builder().status(answer.status);
        if !answer.anonymous {
            head = head.header(ATTEMPT, self.attempt);
        }
        for (name, value) in &answer.headers {
            head = head.header(name, value);
        }
        if let Some(grpc) = answer.grpc {
            head = head.header("content-type", "application/grpc");
            if let Grpc::TrailersOnly(code) = grpc {
                head = head.header("grpc-status", code);
            }
        }
        head.body(()).map_err(Error::other)
    }
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    request.headers().get("content-type").is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

// === HTTP/2 ===

async fn serve_http2(socket: TcpStream, endpoint: Endpoint) -> Result<()> {
    let mut connection = h2::server::handshake(socket).await.map_err(Error::other)?;
    let close = Arc::new(Notify::new());
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            // Fair: a script closes its connection once, and which frame goes before does not matter.
            () = close.notified() => return Ok(()),
            request = connection.accept() => {
                let Some(request) = request else { return Ok(()) };
                let (request, respond) = request.map_err(Error::other)?;
                requests.spawn(respond_http2(endpoint.clone(), request, respond, Arc::clone(&close)));
            }
        }
    }
}

async fn respond_http2(
    endpoint: Endpoint,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    close: Arc<Notify>,
) -> Result<()> {
    let mut task = endpoint.task(&request)?;
    let is_grpc = is_grpc(&request);
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let bytes = data.map_err(Error::other)?.len();
        body.flow_control().release_capacity(bytes).map_err(Error::other)?;
    }
    let answer = tokio::select! {
        answer = task.answer(is_grpc) => answer,
        // The client has given the attempt up.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return Ok(()),
    };
    match answer {
        Ok(answer) => {
            let head = task.head(&answer)?;
            let end = matches!(answer.grpc, Some(Grpc::TrailersOnly(_))) || answer.status == 204;
            let mut stream = respond.send_response(head, end).map_err(Error::other)?;
            if end {
                return Ok(());
            }
            stream.send_data(MESSAGE, false).map_err(Error::other)?;
            if let Act::Broken(reason) = task.act {
                task.begun().await;
                stream.send_reset(reason);
                return Ok(());
            }
            stream.send_trailers(trailers(&answer)).map_err(Error::other)
        }
        Err(Act::Reset(reason)) => {
            respond.send_reset(reason);
            Ok(())
        }
        Err(Act::Close) => {
            close.notify_one();
            // A stream that is let go would be reset before.
            pending().await
        }
        Err(_) => {
            // Silent until the client gives up.
            let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
            Ok(())
        }
    }
}

fn trailers(answer: &Answer) -> HeaderMap {
    let mut trailers = HeaderMap::from_iter([(http::HeaderName::from_static(END), HeaderValue::from_static("1"))]);
    if let Some(Grpc::Trailers(code)) = answer.grpc {
        trailers.insert("grpc-status", code.into());
    }
    trailers
}

// === HTTP/1.1 ===

async fn serve_http1(socket: TcpStream, endpoint: Endpoint) -> Result<()> {
    let service = service_fn(move |request| respond_http1(endpoint.clone(), request));
    http1::Builder::new().serve_connection(TokioIo::new(socket), service).await.map_err(Error::other)
}

/// An error closes the connection, which is all that HTTP/1.1 has for a reset.
async fn respond_http1(endpoint: Endpoint, request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Error>>> {
    let mut task = endpoint.task(&request)?;
    request.into_body().collect().await.map_err(Error::other)?;
    match task.answer(false).await {
        Ok(answer) => {
            let broken = matches!(task.act, Act::Broken(_));
            let head = task.head(&answer)?;
            let rest = stream::once(async move {
                task.begun().await;
                Err(Error::other("as the script says"))
            });
            let body = stream::once(async { Ok(Frame::data(MESSAGE)) }).chain(rest.take(usize::from(broken)));
            Ok(head.map(|()| BodyExt::boxed(StreamBody::new(body))))
        }
        Err(Act::Silence) => pending().await,
        Err(act) => Err(Error::other(format!("{act:?}"))),
    }
}
