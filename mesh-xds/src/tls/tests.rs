//! Reading and rotation, on real files and a paused clock.

use super::{
    material::Reader,
    source::{Contents, Source},
    *,
};
use rcgen::{CertificateParams, KeyPair};
use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc, thread};
use tempfile::TempDir;

/// A certificate and its key, as PEM.
fn pair(name: &str) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("a DNS name");
    (params.self_signed(&key).expect("signed").pem(), key.serialize_pem())
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(TempDir::new().expect("a directory"));
        let (certificate, key) = pair("first");
        files.write("ca.pem", &certificate);
        files.write("cert.pem", &certificate);
        files.write("key.pem", &key);
        files
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.0.path().join(name), content).expect("writable");
    }

    fn source(&self, name: &str) -> Source {
        Source::File(self.0.path().join(name))
    }

    fn sources(&self) -> Sources {
        Sources {
            identity: Some((self.source("cert.pem"), self.source("key.pem"))),
            roots: Some(Roots::Pem(self.source("ca.pem"))),
        }
    }

    fn reader(&self) -> Reader {
        Reader::new(self.sources(), Provider::default().resolve().expect("a provider"))
    }

    fn store(&self) -> Store {
        Store::spawn(self.sources(), Provider::default().resolve().expect("a provider"), REFRESH_INTERVAL)
    }
}

/// The next material that differs from `before`.
async fn after(store: &Store, before: &Arc<material::Material>) -> Arc<material::Material> {
    loop {
        let now = store.material().await.expect("once good, always good");
        if !Arc::ptr_eq(&now, before) {
            return now;
        }
        tokio::time::advance(REFRESH_INTERVAL).await;
        tokio::task::yield_now().await;
    }
}

fn leaf(material: &material::Material) -> Vec<u8> {
    material.identity.as_ref().expect("asked for").cert[0].to_vec()
}

#[test]
fn unchanged_bytes_are_no_update() {
    let files = Files::new();
    let mut reader = files.reader();
    assert!(reader.read().expect("good").is_some());
    assert!(reader.read().expect("good").is_none());
    let (certificate, key) = pair("second");
    files.write("cert.pem", &certificate);
    files.write("key.pem", &key);
    assert!(reader.read().expect("good").is_some());
    assert!(reader.read().expect("good").is_none());
}

#[test]
fn what_is_wrong_is_said_with_the_files_name() {
    let (_, other_key) = pair("other");
    for (file, content, reason) in [
        ("cert.pem", "", "cert.pem: no certificate"),
        ("cert.pem", "-----BEGIN CERTIFICATE-----\n!", "cert.pem: "),
        ("key.pem", "", "key.pem: no private key: "),
        ("key.pem", &other_key, "key.pem is not the private key of "),
        ("ca.pem", "", "ca.pem: no certificate"),
        (
            "ca.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "ca.pem: no certificate that can be a trust anchor",
        ),
    ] {
        let files = Files::new();
        files.write(file, content);
        let error = files.reader().read().expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
    let files = Files::new();
    fs::remove_file(files.0.path().join("key.pem")).expect("was there");
    let error = files.reader().read().expect_err("no key");
    assert!(error.contains("key.pem: No such file"), "{error}");
}

#[test]
fn an_unusable_certificate_in_a_bundle_does_not_spoil_the_others() {
    let files = Files::new();
    let bundle = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned() + &pair("good").0;
    files.write("ca.pem", &bundle);
    assert_eq!(files.reader().read().expect("one is good").expect("new").roots.len(), 1);
}

/// kubelet's way: `cert.pem -> ..data/cert.pem`, and `..data` is turned from one directory to another.
#[test]
fn a_pair_is_never_half_old_and_half_new() {
    const TURNS: usize = 300;
    let directory = TempDir::new().expect("a directory");
    let path = directory.path();
    for version in ["a", "b"] {
        fs::create_dir(path.join(version)).expect("new");
        for name in ["cert.pem", "key.pem"] {
            fs::write(path.join(version).join(name), version).expect("writable");
        }
    }
    let turn = |version: &str| {
        symlink(version, path.join("..next")).expect("new");
        fs::rename(path.join("..next"), path.join("..data")).expect("replaced at once");
    };
    turn("a");
    let source = |name: &str| Source::File(Path::new(path).join("..data").join(name));
    let (certificate, key) = (source("cert.pem"), source("key.pem"));
    thread::scope(|scope| {
        let turning = scope.spawn(|| (0..TURNS).for_each(|count| turn(["a", "b"][count % 2])));
        let mut read = 0;
        while !turning.is_finished() || read == 0 {
            // An error means that the turns were faster than the passes: nothing is taken then.
            if let Ok(contents) = Contents::read(&[&certificate, &key]) {
                let pieces: Vec<_> = contents.into_pieces().collect();
                assert_eq!(pieces[0], pieces[1]);
                read += 1;
            }
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_rotation_is_seen_after_the_interval() {
    let files = Files::new();
    let store = files.store();
    let first = store.material().await.expect("good");
    let (certificate, key) = pair("second");
    files.write("cert.pem", &certificate);
    files.write("key.pem", &key);
    assert!(Arc::ptr_eq(&first, &store.material().await.expect("good")), "not before the interval");
    assert_ne!(leaf(&first), leaf(&*after(&store, &first).await));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_changes_nothing() {
    let files = Files::new();
    let store = files.store();
    let first = store.material().await.expect("good");
    files.write("key.pem", &pair("other").1);
    for _ in 0..3 {
        tokio::time::sleep(REFRESH_INTERVAL * 2).await;
        assert!(Arc::ptr_eq(&first, &store.material().await.expect("the last good one")));
    }
    let (certificate, key) = pair("second");
    files.write("cert.pem", &certificate);
    files.write("key.pem", &key);
    after(&store, &first).await;
}

#[tokio::test(start_paused = true)]
async fn before_a_good_read_each_question_reads_again() {
    let files = Files::new();
    let (certificate, key) = pair("second");
    files.write("key.pem", "");
    let store = files.store();
    for _ in 0..2 {
        let cause = store.material().await.expect_err("no key");
        assert!(cause.contains("key.pem: no private key"), "{cause}");
    }
    files.write("cert.pem", &certificate);
    files.write("key.pem", &key);
    let before = tokio::time::Instant::now();
    // The read that was under way when the files changed may answer the first question.
    while store.material().await.is_err() {}
    assert_eq!(before.elapsed(), Duration::ZERO, "without waiting for the interval");
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_its_store() {
    let files = Files::new();
    let store = files.store();
    store.material().await.expect("good");
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 1);
    drop(store);
    tokio::task::yield_now().await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}
