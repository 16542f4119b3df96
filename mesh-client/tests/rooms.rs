//! A line of code knows its room: which part of this crate may name which other part, and which crates.
//!
//! Layers do not know each other, only endpoints know HTTP's machinery, and nothing a call passes locks: a
//! forgotten rule would compile, so it is tested. That protobuf stays out is the manifest's part of the wall.

#[path = "../../mesh-xds/tests/rooms/check.rs"]
mod check;

use check::{Room, breaches, sources, unnamed};
use std::{fs, path::Path};

const ROOMS: &[Room] = &[
    Room {
        files: &["route", "filter", "telemetry"],
        except: &[],
        forbidden: &["crate", "tokio", "hyper", "h2"],
        // A filter may wait.
        allowed: &[
            "crate::error",
            "crate::route",
            "crate::filter",
            "crate::reply",
            "crate::retry",
            "crate::telemetry",
            "crate::upload",
            "tokio::time",
        ],
    },
    Room {
        // The same with a call's time, which each attempt is told and none outlasts.
        files: &["retry"],
        except: &[],
        forbidden: &["crate", "tokio", "hyper", "h2"],
        allowed: &[
            "crate::deadline",
            "crate::error",
            "crate::route",
            "crate::reply",
            "crate::retry",
            "crate::upload",
            "tokio::time",
        ],
    },
    Room {
        files: &["deadline"],
        except: &[],
        forbidden: &["crate"],
        allowed: &["crate::error", "crate::deadline", "crate::reply", "crate::idle", "crate::later", "crate::upload"],
    },
    Room {
        files: &["cluster"],
        except: &[],
        forbidden: &["crate"],
        allowed: &[
            "crate::cluster",
            "crate::balance",
            "crate::breaker",
            "crate::outlier",
            "crate::chunks",
            "crate::endpoint",
            "crate::error",
            "crate::task",
            "crate::wakeups",
        ],
    },
    Room {
        // Sans-IO: timers are deadlines handed to the worker, dice come in as an argument.
        files: &["balance"],
        except: &[],
        forbidden: &["crate", "tokio", "http_body", "http", "bytes", "fastrand", "std::time", "Instant::now", "spawn"],
        allowed: &[
            "crate::balance",
            "crate::breaker",
            "crate::outlier",
            "crate::chunks",
            "crate::endpoint",
            "tokio::time::Instant",
            "std::time::Duration",
        ],
    },
    Room {
        files: &["endpoint"],
        except: &[],
        forbidden: &["crate"],
        allowed: &[
            "crate::breaker",
            "crate::outlier",
            "crate::endpoint",
            "crate::identity",
            "crate::later",
            "crate::task",
            "crate::upload",
            "crate::wakeups",
        ],
    },
    Room {
        // What every layer may use knows none of them but for the types in their signatures.
        files: &[
            "breaker", "outlier", "call", "chunks", "error", "idle", "later", "load", "reply", "task", "upload",
            "wakeups",
        ],
        except: &[],
        forbidden: &["crate"],
        allowed: &[
            "crate::breaker",
            "crate::outlier",
            "crate::call",
            "crate::deadline",
            "crate::endpoint",
            "crate::error",
            "crate::reply",
            "crate::idle",
            "crate::later",
            "crate::load",
            "crate::retry",
            "crate::upload",
        ],
    },
    Room { files: &[""], except: &["endpoint"], forbidden: &["h2", "hyper", "hyper_util"], allowed: &[] },
    Room {
        // What a call passes. The pool of HTTP/1.1 is the named exception.
        files: &[
            "call",
            "channel",
            "route",
            "retry",
            "filter",
            "deadline",
            "idle",
            "load",
            "balance",
            "breaker/mod",
            "chunks",
            "cluster/mod",
            "endpoint",
            "wakeups",
        ],
        except: &["endpoint/h1"],
        forbidden: &["Mutex", "RwLock", "std::sync::Mutex", "std::sync::RwLock", "tokio::sync::mpsc", "oneshot"],
        allowed: &[],
    },
    Room {
        files: &[""],
        except: &[],
        forbidden: &["prost", "prost_types", "envoy_types", "tonic", "tower"],
        allowed: &[],
    },
    Room {
        // A connection sends its worker at most three events in its life: dials bound that one.
        files: &[""],
        except: &["cluster/worker"],
        forbidden: &["unbounded_channel"],
        allowed: &[],
    },
];

/// What puts the rooms together, and so may name everything in the crate.
const FRONT: [&str; 11] = [
    "apply.rs",
    "builder.rs",
    "channel/mod.rs",
    "channel/routing.rs",
    "channel/shared.rs",
    "channel/stack.rs",
    "http_client.rs",
    "lib.rs",
    "mesh.rs",
    "status.rs",
    "testing.rs",
];

#[test]
fn no_file_names_what_its_room_forbids() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let found: Vec<_> = sources.iter().flat_map(|(file, source)| breaches(file, source, ROOMS)).collect();
    assert!(found.is_empty(), "forbidden in their rooms:\n{}", found.join("\n"));
}

#[test]
fn every_file_has_a_room() {
    let has_a_room = |file: &str| ROOMS.iter().any(|room| !room.files.contains(&"") && room.holds(file));
    for (file, _) in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        assert!(FRONT.contains(&&*file) || has_a_room(&file), "{file} is in no room");
    }
}

#[test]
fn a_breach_of_each_room_is_seen() {
    for (file, line) in [
        ("route/table.rs", "use crate::{balance::Picker, error::Cause};"),
        ("deadline.rs", "use super::route::RequestHead;"),
        ("cluster/worker.rs", "use crate::{endpoint::Dial, route::RouteMatcher};"),
        ("balance/mod.rs", "use tokio::time::sleep;"),
        ("endpoint/h2/mod.rs", "use crate::cluster::Cluster;"),
        ("call.rs", "use crate::channel::MeshChannel;"),
        ("channel/stack.rs", "use std::sync::{Arc, Mutex};"),
        ("apply.rs", "use hyper::client::conn::http1;"),
        ("mesh.rs", "fn f() { let (send, receive) = mpsc::unbounded_channel(); }"),
        ("status.rs", "use envoy_types::pb;"),
    ] {
        assert_eq!(breaches(file, line, ROOMS).len(), 1, "{file}: {line}");
    }
}

#[test]
fn the_map_names_every_file_of_both_crates() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let map = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("readable");
    for folder in ["mesh-xds/src", "mesh-client/src"] {
        let missing = unnamed(&map, folder, &sources(&root.join(folder)));
        assert!(missing.is_empty(), "not in ARCHITECTURE.md, section {folder}: {}", missing.join(", "));
    }
}

#[test]
fn the_manifest_keeps_protobuf_and_tonic_out() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).expect("readable");
    let dependencies = manifest.split("\n[").find(|table| table.starts_with("dependencies]")).expect("has some");
    for name in dependencies.lines().filter_map(|line| line.split(['.', ' ', '=']).next()) {
        let is_out = ["prost", "envoy-types", "tonic", "protox"].iter().any(|outside| name.starts_with(outside));
        assert!(!is_out && name != "tower", "{name} in [dependencies]");
    }
}
