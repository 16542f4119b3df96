//! A88's table, a test per row, and what the states mean.

use super::*;
use crate::resource::{CircuitBreakers, Cluster, Discovery, HttpProtocol, Invalid, LbPolicy, TransportSocket};
use std::time::Duration;

const KIND: Kind = Kind::Cluster;

fn name() -> Arc<str> {
    "c".into()
}

fn value(max_requests: u32) -> Resource {
    Resource::Cluster(Arc::new(Cluster {
        name: "c".into(),
        discovery: Discovery::Eds { service_name: "c".to_owned() },
        lb_policy: LbPolicy::RoundRobin,
        transport_socket: TransportSocket::Plaintext,
        http_protocol: HttpProtocol::Unspecified,
        circuit_breakers: CircuitBreakers { max_requests: Some(max_requests), ..CircuitBreakers::default() },
        outlier_detection: None,
        load_reporting: None,
        connect_timeout: None,
    }))
}

fn received(value: Result<Resource, Invalid>) -> Received {
    Received { name: Some("c".to_owned()), value, version: None, ignored: Vec::new(), raw: Bytes::new() }
}

/// A response of this version, now.
fn said(version: &str) -> Said {
    Said { version: version.into(), at: Instant::now() }
}

fn accept(cache: &mut Cache, number: u32) -> Change {
    cache.received(KIND, "c", received(Ok(value(number))), &said(&number.to_string()))
}

/// A full-state response without any resource. Returns how many it takes away.
fn omit(cache: &mut Cache, said: &Said) -> usize {
    let omitted = cache.omitted(KIND, |_| false);
    omitted.iter().filter(|name| cache.removed(KIND, name, said).visible).count()
}

/// The only resource there is.
fn shown(cache: &Cache, clock: &Clock) -> ResourceStatus {
    let (kind, name) = cache.names().next().expect("there is one");
    cache.status(kind, &name, &"s".into(), clock).expect("it has just been named")
}

fn status(cache: &Cache) -> ResourceStatus {
    shown(cache, &Clock::now())
}

/// What readers see: `-` nothing yet, `v` a value, `v!` a value with an ambient error, `Err`, `Err?` while unreachable,
/// `gone?` perhaps too early.
fn seen(cache: &Cache) -> &'static str {
    match cache.lookup(KIND, "c") {
        Lookup::Pending => "-",
        Lookup::Usable { note: None, .. } => "v",
        Lookup::Usable { note: Some(_), .. } => "v!",
        Lookup::Failed(_) => "Err",
        Lookup::Unreachable(_) => "Err?",
        Lookup::Absent(_) => "gone?",
    }
}

type Event = fn(&mut Cache);

/// One row of the table: nothing cached; cached, feature off; cached, feature on.
#[track_caller]
fn row(event: Event, expected: [&str; 3]) {
    let see = |cached: bool, features: &[Feature]| {
        let mut cache = Cache::new("node-7", features);
        cache.requested(KIND, &name());
        if cached {
            accept(&mut cache, 1);
        }
        event(&mut cache);
        seen(&cache)
    };
    let on = [Feature::FailOnDataErrors];
    assert_eq!([see(false, &[]), see(true, &[]), see(true, &on)], expected);
}

fn reported(cache: &mut Cache, code: i32) {
    cache.reported(KIND, &ReportedError { name: "c".to_owned(), code, message: "no".to_owned() }, &said("2"));
}

#[test]
fn connect_failure_or_stream_failed_before_response() {
    row(|cache| assert!(cache.unreachable("refused")), ["Err?", "v!", "v!"]);
}

#[test]
fn client_nack() {
    let nack: Event = |cache| {
        cache.received(KIND, "c", received(Err(Invalid::new("bad").within("lb_policy"))), &said("2"));
    };
    row(nack, ["Err", "v!", "Err"]);
}

#[test]
fn omission_from_a_full_state_response() {
    row(|cache| assert!(omit(cache, &said("2")) <= 1), ["-", "v!", "Err"]);
}

#[test]
fn server_reports_not_found_or_permission_denied() {
    row(|cache| reported(cache, 5), ["Err", "v!", "Err"]);
    row(|cache| reported(cache, 7), ["Err", "v!", "Err"]);
}

#[test]
fn server_reports_another_code() {
    row(|cache| reported(cache, 14), ["Err", "v!", "v!"]);
}

#[test]
fn the_timer_means_not_found_or_with_the_feature_unavailable() {
    for (features, state) in
        [(&[][..], ResourceState::DoesNotExist), (&[Feature::ResourceTimerIsTransient], ResourceState::Timeout)]
    {
        let mut cache = Cache::new("node-7", features);
        cache.requested(KIND, &name());
        assert!(cache.timed_out(KIND, "c", Duration::from_secs(15), Instant::now()).visible);
        assert_eq!((seen(&cache), &status(&cache).state), ("Err", &state));
    }
}

#[test]
fn errors_name_the_resource_the_field_and_the_node() {
    let mut cache = Cache::new("node-7", &[]);
    cache.requested(KIND, &name());
    let change = cache.received(KIND, "c", received(Err(Invalid::new("bad").within("lb_policy"))), &said("1"));
    let text = r#"Cluster "c": invalid: lb_policy: bad (xDS node id "node-7")"#;
    assert_eq!(change.new_error.as_deref(), Some(text));
    assert_eq!(status(&cache).state, ResourceState::Nacked { error: text.to_owned() });
    assert_eq!(status(&cache).version, None, "nothing is in use");
}

#[test]
fn the_same_error_again_is_no_news() {
    let mut cache = Cache::new("node-7", &[]);
    cache.requested(KIND, &name());
    let bad = || received(Err(Invalid::new("bad")));
    assert!(cache.received(KIND, "c", bad(), &said("1")).visible);
    assert_eq!(cache.received(KIND, "c", bad(), &said("2")), Change::default());
    assert!(cache.unreachable("refused") && !cache.unreachable("refused") && cache.unreachable("reset"));
    assert!(cache.reachable() && !cache.reachable());
}

#[test]
fn an_equal_value_keeps_its_identity_and_is_no_change() {
    let mut cache = Cache::new("node-7", &[]);
    cache.requested(KIND, &name());
    assert!(accept(&mut cache, 1).visible);
    let held = |cache: &Cache| match cache.lookup(KIND, "c") {
        Lookup::Usable { value: Resource::Cluster(cluster), .. } => Arc::clone(cluster),
        other => panic!("{other:?}"),
    };
    let before = held(&cache);
    assert_eq!(accept(&mut cache, 1), Change::default());
    assert!(Arc::ptr_eq(&before, &held(&cache)));
    assert!(accept(&mut cache, 2).visible && !Arc::ptr_eq(&before, &held(&cache)));
    assert_eq!(status(&cache).version.as_deref(), Some("2"));
}

#[test]
fn a_good_value_clears_the_ambient_error_and_the_deletion() {
    let mut cache = Cache::new("node-7", &[]);
    cache.requested(KIND, &name());
    accept(&mut cache, 1);
    assert_eq!(omit(&mut cache, &said("2")), 1);
    assert_eq!(omit(&mut cache, &said("2")), 0, "said once");
    assert!(matches!(cache.lookup(KIND, "c"), Lookup::Usable { deleted: true, .. }));
    assert!(accept(&mut cache, 1).visible, "the same value, but the note is gone");
    assert!(matches!(cache.lookup(KIND, "c"), Lookup::Usable { deleted: false, note: None, .. }));
}

#[test]
fn ignored_fields_are_news_once_per_path() {
    let mut cache = Cache::new("node-7", &[]);
    cache.requested(KIND, &name());
    let with = |paths: &[&str]| Received {
        ignored: paths.iter().map(|path| IgnoredField { path: (*path).to_owned(), reason: "x" }).collect(),
        ..received(Ok(value(1)))
    };
    let paths = |change: Change| change.newly_ignored.into_iter().map(|field| field.path).collect::<Vec<_>>();
    assert_eq!(paths(cache.received(KIND, "c", with(&["a"]), &said("1"))), ["a"]);
    assert_eq!(paths(cache.received(KIND, "c", with(&["a", "b"]), &said("2"))), ["b"]);
    assert_eq!(status(&cache).ignored.len(), 2);
}

#[test]
fn what_was_not_subscribed_is_not_kept() {
    let mut cache = Cache::new("node-7", &[]);
    assert_eq!(accept(&mut cache, 1), Change::default());
    cache.requested(KIND, &name());
    accept(&mut cache, 1);
    cache.forget(KIND, "c");
    assert_eq!((seen(&cache), cache.names().count()), ("-", 0));
}

#[test]
fn the_value_in_use_and_the_refused_update_are_shown_side_by_side() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let clock = Clock { now: at(10), ..Clock::now() };
    let raw = |raw: &'static str, value| Received { raw: Bytes::from_static(raw.as_bytes()), ..received(value) };
    let mut cache = Cache::new("node-7", &[]);
    cache.requested(KIND, &name());
    let before = status(&cache);
    assert_eq!((before.state, before.version, before.resource), (ResourceState::Requested, None, None));

    let said = |version: &str, seconds| Said { version: version.into(), at: at(seconds) };
    cache.received(KIND, "c", raw("good", Ok(value(1))), &said("1", 1));
    cache.received(KIND, "c", raw("bad", Err(Invalid::new("no"))), &said("2", 2));
    let shown = shown(&cache, &clock);
    assert_eq!(shown.version.as_deref(), Some("1"));
    assert_eq!(shown.resource.as_deref(), Some(&b"good"[..]));
    assert_eq!(shown.last_updated, Some(clock.wall(at(1))));
    let failure = shown.failure.expect("it was refused");
    assert_eq!(failure.version.as_deref(), Some("2"));
    assert_eq!(failure.resource.as_deref(), Some(&b"bad"[..]));
    assert_eq!(failure.at, clock.wall(at(2)));
    assert_ne!(failure.at, clock.wall(at(1)));

    // A deletion brings nothing to show; what was good is still in use.
    omit(&mut cache, &said("3", 3));
    let shown = status(&cache);
    assert_eq!((shown.state, shown.resource.as_deref()), (ResourceState::DoesNotExist, Some(&b"good"[..])));
    let failure = shown.failure.expect("it was deleted");
    assert_eq!((failure.version.as_deref(), failure.resource), (Some("3"), None));

    cache.received(KIND, "c", raw("better", Ok(value(2))), &said("4", 4));
    let shown = status(&cache);
    assert_eq!((shown.state, shown.failure), (ResourceState::Acked, None));
    assert_eq!(shown.resource.as_deref(), Some(&b"better"[..]));
}

#[test]
fn a_value_that_was_dropped_is_not_shown_as_in_use() {
    let mut cache = Cache::new("node-7", &[Feature::FailOnDataErrors]);
    cache.requested(KIND, &name());
    accept(&mut cache, 1);
    cache.received(KIND, "c", received(Err(Invalid::new("no"))), &said("2"));
    let shown = status(&cache);
    assert_eq!((shown.version, shown.resource, shown.last_updated), (None, None, None));
    assert!(shown.failure.is_some());
}

#[test]
fn what_is_removed_before_it_came_is_gone_for_good_once_its_timer_has_fired() {
    for features in [&[][..], &[Feature::FailOnDataErrors], &[Feature::ResourceTimerIsTransient]] {
        let mut cache = Cache::new("node-7", features);
        cache.requested(KIND, &name());
        let change = cache.removed(KIND, "c", &said("1"));
        assert!(change.visible && change.new_error.is_some_and(|text| text.contains("the control plane says so")));
        assert_eq!((seen(&cache), status(&cache).state), ("gone?", ResourceState::DoesNotExist));
        assert_eq!(cache.removed(KIND, "c", &said("2")), Change::default(), "said before");
        let change = cache.timed_out(KIND, "c", Duration::from_secs(15), Instant::now());
        assert_eq!((change.visible, change.new_error), (true, None));
        assert_eq!((seen(&cache), status(&cache).state), ("Err", ResourceState::DoesNotExist));
        assert!(accept(&mut cache, 1).visible);
        assert_eq!(seen(&cache), "v");
    }
}

#[test]
fn what_is_removed_before_it_came_may_come_after_all() {
    let mut cache = Cache::new("node-7", &[]);
    cache.requested(KIND, &name());
    cache.removed(KIND, "c", &said("1"));
    // That it is not there is known: an outage is no reason to ask somebody else (A71).
    cache.unreachable("refused");
    assert_eq!(seen(&cache), "gone?");
    cache.reachable();
    accept(&mut cache, 1);
    assert_eq!((seen(&cache), status(&cache).failure), ("v", None));
    // Now it is a deletion.
    cache.removed(KIND, "c", &said("2"));
    assert_eq!(seen(&cache), "v!");
}
