use super::*;
use crate::error::ReplyForm;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Request, StatusCode, request};
use std::{future::pending, panic};

/// Writes its name into requests and responses, and does this with requests.
struct Marker(&'static str, Does);

#[derive(Clone, Copy)]
enum Does {
    Continue,
    WaitABit,
    WaitForEver,
    Reply,
    ReplyLater,
    Panic,
    PanicLater,
    PanicOnTheWayBack,
    NotComeBack,
}

impl Filter for Marker {
    fn request<'a>(&'a self, request: &'a mut FilterRequest<'_>) -> Verdict<'a> {
        let name = HeaderValue::from_static(self.0);
        let reply =
            || Reply::new(StatusCode::FORBIDDEN, "no").with_header("x-from".parse().expect("valid"), name.clone());
        request.head_mut().headers.append("x-passed", name.clone());
        match self.1 {
            Does::Continue | Does::PanicOnTheWayBack | Does::NotComeBack => Verdict::Continue,
            Does::Reply => Verdict::Reply(reply()),
            Does::Panic => panic!("a mistake of a user"),
            Does::WaitForEver => Verdict::Wait(Box::pin(pending())),
            Does::WaitABit => Verdict::Wait(Box::pin(async move {
                // What was awaited may end up in the request.
                request.head_mut().headers.append("x-passed", HeaderValue::from_static("later"));
                Ok(())
            })),
            Does::ReplyLater => {
                let reply = reply();
                Verdict::Wait(Box::pin(async move { Err(reply) }))
            }
            Does::PanicLater => Verdict::Wait(Box::pin(async { panic!("a mistake of a user") })),
        }
    }

    fn response(&self, _: &FilterRequest<'_>, response: &mut response::Parts) {
        if matches!(self.1, Does::PanicOnTheWayBack) {
            panic!("a mistake of a user");
        }
        response.headers.append("x-back", HeaderValue::from_static(self.0));
    }

    fn sees_responses(&self) -> bool {
        !matches!(self.1, Does::NotComeBack)
    }
}

fn chain<const N: usize>(does: [(&'static str, Does); N]) -> Arc<Chain> {
    let instances = does.map(|(name, does)| {
        let filter: Arc<dyn Filter> = Arc::new(Marker(name, does));
        Arc::new(Instance { name: name.to_owned(), config: None, filter: Some(filter) })
    });
    Chain::of(instances.iter()).expect("not empty")
}

fn values(headers: &http::HeaderMap, name: &str) -> String {
    let values: Vec<_> = headers.get_all(name).iter().map(|value| value.to_str().expect("text")).collect();
    values.join(" ")
}

fn head() -> request::Parts {
    Request::new(()).into_parts().0
}

/// What a call gets, and what it was marked with on its way there and back.
fn call<const N: usize>(does: [(&'static str, Does); N]) -> (Result<u16, Cause>, String, String) {
    let (mut head, mut passed) = (head(), Passed::default());
    let outcome = {
        let mut request = FilterRequest::new(&mut head, ReplyForm::Http, None);
        passed.request(&chain(does), &mut request).now_or_never().expect("nothing to wait for")
    };
    let mut response = match outcome {
        Ok(reply) => reply.map_or_else(|| Response::new(Bytes::new()), |reply| reply.into_response(ReplyForm::Http)),
        Err(cause) => return (Err(cause), values(&head.headers, "x-passed"), String::new()),
    };
    let there = values(&head.headers, "x-passed");
    match passed.response(&mut head, ReplyForm::Http, &mut response) {
        Ok(()) => (Ok(response.status().as_u16()), there, values(response.headers(), "x-back")),
        Err(cause) => (Err(cause), there, String::new()),
    }
}

fn ok(status: u16, there: &str, back: &str) -> (Result<u16, Cause>, String, String) {
    (Ok(status), there.to_owned(), back.to_owned())
}

#[test]
fn requests_pass_in_order_and_responses_in_reverse() {
    let all = [("a", Does::Continue), ("b", Does::WaitABit), ("c", Does::Continue)];
    assert_eq!(call(all), ok(200, "a b later c", "c b a"));
}

#[test]
fn responses_pass_those_by_that_do_not_want_to_see_them() {
    assert_eq!(call([("a", Does::Continue), ("b", Does::NotComeBack)]), ok(200, "a b", "a"));
    assert_eq!(call([("a", Does::NotComeBack), ("b", Does::Reply)]), ok(403, "a b", ""));
    assert!(chain([("a", Does::NotComeBack), ("b", Does::Continue)]).sees_responses());
    assert!(!chain([("a", Does::NotComeBack), ("b", Does::NotComeBack)]).sees_responses());
}

#[test]
fn an_answer_goes_back_through_those_that_let_the_request_pass() {
    for reply in [Does::Reply, Does::ReplyLater] {
        assert_eq!(call([("a", Does::Continue), ("b", reply), ("c", Does::Continue)]), ok(403, "a b", "a"));
    }
}

#[test]
fn a_panic_fails_the_call_and_names_the_filter() {
    let quiet = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let outcomes = [Does::Panic, Does::PanicLater, Does::PanicOnTheWayBack]
        .map(|panics| call([("a", Does::Continue), ("b", panics)]).0);
    panic::set_hook(quiet);
    assert!(
        outcomes.iter().all(|outcome| *outcome == Err(Cause::FilterPanicked { filter: "b".to_owned() })),
        "{outcomes:?}"
    );
}

#[test]
fn a_call_that_is_given_up_in_a_filter_owes_the_hooks_of_those_before() {
    let (mut head, mut passed) = (head(), Passed::default());
    let mut request = FilterRequest::new(&mut head, ReplyForm::Http, None);
    let chain = chain([("a", Does::Continue), ("b", Does::WaitForEver), ("c", Does::Continue)]);
    assert!(passed.request(&chain, &mut request).now_or_never().is_none());
    assert!(passed.has_begun());
    let mut response = Response::new(());
    passed.response(&mut head, ReplyForm::Http, &mut response).expect("no panic");
    assert_eq!(values(response.headers(), "x-back"), "a");
}

#[test]
fn a_call_without_filters_gets_its_response_as_it_is() {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::IM_A_TEAPOT;
    Passed::default().response(&mut head(), ReplyForm::Http, &mut response).expect("no panic");
    assert_eq!((response.status(), response.headers().len()), (StatusCode::IM_A_TEAPOT, 0));
}
