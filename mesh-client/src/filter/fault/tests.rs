use super::*;
use crate::error::ReplyForm;
use http::{HeaderValue, Request, request};
use mesh_xds::resource::{FaultDelay, HeaderField, HeaderMatch, HeaderValueMatch};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn of_hundred(numerator: u32) -> FaultPercentage {
    FaultPercentage { numerator, denominator: 100 }
}

fn delay(source: DelaySource, numerator: u32) -> HttpFault {
    let delay = Some(FaultDelay { source, percentage: of_hundred(numerator) });
    HttpFault { delay, ..HttpFault::default() }
}

fn abort(source: AbortSource, numerator: u32) -> HttpFault {
    let abort = Some(FaultAbort { source, percentage: of_hundred(numerator), text: None });
    HttpFault { abort, ..HttpFault::default() }
}

fn head(headers: &[(&'static str, &'static str)]) -> request::Parts {
    let mut head = Request::get("http://svc:80/path").body(()).expect("valid").into_parts().0;
    for (name, value) in headers {
        head.headers.append(*name, HeaderValue::from_static(value));
    }
    head
}

/// What becomes of a call to cluster `c` with these headers, for these draws in turn.
fn inject(fault: HttpFault, headers: &[(&'static str, &'static str)], draws: &[u32]) -> Option<Injected> {
    let filter = FaultFilter::new(&Arc::new(fault))?;
    let (mut head, cluster, mut draws) = (head(headers), "c".into(), draws.iter().copied());
    let request = FilterRequest::new(&mut head, ReplyForm::Grpc, Some(&cluster));
    filter.inject(&request, &mut || draws.next().expect("no more draws than there are shares"))
}

fn delayed(by: Duration) -> Option<Injected> {
    Some(Injected { delay: Some(by), abort: None })
}

fn aborted(status: AbortStatus) -> Option<Injected> {
    Some(Injected { delay: None, abort: Some(status) })
}

#[test]
fn a_share_is_hit_below_its_bound_and_all_or_nothing_need_no_dice() {
    let fixed = DelaySource::Fixed(SECOND);
    assert_eq!(inject(delay(fixed, 20), &[], &[199_999]), delayed(SECOND));
    assert_eq!(inject(delay(fixed, 20), &[], &[200_000]), None);
    assert_eq!(inject(delay(fixed, 100), &[], &[]), delayed(SECOND));
    assert_eq!(inject(delay(fixed, 0), &[], &[]), None);
}

#[test]
fn delay_and_abort_have_a_draw_each() {
    let both = HttpFault { abort: abort(AbortSource::Grpc(7), 5).abort, ..delay(DelaySource::Fixed(SECOND), 20) };
    let grpc = AbortStatus::Grpc(7);
    assert_eq!(inject(both.clone(), &[], &[0, 0]), Some(Injected { delay: Some(SECOND), abort: Some(grpc) }));
    assert_eq!(inject(both.clone(), &[], &[0, 50_000]), delayed(SECOND));
    assert_eq!(inject(both.clone(), &[], &[200_000, 0]), aborted(grpc));
    assert_eq!(inject(both, &[], &[200_000, 50_000]), None);
}

#[test]
fn requests_ask_for_delays_in_milliseconds() {
    let wanted = |value| inject(delay(DelaySource::Header, 100), &[("x-envoy-fault-delay-request", value)], &[]);
    assert_eq!(wanted("250"), delayed(Duration::from_millis(250)));
    assert_eq!(wanted(" 250 "), delayed(Duration::from_millis(250)));
    // "Delay only if the duration is >0ms" - Envoy
    assert_eq!([wanted("0"), wanted("soon"), wanted("-1"), wanted("")], [None, None, None, None]);
    assert_eq!(inject(delay(DelaySource::Header, 100), &[], &[]), None);
}

#[test]
fn headers_count_only_where_the_configuration_says_so() {
    let headers = [("x-envoy-fault-delay-request", "250"), ("x-envoy-fault-delay-request-percentage", "0")];
    assert_eq!(inject(delay(DelaySource::Fixed(SECOND), 100), &headers, &[]), delayed(SECOND));
    let headers = [("x-envoy-fault-abort-request", "404"), ("x-envoy-fault-abort-request-percentage", "0")];
    let status = StatusCode::IM_A_TEAPOT;
    assert_eq!(inject(abort(AbortSource::Http(status), 100), &headers, &[]), aborted(AbortStatus::Http(status)));
}

#[test]
fn requests_ask_for_aborts_by_http_status_or_else_by_grpc_status() {
    let wanted = |headers: &[_]| inject(abort(AbortSource::Header, 100), headers, &[]);
    let (http, grpc) = ("x-envoy-fault-abort-request", "x-envoy-fault-abort-grpc-request");
    let not_found = aborted(AbortStatus::Http(StatusCode::NOT_FOUND));
    assert_eq!(wanted(&[(http, "404")]), not_found);
    assert_eq!(wanted(&[(grpc, "3"), (http, "404"), (http, "500")]), not_found);
    assert_eq!(wanted(&[(grpc, "3")]), aborted(AbortStatus::Grpc(3)));
    for bad in ["199", "600", "70000", "x"] {
        assert_eq!(wanted(&[(http, bad), (grpc, "3")]), aborted(AbortStatus::Grpc(3)), "{bad}");
    }
    assert_eq!(
        [wanted(&[(grpc, "17")]), wanted(&[(grpc, "300")])],
        [aborted(AbortStatus::Grpc(2)), aborted(AbortStatus::Grpc(2))]
    );
    assert_eq!([wanted(&[]), wanted(&[(grpc, "x")])], [None, None]);
}

#[test]
fn requests_can_only_lower_a_share_in_its_own_denominator() {
    let percentage = FaultPercentage { numerator: 5_000, denominator: 10_000 };
    let with = |value| {
        let fault = HttpFault {
            abort: Some(FaultAbort { source: AbortSource::Header, percentage, text: None }),
            ..HttpFault::default()
        };
        let headers = [("x-envoy-fault-abort-grpc-request", "3"), ("x-envoy-fault-abort-request-percentage", value)];
        // 10 of 10,000 are 1,000 of a million, and 5,000 are 500,000.
        [999, 1_000, 499_999, 500_000].map(|draw| inject(fault.clone(), &headers, &[draw]).is_some())
    };
    assert_eq!(with("10"), [true, false, false, false]);
    assert_eq!(with("10000"), [true, true, true, false]);
    assert_eq!(with("many"), [true, true, true, false]);
}

#[test]
fn a_fault_is_for_whom_it_is_meant() {
    let fault = abort(AbortSource::Grpc(7), 100);
    let hit = aborted(AbortStatus::Grpc(7));
    let to = |cluster: &str| HttpFault { upstream_cluster: Some(cluster.into()), ..fault.clone() };
    assert_eq!([inject(to("c"), &[], &[]), inject(to("d"), &[], &[])], [hit.clone(), None]);
    let from = || HttpFault { downstream_nodes: vec!["a".into(), "b".into()], ..fault.clone() };
    let node = |name| inject(from(), &[("x-envoy-downstream-service-node", name)], &[]);
    assert_eq!([node("b"), node("c"), inject(from(), &[], &[])], [hit.clone(), None, None]);
    let name = HeaderField::Header(HeaderName::from_static("k"));
    let headers = vec![HeaderMatch { name, value: HeaderValueMatch::Range(1..3), invert: false }];
    let fault = HttpFault { headers, ..fault };
    assert_eq!([inject(fault.clone(), &[("k", "2")], &[]), inject(fault, &[("k", "3")], &[])], [hit, None]);
}

#[test]
fn what_can_never_be_is_no_filter() {
    let none = |fault: HttpFault| FaultFilter::new(&Arc::new(fault)).is_none();
    assert!(none(HttpFault::default()));
    assert!(none(abort(AbortSource::Grpc(7), 0)));
    assert!(none(HttpFault { max_active_faults: Some(0), ..abort(AbortSource::Grpc(7), 100) }));
    assert!(!none(HttpFault { max_active_faults: Some(1), ..abort(AbortSource::Grpc(7), 100) }));
}

#[test]
fn an_abort_speaks_http_or_grpc() {
    let filter = |fault| FaultFilter::new(&Arc::new(fault)).expect("some are hit");
    let answer = |fault: HttpFault, status, form| {
        let response = filter(fault).reply(status).into_response(form);
        let text = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let body = String::from_utf8(response.body().to_vec()).expect("text");
        (response.status().as_u16(), text("grpc-status"), text("grpc-message"), body)
    };
    let owned =
        |status, code: &str, message: &str, body: &str| (status, code.to_owned(), message.to_owned(), body.to_owned());
    let fault = || abort(AbortSource::Header, 100);
    for (http, grpc) in [
        (400, "13"),
        (401, "16"),
        (403, "7"),
        (404, "12"),
        (429, "14"),
        (502, "14"),
        (503, "14"),
        (504, "14"),
        (200, "2"),
        (500, "2"),
    ] {
        let status = AbortStatus::Http(StatusCode::from_u16(http).expect("valid"));
        assert_eq!(answer(fault(), status, ReplyForm::Grpc), owned(200, grpc, TEXT, ""));
        assert_eq!(answer(fault(), status, ReplyForm::Http), owned(http, "", "", TEXT));
    }
    assert_eq!(answer(fault(), AbortStatus::Grpc(0), ReplyForm::Grpc), owned(200, "0", TEXT, ""));
    assert_eq!(answer(fault(), AbortStatus::Grpc(5), ReplyForm::Http), owned(200, "", "", TEXT));
    let mut own = fault();
    own.abort.as_mut().expect("there").text = Some("50% off".to_owned());
    assert_eq!(answer(own, AbortStatus::Grpc(5), ReplyForm::Grpc), owned(200, "5", "50%25 off", ""));
}

proptest! {
    #[test]
    fn whatever_the_headers_say_nothing_panics(names in prop::collection::vec(0..5_usize, 0..6), values: [String; 6], numerator: u32, draws: [u32; 2]) {
        let all = [&DELAY, &DELAY_PERCENTAGE, &ABORT, &ABORT_GRPC, &ABORT_PERCENTAGE];
        let mut head = head(&[]);
        for (name, value) in names.into_iter().zip(values) {
            if let Ok(value) = HeaderValue::try_from(value) {
                head.headers.append(all[name].clone(), value);
            }
        }
        let fault = HttpFault { abort: abort(AbortSource::Header, numerator).abort, ..delay(DelaySource::Header, numerator) };
        if let Some(filter) = FaultFilter::new(&Arc::new(fault)) {
            let mut draws = draws.into_iter();
            let request = FilterRequest::new(&mut head, ReplyForm::Http, None);
            let _ = filter.inject(&request, &mut || draws.next().expect("two") % 1_000_000);
        }
    }
}
