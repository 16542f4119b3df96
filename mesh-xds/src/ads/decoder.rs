//! Bytes to values, without doing the same work twice and without holding the thread.
//!
//! istiod pushes everything when one endpoint changes: bytes that are equal to the last ones are not decoded again,
//! and a value that comes out equal keeps the identity of the last one. Resources are decoded one by one, with other tasks
//! in between; a large one, on a thread that waits for such work. It does NOT decide what is accepted; it remembers only
//! names that are subscribed.

use super::asked::Names;
use crate::{
    decode::{DecodeContext, Wrapped, decode_unwrapped, peek_name, refused, reuse},
    resource::{ByKind, Kind, Received, Resource},
};
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::{panic::resume_unwind, sync::Arc, time::Duration};
use tokio::{
    task::{spawn_blocking, yield_now},
    time::Instant,
};

/// "decode yields every 64 resources or 1 ms": the thread also carries other streams and the driver.
const YIELD: (usize, Duration) = (64, Duration::from_millis(1));

/// In bytes. A resource above that is large: 10,000 routes cost a dozen milliseconds.
const LARGE: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Decoder {
    context: Arc<DecodeContext>,
    held: ByKind<FxHashMap<String, Last>>,
}

/// The last news about a name.
#[derive(Clone, Debug)]
struct Last {
    /// As it was without its wrapper.
    received: Received,
    /// Of the wrapper; empty without one.
    version: String,
    /// The last valid value, also when newer bytes were invalid.
    good: Option<Resource>,
}

/// A resource of a response, not decoded yet.
#[derive(Debug)]
pub(super) enum Incoming {
    /// As it stands in a SotW response: type URL and bytes, which may be those of a wrapper.
    Any(String, Bytes),
    /// As it stands in a delta response.
    Wrapped(Wrapped),
}

impl Decoder {
    pub(super) fn new(context: DecodeContext) -> Self {
        Self { context: Arc::new(context), held: ByKind::default() }
    }

    /// Forgets what is not asked for.
    pub(super) fn retain(&mut self, kind: Kind, asked: &Names) {
        let held = self.held.of(kind);
        if held.len() > asked.len() {
            held.retain(|name, _| asked.contains(name));
        }
    }

    /// Decodes the resources of one response that are worth it.
    pub(super) async fn decode<E>(
        &mut self,
        kind: Kind,
        resources: impl ExactSizeIterator<Item = Result<Incoming, E>>,
        is_worth_it: impl Fn(&Incoming) -> bool,
    ) -> Result<Vec<Received>, E> {
        let mut all = Vec::with_capacity(resources.len());
        let mut since = Instant::now();
        for (index, incoming) in resources.enumerate() {
            let incoming = incoming?;
            if is_worth_it(&incoming) {
                all.push(self.one(kind, incoming).await);
            }
            if index % YIELD.0 == YIELD.0 - 1 || since.elapsed() >= YIELD.1 {
                yield_now().await;
                since = Instant::now();
            }
        }
        Ok(all)
    }

    async fn one(&mut self, kind: Kind, incoming: Incoming) -> Received {
        match incoming {
            Incoming::Wrapped(wrapped) => wrapped.of_the_same_name(self.wrapped(kind, &wrapped).await),
            Incoming::Any(type_url, bytes) => match Wrapped::unwrap(&type_url, &bytes) {
                Ok(None) => self.unwrapped(kind, &type_url, &bytes, None).await,
                Ok(Some(wrapped)) => self.wrapped(kind, &wrapped).await,
                Err(invalid) => refused(None, &bytes, invalid),
            },
        }
    }

    async fn wrapped(&mut self, kind: Kind, wrapped: &Wrapped) -> Received {
        let name = Some(wrapped.name.as_str()).filter(|name| !name.is_empty());
        let received = match &wrapped.resource {
            Some((type_url, bytes)) => self.unwrapped(kind, type_url, bytes, name).await,
            // "a response that doesn't change the resource version. In this case the resource field does not need to be
            // populated": a heartbeat, which says again what is known.
            None => match self.held.of(kind).get(&wrapped.name) {
                Some(last) if last.version == wrapped.version => last.received.clone(),
                _ => return wrapped.empty(),
            },
        };
        if let Some(last) = self.held.of(kind).get_mut(&wrapped.name) {
            last.version.clone_from(&wrapped.version);
        }
        wrapped.around(received)
    }

    /// `known_as` is what a wrapper, which is off by now, calls the resource.
    async fn unwrapped(&mut self, kind: Kind, type_url: &str, bytes: &Bytes, known_as: Option<&str>) -> Received {
        let held = self.held.of(kind);
        let last = known_as.or_else(|| peek_name(bytes)).and_then(|name| held.get(name));
        let is_of_kind = type_url == kind.type_url();
        if let Some(last) = last
            && is_of_kind
            && last.received.raw == *bytes
        {
            return last.received.clone();
        }
        let mut received = if bytes.len() < LARGE {
            decode_unwrapped(last.map(|last| &last.received), kind, type_url, bytes, known_as, &self.context)
        } else {
            let (type_url, bytes) = (type_url.to_owned(), bytes.clone());
            let (known_as, context) = (known_as.map(str::to_owned), Arc::clone(&self.context));
            elsewhere(last.cloned(), kind, type_url, bytes, known_as, context).await
        };
        let Some(name) = received.name.clone() else { return received };
        let good = held.remove(&name).and_then(|last| last.good);
        received.value = match (received.value, &good) {
            (Ok(new), Some(previous)) => Ok(reuse(previous, new)),
            (value, _) => value,
        };
        if is_of_kind {
            let good = received.value.as_ref().ok().cloned().or(good);
            held.insert(name, Last { received: received.clone(), version: String::new(), good });
        }
        received
    }
}

/// Decodes where nobody waits, and compares with the last good value there: what stayed equal is the last one already.
async fn elsewhere(
    last: Option<Last>,
    kind: Kind,
    type_url: String,
    bytes: Bytes,
    known_as: Option<String>,
    context: Arc<DecodeContext>,
) -> Received {
    let decoding = spawn_blocking(move || {
        let previous = last.as_ref().map(|last| &last.received);
        let mut received = decode_unwrapped(previous, kind, &type_url, &bytes, known_as.as_deref(), &context);
        if let Some(Last { received: Received { name, .. }, good: Some(good), .. }) = &last
            && *name == received.name
        {
            received.value = received.value.map(|new| reuse(good, new));
        }
        received
    });
    match decoding.await {
        Ok(received) => received,
        Err(error) => match error.try_into_panic() {
            // As if it had panicked here: the stream's task starts again.
            Ok(panic) => resume_unwind(panic),
            // The runtime is shutting down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::{
        envoy::{
            config::{
                core::v3::{Address, Locality, SocketAddress, address, socket_address::PortSpecifier},
                endpoint::v3 as pb,
            },
            service::discovery::v3::Resource as Wrapper,
        },
        google::protobuf::{Any, Duration as Ttl, UInt32Value},
    };
    use futures_util::FutureExt;
    use prost::Message;

    const KIND: Kind = Kind::Endpoints;

    /// A load assignment without endpoints, as delta wraps it.
    fn wrapper(name: &str, version: &str, inner: &str) -> Wrapper {
        let value = [&[0x0a, inner.len() as u8], inner.as_bytes()].concat();
        let resource = Some(Any { type_url: KIND.type_url().to_owned(), value });
        Wrapper { name: name.to_owned(), version: version.to_owned(), resource, ..Wrapper::default() }
    }

    fn heartbeat(name: &str, version: &str) -> Wrapper {
        let ttl = Some(Ttl { seconds: 5, nanos: 0 });
        Wrapper { resource: None, ttl, ..wrapper(name, version, "") }
    }

    fn decode(decoder: &mut Decoder, wrapper: Wrapper) -> Received {
        decoder.one(KIND, Incoming::Wrapped(wrapper.into())).now_or_never().expect("small ones are decoded at once")
    }

    fn value(received: &Received) -> &Arc<crate::resource::ClusterLoadAssignment> {
        let Ok(Resource::Endpoints(value)) = &received.value else { panic!("{received:?}") };
        value
    }

    fn complaint(received: Received) -> (Option<String>, String) {
        (received.name, received.value.expect_err("refused").to_string())
    }

    #[test]
    fn equal_bytes_are_the_same_value_with_the_newest_version() {
        let mut decoder = Decoder::new(DecodeContext::default());
        let first = decode(&mut decoder, wrapper("a", "1", "a"));
        let again = decode(&mut decoder, wrapper("a", "2", "a"));
        assert!(Arc::ptr_eq(value(&first), value(&again)));
        assert_eq!((first.version.as_deref(), again.version.as_deref()), (Some("1"), Some("2")));
        // Also when one of them came bare.
        let bare = decoder.one(KIND, Incoming::Any(KIND.type_url().to_owned(), again.raw.clone()));
        let bare = bare.now_or_never().expect("nothing is decoded");
        assert!(Arc::ptr_eq(value(&first), value(&bare)));
        assert_eq!(bare.version, None);
    }

    #[test]
    fn a_heartbeat_says_again_what_is_known_and_its_ttl_is_reported() {
        let mut decoder = Decoder::new(DecodeContext::default());
        let first = decode(&mut decoder, wrapper("a", "1", "a"));
        let beat = decode(&mut decoder, heartbeat("a", "1"));
        assert!(Arc::ptr_eq(value(&first), value(&beat)));
        assert_eq!(beat.ignored.iter().map(|field| &*field.path).collect::<Vec<_>>(), ["ttl"]);
        for unknown in [heartbeat("a", "2"), heartbeat("b", "1")] {
            let (name, why) = complaint(decode(&mut decoder, unknown));
            assert!(name.is_some() && why.contains("wrapper is empty"), "{why}");
        }
    }

    #[test]
    fn a_resource_that_its_wrapper_calls_otherwise_is_refused_under_the_wrappers_name() {
        let mut decoder = Decoder::new(DecodeContext::default());
        let (name, why) = complaint(decode(&mut decoder, wrapper("a", "1", "b")));
        assert_eq!((name.as_deref(), &*why), (Some("a"), "name: the resource in the wrapper is named \"b\""));
        assert!(decode(&mut decoder, wrapper("", "1", "b")).value.is_ok(), "a wrapper need not have a name");
    }

    /// A load assignment with so many endpoints, of which the last has this port.
    fn assignment(endpoints: usize, port: u32) -> Incoming {
        let endpoint = |n: usize| {
            let port_specifier = Some(PortSpecifier::PortValue(if n + 1 == endpoints { port } else { 1 }));
            let [_, a, b, c] = (n as u32).to_be_bytes();
            let address = SocketAddress { address: format!("10.{a}.{b}.{c}"), port_specifier, ..Default::default() };
            let address = Some(Address { address: Some(address::Address::SocketAddress(address)) });
            let endpoint = pb::Endpoint { address, ..Default::default() };
            let host_identifier = Some(pb::lb_endpoint::HostIdentifier::Endpoint(endpoint));
            pb::LbEndpoint { host_identifier, ..Default::default() }
        };
        let locality = pb::LocalityLbEndpoints {
            lb_endpoints: (0..endpoints).map(endpoint).collect(),
            load_balancing_weight: Some(UInt32Value { value: 1 }),
            locality: Some(Locality::default()),
            ..Default::default()
        };
        let message =
            pb::ClusterLoadAssignment { cluster_name: "a".to_owned(), endpoints: vec![locality], ..Default::default() };
        Incoming::Any(KIND.type_url().to_owned(), message.encode_to_vec().into())
    }

    #[tokio::test]
    async fn a_large_resource_is_decoded_elsewhere_and_keeps_its_identity_while_it_stays_equal() {
        let mut decoder = Decoder::new(DecodeContext::default());
        let is_here = decoder.one(KIND, assignment(10_000, 1)).now_or_never().is_some();
        assert!(!is_here, "10,000 endpoints are a lot");
        let first = decoder.one(KIND, assignment(10_000, 1)).await;
        assert_eq!(value(&first).endpoints().count(), 10_000);
        let again = decoder.one(KIND, assignment(10_000, 1)).now_or_never().expect("equal bytes are not decoded");
        assert!(Arc::ptr_eq(value(&first), value(&again)));
        let changed = decoder.one(KIND, assignment(10_000, 2)).await;
        assert_ne!(value(&first), value(&changed));
        let removed = decoder.one(KIND, assignment(9_999, 1)).await;
        assert_eq!(value(&removed).endpoints().count(), 9_999);
    }

    #[test]
    fn what_is_not_asked_for_is_forgotten() {
        let mut decoder = Decoder::new(DecodeContext::default());
        for name in ["a", "b", "c"] {
            decode(&mut decoder, wrapper(name, "1", name));
        }
        decoder.retain(KIND, &Names::List([Arc::from("a"), Arc::from("c")].into()));
        assert_eq!(decoder.held.of(KIND).len(), 2);
        assert!(decode(&mut decoder, heartbeat("c", "1")).value.is_ok());
        assert!(decode(&mut decoder, heartbeat("b", "1")).value.is_err());
    }
}
