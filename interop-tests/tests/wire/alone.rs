//! A test in a process of its own: for environment variables, global subscribers, and counts of what a process holds.
//!
//! The test binary runs itself again with that one test; the body sees a process in which nothing else happens. It does
//! NOT limit time: bodies wait with `rig::within`.

use std::{
    env,
    ffi::OsString,
    future::Future,
    path::{Path, PathBuf},
    process::Command,
};
use tokio::runtime::Builder;

/// Set in the child: its directory for files.
const DIRECTORY: &str = "MESH_TEST_ALONE";

/// Runs `body` in a process of its own on a current-thread runtime, with a directory for its files and these variables.
///
/// `test` is the caller's full name, as `cargo test` prints it.
pub(crate) fn alone<F: Future<Output = ()>>(
    test: &str,
    variables: impl FnOnce(&Path) -> Vec<(&'static str, OsString)>,
    body: impl FnOnce(PathBuf) -> F,
) {
    if let Some(directory) = env::var_os(DIRECTORY) {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        return runtime.block_on(body(directory.into()));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let child = Command::new(env::current_exe().expect("this test"))
        .args(["--exact", test, "--nocapture"])
        .env(DIRECTORY, directory.path())
        .envs(variables(directory.path()))
        .output()
        .expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&child.stdout), text(&child.stderr));
    // A name that fits no test would pass, too.
    assert!(child.status.success() && out.contains("1 passed"), "{test} alone:\n{out}\n{error}");
}
