//! The PSM suite's test server: TestService with its admin services.
//!
//! With `--secure_mode=false` it is a plain server with every service on `--port`, and the admin services on
//! `--maintenance_port` too if that is another port. It does NOT do xDS yet: `--secure_mode=true` is refused.

use interop_tests::{
    admin::{CallCounts, Channelz, UpdateHealth},
    backend::{Backend, Counters},
    flags::{BadFlag, Flags},
    proto::{
        channelz::channelz_server::ChannelzServer,
        testing::xds_update_health_service_server::XdsUpdateHealthServiceServer,
    },
};
use mesh_xds::CsdsService;
use std::{
    error::Error,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
};
use tokio::signal::unix::{SignalKind, signal};
use tonic::service::Routes;

const FLAGS: [&str; 5] = ["port", "maintenance_port", "secure_mode", "server_id", "host_name_override"];

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xds_interop_server: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let mut terminated = signal(SignalKind::terminate())?;
    let flags = Flags::parse(std::env::args().skip(1), &FLAGS, |flag| {
        tracing::warn!(flag, "unknown flag is ignored");
    })?;
    if flags.value("secure_mode", false)? {
        let reason = "an xDS-managed server is not supported by this build; use --secure_mode=false";
        return Err(BadFlag::new("secure_mode", reason).into());
    }
    let port: u16 = flags.value("port", 8080)?;
    let maintenance_port: u16 = flags.value("maintenance_port", port)?;
    let hostname = flags.text("host_name_override").map_or_else(machine_name, str::to_owned);

    let builder =
        Backend::builder(&hostname).server_id(flags.text("server_id").unwrap_or("mesh_server")).address(address(port));
    let admin = admin_services(address(port), builder.counting()).await;
    let routes = admin(builder.test_service());
    let server = builder.routes(routes).start().await.map_err(|error| format!("port {port}: {error}"))?;
    let maintenance = if maintenance_port == port {
        None
    } else {
        let routes = admin(Routes::default());
        let builder = Backend::builder(&hostname).address(address(maintenance_port)).routes(routes);
        Some(builder.start().await.map_err(|error| format!("maintenance port {maintenance_port}: {error}"))?)
    };
    tracing::info!(address = %server.address(), hostname, "serving");
    terminated.recv().await;
    drop((server, maintenance));
    Ok(())
}

/// Adds health, channelz and CSDS to a set of services; both ports share their state.
async fn admin_services(
    address: SocketAddr,
    counters: impl Fn() -> Counters + Send + Sync + 'static,
) -> impl Fn(Routes) -> Routes {
    let (reporter, health) = tonic_health::server::health_reporter();
    let update_health = UpdateHealth::serving(reporter).await;
    let channelz = Channelz::of_servers(move || vec![(address, calls(counters()))]);
    move |services| {
        services
            .add_service(health.clone())
            .add_service(XdsUpdateHealthServiceServer::new(update_health.clone()))
            .add_service(ChannelzServer::new(channelz.clone()))
            // A plain server has no xDS client, so it has no resources to report.
            .add_service(CsdsService::of_process())
    }
}

fn calls(counters: Counters) -> CallCounts {
    CallCounts { started: counters.calls, succeeded: counters.succeeded, failed: counters.failed + counters.cancelled }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

fn machine_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    name.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_else(|| "localhost".to_owned())
}
