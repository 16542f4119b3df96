//! One request at a backend: counted, then answered by the gRPC services or, for plain HTTP, by an echo.
//!
//! Plain HTTP: a path below `/echo` gets its own request body back as it arrives, any other path a JSON description of
//! the request as it arrived. `rpc-behavior` is obeyed, `error-code-N` then being an HTTP status. A request header
//! `answer-NAME` becomes the header `NAME` of the response. It does NOT own connections.

use super::{
    behavior::{self, Verdict},
    orca,
    tally::{CallHead, Tally},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;
use std::{collections::BTreeMap, convert::Infallible, sync::Arc};
use tonic::{body::Body, service::Routes};
use tower_service::Service;

/// Answers the requests of one backend.
#[derive(Clone, Debug)]
pub(crate) struct Answerer {
    pub(crate) hostname: Arc<str>,
    pub(crate) routes: Routes,
    pub(crate) tally: Arc<Tally>,
}

impl Answerer {
    pub(crate) async fn answer(mut self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let call = self.tally.called(&request);
        let report = orca::asked_for(request.headers());
        let wanted = wanted_headers(request.headers());
        let mut response = if is_grpc(&request) {
            // `Routes` is always ready: it is an axum router.
            self.routes.call(request.map(Body::new)).await?
        } else {
            self.plain(request).await
        };
        response.headers_mut().extend(wanted);
        call.answered(&response);
        Ok(match report {
            Some(report) => orca::reporting(response, report),
            None => response,
        })
    }

    async fn plain(&self, request: Request<Incoming>) -> Response<Body> {
        let verdict = behavior::obey(request.headers(), &self.hostname).await;
        let mut response = match verdict {
            Verdict::Proceed if request.uri().path().starts_with("/echo") => {
                Response::new(Body::new(request.into_body()))
            }
            Verdict::Proceed => description(&self.hostname, &CallHead::of(&request)),
            Verdict::Fail(code) => status(StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST), String::new()),
            Verdict::Malformed(reason) => status(StatusCode::BAD_REQUEST, reason),
        };
        if let Ok(hostname) = HeaderValue::from_str(&self.hostname) {
            response.headers_mut().insert("hostname", hostname);
        }
        response
    }
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn status(code: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::new(text));
    *response.status_mut() = code;
    response
}

/// What `answer-NAME` headers ask for.
fn wanted_headers(request: &HeaderMap) -> HeaderMap {
    let wanted = request.iter().filter_map(|(name, value)| {
        Some((HeaderName::try_from(name.as_str().strip_prefix("answer-")?).ok()?, value.clone()))
    });
    wanted.collect()
}

fn description(hostname: &str, head: &CallHead) -> Response<Body> {
    let mut headers = BTreeMap::<&str, Vec<String>>::new();
    for (name, value) in &head.headers {
        headers.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let description = json!({
        "hostname": hostname,
        "method": head.method.as_str(),
        "authority": head.authority(),
        "path": head.uri.path_and_query().map(http::uri::PathAndQuery::as_str),
        "headers": headers,
    });
    let mut response = Response::new(Body::new(description.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
