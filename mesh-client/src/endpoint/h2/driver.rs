//! The task behind a connection: it owns the socket.
//!
//! It proves the connection (READY only after the server's SETTINGS, shown by the PONG to our first PING), republishes the
//! stream quota, notices GOAWAY, and pings if keepalive is on. It does NOT see calls.
//!
//! ```text
//!   Proving ── PONG ──► Open ── GOAWAY, retired ──► Draining ── last stream ends ──► closed
//!      │ timeout, error   │ error, keepalive timeout
//!      ▼                  ▼
//!    failed             closed
//! ```

use super::Sender;
use crate::{
    endpoint::{
        Connection, ConnectionEvent, Gate, Transport,
        connect::{DialOptions, Keepalive, Tracked},
    },
    later::later,
};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::{Ping, Reason, client::SendRequest};
use std::{
    future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep_until, timeout_at},
};

/// Proves a fresh socket, reports READY, and drives it until it is closed. Returns why it closed.
pub(in crate::endpoint) async fn run<T>(
    io: Tracked<T>,
    gate: Arc<Gate>,
    deadline: Instant,
    options: &DialOptions,
    connection: impl FnOnce(Transport) -> Connection,
    report: impl Fn(ConnectionEvent) -> bool,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let writes = io.writes();
    let proven = timeout_at(deadline, prove(io, options)).await;
    let (send, mut driver) = match proven {
        Ok(Ok((send, h2, pings))) => {
            let retired = Arc::new(Retired::default());
            let driver = Driver {
                h2,
                own: Some(send.clone()),
                gate: Arc::clone(&gate),
                retired: Arc::clone(&retired),
                keepalive: options.keepalive.map(|config| Pings::new(config, pings)),
            };
            (Sender { send, writes, retired }, driver)
        }
        Ok(Err(error)) => {
            report(ConnectionEvent::Failed(error.to_string()));
            return;
        }
        Err(_elapsed) => {
            report(ConnectionEvent::Failed("no HTTP/2 SETTINGS within the connect timeout".to_owned()));
            return;
        }
    };
    gate.set_quota(driver.h2.max_concurrent_send_streams());
    let connection = Arc::new(connection(Transport::H2(send)));
    if !report(ConnectionEvent::Ready(Arc::clone(&connection))) {
        connection.retire();
    }
    drop(connection);
    let reason = future::poll_fn(|cx| driver.poll_open(cx)).await;
    gate.close();
    report(ConnectionEvent::Closed(reason));
    // Streams in flight finish; the handle that pickers held goes with the calls that hold it.
    driver.own = None;
    future::poll_fn(|cx| driver.poll_draining(cx)).await;
}

type Proven<T> = (SendRequest<Bytes>, h2::client::Connection<Tracked<T>, Bytes>, h2::PingPong);

/// HTTP/2 handshake, then a PING: its PONG can only come after the server's SETTINGS.
async fn prove<T>(io: Tracked<T>, options: &DialOptions) -> Result<Proven<T>, h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (send, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .max_frame_size(16 * 1024)
        .max_header_list_size(options.max_header_list_size)
        .max_send_buffer_size(1024 * 1024)
        // "Errors of ours" are frames of calls that were given up a while ago: after a storm of deadlines there are
        // thousands, and a limit would close the connection under the calls that go on.
        .max_local_error_reset_streams(None)
        .handshake(io)
        .await?;
    let closed = || h2::Error::from(Reason::CONNECT_ERROR);
    let mut pings = connection.ping_pong().ok_or_else(closed)?;
    pings.send_ping(Ping::opaque())?;
    future::poll_fn(|cx| {
        if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(Err(result.err().unwrap_or_else(closed)));
        }
        pings.poll_pong(cx).map_ok(drop)
    })
    .await?;
    Ok((send, connection, pings))
}

struct Driver<T> {
    h2: h2::client::Connection<Tracked<T>, Bytes>,
    /// Keeps an idle connection open, and tells of GOAWAY; given up when the connection retires.
    own: Option<SendRequest<Bytes>>,
    gate: Arc<Gate>,
    retired: Arc<Retired>,
    keepalive: Option<Pings>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    /// Ready, with the reason, when the connection takes no more calls.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        // It flushes at once. To yield first, so that more calls share a flush, costs 15 % less CPU per call and halves the
        // throughput of 16 callers on one connection: client and server then take turns (bench `stack`).
        if let Poll::Ready(result) = Pin::new(&mut self.h2).poll(cx) {
            return Poll::Ready(
                result.err().map_or_else(|| "closed by the server".to_owned(), |error| error.to_string()),
            );
        }
        self.gate.set_quota(self.h2.max_concurrent_send_streams());
        if let Some(own) = &mut self.own
            && let Poll::Ready(Err(error)) = own.poll_ready(cx)
        {
            return Poll::Ready(error.to_string());
        }
        if self.retired.is_told(cx) {
            return Poll::Ready("retired".to_owned());
        }
        self.poll_keepalive(cx)
    }

    /// Ready when the last stream is over and the socket is closed.
    fn poll_draining(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.h2).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // A peer that went silent must not pin its calls for ever, drained or not.
        self.poll_keepalive(cx).map(drop)
    }

    /// Ready, with the reason, when the peer has gone silent.
    fn poll_keepalive(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        let Some(pings) = &mut self.keepalive else { return Poll::Pending };
        let reason = ready!(pings.poll(cx, self.gate.active()));
        // For the streams in flight, which will only see that their connection was dropped.
        let _ = self.gate.lost.set(reason.clone());
        Poll::Ready(reason)
    }
}

/// Keepalive (A8): a PING after `interval`, the connection is dead if its PONG does not come within `timeout`.
struct Pings {
    config: Keepalive,
    pings: h2::PingPong,
    waiting_for_pong: bool,
    timer: Pin<Box<Sleep>>,
}

impl Pings {
    fn new(config: Keepalive, pings: h2::PingPong) -> Self {
        let timer = Box::pin(sleep_until(later(Instant::now(), config.interval)));
        Self { config, pings, waiting_for_pong: false, timer }
    }

    fn poll(&mut self, cx: &mut Context<'_>, active: usize) -> Poll<String> {
        loop {
            if self.waiting_for_pong
                && let Poll::Ready(pong) = self.pings.poll_pong(cx)
            {
                if let Err(error) = pong {
                    return Poll::Ready(error.to_string());
                }
                self.waiting_for_pong = false;
                self.timer.as_mut().reset(later(Instant::now(), self.config.interval));
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.waiting_for_pong {
                return Poll::Ready(format!("keepalive: no PONG within {:?}", self.config.timeout));
            }
            if active == 0 && !self.config.while_idle {
                self.timer.as_mut().reset(later(Instant::now(), self.config.interval));
                continue;
            }
            if let Err(error) = self.pings.send_ping(Ping::opaque()) {
                return Poll::Ready(error.to_string());
            }
            self.waiting_for_pong = true;
            self.timer.as_mut().reset(later(Instant::now(), self.config.timeout));
        }
    }
}

// === Retired ===

/// Tells the driver to let go of its own send handle, so that the connection closes once it is idle.
#[derive(Debug, Default)]
pub(super) struct Retired {
    flag: AtomicBool,
    driver: AtomicWaker,
}

impl Retired {
    pub(super) fn tell(&self) {
        self.flag.store(true, Ordering::Release);
        self.driver.wake();
    }

    fn is_told(&self, cx: &Context<'_>) -> bool {
        self.driver.register(cx.waker());
        self.flag.load(Ordering::Acquire)
    }
}
