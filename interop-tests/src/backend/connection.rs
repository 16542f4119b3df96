//! The sockets of a backend: an accept loop and a task for each connection.
//!
//! It exists so that a test can end connections the two ways networks do: GOAWAY and drain, or a reset. It does NOT
//! know what is served.
//!
//! ```text
//! Serving ──drain──► Draining   GOAWAY (HTTP/1.1: `connection: close`); streams in flight are finished
//!    └──────reset──► Reset      SO_LINGER 0 and close: the peer reads ECONNRESET, streams in flight are cut
//! ```

use super::answer::Answerer;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use socket2::SockRef;
use std::{net::SocketAddr, os::fd::AsFd, pin::pin, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// HTTP/2 settings a backend announces; `None` is hyper's default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Http2Settings {
    pub(crate) max_concurrent_streams: Option<u32>,
    pub(crate) initial_stream_window: Option<u32>,
    pub(crate) initial_connection_window: Option<u32>,
    pub(crate) max_header_list_size: Option<u32>,
}

/// What a backend is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Serve,
    Drain,
    Reset,
}

/// The order of the day, for the accept loop and every connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orders {
    pub(crate) order: Order,
    /// Connections that were accepted in an older generation drain, whatever the order.
    pub(crate) generation: u64,
}

/// Accepts and serves until the order changes and every connection has ended. The listener closes first.
pub(crate) async fn listen(
    listener: TcpListener,
    settings: Http2Settings,
    answerer: Answerer,
    mut orders: watch::Receiver<Orders>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased; // An order comes before new connections.
            () = served(&mut orders) => break,
            // Reap what has ended, so that the set does not grow.
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(serve(stream, peer, settings, answerer.clone(), orders.clone()));
                }
                Err(error) => tracing::warn!(%error, "accept failed"),
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits for an order to stop, or for the backend to be dropped.
async fn served(orders: &mut watch::Receiver<Orders>) {
    let _ = orders.wait_for(|orders| orders.order != Order::Serve).await;
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    settings: Http2Settings,
    answerer: Answerer,
    mut orders: watch::Receiver<Orders>,
) {
    let generation = orders.borrow().generation;
    let open = answerer.tally.connected();
    // A second descriptor of the socket: hyper owns the first one when the order to reset comes.
    let socket = match stream.set_nodelay(true).and_then(|()| stream.as_fd().try_clone_to_owned()) {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!(%peer, %error, "connection unusable"),
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .max_concurrent_streams(settings.max_concurrent_streams)
        .initial_stream_window_size(settings.initial_stream_window)
        .initial_connection_window_size(settings.initial_connection_window);
    if let Some(size) = settings.max_header_list_size {
        builder.http2().max_header_list_size(size);
    }
    let service = service_fn(move |request| answerer.clone().answer(request));
    {
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut draining = false;
        loop {
            tokio::select! {
                biased; // A reset is at once.
                news = orders.wait_for(|orders| match orders.order {
                    Order::Reset => true,
                    Order::Drain => !draining,
                    Order::Serve => !draining && orders.generation != generation,
                }) => {
                    if news.is_ok_and(|orders| orders.order != Order::Reset) {
                        draining = true;
                        connection.as_mut().graceful_shutdown();
                    } else {
                        // Reset, or the backend was dropped, which is the same to its peers.
                        if let Err(error) = SockRef::from(&socket).set_linger(Some(Duration::ZERO)) {
                            tracing::warn!(%peer, %error, "the connection is closed, not reset");
                        }
                        break;
                    }
                }
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%peer, %error, "connection ended");
                    }
                    break;
                }
            }
        }
    }
    // Both descriptors are closed before the connection counts as gone.
    drop(socket);
    drop(open);
}
