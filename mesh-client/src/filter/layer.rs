//! A filter around any HTTP service, a client's or a server's: a chain with one link, by the code of the channel's chains.
//!
//! Several filters are several layers. It does NOT know routes, so that a filter sees every request and no cluster.

use super::{Chain, Filter, FilterRequest, Passed};
use crate::{
    error::{Cause, ReplyForm},
    reply::{Reply, ReplyBody},
};
use http::{Request, Response};
use std::{
    any, fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tower_layer::Layer;
use tower_service::Service;

/// Sends the calls of a service through a [`Filter`]: a tower layer, for clients and servers.
///
/// A filter that panics fails its call: INTERNAL, or 500 for what is not gRPC. The filter keeps a copy of the request's head
/// until the response is there.
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response, StatusCode};
/// use http_body_util::Empty;
/// use mesh_client::{Filter, FilterLayer, FilterRequest, Reply, Verdict};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// struct Tenants;
///
/// impl Filter for Tenants {
///     fn request<'a>(&'a self, request: &'a mut FilterRequest<'_>) -> Verdict<'a> {
///         match request.head().headers.contains_key("x-tenant") {
///             true => Verdict::Continue,
///             false => Verdict::Reply(Reply::new(StatusCode::FORBIDDEN, "no tenant")),
///         }
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(FilterLayer::new(Tenants))
///     .service(service_fn(async |_: Request<Empty<Bytes>>| {
///         Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
///     }));
///
/// assert_eq!(service.clone().oneshot(Request::new(Empty::new())).await.unwrap().status(), 403);
/// let request = Request::builder().header("x-tenant", "a").body(Empty::new()).unwrap();
/// assert_eq!(service.oneshot(request).await.unwrap().status(), 200);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FilterLayer(Arc<Chain>);

impl FilterLayer {
    /// A layer with this filter. All services that it makes share the one filter.
    pub fn new<F: Filter>(filter: F) -> Self {
        Self(Chain::alone(any::type_name::<F>(), Arc::new(filter)))
    }
}

impl<S> Layer<S> for FilterLayer {
    type Service = Filtered<S>;

    fn layer(&self, inner: S) -> Filtered<S> {
        Filtered { chain: Arc::clone(&self.0), inner }
    }
}

/// A service behind a filter; made by [`FilterLayer`].
#[derive(Clone, Debug)]
pub struct Filtered<S> {
    chain: Arc<Chain>,
    inner: S,
}

impl<S, B, R: 'static> Service<Request<B>> for Filtered<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<ReplyBody<R>>;
    type Error = S::Error;
    type Future = FilteredFuture<R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> FilteredFuture<R, S::Error> {
        // The clone is not ready; what is ready is taken.
        let unready = self.inner.clone();
        let ready = mem::replace(&mut self.inner, unready);
        FilteredFuture(Box::pin(filtered(Arc::clone(&self.chain), ready, request)))
    }
}

async fn filtered<S, B, R>(chain: Arc<Chain>, mut inner: S, request: Request<B>) -> Called<R, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    let (mut head, body) = request.into_parts();
    let form = ReplyForm::of(&head.headers);
    let mut passed = Passed::default();
    let asked = passed.request(&chain, &mut FilterRequest::new(&mut head, form, None)).await;
    let mut response = match asked {
        Ok(None) if !chain.sees_responses() => {
            return Ok(inner.call(Request::from_parts(head, body)).await?.map(ReplyBody::of_service));
        }
        // The service takes the head, and the filter will want to see it again.
        Ok(None) => inner.call(Request::from_parts(head.clone(), body)).await?.map(ReplyBody::of_service),
        Ok(Some(reply)) => reply.into_response(form).map(ReplyBody::of_reply),
        Err(cause) => failed(&cause, form),
    };
    if let Err(cause) = passed.response(&mut head, form, &mut response) {
        response = failed(&cause, form);
    }
    Ok(response)
}

fn failed<R>(cause: &Cause, form: ReplyForm) -> Response<ReplyBody<R>> {
    Reply::of_cause(cause, cause.to_string()).into_response(form).map(ReplyBody::of_reply)
}

/// The future of a call.
pub struct FilteredFuture<R, E>(Pin<Box<dyn Future<Output = Called<R, E>> + Send>>);

/// A response, or the service's error.
type Called<R, E> = Result<Response<ReplyBody<R>>, E>;

impl<R, E> Future for FilteredFuture<R, E> {
    type Output = Called<R, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<R, E> fmt::Debug for FilteredFuture<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilteredFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Verdict;
    use bytes::Bytes;
    use http::{HeaderValue, response};
    use http_body_util::Empty;
    use std::convert::Infallible;
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    /// Marks what passes, and fails where a request asks for it.
    struct Marker;

    impl Filter for Marker {
        fn request<'a>(&'a self, request: &'a mut FilterRequest<'_>) -> Verdict<'a> {
            assert!(!request.head().headers.contains_key("panic"), "as the request says");
            request.head_mut().headers.insert("marked", HeaderValue::from_static("yes"));
            Verdict::Continue
        }

        fn response(&self, request: &FilterRequest<'_>, response: &mut response::Parts) {
            response
                .headers
                .extend(request.head().headers.get("marked").map(|mark| (http::header::ETAG, mark.clone())));
        }
    }

    async fn answer(request: Request<Empty<Bytes>>) -> Result<Response<Empty<Bytes>>, Infallible> {
        let mut response = Response::new(Empty::new());
        *response.headers_mut() = request.into_parts().0.headers;
        Ok(response)
    }

    #[tokio::test]
    async fn a_filter_sees_the_request_and_what_comes_back() {
        let service = ServiceBuilder::new().layer(FilterLayer::new(Marker)).service(service_fn(answer));
        let response = service.oneshot(Request::new(Empty::new())).await.expect("infallible");
        // The service saw the mark, and so did the way back.
        assert!(["marked", "etag"].iter().all(|name| response.headers()[*name] == "yes"));
    }

    #[tokio::test]
    async fn a_panic_fails_its_call_alone() {
        let service = ServiceBuilder::new().layer(FilterLayer::new(Marker)).service(service_fn(answer));
        let panics = || Request::builder().header("panic", "1").body(Empty::new()).expect("valid");
        assert_eq!(service.clone().oneshot(panics()).await.expect("infallible").status(), 500);
        let mut grpc = panics();
        grpc.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        assert_eq!(service.clone().oneshot(grpc).await.expect("infallible").headers()["grpc-status"], "13");
        assert_eq!(service.oneshot(Request::new(Empty::new())).await.expect("infallible").status(), 200);
    }
}
