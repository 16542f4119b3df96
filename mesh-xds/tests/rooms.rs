//! A line of code knows its room: which part of this crate may name which other part, and which crates.
//!
//! Protobuf has one way in and the state machines have no I/O; a forgotten rule would compile, so it is tested.
//! Only code counts: comments are skipped, and so are tests, which may look anywhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What the files of a room must not name.
struct Room {
    /// Beginnings of paths below `src/`.
    files: &'static [&'static str],
    forbidden: &'static [&'static str],
    /// Exceptions to `forbidden`.
    allowed: &'static [&'static str],
}

const PROTOBUF: [&str; 3] = ["prost::", "prost_types::", "envoy_types::"];

const ROOMS: &[Room] = &[
    Room {
        files: &["resource/"],
        forbidden: &["prost", "envoy_types", "tokio", "tonic", "tower", "tracing", "crate::"],
        allowed: &["crate::resource", "crate::name"],
    },
    Room {
        files: &["decode/"],
        forbidden: &["tokio", "tonic", "crate::"],
        allowed: &["crate::resource", "crate::name", "crate::registry", "crate::decode"],
    },
    Room {
        // Sans-IO: an Instant comes in as a value, and nobody here asks the clock, the dice or a socket.
        files: &["ads/protocol", "ads/fallback", "cache", "assemble"],
        forbidden: &[
            PROTOBUF[0],
            PROTOBUF[1],
            PROTOBUF[2],
            "tonic::",
            "tokio::",
            "std::net::",
            "fastrand::",
            "Instant::now",
            "spawn(",
        ],
        allowed: &["tokio::time::Instant"],
    },
    Room {
        files: &["ads/stream", "load/stream", "csds", "orca", "peer", "control_plane"],
        forbidden: &["crate::cache", "crate::assemble"],
        allowed: &[],
    },
];

/// The rooms in which protobuf may be named at all.
const PROTOBUF_ROOMS: &[&str] = &["decode/", "ads/stream", "load/stream", "csds", "orca", "peer", "control_plane"];

#[test]
fn no_file_names_what_its_room_forbids() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut breaches = Vec::new();
    for file in rust_files(&root) {
        let path = file.strip_prefix(&root).expect("the walk starts at root").to_string_lossy().replace('\\', "/");
        let is_in = |prefixes: &[&str]| prefixes.iter().any(|prefix| path.starts_with(prefix));
        for (number, line) in code(&fs::read_to_string(&file).expect("readable source")) {
            for room in ROOMS.iter().filter(|room| is_in(room.files)) {
                breaches
                    .extend(breach(&line, room.forbidden, room.allowed).map(|word| format!("{path}:{number}: {word}")));
            }
            if !is_in(PROTOBUF_ROOMS) {
                breaches.extend(breach(&line, &PROTOBUF, &[]).map(|word| format!("{path}:{number}: {word}")));
            }
        }
    }
    assert!(breaches.is_empty(), "forbidden in their rooms:\n{}", breaches.join("\n"));
}

/// The forbidden word of a line, if any is left once the allowed ones are taken out.
fn breach(line: &str, forbidden: &[&'static str], allowed: &[&str]) -> Option<&'static str> {
    let rest = allowed.iter().fold(line.to_owned(), |line, allowed| line.replace(allowed, ""));
    forbidden.iter().copied().find(|word| {
        rest.match_indices(word)
            .any(|(at, _)| !rest[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
    })
}

/// Numbered lines of code, up to the tests.
fn code(source: &str) -> Vec<(usize, String)> {
    source
        .lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default().to_owned()))
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("readable folder").map(|entry| entry.expect("readable entry").path()) {
        if entry.is_dir() {
            files.extend(rust_files(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") && !entry.ends_with("tests.rs") {
            files.push(entry);
        }
    }
    files
}

#[test]
fn the_check_sees_a_breach() {
    assert_eq!(breach("use tokio::sync::mpsc;", &["tokio::"], &["tokio::time::Instant"]), Some("tokio::"));
    assert_eq!(breach("use tokio::time::Instant;", &["tokio::"], &["tokio::time::Instant"]), None);
    assert_eq!(breach("let not_spawn(x)", &["spawn("], &[]), None);
    assert_eq!(code("a // b\n//! c\n#[cfg(test)]\nd"), [(1, "a ".to_owned()), (2, String::new())]);
}
