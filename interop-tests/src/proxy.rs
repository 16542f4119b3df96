//! A TCP proxy that can fall silent or dribble: connections stay open and no byte passes, or one at a time.
//!
//! Silence is what a lost host or a dropped route looks like, and only keepalive sees it. It does NOT look into what it
//! forwards.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// How bytes pass.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    Free,
    /// Each in a segment of its own.
    OneByOne,
    Not,
}

/// A proxy in front of one address. Dropping it closes its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    pace: watch::Sender<Pace>,
    /// How many times every connection was broken.
    cuts: watch::Sender<u64>,
    connections: watch::Receiver<u64>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Forwards connections from a free port of 127.0.0.1 to `to`.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn start(to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (pace, orders) = watch::channel(Pace::Free);
        let (count, connections) = watch::channel(0);
        let cuts = watch::Sender::new(0);
        let accepting = tokio::spawn(accept(listener, to, orders, cuts.subscribe(), count));
        Ok(Self { address, pace, cuts, connections, accepting })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> u64 {
        *self.connections.borrow()
    }

    /// From now on no byte passes, in either direction. Connections are still accepted.
    pub fn silence(&self) {
        self.pace.send_replace(Pace::Not);
    }

    /// From now on every byte is sent by itself, in both directions.
    pub fn dribble(&self) {
        self.pace.send_replace(Pace::OneByOne);
    }

    /// Breaks every connection; new ones are accepted.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Bytes pass again, also those that were held back.
    pub fn resume(&self) {
        self.pace.send_replace(Pace::Free);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections' tasks are in a set that the accepting task owns.
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    to: SocketAddr,
    orders: watch::Receiver<Pace>,
    mut cuts: watch::Receiver<u64>,
    count: watch::Sender<u64>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased; // A cut first: who connects afterwards is not meant.
            Ok(()) = cuts.changed() => connections.abort_all(),
            Ok((client, _)) = listener.accept() => {
                count.send_modify(|count| *count += 1);
                connections.spawn(forward(client, to, orders.clone()));
            }
            else => return,
        }
        // Reap what has ended, so that the set does not grow.
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(client: TcpStream, to: SocketAddr, orders: watch::Receiver<Pace>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    // When one direction breaks, the other's sockets are dropped with it: a proxy has no half-dead connections.
    tokio::select! {
        () = copy(client_reads, server_writes, orders.clone()) => {}
        () = copy(server_reads, client_writes, orders) => {}
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut orders: watch::Receiver<Pace>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(bytes @ 1..) = from.read(&mut buffer).await else { return };
        // Held here while silent; an error means that the proxy is gone.
        let Ok(pace) = orders.wait_for(|pace| *pace != Pace::Not).await.map(|pace| *pace) else { return };
        let at_once = if pace == Pace::OneByOne { 1 } else { bytes };
        for part in buffer[..bytes].chunks(at_once) {
            if to.write_all(part).await.is_err() {
                return;
            }
            // So that a reader on this thread sees it before the next.
            tokio::task::yield_now().await;
        }
    }
}
