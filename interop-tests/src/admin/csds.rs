//! `envoy.service.status.v3.ClientStatusDiscoveryService`: what this process knows of its xDS resources (A40).
//!
//! It does NOT know an xDS client; it is given the resources, and a process without one reports none.

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::status::v3::{
        ClientConfig, ClientStatusRequest, ClientStatusResponse, client_config::GenericXdsConfig,
        client_status_discovery_service_server::ClientStatusDiscoveryService,
    },
};
use futures_util::{StreamExt, stream::BoxStream};
use std::{fmt, sync::Arc};
use tonic::{Request, Response, Status, Streaming};

/// The resources of one xDS client and the node it is known by.
#[derive(Clone, Debug, Default)]
pub struct XdsConfigs {
    /// The node, as in the first request of the ADS stream.
    pub node: Node,
    /// One entry for each resource that is subscribed to.
    pub resources: Vec<GenericXdsConfig>,
}

/// The service, asking for the resources at each request.
#[derive(Clone)]
pub struct Csds {
    configs: Arc<dyn Fn() -> Option<XdsConfigs> + Send + Sync>,
}

impl Csds {
    /// Reports what `configs` returns; `None` is a process without an xDS client.
    pub fn new(configs: impl Fn() -> Option<XdsConfigs> + Send + Sync + 'static) -> Self {
        Self { configs: Arc::new(configs) }
    }

    fn status(&self) -> ClientStatusResponse {
        let config = (self.configs)().map(|configs| ClientConfig {
            node: Some(configs.node),
            generic_xds_configs: configs.resources,
            ..ClientConfig::default()
        });
        ClientStatusResponse { config: config.into_iter().collect() }
    }
}

impl fmt::Debug for Csds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Csds").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream = BoxStream<'static, Result<ClientStatusResponse, Status>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let csds = self.clone();
        let answers = request.into_inner().map(move |request| request.map(|_| csds.status()));
        Ok(Response::new(answers.boxed()))
    }

    async fn fetch_client_status(
        &self,
        _: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        Ok(Response::new(self.status()))
    }
}
