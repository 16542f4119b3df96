//! A backend that reads every third call to its end and then says REFUSED_STREAM: it did not look at it.
//!
//! It refuses a call once; the second attempt, wherever it goes, is answered. Calls are told apart by `x-call`. It does
//! NOT serve anything else than empty unary calls.

use bytes::{BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use interop_tests::proto::testing::SimpleResponse;
use prost::Message;
use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

/// It runs until it is dropped.
pub(crate) struct Refuser {
    address: SocketAddr,
    books: Arc<Books>,
    task: AbortHandle,
}

struct Books {
    hostname: &'static str,
    seen: AtomicU64,
    answered: AtomicU64,
    refused: Mutex<HashSet<HeaderValue>>,
}

impl Refuser {
    pub(crate) async fn start(hostname: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let books = Arc::new(Books {
            hostname,
            seen: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            refused: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&books))).abort_handle();
        Self { address, books, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn answered(&self) -> u64 {
        self.books.answered.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self) -> usize {
        self.books.refused().len()
    }
}

impl Drop for Refuser {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Books {
    fn refused(&self) -> std::sync::MutexGuard<'_, HashSet<HeaderValue>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuses(&self, headers: &HeaderMap) -> bool {
        let third = self.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(3);
        third && headers.get("x-call").is_some_and(|call| self.refused().insert(call.clone()))
    }
}

async fn accept(listener: TcpListener, books: Arc<Books>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        connections.spawn(serve(socket, Arc::clone(&books)));
    }
}

async fn serve(socket: TcpStream, books: Arc<Books>) {
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    let mut calls = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        calls.spawn(answer(request, respond, Arc::clone(&books)));
    }
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, books: Arc<Books>) {
    let refuses = books.refuses(request.headers());
    let mut body = request.into_body();
    // An error is the end: h2 tells it again and again.
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    if refuses {
        return respond.send_reset(Reason::REFUSED_STREAM);
    }
    // An error anywhere means that the client has left.
    if reply(&mut respond, books.hostname).is_ok() {
        books.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers a unary call.
pub(crate) fn reply(respond: &mut SendResponse<Bytes>, hostname: &str) -> Result<(), h2::Error> {
    let message = SimpleResponse { hostname: hostname.to_owned(), ..SimpleResponse::default() };
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("small"));
    message.encode(&mut frame).expect("it grows");
    let head = Response::builder().header("content-type", "application/grpc").body(()).expect("valid");
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(frame.freeze(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}
