//! `grpc.channelz.v1`: the call counts that a harness reads of channels and servers.
//!
//! It does NOT list subchannels or sockets.

use crate::proto::channelz::{
    Channel, ChannelConnectivityState, ChannelData, ChannelRef, GetServersRequest, GetServersResponse,
    GetTopChannelsRequest, GetTopChannelsResponse, Server, ServerData, ServerRef, SocketRef,
    channel_connectivity_state::State, channelz_server,
};
use std::{fmt, net::SocketAddr, sync::Arc};
use tonic::{Request, Response, Status};

/// Calls that were started on a channel or arrived at a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCounts {
    /// All of them.
    pub started: u64,
    /// Those that ended well.
    pub succeeded: u64,
    /// Those that failed.
    pub failed: u64,
}

/// A channel as a user made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopChannel {
    /// The target with its scheme.
    pub target: String,
    /// Its calls.
    pub calls: CallCounts,
    /// Its state now.
    pub state: State,
}

type Channels = Arc<dyn Fn() -> Vec<TopChannel> + Send + Sync>;
type Servers = Arc<dyn Fn() -> Vec<(SocketAddr, CallCounts)> + Send + Sync>;

/// The service, asking for its facts at each request.
#[derive(Clone)]
pub struct Channelz {
    channels: Channels,
    servers: Servers,
}

impl Channelz {
    /// Of a process that has these channels and no server.
    pub fn of_channels(channels: impl Fn() -> Vec<TopChannel> + Send + Sync + 'static) -> Self {
        Self { channels: Arc::new(channels), servers: Arc::new(Vec::new) }
    }

    /// Of a process that has these servers, by listening address, and no channel.
    pub fn of_servers(servers: impl Fn() -> Vec<(SocketAddr, CallCounts)> + Send + Sync + 'static) -> Self {
        Self { channels: Arc::new(Vec::new), servers: Arc::new(servers) }
    }
}

impl fmt::Debug for Channelz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channelz").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl channelz_server::Channelz for Channelz {
    async fn get_top_channels(
        &self,
        request: Request<GetTopChannelsRequest>,
    ) -> Result<Response<GetTopChannelsResponse>, Status> {
        let request = request.into_inner();
        let all = numbered((self.channels)()).map(|(id, channel)| top_channel(id, channel));
        let (channel, end) = page(all, id_of, request.start_channel_id, request.max_results);
        Ok(Response::new(GetTopChannelsResponse { channel, end }))
    }

    async fn get_servers(&self, request: Request<GetServersRequest>) -> Result<Response<GetServersResponse>, Status> {
        let request = request.into_inner();
        let all = numbered((self.servers)()).map(|(id, (address, calls))| server(id, address, calls));
        let id = |server: &Server| server.r#ref.as_ref().map_or(0, |reference| reference.server_id);
        let (server, end) = page(all, id, request.start_server_id, request.max_results);
        Ok(Response::new(GetServersResponse { server, end }))
    }
}

/// Channelz ids are positive: 1, 2, 3, ... in the order given.
fn numbered<T>(values: Vec<T>) -> impl Iterator<Item = (i64, T)> {
    (1..).zip(values)
}

/// One page, and whether it is the last. `max_results` 0 means the server's choice: everything.
fn page<T>(all: impl Iterator<Item = T>, id: impl Fn(&T) -> i64, start: i64, max_results: i64) -> (Vec<T>, bool) {
    let mut rest = all.filter(|value| id(value) >= start);
    let wanted = usize::try_from(max_results).ok().filter(|&wanted| wanted > 0).unwrap_or(usize::MAX);
    let page = rest.by_ref().take(wanted).collect();
    (page, rest.next().is_none())
}

fn id_of(channel: &Channel) -> i64 {
    channel.r#ref.as_ref().map_or(0, |reference| reference.channel_id)
}

fn count(calls: u64) -> i64 {
    i64::try_from(calls).unwrap_or(i64::MAX)
}

fn top_channel(id: i64, channel: TopChannel) -> Channel {
    Channel {
        r#ref: Some(ChannelRef { channel_id: id, name: channel.target.clone() }),
        data: Some(ChannelData {
            state: Some(ChannelConnectivityState { state: channel.state.into() }),
            target: channel.target,
            calls_started: count(channel.calls.started),
            calls_succeeded: count(channel.calls.succeeded),
            calls_failed: count(channel.calls.failed),
        }),
    }
}

fn server(id: i64, address: SocketAddr, calls: CallCounts) -> Server {
    Server {
        r#ref: Some(ServerRef { server_id: id, name: address.to_string() }),
        data: Some(ServerData {
            calls_started: count(calls.started),
            calls_succeeded: count(calls.succeeded),
            calls_failed: count(calls.failed),
        }),
        listen_socket: vec![SocketRef { socket_id: id, name: address.to_string() }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_start_at_an_id_and_say_when_they_are_the_last() {
        let ids = |start, max| page(1..=5i64, |&id| id, start, max);
        assert_eq!(ids(0, 0), (vec![1, 2, 3, 4, 5], true));
        assert_eq!(ids(2, 2), (vec![2, 3], false));
        assert_eq!(ids(4, 2), (vec![4, 5], true));
        assert_eq!(ids(6, 2), (vec![], true));
    }
}
