//! Sockets: addresses by Happy Eyeballs (A61), how connections are made and kept, and writes that are counted.
//!
//! What is spoken on a socket is NOT known here.

use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{
    collections::BTreeSet,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::sleep,
};

/// "Happy Eyeballs step 250 ms" (A61).
const HAPPY_EYEBALLS_STEP: Duration = Duration::from_millis(250);

/// "2^31-1" (RFC 9113, 6.9.1). h2 panics on more.
pub(crate) const MAX_WINDOW: u32 = (1 << 31) - 1;

/// How endpoints are dialled and their connections kept. One value per cluster worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DialOptions {
    /// Until the connection is proven.
    pub(crate) connect_timeout: Duration,
    /// Off unless asked for (A8).
    pub(crate) keepalive: Option<Keepalive>,
    /// HTTP/2 flow control: what one stream may send us unread.
    pub(crate) stream_window: u32,
    /// The same for the whole connection.
    pub(crate) connection_window: u32,
    /// Response headers above this are refused.
    pub(crate) max_header_list_size: u32,
}

impl Default for DialOptions {
    fn default() -> Self {
        Self {
            // "minimum connect timeout 20 s" (connection backoff doc).
            connect_timeout: Duration::from_secs(20),
            keepalive: None,
            stream_window: 2 * 1024 * 1024,
            // Unlimited: each stream has its limit, and with a small one here a few slow readers would stall all the
            // calls beside them. gRPC-Go does so by not waiting for its readers.
            connection_window: MAX_WINDOW,
            max_header_list_size: 64 * 1024,
        }
    }
}

/// HTTP/2 PINGs (A8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Keepalive {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    /// Also while no call is in flight (`permit_without_calls`).
    pub(crate) while_idle: bool,
}

/// Each once, families in turn, starting with the first one's (A61).
pub(crate) fn interleaved(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut seen = BTreeSet::new();
    let unique: Vec<_> = addresses.filter(|address| seen.insert(*address)).collect();
    let first_is_v6 = unique.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = unique.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut order = Vec::with_capacity(first.len() + second.len());
    let mut second = second.into_iter();
    for address in first {
        order.push(address);
        order.extend(second.next());
    }
    order.extend(second);
    order
}

/// Starts an address every 250 ms, or as soon as the one before has failed; the first that connects wins.
pub(super) async fn happy_eyeballs(addresses: Vec<SocketAddr>) -> Result<(TcpStream, SocketAddr), String> {
    let mut remaining = addresses.into_iter();
    let mut dials = FuturesUnordered::new();
    let mut failures = Vec::new();
    loop {
        if let Some(address) = remaining.next() {
            dials.push(async move { (address, connect(address).await) });
        }
        let done = tokio::select! {
            // A connection that is there wins over starting another.
            biased;
            done = dials.next() => done,
            () = sleep(HAPPY_EYEBALLS_STEP), if remaining.len() > 0 => continue,
        };
        match done {
            Some((address, Ok(stream))) => return Ok((stream, address)),
            Some((address, Err(error))) => failures.push(format!("{address}: {error}")),
            // None in flight and none left to start.
            None => return Err(failures.join("; ")),
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

// === Tracked ===

/// How often a socket was written to: a call that sees no change was never sent.
#[derive(Debug, Default)]
pub(super) struct Writes(AtomicU64);

impl Writes {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A socket that counts its writes.
#[derive(Debug)]
pub(super) struct Tracked<T> {
    io: T,
    writes: Arc<Writes>,
}

impl<T> Tracked<T> {
    pub(super) fn new(io: T) -> Self {
        Self { io, writes: Arc::default() }
    }

    pub(super) fn writes(&self) -> Arc<Writes> {
        Arc::clone(&self.writes)
    }

    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = written {
            self.writes.0.fetch_add(1, Ordering::Release);
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tracked<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tracked<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
