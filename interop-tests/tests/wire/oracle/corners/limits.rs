//! How long a call may take, and pause.
//!
//! Of the limits of attempts it holds what an upload does to them; the others are in `retries`.

use super::{
    super::{
        case::{Case, grpc, http},
        script::{Act, Answer, Grpc},
    },
    policy_with,
};
use serde_json::json;

/// How long a call may take.
pub(super) fn limits() -> Vec<Case> {
    let max_stream = |limit: &str| json!({ "timeout": "0s", "max_stream_duration": { "max_stream_duration": limit } });
    let idle = |limit: &str| json!({ "timeout": "0s", "idle_timeout": limit });
    let delay = |time: &str| json!({ "delay": { "fixed_delay": time, "percentage": { "numerator": 100 } } });
    let header_max =
        |limit: &str| json!({ "timeout": "0s", "max_stream_duration": { "grpc_timeout_header_max": limit } });
    vec![
        Case::new("limit-http", [http([Act::Silence])]).route(json!({ "timeout": "0.3s" })),
        Case::new("limit-http-none", [http([Answer::status(200).after(400)])]).route(json!({ "timeout": "0s" })),
        Case::new("limit-http-unset", [http([Answer::status(200).after(400)])]),
        Case::new("limit-http-of-grpc", [http([Answer::status(200).after(400)])]).route(max_stream("0s")),
        Case::new("limit-http-stream", [http([Act::Silence])]).route(max_stream("0.3s")),
        Case::new("limit-http-stream-upload", [http([Act::Silence]).upload(900)]).route(max_stream("0.3s")),
        Case::new("limit-http-upload", [http([Answer::status(200).after(0)]).upload(600)])
            .route(json!({ "timeout": "0.3s" })),
        Case::new("limit-http-upload-silence", [http([Act::Silence]).upload(600)]).route(json!({ "timeout": "0.3s" })),
        Case::new("limit-http-both", [http([Act::Silence]).upload(400)])
            .route(json!({ "timeout": "0.9s", "max_stream_duration": { "max_stream_duration": "0.7s" } })),
        Case::new("try-http-upload", [http([Act::Silence, Answer::status(200).after(0)]).upload(600)])
            .route(policy_with("5xx", 1, json!({ "per_try_timeout": "0.3s" }))),
        Case::new("idle-http", [http([Act::Silence])]).route(idle("0.3s")),
        Case::new("idle-http-upload", [http([Act::Silence]).upload(900)]).route(idle("0.3s")),
        Case::new("idle-http-upload-silence", [http([Act::Silence]).upload(400)]).route(idle("0.6s")),
        Case::new("idle-grpc", [grpc([Act::Silence])]).route(idle("0.3s")),
        Case { fault: delay("0.9s"), ..Case::new("idle-delay", [http([Answer::status(200).after(0)])]) }
            .route(idle("0.3s")),
        Case::new("idle-try-http", [http([Act::Silence, Answer::status(200).after(0)])]).route(policy_with(
            "5xx",
            1,
            json!({ "per_try_idle_timeout": "0.3s" }),
        )),
        Case::new("idle-try-http-last", [http([Act::Silence])]).route(policy_with(
            "5xx",
            1,
            json!({ "per_try_idle_timeout": "0.3s" }),
        )),
        Case::new("idle-try-grpc", [grpc([Act::Silence])]).route(policy_with(
            "unavailable",
            1,
            json!({ "per_try_idle_timeout": "0.3s" }),
        )),
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
