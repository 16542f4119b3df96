//! The suite's services on the client's admin port: statistics and configuration.
//!
//! They do NOT send; they read [`Statistics`] and replace the [`Plan`].

use super::{plan::Plan, statistics::Statistics};
use crate::proto::testing::{
    ClientConfigureRequest, ClientConfigureResponse, LoadBalancerAccumulatedStatsRequest,
    LoadBalancerAccumulatedStatsResponse, LoadBalancerStatsRequest, LoadBalancerStatsResponse,
    load_balancer_stats_service_server::LoadBalancerStatsService,
    xds_update_client_configure_service_server::XdsUpdateClientConfigureService,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time};
use tonic::{Request, Response, Status};

/// `grpc.testing.LoadBalancerStatsService`.
#[derive(Clone, Debug)]
pub struct Stats {
    statistics: Arc<Statistics>,
}

impl Stats {
    /// Reads these statistics.
    pub fn new(statistics: Arc<Statistics>) -> Self {
        Self { statistics }
    }
}

#[tonic::async_trait]
impl LoadBalancerStatsService for Stats {
    async fn get_client_stats(
        &self,
        request: Request<LoadBalancerStatsRequest>,
    ) -> Result<Response<LoadBalancerStatsResponse>, Status> {
        let request = request.into_inner();
        let wanted = usize::try_from(request.num_rpcs)
            .map_err(|_| Status::invalid_argument(format!("num_rpcs {}", request.num_rpcs)))?;
        let mut watch = self.statistics.watch(wanted, request.metadata_keys);
        let patience = Duration::from_secs(u64::try_from(request.timeout_sec).unwrap_or(0));
        // The end of patience is not an error: what has not finished by then is counted as failed.
        let _ = time::timeout(patience, watch.all_finished()).await;
        Ok(Response::new(watch.stats()))
    }

    async fn get_client_accumulated_stats(
        &self,
        _: Request<LoadBalancerAccumulatedStatsRequest>,
    ) -> Result<Response<LoadBalancerAccumulatedStatsResponse>, Status> {
        Ok(Response::new(self.statistics.accumulated()))
    }
}

/// `grpc.testing.XdsUpdateClientConfigureService`.
#[derive(Clone, Debug)]
pub struct Configure {
    plan: watch::Sender<Arc<Plan>>,
    default_timeout: Duration,
}

impl Configure {
    /// Starts with the plan of the command line, whose timeout stays the default.
    pub fn new(plan: Plan) -> Self {
        let default_timeout = plan.timeout;
        Self { plan: watch::Sender::new(Arc::new(plan)), default_timeout }
    }

    /// The plan as it is replaced.
    pub fn plan(&self) -> watch::Receiver<Arc<Plan>> {
        self.plan.subscribe()
    }
}

#[tonic::async_trait]
impl XdsUpdateClientConfigureService for Configure {
    async fn configure(
        &self,
        request: Request<ClientConfigureRequest>,
    ) -> Result<Response<ClientConfigureResponse>, Status> {
        let plan = Plan::from_request(&request.into_inner(), self.default_timeout)?;
        self.plan.send_replace(Arc::new(plan));
        Ok(Response::new(ClientConfigureResponse {}))
    }
}
