//! The PSM suite's test client: calls TestService through the mesh at a fixed rate and tells who answered.
//!
//! It does NOT do data-plane security yet: with either `--secure_mode`, clusters without TLS are called in plaintext and
//! clusters with TLS fail closed.

use interop_tests::{
    admin::{Channelz, TopChannel},
    flags::Flags,
    load::{Configure, Counted, Payloads, Plan, Statistics, Stats, send},
    proto::{
        channelz::{channel_connectivity_state::State, channelz_server::ChannelzServer},
        testing::{
            load_balancer_stats_service_server::LoadBalancerStatsServiceServer,
            xds_update_client_configure_service_server::XdsUpdateClientConfigureServiceServer,
        },
    },
};
use mesh_client::{ChannelState, Mesh, MeshChannel};
use mesh_xds::CsdsService;
use std::{
    error::Error,
    io,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

const FLAGS: [&str; 13] = [
    "server",
    "stats_port",
    "qps",
    "num_channels",
    "rpc",
    "metadata",
    "rpc_timeout_sec",
    "secure_mode",
    "request_payload_size",
    "response_payload_size",
    // Accepted and without effect: they steer the printing and exiting of other implementations.
    "print_response",
    "fail_on_failed_rpc",
    "expected_status",
];

/// The mesh and its channels, once the bootstrap was read. The admin port answers before that.
type Joined = Arc<OnceLock<(Mesh, Vec<Counted<MeshChannel>>)>>;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xds_interop_client: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let mut terminated = signal(SignalKind::terminate())?;
    let flags = Flags::parse(std::env::args().skip(1), &FLAGS, |flag| {
        tracing::warn!(flag, "unknown flag is ignored");
    })?;
    let target: String = flags.required("server")?;
    let stats_port: u16 = flags.required("stats_port")?;
    let qps: u32 = flags.value("qps", 1)?;
    let num_channels: usize = flags.value("num_channels", 1)?;
    let timeout = Duration::from_secs(flags.value("rpc_timeout_sec", 20)?);
    let rpc = flags.text("rpc").unwrap_or("UnaryCall");
    let plan = Plan::from_flags(rpc, flags.text("metadata").unwrap_or_default(), timeout)?;
    let payloads = Payloads {
        request: flags.value("request_payload_size", 0)?,
        response: flags.value("response_payload_size", 0)?,
    };
    // Checked, so that a harness hears of a mistake; both modes are the same until there is TLS.
    let _: bool = flags.value("secure_mode", false)?;

    let joined = Joined::default();
    let statistics = Arc::new(Statistics::default());
    let configure = Configure::new(plan);
    let plans = configure.plan();
    // First of all, and before the bootstrap is waited for: a harness gives the admin port 10 s.
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, stats_port))).await;
    let listener = listener.map_err(|error| format!("port {stats_port}: {error}"))?;
    let admin = Server::builder()
        .add_service(LoadBalancerStatsServiceServer::new(Stats::new(statistics.clone())))
        .add_service(XdsUpdateClientConfigureServiceServer::new(configure))
        .add_service(ChannelzServer::new(channelz(target.clone(), joined.clone())))
        .add_service(CsdsService::of_process())
        .serve_with_incoming(TcpListenerStream::new(listener));
    let calling = async {
        let mesh = Mesh::from_env().await?;
        let channels = (0..num_channels).map(|_| mesh.channel(&target).map(Counted::new));
        let channels: Vec<_> = channels.collect::<Result<_, _>>()?;
        tracing::info!(target, qps, num_channels, "calling");
        let (_, channels) = joined.get_or_init(|| (mesh, channels));
        send(channels.clone(), qps, payloads, plans, statistics).await;
        Ok::<_, Box<dyn Error>>(())
    };
    tokio::select! {
        _ = terminated.recv() => Ok(()),
        ended = admin => Ok(ended?),
        ended = calling => ended,
    }
}

fn channelz(target: String, joined: Joined) -> Channelz {
    Channelz::of_channels(move || {
        let channels = joined.get().map_or(&[][..], |(_, channels)| channels);
        let top = |channel: &Counted<MeshChannel>| TopChannel {
            target: target.clone(),
            calls: channel.calls(),
            state: state(&channel.channel().state()),
        };
        channels.iter().map(top).collect()
    })
}

fn state(state: &ChannelState) -> State {
    match state {
        ChannelState::Pending(_) => State::Connecting,
        ChannelState::Failed(_) => State::TransientFailure,
        ChannelState::Ready => State::Ready,
        ChannelState::ShutDown => State::Shutdown,
        _ => State::Unknown,
    }
}
