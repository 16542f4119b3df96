//! State of the world: every request carries the full list of one type, every response a version of the whole.
//!
//! It knows the words of one type. Which names are wanted, and for how long one waits for them, is in `names`.

use super::{
    Asks, Say, Verdict,
    names::{Change, Names},
};
use crate::resource::Kind;
use std::{collections::BTreeMap, sync::Arc};

/// How many names that left a list are remembered on a stream.
const MOST_DROPPED: usize = 4096;

/// How often a name that returned is made to leave and return once more. Each time may cross with a response again; a
/// server that answers every list without having the name must not be asked for ever.
const TRIES: u8 = 4;

/// One type's side of the conversation.
#[derive(Debug, Default)]
pub(super) struct Sotw {
    /// The list as it was last sent, shared by all requests until it changes.
    list: Option<Arc<[Arc<str>]>>,
    /// Of the last response that was accepted as a whole, also of an earlier stream.
    version: Arc<str>,
    /// Of the newest response on this stream.
    nonce: Arc<str>,
    /// Whether the list changed on this stream after the first request: then it may not have got through.
    changed: bool,
    /// Names that left the list on this stream and were not answered since, with the tries that are left; for those
    /// that are back, see [`Sotw::answer`].
    dropped: BTreeMap<Arc<str>, u8>,
}

impl Sotw {
    /// The first request of a stream: the full list, "with the versions already held" (A57).
    pub(super) fn first(&mut self, names: &Names) -> Say {
        self.say(names, None)
    }

    /// The list changed.
    pub(super) fn changed(&mut self, names: &Names, change: &Change) -> Say {
        // Bounded: what is forgotten here only loses the second chance of `answer`.
        if self.dropped.len() + change.left.len() > MOST_DROPPED {
            self.dropped.clear();
        }
        self.dropped.extend(change.left.iter().take(MOST_DROPPED).map(|name| (Arc::clone(name), TRIES)));
        self.list = None;
        self.changed = names.asked();
        self.say(names, None)
    }

    /// Answers a response, with the full list of names, and makes sure that the list got through.
    ///
    /// istiod drops a list that carries a stale nonce, and does not look at the list of a NACK. Whether a change got
    /// through cannot be known: responses may have crossed with any of the requests that told it. So the last word
    /// after a response is always a list that counts. And a name that left and came back while its leaving was
    /// dropped would meet silence, since the server sees no change: it leaves and comes back once more.
    pub(super) fn answer(
        &mut self,
        kind: Kind,
        names: &Names,
        version: &Arc<str>,
        nonce: &Arc<str>,
        verdict: Verdict,
    ) -> Vec<Say> {
        self.nonce = Arc::clone(nonce);
        let (nack, repeat) = match verdict {
            Verdict::Ack => {
                self.version = Arc::clone(version);
                (None, false)
            }
            Verdict::Nack(text) => (Some(text), self.changed),
        };
        let mut says = vec![self.say(names, nack)];
        if let Some(without) = self.without_the_returned(kind, names) {
            let list = self.list.replace(without);
            says.push(self.say(names, None));
            self.list = list;
            says.push(self.say(names, None));
        } else if repeat {
            says.push(self.say(names, None));
        }
        says
    }

    /// The stream is gone, and perhaps a name with it.
    pub(super) fn detached(&mut self) {
        self.list = None;
        self.nonce = Arc::default();
        self.changed = false;
        self.dropped.clear();
    }

    fn say(&mut self, names: &Names, nack: Option<String>) -> Say {
        let list = self.list.get_or_insert_with(|| names.all().cloned().collect());
        let asks = Asks::All { names: Arc::clone(list), version: Arc::clone(&self.version) };
        Say { nonce: Arc::clone(&self.nonce), nack, asks }
    }

    /// The list without names that left, came back and are not answered; none if there are no such names.
    fn without_the_returned(&mut self, kind: Kind, names: &Names) -> Option<Arc<[Arc<str>]>> {
        // A full-state response brings whatever the server believes to be subscribed.
        if kind.is_full_state() || !self.dropped.keys().any(|name| names.contains(name)) {
            return None;
        }
        let without = names.all().filter(|name| !self.dropped.contains_key(*name)).cloned().collect();
        self.dropped.retain(|name, tries| {
            *tries -= u8::from(names.contains(name));
            *tries > 0
        });
        Some(without)
    }

    /// The server said something about a name.
    pub(super) fn answered(&mut self, name: &str) {
        self.dropped.remove(name);
    }
}
