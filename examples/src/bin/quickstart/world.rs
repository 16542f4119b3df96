//! Everything in the process: a directory of YAML, the control plane that serves it, three backends, and the mesh.
//!
//! It gives the story its verbs and waits until each has taken effect. It does NOT tell the story.

use crate::tally::{BACKENDS, Tally};
use examples::backend::EchoBackend;
use mesh_client::{Bootstrap, EndpointState, Mesh, MeshChannel};
use mesh_xds::{
    ServerAddress, StreamState,
    control_plane::{ControlPlane, DirectoryLoader, Serving},
    resource::Kind,
};
use std::{error::Error, fs, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

pub(crate) type Failed = Box<dyn Error + Send + Sync>;

/// What each backend does for each call.
pub(crate) const WORK: Duration = Duration::from_millis(2);

/// The longest wait for anything; long, because machines are busy.
const PATIENCE: Duration = Duration::from_secs(15);

const FILES: [(&str, &str); 4] = [
    ("listener.yaml", include_str!("../../../mesh/listener.yaml")),
    ("routes.yaml", include_str!("../../../mesh/routes.yaml")),
    ("clusters.yaml", include_str!("../../../mesh/clusters.yaml")),
    ("endpoints.yaml", include_str!("../../../mesh/endpoints.yaml")),
];

pub(crate) struct World {
    directory: TempDir,
    backends: Vec<EchoBackend>,
    control_plane_address: SocketAddr,
    control_plane: Option<Running>,
    pub(crate) mesh: Mesh,
    pub(crate) channel: MeshChannel,
    tally: Arc<Tally>,
}

/// A control plane that follows the directory. Dropping it closes its port and its streams.
struct Running {
    loader: DirectoryLoader,
    serving: Serving,
}

impl World {
    pub(crate) async fn create(tally: Arc<Tally>) -> Result<Self, Failed> {
        let mut backends = Vec::new();
        for name in BACKENDS {
            backends.push(EchoBackend::start(name, WORK).await?);
        }
        let directory = tempfile::Builder::new().prefix("mesh-quickstart-").tempdir()?;
        for (name, text) in FILES {
            let mut text = text.to_owned();
            for (example, backend) in ["50051", "50052", "50053"].iter().zip(&backends) {
                text = text.replace(example, &backend.address().port().to_string());
            }
            write(&directory.path().join(name), &text)?;
        }
        let control_plane = Running::start(directory.path(), "127.0.0.1:0".parse()?).await?;
        let control_plane_address = control_plane.serving.local_addr()?;
        // As a service would with `Mesh::from_env()`, but for the bootstrap's place.
        let server = ServerAddress::Sockets(vec![control_plane_address]);
        let mesh = Mesh::builder(Bootstrap::builder().node_id("quickstart").server(server).build()?).build();
        let channel = mesh.channel("xds:///echo.prod:80")?;
        channel.ready(PATIENCE).await?;
        let world = Self {
            directory,
            backends,
            control_plane_address,
            control_plane: Some(control_plane),
            mesh,
            channel,
            tally,
        };
        for backend in &world.backends {
            world.until("every endpoint READY", || world.endpoint(backend) == Some(EndpointState::Ready)).await?;
        }
        Ok(world)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn control_plane_address(&self) -> SocketAddr {
        self.control_plane_address
    }

    pub(crate) fn backends(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        self.backends.iter().map(|backend| (backend.name(), backend.address()))
    }

    // === The verbs ===

    /// Writes the weights of v1 and v2 into routes.yaml, as an editor would.
    pub(crate) fn edit_weights(&self, v1: u32, v2: u32) -> io::Result<()> {
        let text = include_str!("../../../mesh/routes.yaml")
            .replace("{name: v1, weight: 90}", &format!("{{name: v1, weight: {v1}}}"))
            .replace("{name: v2, weight: 10}", &format!("{{name: v2, weight: {v2}}}"));
        write(&self.directory().join("routes.yaml"), &text)
    }

    /// The version of the routes by which calls are routed now.
    pub(crate) fn routes_version(&self) -> Option<String> {
        self.mesh.status().applied_version(Kind::RouteConfig, "echo-routes").map(str::to_owned)
    }

    /// Waits until calls are routed by another version; says how long that took.
    pub(crate) async fn rerouted(&self, previous: &Option<String>) -> Result<Duration, Failed> {
        let changed = || self.routes_version().is_some_and(|version| Some(&version) != previous.as_ref());
        self.until("new routes applied", changed).await
    }

    /// Resets every connection of a backend; returns when the client knows.
    pub(crate) async fn kill(&mut self, index: usize) -> Result<(), Failed> {
        self.tally.killing(self.backends[index].address());
        self.backends[index].kill().await;
        let backend = &self.backends[index];
        self.until("the dead endpoint noticed", || self.endpoint(backend) != Some(EndpointState::Ready)).await?;
        self.tally.kill_noticed();
        Ok(())
    }

    /// Brings a backend back; returns when the client is connected again.
    pub(crate) async fn revive(&mut self, index: usize) -> Result<Duration, Failed> {
        self.backends[index].start_again().await?;
        let backend = &self.backends[index];
        self.until("the endpoint READY again", || self.endpoint(backend) == Some(EndpointState::Ready)).await
    }

    /// Says goodbye to a backend's callers and waits for the last answer; says how long that took.
    pub(crate) async fn stop(&mut self, index: usize) -> Duration {
        let began = Instant::now();
        self.backends[index].stop().await;
        began.elapsed()
    }

    pub(crate) async fn stop_control_plane(&mut self) -> Result<(), Failed> {
        self.control_plane = None;
        self.until("the ADS stream down", || !self.is_connected()).await?;
        Ok(())
    }

    /// A new control plane at the old address, with the directory as it is now.
    pub(crate) async fn start_control_plane(&mut self) -> Result<(), Failed> {
        self.control_plane = Some(Running::start(self.directory.path(), self.control_plane_address).await?);
        Ok(())
    }

    /// The next result of loading the directory; waits for ever while the control plane is down.
    pub(crate) async fn reloaded(&mut self) -> String {
        match &mut self.control_plane {
            Some(running) => match running.loader.reloaded().await {
                Ok(()) => "loaded".to_owned(),
                Err(mistakes) => format!("not loaded, the last good state stays: {mistakes}"),
            },
            None => std::future::pending().await,
        }
    }

    // === What the client says of itself ===

    fn endpoint(&self, backend: &EchoBackend) -> Option<EndpointState> {
        let clusters = self.channel.status().clusters;
        let mut endpoints = clusters.into_iter().flat_map(|cluster| cluster.endpoints);
        endpoints.find(|endpoint| endpoint.address == backend.address()).map(|endpoint| endpoint.state)
    }

    fn is_connected(&self) -> bool {
        self.mesh.status().xds.servers.iter().all(|server| server.state == StreamState::Connected)
    }

    /// Looks every millisecond; says how long it took.
    async fn until(&self, what: &str, condition: impl Fn() -> bool) -> Result<Duration, Failed> {
        let began = Instant::now();
        while !condition() {
            if began.elapsed() > PATIENCE {
                return Err(format!("{what}: not within {PATIENCE:?}").into());
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(began.elapsed())
    }
}

impl Running {
    async fn start(directory: &Path, address: SocketAddr) -> Result<Self, Failed> {
        let control_plane = ControlPlane::new();
        let loader = control_plane.watch_dir(directory)?;
        let serving = control_plane.listen(address).await?;
        Ok(Self { loader, serving })
    }
}

/// By renaming, so that nobody ever sees half a file.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)
}
