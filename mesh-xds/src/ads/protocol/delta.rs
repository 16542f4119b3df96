//! Incremental: requests carry what changes, resources have versions of their own, and removals are said.
//!
//! Nonces and names never travel together: istiod drops the names in a request with a stale nonce, and those in a
//! NACK. So an answer is a nonce without names, and a change of names has no nonce. It knows the words of one type.
//! Which names are wanted, and for how long one waits for them, is in `names`.

use super::{
    Asks, Say, Verdict,
    names::{Change, Names},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

/// One type's side of the conversation.
#[derive(Debug, Default)]
pub(super) struct Delta {
    /// `system_version_info` of the newest response on this stream.
    version: Option<Arc<str>>,
    /// What the response that is being worked on removes, and whether it was held until then.
    removed: BTreeMap<Arc<str>, bool>,
    /// Names that were subscribed again, and not answered since.
    again: BTreeSet<Arc<str>>,
}

impl Delta {
    /// The first request of a stream: everything, with the versions of what is held.
    ///
    /// "the first message of each type_url of a reconnected stream populates this map" - DeltaDiscoveryRequest.
    pub(super) fn first(names: &Names, held: impl Fn(&str) -> Option<Arc<str>>) -> Say {
        let subscribe: Vec<_> = names.all().cloned().collect();
        let held = subscribe.iter().filter_map(|name| Some((Arc::clone(name), held(name)?))).collect();
        Say::unasked(Asks::Change { subscribe, unsubscribe: Vec::new(), held })
    }

    /// The wanted names changed. Two changes are two requests, so that a name that leaves and returns does leave.
    pub(super) fn changed(&mut self, change: &Change) -> Say {
        for name in &change.left {
            self.again.remove(name);
        }
        let (subscribe, unsubscribe) = (change.new.clone(), change.left.clone());
        Say::unasked(Asks::Change { subscribe, unsubscribe, held: Vec::new() })
    }

    /// The response that is being worked on has this name as a resource, or an error for it.
    pub(super) fn answered(&mut self, name: &str) {
        self.again.remove(name);
        // Should a response remove what it also brings, then it is there.
        self.removed.remove(name);
    }

    /// The response that is being worked on removes this name.
    pub(super) fn removed(&mut self, name: &str, held: bool) {
        self.removed.insert(name.into(), held);
    }

    /// Answers a response, and subscribes again to what it took away.
    pub(super) fn answer(&mut self, version: &Arc<str>, nonce: &Arc<str>, verdict: Verdict) -> Vec<Say> {
        let nack = match verdict {
            Verdict::Ack => None,
            Verdict::Nack(text) => Some(text),
        };
        let mut says = vec![Say { nonce: Arc::clone(nonce), nack, asks: Asks::NOTHING }];
        let is_prompted = self.version.replace(Arc::clone(version)).is_none_or(|before| before == *version);
        let removed = mem::take(&mut self.removed).into_iter();
        let subscribe: Vec<_> = removed.filter(|(name, held)| self.is_forgotten(name, *held, is_prompted)).collect();
        if !subscribe.is_empty() {
            let subscribe = subscribe.into_iter().map(|(name, _)| name).collect();
            says.push(Say::unasked(Asks::Change { subscribe, unsubscribe: Vec::new(), held: Vec::new() }));
        }
        says
    }

    /// The stream is gone.
    pub(super) fn detached(&mut self) {
        *self = Self::default();
    }

    /// Whether a name that was just removed has to be subscribed again.
    ///
    /// A push of istiod that removes a name also ends the subscription: were the name not subscribed again, its return
    /// would never be told. That a name does not exist is also the answer of many servers to a subscription, and
    /// then the subscription stands; so must not every removal be followed by one, or the two would go on for ever.
    /// How they are told apart:
    /// 1. What follows our subscribing again, is its answer. So each subscription costs the server a removal more.
    /// 2. istiod answers with the version of its last push, and every push has a new one.
    /// 3. What was held goes away only once: it may be subscribed again in any case. For the first response on a
    ///    stream, and for servers without such versions, that is all.
    fn is_forgotten(&mut self, name: &Arc<str>, held: bool, is_prompted: bool) -> bool {
        if self.again.remove(name) {
            return false;
        }
        if !is_prompted {
            self.again.insert(Arc::clone(name));
        }
        held || !is_prompted
    }
}
