//! What happens, step by step: drawn from a seed without looking at the state, so that any part of a script is one.
//!
//! A step that is impossible when its turn comes (nothing to deliver, nobody to unwatch) does nothing. It does NOT run.

use super::world::{AUTHORITIES, ERROR, HOSTS, NAMES};
use crate::{budget::Budget, resource::Kind};
use fastrand::Rng;

/// `server` counts from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    // === The control planes ===
    /// A server has something new, and tells its streams.
    Push {
        server: usize,
        kind: Kind,
        name: &'static str,
        number: u32,
    },
    /// A server lost something, and tells its streams, or keeps it to itself: withheld from those who ask later.
    Lose {
        server: usize,
        kind: Kind,
        name: &'static str,
        tell: bool,
    },
    // === The applications ===
    Watch {
        name: &'static str,
    },
    WatchResource {
        kind: Kind,
        name: &'static str,
    },
    /// The `nth` of what is watched.
    Unwatch {
        nth: usize,
    },
    /// The same, and at once watched again.
    Blink {
        nth: usize,
    },
    // === The wire ===
    Dial {
        server: usize,
    },
    Refuse {
        server: usize,
    },
    /// A stream ends; `flapping` if it is an error although something was received.
    Cut {
        server: usize,
        flapping: bool,
    },
    /// The transport takes the oldest request.
    Take {
        server: usize,
    },
    /// The client hears that it did.
    Taken {
        server: usize,
    },
    /// The server reads the oldest request.
    Read {
        server: usize,
    },
    /// A response arrives: the oldest of one type.
    Deliver {
        server: usize,
        nth: usize,
    },
    // === DNS ===
    /// It says something else to whoever asks from now on.
    Dns {
        host: &'static str,
        number: u32,
    },
    /// The `nth` lookup that is under way is done.
    Resolve {
        nth: usize,
    },
    /// The client hears of the oldest one that is done.
    Hear,
    /// An endpoint behind the `nth` name fails.
    EndpointFails {
        nth: usize,
    },
    // === Time ===
    Wait {
        seconds: u64,
    },
}

/// How the control planes, DNS and the client are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) servers: [Manners; 3],
    /// One of [`BOOTSTRAPS`].
    pub(super) lists: [&'static [usize]; 3],
    pub(super) fail_on_data_errors: bool,
    /// How much of a turn the client does at a time.
    pub(super) slice: usize,
    /// Who can be reached once the script is over.
    pub(super) reachable: Reachable,
}

/// Who answers for plain names, and for those of each of [`AUTHORITIES`]: servers, the preferred one first, in the order
/// in which the client numbers them. An authority without any has those of plain names.
const BOOTSTRAPS: [[&[usize]; 3]; 7] = [
    [&[0], &[], &[]],
    [&[0, 1], &[], &[]],
    // Each its own, or one that has another authority, too.
    [&[0], &[1], &[0]],
    [&[0], &[1], &[2]],
    // Each is the other's fallback.
    [&[0, 1], &[1, 0], &[2]],
    // They share one.
    [&[0, 1], &[2, 1], &[]],
    [&[0, 1, 2], &[1], &[2, 0]],
];

/// Who can be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reachable {
    pub(super) servers: [bool; 3],
    pub(super) dns: bool,
}

/// How a control plane talks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manners {
    pub(super) delta: bool,
    /// Drops names in a NACK; forgets a name that a push removed (delta).
    pub(super) istiod: bool,
    /// Delta: says at once that there is no such resource, instead of nothing.
    pub(super) says_absent: bool,
}

impl Setting {
    pub(super) fn random(random: &mut Rng) -> Self {
        let manners =
            |random: &mut Rng| Manners { delta: random.bool(), istiod: random.bool(), says_absent: random.bool() };
        Self {
            servers: [manners(random), manners(random), manners(random)],
            lists: BOOTSTRAPS[random.usize(..BOOTSTRAPS.len())],
            fail_on_data_errors: random.u8(..4) == 0,
            slice: [1, 2, 5, Budget::SLICE][random.usize(..4)],
            reachable: Reachable { servers: [random.bool(), random.bool(), random.bool()], dns: random.bool() },
        }
    }

    /// Who answers for a name, the preferred one first.
    pub(super) fn servers_of(self, name: &str) -> &'static [usize] {
        let authority = name.strip_prefix("xdstp://").and_then(|rest| rest.split('/').next());
        let own = match authority {
            None => Some(self.lists[0]),
            Some(authority) => {
                AUTHORITIES.iter().position(|known| *known == authority).map(|index| self.lists[index + 1])
            }
        };
        own.map(|list| if list.is_empty() { self.lists[0] } else { list }).unwrap_or_default()
    }

    pub(super) fn is_preferred(self, server: usize) -> bool {
        self.lists.into_iter().any(|list| list.first() == Some(&server))
    }

    pub(super) fn has_fallback(self) -> bool {
        self.lists.into_iter().any(|list| list.len() > 1)
    }

    /// The same control planes, speaking the other variant to a client that does its turns in one go.
    pub(super) fn in_the_other_variant(mut self) -> Self {
        self.slice = Budget::SLICE;
        self.slice = Budget::SLICE;
        self.servers.iter_mut().for_each(|manners| manners.delta ^= true);
        self
    }
}

impl Reachable {
    pub(super) const ALL: Self = Self { servers: [true; 3], dns: true };
    pub(super) const NOBODY: Self = Self { servers: [false; 3], dns: false };
}

pub(super) fn random(random: &mut Rng) -> Vec<Step> {
    // Some of the names, so that much happens to each.
    let mut names = NAMES;
    random.shuffle(&mut names);
    let names = &names[..random.usize(3..=names.len())];
    (0..random.usize(20..300)).map(|_| step(names, random)).collect()
}

fn step(names: &[&'static str], random: &mut Rng) -> Step {
    let kind = Kind::ALL[random.usize(..4)];
    let name = names[random.usize(..names.len())];
    // The first one more often.
    let server = [0, 0, 1, 2][random.usize(..4)];
    match random.u8(..72) {
        0..=7 => Step::Push { server, kind, name, number: number(random) },
        8..=10 => Step::Lose { server, kind, name, tell: random.bool() },
        11..=13 => Step::Watch { name },
        14 => Step::WatchResource { kind, name },
        15 | 16 => Step::Unwatch { nth: random.usize(..8) },
        17 => Step::Blink { nth: random.usize(..8) },
        18..=20 => Step::Dial { server },
        21 => Step::Refuse { server },
        22 | 23 => Step::Cut { server, flapping: random.u8(..4) == 0 },
        24 | 25 => Step::Wait { seconds: random.u64(..20) },
        26..=34 => Step::Take { server },
        35..=40 => Step::Taken { server },
        41..=49 => Step::Read { server },
        50 | 51 => Step::Dns { host: HOSTS[random.usize(..HOSTS.len())], number: random.u32(..40) },
        52..=54 => Step::Resolve { nth: random.usize(..4) },
        55..=57 => Step::Hear,
        58 => Step::EndpointFails { nth: random.usize(..4) },
        _ => Step::Deliver { server, nth: random.usize(..4) },
    }
}

/// One in six is refused, one in twelve is an error.
fn number(random: &mut Rng) -> u32 {
    match random.u8(..12) {
        0 => ERROR + [5, 7, 14][random.usize(..3)],
        1 | 2 => random.u32(..16) * 2 + 1,
        _ => good_number(random),
    }
}

/// A resource that is good.
pub(super) fn good_number(random: &mut Rng) -> u32 {
    random.u32(..64) * 2
}

/// What DNS says when it has an address.
pub(super) fn good_answer(random: &mut Rng) -> u32 {
    random.u32(..10) * 4 + random.u32(1..4)
}
