//! The repository keeps its own word: one MSRV, permissive licences only, and a README that is true.
//!
//! These are sentences that nobody would notice going stale. It does NOT test code.

use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What `text` holds between every `before` and the next `after`.
fn between<'a>(text: &'a str, before: &'a str, after: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(move |rest| Some(rest.split_once(after)?.0))
}

fn msrv() -> String {
    let manifest = read("Cargo.toml");
    between(&manifest, "rust-version = \"", "\"").next().expect("the workspace states it").to_owned()
}

/// Every package that is linked on this platform, with what its manifest says.
fn packages() -> Vec<Value> {
    let cargo = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().expect("cargo runs");
        assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let version = cargo(&["-vV"]);
    let host = between(&version, "host: ", "\n").next().expect("cargo names its host");
    let metadata = cargo(&["metadata", "--locked", "--format-version", "1", "--filter-platform", host]);
    let metadata: Value = serde_json::from_str(&metadata).expect("cargo's JSON");
    metadata["packages"].as_array().expect("a list").clone()
}

// === MSRV ===

#[test]
fn one_msrv_everywhere() {
    let msrv = msrv();
    let stated = [
        ("clippy.toml", format!("msrv = \"{msrv}\"")),
        ("README.md", format!("Rust {msrv} (MSRV)")),
        ("mesh-xds/README.md", format!("Rust {msrv}.")),
        ("mesh-client/README.md", format!("Rust {msrv}.")),
        ("mesh-xds/tools/descriptors/Cargo.toml", format!("rust-version = \"{msrv}\"")),
    ];
    for (file, statement) in stated {
        assert!(read(file).contains(&statement), "{file} does not say {statement:?}");
    }
}

#[test]
fn no_dependency_needs_a_newer_rust() {
    // 1.88 and 1.88.0 are the same.
    let number = |version: &str| version.split('.').take(2).map(|part| part.parse().ok()).collect::<Vec<Option<u32>>>();
    let ours = number(&msrv());
    for package in packages() {
        let Some(theirs) = package["rust_version"].as_str() else { continue };
        assert!(number(theirs) <= ours, "{} {} needs Rust {theirs}", package["name"], package["version"]);
    }
}

// === Licences ===

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let deny = read("deny.toml");
    let list = between(&deny, "allow = [", "]").next().expect("licenses.allow");
    let allowed: Vec<_> = list.split('"').skip(1).step_by(2).collect();
    for package in packages() {
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(Licence::of(licence).passes(&allowed), "{}: licence {licence:?}", package["name"]);
    }
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = |expression| Licence::of(expression).passes(&["MIT", "A WITH B"]);
    for expression in ["MIT", "MIT OR GPL", "GPL/MIT", "(MIT OR GPL) AND A WITH B", "MIT AND (MIT OR GPL)"] {
        assert!(allowed(expression), "{expression}");
    }
    for expression in ["", "GPL", "MIT AND GPL", "A", "(MIT OR GPL) AND GPL", "GPL OR A AND MIT", "MIT WITH B"] {
        assert!(!allowed(expression), "{expression}");
    }
}

/// An SPDX expression, read word by word; `/` is an old way to write OR.
struct Licence<'a> {
    words: std::iter::Peekable<std::vec::IntoIter<&'a str>>,
}

impl<'a> Licence<'a> {
    fn of(expression: &'a str) -> Self {
        let spaced = expression.split_inclusive(['(', ')', '/', ' ']);
        let words = spaced.flat_map(|word| match word.char_indices().last() {
            Some((at, '(' | ')' | '/' | ' ')) => [word[..at].trim(), word[at..].trim()],
            _ => [word, ""],
        });
        Self { words: words.filter(|word| !word.is_empty()).collect::<Vec<_>>().into_iter().peekable() }
    }

    fn passes(mut self, allowed: &[&str]) -> bool {
        let result = self.any(allowed);
        result && self.words.next().is_none()
    }

    fn any(&mut self, allowed: &[&str]) -> bool {
        let mut result = self.all(allowed);
        while self.words.next_if(|word| ["OR", "/"].contains(word)).is_some() {
            result |= self.all(allowed);
        }
        result
    }

    fn all(&mut self, allowed: &[&str]) -> bool {
        let mut result = self.one(allowed);
        while self.words.next_if_eq(&"AND").is_some() {
            result &= self.one(allowed);
        }
        result
    }

    fn one(&mut self, allowed: &[&str]) -> bool {
        match self.words.next() {
            Some("(") => {
                let result = self.any(allowed);
                self.words.next_if_eq(&")").is_some() && result
            }
            Some(name) if self.words.next_if_eq(&"WITH").is_some() => {
                let exception = self.words.next().unwrap_or_default();
                allowed.contains(&format!("{name} WITH {exception}").as_str())
            }
            Some(name) => allowed.contains(&name),
            None => false,
        }
    }
}

// === README ===

#[test]
fn links_of_the_documents_lead_somewhere() {
    for document in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = read(document);
        for link in between(&text, "](", ")").filter(|link| !link.starts_with("https://")) {
            let (file, _) = link.split_once('#').unwrap_or((link, ""));
            assert!(root().join(file).exists(), "{document} links {link}");
        }
    }
}

#[test]
fn programs_that_the_documents_run_exist() {
    for document in ["README.md", "CONTRIBUTING.md", "examples/src/bin/tonic_client.rs"] {
        let text = read(document);
        for command in between(&text, "cargo run ", "\n") {
            let word_after = |flag| command.split_whitespace().skip_while(|word| *word != flag).nth(1);
            let (package, program) = (word_after("-p").expect(command), word_after("--bin").expect(command));
            let program = root().join(package).join("src/bin").join(program);
            assert!(program.with_extension("rs").exists() || program.join("main.rs").exists(), "{document}: {command}");
        }
    }
}

#[test]
fn a_control_plane_of_ones_own_takes_at_most_fifty_lines() {
    let program = read("examples/src/bin/own_control_plane.rs");
    // Lines as rustfmt makes them, imports included.
    let code = program.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
    let count = code.count();
    assert!(count <= 50, "{count} lines of code");
}
