//! The client stacks that are compared, and how each is connected.
//!
//! A new stack is a variant here, its name, its number of backends and one arm in `serve`. This file does NOT put load
//! on them.

mod floor;
mod mesh;
mod tonic;

use crate::{
    client::Session,
    echo::{Echo, EchoClient},
    load::Caller,
    process::{BoxError, Peers},
};
use ::tonic::{body::Body, client::GrpcService, codegen::StdError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What every stack sends. It costs no allocation, and coming back it costs each stack the same.
const PAYLOAD: Bytes = Bytes::from_static(&[b'x'; 100]);

/// A client stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stack {
    /// tonic's `Channel` to one backend: what every ratio is relative to.
    Plain,
    /// The same again: how far two runs of the same thing lie apart.
    Control,
    /// tonic's `Channel::balance_list` over three backends.
    Balance3,
    /// tonic-xds over three backends.
    TonicXds3,
    /// hyper's `SendRequest`, without tonic's client.
    Hyper,
    /// h2's `SendRequest`, without hyper and without tonic's client.
    H2,
    /// This library's channel to one backend.
    Mesh1,
    /// The same with retries, a circuit breaker, outlier detection and a filter.
    Mesh1Armed,
    /// This library's channel over three backends.
    Mesh3,
}

impl Stack {
    pub(crate) const ALL: [Self; 9] = [
        Self::Plain,
        Self::Control,
        Self::Balance3,
        Self::TonicXds3,
        Self::Hyper,
        Self::H2,
        Self::Mesh1,
        Self::Mesh1Armed,
        Self::Mesh3,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Control => "control",
            Self::Balance3 => "balance-3",
            Self::TonicXds3 => "tonic-xds-3",
            Self::Hyper => "hyper",
            Self::H2 => "h2",
            Self::Mesh1 => "mesh-1",
            Self::Mesh1Armed => "mesh-1-armed",
            Self::Mesh3 => "mesh-3",
        }
    }

    /// How many backends it calls.
    pub(crate) fn backends(self) -> usize {
        match self {
            Self::Plain | Self::Control | Self::Hyper | Self::H2 | Self::Mesh1 | Self::Mesh1Armed => 1,
            Self::Balance3 | Self::TonicXds3 | Self::Mesh3 => 3,
        }
    }

    /// Connects and serves the session.
    pub(crate) async fn serve(self, peers: &Peers, session: Session) -> Result<(), BoxError> {
        match self {
            Self::Plain | Self::Control => session.serve(Tonic::new(tonic::plain(peers).await?)).await,
            Self::Balance3 => session.serve(Tonic::new(tonic::balance(peers)?)).await,
            Self::TonicXds3 => session.serve(Tonic::new(tonic::tonic_xds(peers)?)).await,
            Self::Hyper => session.serve(floor::Hyper::connect(peers).await?).await,
            Self::H2 => session.serve(floor::H2::connect(peers).await?).await,
            Self::Mesh1 => session.serve(Tonic::new(mesh::connect(peers, "xds:///echo-1").await?)).await,
            Self::Mesh1Armed => session.serve(Tonic::new(mesh::connect(peers, "xds:///echo-armed").await?)).await,
            Self::Mesh3 => session.serve(Tonic::new(mesh::connect(peers, "xds:///echo-3").await?)).await,
        }
    }
}

/// A caller through the generated client over any channel.
#[derive(Clone)]
struct Tonic<T>(EchoClient<T>);

impl<T> Tonic<T>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: ::tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as ::tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    fn new(channel: T) -> Self {
        Self(EchoClient::new(channel))
    }
}

impl<T> Caller for Tonic<T>
where
    T: GrpcService<Body> + Clone + Send + Sync + 'static,
    T::Error: Into<StdError>,
    T::Future: Send,
    T::ResponseBody: ::tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as ::tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    async fn call(&mut self) -> Result<(), String> {
        let response = self.0.unary(Echo { payload: PAYLOAD }).await.map_err(|status| format!("{status:?}"))?;
        check(response.get_ref())
    }
}

fn check(response: &Echo) -> Result<(), String> {
    if response.payload == PAYLOAD { Ok(()) } else { Err(format!("got {:?} back", response.payload)) }
}
