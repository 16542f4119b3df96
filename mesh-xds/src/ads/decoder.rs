//! Bytes to values, without doing the same work twice and without holding the thread.
//!
//! istiod pushes everything when one endpoint changes: bytes that are equal to the last ones are not decoded again,
//! and a value that comes out equal keeps the identity of the last one. It does NOT decide what is accepted; it
//! remembers only names that are subscribed.

use crate::{
    decode::{DecodeContext, decode, decode_after, peek_name, reuse},
    resource::{ByKind, Kind, Received, Resource},
};
use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use std::{sync::Arc, time::Duration};
use tokio::{task::yield_now, time::Instant};

/// "decode yields every 64 resources or 1 ms": the thread also carries other streams and the driver.
const YIELD: (usize, Duration) = (64, Duration::from_millis(1));

#[derive(Debug)]
pub(super) struct Decoder {
    context: DecodeContext,
    held: ByKind<Held>,
}

/// The last news about each name of one kind.
#[derive(Debug, Default)]
struct Held {
    by_bytes: FxHashMap<Bytes, Received>,
    by_name: FxHashMap<String, Last>,
}

#[derive(Debug)]
struct Last {
    bytes: Bytes,
    /// The last valid value, also when newer bytes were invalid.
    good: Option<Resource>,
}

impl Decoder {
    pub(super) fn new(context: DecodeContext) -> Self {
        Self { context, held: Default::default() }
    }

    /// Forgets what is not in the list.
    pub(super) fn retain(&mut self, kind: Kind, names: &[Arc<str>]) {
        let held = self.held.of(kind);
        if held.by_name.len() > names.len() {
            let names: FxHashSet<&str> = names.iter().map(|name| &**name).collect();
            let Held { by_bytes, by_name } = held;
            by_name.retain(|name, last| {
                let keep = names.contains(name.as_str());
                if !keep {
                    by_bytes.remove(&last.bytes);
                }
                keep
            });
        }
    }

    /// Decodes the resources of one response: type URLs and bytes.
    pub(super) async fn decode(
        &mut self,
        kind: Kind,
        resources: impl Iterator<Item = (String, Bytes)>,
    ) -> Vec<Received> {
        let mut all = Vec::new();
        let mut since = Instant::now();
        for (index, (type_url, bytes)) in resources.enumerate() {
            all.push(self.one(kind, &type_url, bytes));
            if index % YIELD.0 == YIELD.0 - 1 || since.elapsed() >= YIELD.1 {
                yield_now().await;
                since = Instant::now();
            }
        }
        all
    }

    fn one(&mut self, kind: Kind, type_url: &str, bytes: Bytes) -> Received {
        let held = self.held.of(kind);
        // Only the bare form is looked up: equal bytes in a wrapper would be something else.
        let bare = type_url == kind.type_url();
        if bare && let Some(received) = held.by_bytes.get(&bytes) {
            return received.clone();
        }
        let last = peek_name(&bytes).and_then(|name| held.by_name.get(name));
        let mut received = match last.and_then(|last| held.by_bytes.get(&last.bytes)) {
            Some(previous) => decode_after(previous, kind, type_url, &bytes, &self.context),
            None => decode(kind, type_url, &bytes, &self.context),
        };
        let Some(name) = received.name.clone() else { return received };
        let last = held.by_name.remove(&name);
        if let Some(last) = &last {
            held.by_bytes.remove(&last.bytes);
        }
        let good = last.and_then(|last| last.good);
        received.value = match (received.value, &good) {
            (Ok(new), Some(previous)) => Ok(reuse(previous, new)),
            (value, _) => value,
        };
        let good = received.value.as_ref().ok().cloned().or(good);
        if bare {
            held.by_bytes.insert(bytes.clone(), received.clone());
        }
        held.by_name.insert(name, Last { bytes, good });
        received
    }
}
