//! `grpc.testing.XdsUpdateHealthService`: the suite's switch for `grpc.health.v1`.
//!
//! It does NOT serve health itself; `tonic-health` does.

use crate::proto::testing::{Empty, xds_update_health_service_server::XdsUpdateHealthService};
use tonic::{Request, Response, Status};
use tonic_health::{ServingStatus, server::HealthReporter};

/// The service whose health a harness asks for; the empty name is the whole server.
const SERVICES: [&str; 2] = ["", "grpc.testing.TestService"];

/// Sets the health that `grpc.health.v1.Health` tells.
#[derive(Clone, Debug)]
pub struct UpdateHealth {
    reporter: HealthReporter,
}

impl UpdateHealth {
    /// Starts as serving.
    pub async fn serving(reporter: HealthReporter) -> Self {
        let health = Self { reporter };
        health.set(ServingStatus::Serving).await;
        health
    }

    async fn set(&self, status: ServingStatus) {
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

#[tonic::async_trait]
impl XdsUpdateHealthService for UpdateHealth {
    async fn set_serving(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.set(ServingStatus::Serving).await;
        Ok(Response::new(Empty {}))
    }

    async fn set_not_serving(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.set(ServingStatus::NotServing).await;
        Ok(Response::new(Empty {}))
    }
}
