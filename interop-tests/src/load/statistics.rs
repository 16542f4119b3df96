//! Who answered which RPC: totals since the start, and watches over the next RPCs.
//!
//! Sans-IO but for the channel on which a watch waits. It does NOT start RPCs.

use super::{call::Answer, plan::RpcType, plan::method};
use crate::proto::testing::{
    LoadBalancerAccumulatedStatsResponse, LoadBalancerStatsResponse,
    load_balancer_accumulated_stats_response::MethodStats,
    load_balancer_stats_response::{MetadataEntry, MetadataType, RpcMetadata},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;
use tonic::{
    Code, Status,
    metadata::{KeyAndValueRef, MetadataMap},
};

const TYPES: [RpcType; 2] = [RpcType::EmptyCall, RpcType::UnaryCall];

/// The statistics of one process.
#[derive(Debug, Default)]
pub struct Statistics {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    totals: HashMap<RpcType, Totals>,
    watchers: Vec<Watcher>,
}

#[derive(Debug, Default)]
struct Totals {
    started: u32,
    results: HashMap<Code, u32>,
}

/// Somebody who wants the next RPCs.
#[derive(Debug)]
struct Watcher {
    remaining: usize,
    finished: mpsc::UnboundedSender<Finished>,
}

/// An RPC that went to its end.
#[derive(Clone, Debug)]
struct Finished {
    rpc: RpcType,
    answer: Option<Arc<Answer>>,
}

/// An RPC in flight. Dropped without an end, it counts as unfinished.
#[derive(Debug)]
pub(crate) struct Started {
    rpc: RpcType,
    watchers: Vec<mpsc::UnboundedSender<Finished>>,
}

/// A watch over the next RPCs that are started.
#[derive(Debug)]
pub(crate) struct Watch {
    wanted: usize,
    finished: mpsc::UnboundedReceiver<Finished>,
    stats: LoadBalancerStatsResponse,
    metadata_keys: Vec<String>,
}

// === Statistics ===

impl Statistics {
    pub(crate) fn started(&self, rpc: RpcType) -> Started {
        let mut inner = self.inner();
        inner.totals.entry(rpc).or_default().started += 1;
        let mut watchers = Vec::new();
        inner.watchers.retain_mut(|watcher| {
            watchers.push(watcher.finished.clone());
            watcher.remaining -= 1;
            watcher.remaining > 0 && !watcher.finished.is_closed()
        });
        Started { rpc, watchers }
    }

    pub(crate) fn finished(&self, started: Started, result: Result<Answer, Status>) {
        let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
        *self.inner().totals.entry(started.rpc).or_default().results.entry(code).or_default() += 1;
        let finished = Finished { rpc: started.rpc, answer: result.ok().map(Arc::new) };
        for watcher in started.watchers {
            // An error means that its time is over and nobody waits any more.
            let _ = watcher.send(finished.clone());
        }
    }

    /// Watches the next `wanted` RPCs, keeping the response metadata with these names.
    pub(crate) fn watch(&self, wanted: usize, metadata_keys: Vec<String>) -> Watch {
        // Unbounded because senders must not wait; each of the `wanted` RPCs sends once.
        let (sender, finished) = mpsc::unbounded_channel();
        if wanted > 0 {
            self.inner().watchers.push(Watcher { remaining: wanted, finished: sender });
        }
        Watch { wanted, finished, stats: LoadBalancerStatsResponse::default(), metadata_keys }
    }

    pub(crate) fn accumulated(&self) -> LoadBalancerAccumulatedStatsResponse {
        let inner = self.inner();
        let none = Totals::default();
        let mut all = LoadBalancerAccumulatedStatsResponse::default();
        for rpc in TYPES {
            let totals = inner.totals.get(&rpc).unwrap_or(&none);
            let succeeded = totals.results.get(&Code::Ok).copied().unwrap_or(0);
            let finished = totals.results.values().sum::<u32>();
            let key = || rpc.as_str_name().to_owned();
            all.num_rpcs_started_by_method.insert(key(), signed(totals.started));
            all.num_rpcs_succeeded_by_method.insert(key(), signed(succeeded));
            all.num_rpcs_failed_by_method.insert(key(), signed(finished - succeeded));
            let result = totals.results.iter().map(|(&code, &count)| (code as i32, signed(count))).collect();
            all.stats_per_method.insert(key(), MethodStats { rpcs_started: signed(totals.started), result });
        }
        all
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete before the next call that could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The proto counts in int32.
fn signed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

// === Watch ===

impl Watch {
    /// Waits until all RPCs have finished. May be given up at any time.
    pub(crate) async fn all_finished(&mut self) {
        for _ in 0..self.wanted {
            let Some(finished) = self.finished.recv().await else { return };
            self.count(finished);
        }
    }

    /// What was seen; whatever did not finish is a failure.
    pub(crate) fn stats(mut self) -> LoadBalancerStatsResponse {
        let succeeded = self.stats.rpcs_by_peer.values().sum::<i32>();
        let wanted = i32::try_from(self.wanted).unwrap_or(i32::MAX);
        self.stats.num_failures = wanted - succeeded;
        self.stats
    }

    fn count(&mut self, finished: Finished) {
        let Some(answer) = finished.answer.filter(|answer| !answer.hostname.is_empty()) else { return };
        let peer = &answer.hostname;
        *self.stats.rpcs_by_peer.entry(peer.clone()).or_default() += 1;
        let by_method = self.stats.rpcs_by_method.entry(method(finished.rpc).to_owned()).or_default();
        *by_method.rpcs_by_peer.entry(peer.clone()).or_default() += 1;
        if !self.metadata_keys.is_empty() {
            let mut metadata = Vec::new();
            self.keep(&answer.headers, MetadataType::Initial, &mut metadata);
            self.keep(&answer.trailers, MetadataType::Trailing, &mut metadata);
            let by_peer = self.stats.metadatas_by_peer.entry(peer.clone()).or_default();
            by_peer.rpc_metadata.push(RpcMetadata { metadata });
        }
    }

    fn keep(&self, metadata: &MetadataMap, kind: MetadataType, kept: &mut Vec<MetadataEntry>) {
        for entry in metadata.iter() {
            let (key, value) = match entry {
                KeyAndValueRef::Ascii(key, value) => (key.as_str(), value.as_encoded_bytes()),
                KeyAndValueRef::Binary(key, value) => (key.as_str(), value.as_encoded_bytes()),
            };
            if self.metadata_keys.iter().any(|wanted| wanted == "*" || wanted.eq_ignore_ascii_case(key)) {
                let value = String::from_utf8_lossy(value).into_owned();
                kept.push(MetadataEntry { key: key.to_owned(), value, r#type: kind.into() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(hostname: &str) -> Answer {
        let mut headers = MetadataMap::new();
        headers.insert("colour", "blue".parse().expect("ASCII"));
        let mut trailers = MetadataMap::new();
        trailers.insert("shape", "round".parse().expect("ASCII"));
        Answer { hostname: hostname.to_owned(), headers, trailers }
    }

    #[tokio::test]
    async fn a_watch_counts_the_next_rpcs_and_no_others() {
        let statistics = Statistics::default();
        let before = statistics.started(RpcType::UnaryCall);
        let mut watch = statistics.watch(2, Vec::new());
        let first = statistics.started(RpcType::UnaryCall);
        let second = statistics.started(RpcType::EmptyCall);
        let after = statistics.started(RpcType::UnaryCall);
        statistics.finished(before, Ok(answer("a")));
        statistics.finished(after, Ok(answer("a")));
        statistics.finished(second, Ok(answer("b")));
        statistics.finished(first, Err(Status::unavailable("gone")));
        watch.all_finished().await;
        let stats = watch.stats();
        assert_eq!(stats.rpcs_by_peer, HashMap::from([("b".to_owned(), 1)]));
        assert_eq!(stats.num_failures, 1);
        assert_eq!(stats.rpcs_by_method.keys().collect::<Vec<_>>(), ["EmptyCall"]);
        assert!(stats.metadatas_by_peer.is_empty(), "no names were given");
    }

    #[test]
    fn what_has_not_finished_is_a_failure() {
        let statistics = Statistics::default();
        let watch = statistics.watch(3, Vec::new());
        let _in_flight = statistics.started(RpcType::UnaryCall);
        assert_eq!(watch.stats().num_failures, 3);
    }

    #[tokio::test]
    async fn metadata_is_kept_by_name_and_kind() {
        let statistics = Statistics::default();
        let mut watch = statistics.watch(1, vec!["SHAPE".to_owned()]);
        let mut everything = statistics.watch(1, vec!["*".to_owned()]);
        let started = statistics.started(RpcType::UnaryCall);
        statistics.finished(started, Ok(answer("a")));
        watch.all_finished().await;
        everything.all_finished().await;
        let entry = |key: &str, value: &str, kind: MetadataType| MetadataEntry {
            key: key.to_owned(),
            value: value.to_owned(),
            r#type: kind.into(),
        };
        let shape = entry("shape", "round", MetadataType::Trailing);
        assert_eq!(watch.stats().metadatas_by_peer["a"].rpc_metadata[0].metadata, std::slice::from_ref(&shape));
        let all = everything.stats().metadatas_by_peer["a"].rpc_metadata[0].metadata.clone();
        assert_eq!(all, [entry("colour", "blue", MetadataType::Initial), shape]);
    }

    #[test]
    fn totals_are_kept_by_method_and_code() {
        let statistics = Statistics::default();
        let _in_flight = statistics.started(RpcType::UnaryCall);
        let started = statistics.started(RpcType::UnaryCall);
        statistics.finished(started, Ok(answer("a")));
        let started = statistics.started(RpcType::UnaryCall);
        statistics.finished(started, Err(Status::unavailable("gone")));
        let all = statistics.accumulated();
        let unary = &all.stats_per_method["UNARY_CALL"];
        assert_eq!((unary.rpcs_started, &unary.result), (3, &HashMap::from([(0, 1), (14, 1)])));
        assert_eq!(all.num_rpcs_started_by_method["UNARY_CALL"], 3);
        assert_eq!(all.num_rpcs_succeeded_by_method["UNARY_CALL"], 1);
        assert_eq!(all.num_rpcs_failed_by_method["UNARY_CALL"], 1);
        assert_eq!(all.num_rpcs_started_by_method["EMPTY_CALL"], 0);
    }
}
