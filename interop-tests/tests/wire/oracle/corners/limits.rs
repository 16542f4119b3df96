//! How long a call may take.
//!
//! It does NOT hold the limits of attempts; `retries` does.

use super::super::{
    case::{Case, grpc, http},
    script::{Act, Answer, Grpc},
};
use serde_json::json;

/// How long a call may take.
pub(super) fn limits() -> Vec<Case> {
    let max_stream = |limit: &str| json!({ "timeout": "0s", "max_stream_duration": { "max_stream_duration": limit } });
    let header_max =
        |limit: &str| json!({ "timeout": "0s", "max_stream_duration": { "grpc_timeout_header_max": limit } });
    vec![
        Case::new("limit-http", [http([Act::Silence])]).route(json!({ "timeout": "0.3s" })),
        Case::new("limit-http-none", [http([Answer::status(200).after(400)])]).route(json!({ "timeout": "0s" })),
        Case::new("limit-http-unset", [http([Answer::status(200).after(400)])]),
        Case::new("limit-http-of-grpc", [http([Answer::status(200).after(400)])]).route(max_stream("0s")),
        Case::new("limit-grpc", [grpc([Act::Silence])]).route(max_stream("0.3s")),
        Case::new("limit-grpc-none", [grpc([Answer::grpc(Grpc::Trailers(0)).after(400)])]).route(max_stream("0s")),
        Case::new("limit-grpc-by-timeout", [grpc([Answer::grpc(Grpc::Trailers(0)).after(600)])])
            .route(json!({ "timeout": "0.3s" })),
        Case::new("limit-grpc-header", [grpc([Act::Silence]).header("grpc-timeout", "300m")]).route(header_max("0s")),
        Case::new("limit-grpc-header-below", [grpc([Act::Silence]).header("grpc-timeout", "300m")])
            .route(header_max("5s")),
        Case::new("limit-grpc-header-above", [grpc([Act::Silence]).header("grpc-timeout", "5S")])
            .route(header_max("0.3s")),
        Case::new("limit-grpc-no-header", [grpc([Answer::grpc(Grpc::Trailers(0)).after(600)])])
            .route(header_max("0.3s")),
        Case::new(
            "limit-grpc-header-alone",
            [grpc([Answer::grpc(Grpc::Trailers(0)).after(600)]).header("grpc-timeout", "300m")],
        )
        .route(json!({ "timeout": "0s" })),
    ]
}
