//! A97, sentence by sentence, on a clock that the test moves.

use super::*;

const NOW: Duration = Duration::from_secs(1_000_000);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// What a file with these claims holds.
fn jwt(claims: &str) -> String {
    format!("{}.{}.sig", URL_SAFE_NO_PAD.encode("{}"), URL_SAFE_NO_PAD.encode(claims))
}

/// A token whose `exp` is so far away.
fn token(exp: Duration) -> Token {
    Token::parse(&jwt(&format!(r#"{{"exp": {}}}"#, (NOW + exp).as_secs()))).expect("valid")
}

fn cached(exp: Duration) -> Cache {
    let mut cache = Cache::default();
    cache.read_ended(NOW, Ok(token(exp)), 0.5);
    cache
}

#[test]
fn exp_is_all_that_is_read() {
    let text = format!("  {}\n", jwt(r#"{"exp": 1000.5, "aud": ["istio-ca"], "iss": 7}"#));
    let token = Token::parse(&text).expect("valid");
    assert_eq!(token.expires, Duration::from_millis(970_500));
    assert_eq!(token.value, format!("Bearer {}", text.trim()));
    assert!(!format!("{token:?}").contains("sig"), "tokens are not for logs");
    for (text, reason) in [
        ("", "a JWT has three parts"),
        ("a.b", "a JWT has three parts"),
        ("a.b.c.d", "a JWT has three parts"),
        ("a.!.c", "the claims are not base64url"),
        ("a.YQ.c", "the claims are not JSON"),
        (&jwt("{}"), "the claims have no number `exp`"),
        (&jwt(r#"{"exp": "1000"}"#), "the claims have no number `exp`"),
        (&jwt(r#"{"exp": -1}"#), "`exp` is out of range"),
        (&jwt(r#"{"exp": 1e300}"#), "`exp` is out of range"),
        (&format!("a\u{1}{}", jwt(r#"{"exp": 1}"#)), "not the characters of a JWT"),
    ] {
        assert_eq!(Token::parse(text), Err(reason), "{text:?}");
    }
}

#[test]
fn the_first_call_waits_for_the_file_and_later_ones_use_what_it_held() {
    let mut cache = Cache::default();
    assert!(matches!(cache.call_starts(NOW), Start::AfterRead));
    cache.read_ended(NOW, Ok(token(seconds(1000))), 0.5);
    assert!(matches!(cache.call_starts(NOW + seconds(909)), Start::With(_)));
}

#[test]
fn a_call_in_the_last_minute_uses_the_old_token_and_reads_the_new_one_once() {
    let mut cache = cached(seconds(1000));
    let late = NOW + seconds(910);
    assert!(matches!(cache.call_starts(late), Start::WithAndRead(_)));
    assert!(matches!(cache.call_starts(late), Start::With(_)), "one read at a time");
    cache.read_ended(late, Ok(token(seconds(2000))), 0.5);
    let Start::With(value) = cache.call_starts(late) else { panic!("the new one is far from its end") };
    assert_eq!(value, token(seconds(2000)).value);
}

#[test]
fn an_expired_token_is_not_used() {
    let mut cache = cached(seconds(1000));
    assert!(matches!(cache.call_starts(NOW + seconds(969)), Start::WithAndRead(_)));
    assert!(matches!(cache.call_starts(NOW + seconds(970)), Start::AfterRead));
}

#[test]
fn after_a_failed_read_calls_fail_alike_until_the_backoff_ends() {
    let mut cache = Cache::default();
    let unreadable = || Err(Status::unavailable("gone"));
    cache.read_ended(NOW, unreadable(), 0.5);
    let Start::Fail(status) = cache.call_starts(NOW + Duration::from_millis(999)) else { panic!("in backoff") };
    assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "gone"));
    assert!(matches!(cache.call_starts(NOW + seconds(1)), Start::AfterRead));
    cache.read_ended(NOW, unreadable(), 0.5);
    assert!(matches!(cache.call_starts(NOW + Duration::from_millis(1599)), Start::Fail(_)), "1 s, then 1.6 s");
    cache.read_ended(NOW, Ok(token(seconds(0))), 0.5);
    assert!(matches!(cache.call_starts(NOW), Start::AfterRead), "good reads know no backoff");
}

#[test]
fn a_failed_read_in_the_last_minute_leaves_the_token_in_use() {
    let mut cache = cached(seconds(1000));
    let late = NOW + seconds(920);
    assert!(matches!(cache.call_starts(late), Start::WithAndRead(_)));
    cache.read_ended(late, Err(Status::unauthenticated("half written")), 0.5);
    assert!(matches!(cache.call_starts(late), Start::With(_)), "in backoff");
    assert!(matches!(cache.call_starts(late + seconds(1)), Start::WithAndRead(_)));
}
