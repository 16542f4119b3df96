//! Which paths a source file names, in full, and which of them its room forbids. Both crates' `rooms` tests use it.
//!
//! A `use` tree, `super::` and an inline path all come out as the same whole path, so that no spelling hides a
//! breach. Comments do not count, nor do tests, which may look anywhere. It does NOT resolve names as the compiler
//! does: what is re-exported and named through another module is seen as that module.

use std::{fs, path::Path};

/// What the files of a room must not name.
pub(crate) struct Room {
    /// Beginnings of paths below `src/`; an empty one is every file.
    pub(crate) files: &'static [&'static str],
    /// Exceptions to `files`.
    pub(crate) except: &'static [&'static str],
    /// A path is forbidden if it begins or ends with one of these.
    pub(crate) forbidden: &'static [&'static str],
    /// Beginnings of paths that are fine all the same.
    pub(crate) allowed: &'static [&'static str],
}

impl Room {
    pub(crate) fn holds(&self, file: &str) -> bool {
        let within = |folders: &[&str]| folders.iter().any(|folder| file.starts_with(folder));
        within(self.files) && !within(self.except)
    }
}

/// Every source file of a crate but those of tests: its path below `src/` and its text.
pub(crate) fn sources(root: &Path) -> Vec<(String, String)> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).expect("readable folder").map(|entry| entry.expect("readable entry").path()) {
            if entry.is_dir() {
                walk(&entry, root, found);
                continue;
            }
            let path = entry.strip_prefix(root).expect("the walk starts at root").to_string_lossy().replace('\\', "/");
            if path.ends_with(".rs") && !path.ends_with("tests.rs") && !path.contains("/tests/") {
                found.push((path, fs::read_to_string(&entry).expect("readable source")));
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    assert!(!found.is_empty(), "no source below {}", root.display());
    found.sort();
    found
}

/// `file:line: path` of everything that a file names and its rooms forbid.
pub(crate) fn breaches(file: &str, source: &str, rooms: &[Room]) -> Vec<String> {
    let named = paths(file, source);
    let mut found = Vec::new();
    for room in rooms.iter().filter(|room| room.holds(file)) {
        for (line, path) in &named {
            let starts = |prefix: &&str| path.strip_prefix(*prefix).is_some_and(is_boundary);
            let ends = |suffix: &&str| path.strip_suffix(*suffix).is_some_and(|rest| rest.ends_with("::"));
            let forbidden = room.forbidden.iter().any(|word| starts(word) || ends(word));
            if forbidden && !room.allowed.iter().any(starts) {
                found.push(format!("{file}:{line}: {path}"));
            }
        }
    }
    found
}

fn is_boundary(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with("::")
}

// === Paths ===

/// Every path of a file, with its line.
fn paths(file: &str, source: &str) -> Vec<(usize, String)> {
    let tokens = without_tests(tokens(source));
    let mut reader = Reader { tokens: &tokens, at: 0, module: module(file), found: Vec::new() };
    while let Some((line, token)) = reader.next() {
        if is_name(&token) {
            reader.path(line, vec![token]);
        }
    }
    // `pub(crate)` is no path.
    reader.found.retain(|(_, path)| path != "crate");
    reader.found
}

/// The module of a file: `ads/stream.rs` is `crate::ads::stream`.
fn module(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs");
    let names = path.split('/').filter(|name| !["mod", "lib"].contains(name));
    std::iter::once("crate").chain(names).map(str::to_owned).collect()
}

struct Reader<'a> {
    tokens: &'a [(usize, String)],
    at: usize,
    module: Vec<String>,
    found: Vec<(usize, String)>,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<(usize, String)> {
        let token = self.tokens.get(self.at)?.clone();
        self.at += 1;
        Some(token)
    }

    fn takes(&mut self, wanted: &str) -> bool {
        let found = self.tokens.get(self.at).is_some_and(|(_, token)| token == wanted);
        self.at += usize::from(found);
        found
    }

    /// What follows the first names of a path: more names, or a tree in braces.
    fn path(&mut self, line: usize, mut names: Vec<String>) {
        while self.takes("::") {
            if self.takes("{") {
                while !self.takes("}") {
                    let Some((line, token)) = self.next() else { return };
                    if is_name(&token) {
                        let inner = if token == "self" { names.clone() } else { [names.clone(), vec![token]].concat() };
                        self.path(line, inner);
                    }
                }
                return;
            }
            match self.tokens.get(self.at) {
                Some((_, token)) if is_name(token) || token == "*" => names.push(token.clone()),
                // Generic arguments: what is named so far counts.
                _ => break,
            }
            self.at += 1;
        }
        self.found.push((line, self.full(&names).join("::")));
    }

    fn full(&self, names: &[String]) -> Vec<String> {
        let ups = names.iter().take_while(|name| *name == "super").count();
        let relative = ups > 0 || (names.len() > 1 && names[0] == "self");
        if !relative {
            return names.to_vec();
        }
        let module = &self.module[..self.module.len().saturating_sub(ups)];
        module.iter().chain(&names[ups.max(1)..]).cloned().collect()
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Names, `::` and single characters, each with its line; no comments and no strings.
fn tokens(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut rest, mut line) = (source, 1);
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if first == '"' {
            string(rest)
        } else if rest.starts_with("'\"'") {
            3
        } else if is_name(rest) {
            let length = rest.find(|next: char| !next.is_alphanumeric() && next != '_').unwrap_or(rest.len());
            found.push((line, rest[..length].to_owned()));
            length
        } else {
            let length = if rest.starts_with("::") { 2 } else { first.len_utf8() };
            if !first.is_whitespace() {
                found.push((line, rest[..length].to_owned()));
            }
            length
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// The length of the string that begins here.
fn string(text: &str) -> usize {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, next)| {
        let ends = *next == '"' && !escaped;
        escaped = *next == '\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}

/// Leaves out each item under `#[cfg(test)]`, and only that.
fn without_tests(tokens: Vec<(usize, String)>) -> Vec<(usize, String)> {
    const TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_test = tokens[at..].iter().map(|(_, token)| token.as_str()).take(TEST.len()).eq(TEST);
        if !is_test {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        // The item ends with its `;` or with the brace that closes its first one.
        let mut depth = 0;
        while let Some((_, token)) = tokens.get(at) {
            at += 1;
            match token.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 && (token == ";" || token == "}") {
                break;
            }
        }
    }
    kept
}

// === The map ===

/// The files and folders below `src/` that a text does not name, as `` `name.rs` `` or `` `folder/` ``, in the
/// section that begins with `heading`.
pub(crate) fn unnamed(text: &str, heading: &str, sources: &[(String, String)]) -> Vec<String> {
    let section = text.split("\n## ").find(|section| section.starts_with(heading)).unwrap_or_default();
    let mut missing = Vec::new();
    for (path, _) in sources {
        let folders = path.match_indices('/').map(|(at, _)| path[..=at].to_owned());
        let file = (!path.ends_with("/mod.rs")).then(|| path.clone());
        missing.extend(folders.chain(file).filter(|name| !section.contains(&format!("`{name}`"))));
    }
    missing.dedup();
    missing
}

#[test]
fn every_spelling_of_a_breach_is_seen() {
    const ROOMS: &[Room] = &[Room {
        files: &["ads/protocol"],
        except: &["ads/protocol/dial"],
        forbidden: &["tokio", "crate::cache", "spawn", "Instant::now"],
        allowed: &["tokio::time::Instant"],
    }];
    let seen = |source: &str| breaches("ads/protocol/mod.rs", source, ROOMS);
    for source in [
        "use tokio::sync::mpsc;",
        "use crate::{\n    name::Name,\n    cache::{self, Cache},\n};",
        "use crate::{name::Name, cache};",
        "use crate::cache::*;",
        "use super::super::cache::Cache;",
        "fn f() { crate::cache::look(); }",
        "fn f() { runtime.spawn(async {}); }",
        "use tokio::time::Instant;\nfn f() { let now = std::time::Instant::now(); }",
        "#[cfg(test)]\nmod tests;\n\nuse tokio::net::TcpStream;",
        "use crate::{self as room, cache::Cache};",
        "fn f(x: &str) { if x == \"//\" { tokio::task::yield_now(); } }",
    ] {
        assert!(!seen(source).is_empty(), "{source}");
    }
    for source in [
        "use tokio::time::Instant;",
        "// use tokio::sync::mpsc;\n//! spawn(x)",
        "use crate::{name::Name, cached::Thing};",
        "let not_spawn = \"tokio::spawn\";",
        "#[cfg(test)]\nmod tests {\n    use tokio::net::TcpStream;\n    fn f() { { spawn() } }\n}",
        "use super::backoff::Backoff;",
    ] {
        assert_eq!(seen(source), [""; 0], "{source}");
    }
    assert_eq!(seen("\nuse crate::{\n    cache::Cache,\n};"), ["ads/protocol/mod.rs:3: crate::cache::Cache"]);
    assert_eq!(breaches("ads/protocol/dial.rs", "use tokio::net::TcpStream;", ROOMS), [""; 0]);
    assert_eq!(breaches("ads/stream.rs", "use tokio::net::TcpStream;", ROOMS), [""; 0]);
}

#[test]
fn a_file_without_a_line_in_the_map_is_seen() {
    let sources: Vec<_> = ["ads/mod.rs", "ads/stream.rs", "lib.rs"].map(|path| (path.to_owned(), String::new())).into();
    let map = "# Map\n\n## One\n`ads/` `ads/stream.rs` `lib.rs`\n\n## Two\n`ads/stream.rs`";
    assert_eq!(unnamed(map, "One", &sources), [""; 0]);
    assert_eq!(unnamed(map, "Two", &sources), ["ads/", "lib.rs"]);
    assert_eq!(unnamed(map, "Three", &sources).len(), 3);
}
