//! What happens, step by step: drawn from a seed without looking at the state, so that any part of a script is one.
//!
//! A step that is impossible when its turn comes (nothing to deliver, nobody to unwatch) does nothing. It does NOT run.

use super::world::{ERROR, NAMES};
use crate::resource::Kind;
use fastrand::Rng;

/// `server` counts from 0, the preferred one.
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
    // === Time ===
    Wait {
        seconds: u64,
    },
}

/// How the two control planes and the client are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) servers: [Manners; 2],
    /// How many of them the bootstrap has.
    pub(super) count: usize,
    pub(super) fail_on_data_errors: bool,
    /// Which of them can be reached once the script is over.
    pub(super) reachable: [bool; 2],
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
            servers: [manners(random), manners(random)],
            count: random.usize(1..=2),
            fail_on_data_errors: random.u8(..4) == 0,
            reachable: [random.bool(), random.bool()],
        }
    }

    /// The same control planes, speaking the other variant.
    pub(super) fn in_the_other_variant(mut self) -> Self {
        self.servers.iter_mut().for_each(|manners| manners.delta ^= true);
        self
    }
}

pub(super) fn random(random: &mut Rng) -> Vec<Step> {
    (0..random.usize(20..250)).map(|_| step(random)).collect()
}

fn step(random: &mut Rng) -> Step {
    let kind = Kind::ALL[random.usize(..4)];
    let name = NAMES[random.usize(..NAMES.len())];
    // The preferred one more often.
    let server = usize::from(random.u8(..3) == 0);
    match random.u8(..60) {
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
        _ => Step::Deliver { server, nth: random.usize(..4) },
    }
}

/// One in six is refused, one in twelve is an error.
fn number(random: &mut Rng) -> u32 {
    match random.u8(..12) {
        0 => ERROR + [5, 7, 14][random.usize(..3)],
        1 | 2 => random.u32(..16) * 2 + 1,
        _ => random.u32(..16) * 2,
    }
}

/// A resource that is good.
pub(super) fn good_number(random: &mut Rng) -> u32 {
    random.u32(..16) * 2
}
