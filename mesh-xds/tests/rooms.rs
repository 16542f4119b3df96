//! A line of code knows its room: which part of this crate may name which other part, and which crates.
//!
//! Protobuf has one way in and the state machines have no I/O; a forgotten rule would compile, so it is tested.

#[path = "rooms/check.rs"]
mod check;

use check::{Room, breaches, sources};
use std::path::Path;

const ROOMS: &[Room] = &[
    Room {
        files: &["resource/", "name"],
        except: &[],
        forbidden: &["prost", "prost_types", "envoy_types", "tokio", "tonic", "tower", "tracing", "crate"],
        allowed: &["crate::resource", "crate::name"],
    },
    Room {
        files: &["decode/"],
        except: &[],
        forbidden: &["tokio", "tonic", "crate"],
        allowed: &["crate::resource", "crate::name", "crate::registry", "crate::decode"],
    },
    Room {
        // Sans-IO: an Instant comes in as a value, and nobody here asks the clock, the dice or a socket.
        files: &["ads/protocol", "cache", "assemble", "client/core"],
        except: &[],
        forbidden: &["tonic", "tokio", "hyper", "std::net", "std::time", "fastrand", "Instant::now", "spawn"],
        allowed: &["tokio::time::Instant", "std::time::Duration"],
    },
    Room {
        // Certificates and handshakes, for whoever dials or listens: no xDS, no HTTP.
        files: &["tls/"],
        except: &[],
        forbidden: &["tonic", "hyper", "http", "crate"],
        allowed: &["crate::tls"],
    },
    Room {
        // Only these know rustls; what others configure is in our own words.
        files: &[""],
        except: &["tls/"],
        forbidden: &["rustls", "tokio_rustls", "rustls_native_certs"],
        allowed: &[],
    },
    Room {
        files: &[
            "ads/codec",
            "ads/stream",
            "ads/messages",
            "ads/connect",
            "load/stream",
            "csds",
            "orca",
            "control_plane",
        ],
        except: &[],
        forbidden: &["crate::cache", "crate::assemble"],
        allowed: &[],
    },
    Room {
        // The only rooms in which protobuf may be named at all.
        files: &[""],
        except: &["decode/", "ads/codec", "ads/stream", "ads/messages", "load/stream", "csds", "orca", "control_plane"],
        forbidden: &["prost", "prost_types", "envoy_types"],
        allowed: &[],
    },
    Room { files: &[""], except: &["control_plane"], forbidden: &["crate::control_plane"], allowed: &[] },
];

#[test]
fn no_file_names_what_its_room_forbids() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let found: Vec<_> = sources.iter().flat_map(|(file, source)| breaches(file, source, ROOMS)).collect();
    assert!(found.is_empty(), "forbidden in their rooms:\n{}", found.join("\n"));
}

#[test]
fn every_room_that_is_named_is_there() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let named = ROOMS.iter().flat_map(|room| room.files.iter().chain(room.except));
    let is_there = |name: &&&str| sources.iter().any(|(file, _)| file.starts_with(**name));
    let gone: Vec<_> = named.filter(|name| !is_there(name)).collect();
    assert!(gone.is_empty(), "{gone:?}");
}
