//! Fault injection: a delay, an abort, or both, for a share of the calls (A33).
//!
//! What becomes of a call is decided once, by draws that are passed in; a call that is spared costs those draws and
//! nothing else. Nothing of a faulted call reaches the wire before its delay is over, and an abort never does.
//!
//! ```text
//!  headers match? ─► draw for the delay, draw for the abort ─► one of the process's faults free? ─► delay ─► abort
//! ```
//!
//! It does NOT limit the rate of responses, and there is no runtime that could change its numbers.

mod layer;

pub use layer::{Fault, FaultFuture, FaultLayer};

use super::{Filter, FilterRequest, Reply, Verdict};
use crate::route::RequestHead;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use mesh_xds::resource::{AbortSource, DelaySource, FaultAbort, FaultPercentage, HttpFault, Millionths};
use std::{
    cell::LazyCell,
    str,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;

/// Envoy's.
const TEXT: &str = "fault filter abort";

/// gRPC's code for what has none.
const UNKNOWN: u8 = 2;

/// Of all of these but the last.
const PREFIX: &str = "x-envoy-fault-";
const DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
const DELAY_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
const ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
const ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
const ABORT_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");
const DOWNSTREAM_NODE: HeaderName = HeaderName::from_static("x-envoy-downstream-service-node");

/// An instance of the fault filter.
#[derive(Debug)]
pub(crate) struct FaultFilter(Arc<HttpFault>);

/// What is injected into one call: something, or there is none.
#[derive(Clone, Debug, PartialEq)]
struct Injected {
    delay: Option<Duration>,
    abort: Option<AbortStatus>,
}

/// How a call is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AbortStatus {
    Http(StatusCode),
    Grpc(u8),
}

impl FaultFilter {
    /// `None` when no call can ever be faulted.
    pub(crate) fn new(fault: &Arc<HttpFault>) -> Option<Self> {
        let delays = fault.delay.as_ref().is_some_and(|delay| delay.percentage.numerator > 0);
        let aborts = fault.abort.as_ref().is_some_and(|abort| abort.percentage.numerator > 0);
        ((delays || aborts) && fault.max_active_faults != Some(0)).then(|| Self(Arc::clone(fault)))
    }

    /// What the draws, each from `0..1_000_000`, make of a call. They are independent: "20 % delay + 5 % abort -> 24 %
    /// touched" (A33).
    fn inject(&self, request: &FilterRequest<'_>, draw: &mut dyn FnMut() -> u32) -> Option<Injected> {
        if !self.is_meant(request) {
            return None;
        }
        let headers = &request.head().headers;
        let asks = LazyCell::new(|| asks_for_faults(headers));
        let mut hits = |percentage: FaultPercentage| match percentage.share() {
            Millionths::ALL => true,
            share => share.get() > 0 && share.hit(draw()),
        };
        let delay = self.0.delay.as_ref().filter(|delay| match delay.source {
            DelaySource::Fixed(_) => hits(delay.percentage),
            DelaySource::Header => *asks && hits(lowered(delay.percentage, headers, &DELAY_PERCENTAGE)),
        });
        let abort = self.0.abort.as_ref().filter(|abort| match abort.source {
            AbortSource::Http(_) | AbortSource::Grpc(_) => hits(abort.percentage),
            AbortSource::Header => *asks && hits(lowered(abort.percentage, headers, &ABORT_PERCENTAGE)),
        });
        let delay = delay.and_then(|delay| match delay.source {
            DelaySource::Fixed(delay) => Some(delay),
            DelaySource::Header => number(headers, &DELAY).map(Duration::from_millis),
        });
        let injected = Injected {
            delay: delay.filter(|delay| !delay.is_zero()),
            abort: abort.and_then(|abort| status(abort, headers)),
        };
        (injected.delay.is_some() || injected.abort.is_some()).then_some(injected)
    }

    /// Whether a call is one of those that the fault is for.
    fn is_meant(&self, request: &FilterRequest<'_>) -> bool {
        let (fault, head) = (&*self.0, request.head());
        if fault.upstream_cluster.is_some() && request.cluster() != fault.upstream_cluster.as_ref() {
            return false;
        }
        if !fault.downstream_nodes.is_empty() {
            let node = head.headers.get(&DOWNSTREAM_NODE).map(|node| node.as_bytes());
            if !fault.downstream_nodes.iter().any(|of| Some(of.as_bytes()) == node) {
                return false;
            }
        }
        fault.headers.is_empty() || RequestHead::of(head, request.is_grpc()).has(&fault.headers)
    }

    /// What becomes of a call; `None` if it is spared.
    fn turn(&self, request: &FilterRequest<'_>) -> Option<Turn> {
        let Injected { delay, abort } = self.inject(request, &mut || fastrand::u32(..1_000_000))?;
        // "Above the limit RPCs pass untouched" - A33
        let active = Active::enter(self.0.max_active_faults)?;
        Some(Turn { delay, reply: abort.map(|status| self.reply(status)), active })
    }

    fn reply(&self, status: AbortStatus) -> Reply {
        let text = self.0.abort.as_ref().and_then(|abort| abort.text.clone());
        let text = text.map_or(Bytes::from_static(TEXT.as_bytes()), Bytes::from);
        match status {
            AbortStatus::Http(status) => Reply::new(status, text),
            // "If gRPC status code is set, then http status will be set to Http::Code::OK (200)" (Envoy).
            AbortStatus::Grpc(code) => Reply::new(StatusCode::OK, text).with_grpc_status(code),
        }
    }
}

/// Whether a request may say anything of faults. Nearly none does, and to look for each of the long names would cost their
/// hashes.
fn asks_for_faults(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with(PREFIX))
}

/// The status of an abort; `None` when the request was to say, and does not.
fn status(abort: &FaultAbort, headers: &HeaderMap) -> Option<AbortStatus> {
    match abort.source {
        AbortSource::Http(status) => Some(AbortStatus::Http(status)),
        AbortSource::Grpc(code) => Some(AbortStatus::Grpc(code)),
        AbortSource::Header => {
            let http = number(headers, &ABORT).filter(|status| (200..600).contains(status));
            let http = http.and_then(|status| StatusCode::from_u16(status).ok()).map(AbortStatus::Http);
            // "HTTP variant wins over gRPC" - grpc-go, Envoy
            http.or_else(|| {
                let code: u32 = number(headers, &ABORT_GRPC)?;
                Some(AbortStatus::Grpc(u8::try_from(code).ok().filter(|code| *code <= 16).unwrap_or(UNKNOWN)))
            })
        }
    }
}

/// "Percentage header can only lower the configured numerator" (A33); the denominator is the configured one.
fn lowered(percentage: FaultPercentage, headers: &HeaderMap, name: &HeaderName) -> FaultPercentage {
    number(headers, name).map_or(percentage, |numerator| percentage.lowered_to(numerator))
}

/// "Unparsable header ignored; repeated header: any one" (A33): the first, as in Envoy.
fn number<N: str::FromStr>(headers: &HeaderMap, name: &HeaderName) -> Option<N> {
    str::from_utf8(headers.get(name)?.as_bytes()).ok()?.trim_ascii().parse().ok()
}

impl Filter for FaultFilter {
    fn request<'a>(&'a self, request: &'a mut FilterRequest<'_>) -> Verdict<'a> {
        match self.turn(request) {
            None | Some(Turn { delay: None, reply: None, .. }) => Verdict::Continue,
            Some(Turn { delay: None, reply: Some(reply), .. }) => Verdict::Reply(reply),
            Some(Turn { delay: Some(delay), reply, active }) => Verdict::Wait(Box::pin(async move {
                let _active = active;
                sleep(delay).await;
                reply.map_or(Ok(()), Err)
            })),
        }
    }

    fn sees_responses(&self) -> bool {
        false
    }
}

/// What a call that is faulted goes through.
#[derive(Debug)]
struct Turn {
    delay: Option<Duration>,
    /// Instead of what is behind the filter.
    reply: Option<Reply>,
    active: Active,
}

// === Active ===

/// Of the whole process, whichever filter injects them.
static ACTIVE: AtomicU32 = AtomicU32::new(0);

/// How many calls of this process are being faulted now (A33): those in an injected delay.
///
/// It is what `max_active_faults` limits. Calls that pass a fault filter untouched do not count.
pub fn active_faults() -> u32 {
    ACTIVE.load(Ordering::Relaxed)
}

/// A call that is being faulted.
#[derive(Debug)]
struct Active;

impl Active {
    /// `None` at the limit.
    fn enter(max: Option<u32>) -> Option<Self> {
        let below = |active: u32| (active < max.unwrap_or(u32::MAX)).then(|| active + 1);
        ACTIVE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).ok().map(|_| Self)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        ACTIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
