//! The `rpc-behavior` request header of the PSM suite: what a backend is asked to do before it answers.
//!
//! The vocabulary is the suite's, so that the same header steers any implementation's backend. It does NOT answer calls;
//! it waits and says with what to answer.

use http::HeaderMap;
use std::{future, time::Duration};
use tokio::time;

/// What an answer shall be, once the behaviours before it were obeyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Proceed,
    /// Answer with this status code: a gRPC code, or an HTTP status for plain HTTP.
    Fail(u16),
    /// The header is not in the vocabulary.
    Malformed(String),
}

/// One entry of the header.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Behavior {
    Sleep(Duration),
    KeepOpen,
    ErrorCode(u16),
    SucceedOnRetryAttempt(u32),
}

/// Obeys the `rpc-behavior` headers of a call to `hostname`, in their order.
pub(crate) async fn obey(headers: &HeaderMap, hostname: &str) -> Verdict {
    let behaviors = match parse(headers, hostname) {
        Ok(behaviors) => behaviors,
        Err(malformed) => return Verdict::Malformed(malformed),
    };
    let attempt = previous_attempts(headers);
    for behavior in behaviors {
        match behavior {
            Behavior::Sleep(pause) => time::sleep(pause).await,
            // Never answered: the caller's deadline or cancellation drops this future.
            Behavior::KeepOpen => future::pending::<()>().await,
            Behavior::ErrorCode(code) => return Verdict::Fail(code),
            Behavior::SucceedOnRetryAttempt(wanted) if wanted == attempt => return Verdict::Proceed,
            Behavior::SucceedOnRetryAttempt(_) => {}
        }
    }
    Verdict::Proceed
}

fn previous_attempts(headers: &HeaderMap) -> u32 {
    let attempts = headers.get("grpc-previous-rpc-attempts").and_then(|value| value.to_str().ok());
    attempts.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn parse(headers: &HeaderMap, hostname: &str) -> Result<Vec<Behavior>, String> {
    let mut behaviors = Vec::new();
    for value in headers.get_all("rpc-behavior") {
        let text = value.to_str().map_err(|_| format!("rpc-behavior is not text: {value:?}"))?;
        for entry in text.split(',') {
            // "hostname=H " in front: only that host obeys.
            let behavior = match entry.strip_prefix("hostname=") {
                Some(rest) => match rest.split_once(' ') {
                    Some((host, behavior)) if host == hostname => behavior,
                    Some(_) => continue,
                    None => return Err(format!("rpc-behavior {entry:?}: no behavior after the hostname")),
                },
                None => entry,
            };
            let parsed = one(behavior).ok_or_else(|| format!("rpc-behavior {behavior:?} is not known"))?;
            behaviors.push(parsed);
        }
    }
    Ok(behaviors)
}

fn one(behavior: &str) -> Option<Behavior> {
    if behavior == "keep-open" {
        return Some(Behavior::KeepOpen);
    }
    if let Some(seconds) = behavior.strip_prefix("sleep-") {
        return seconds.parse().ok().map(|seconds| Behavior::Sleep(Duration::from_secs(seconds)));
    }
    if let Some(code) = behavior.strip_prefix("error-code-") {
        return code.parse().ok().map(Behavior::ErrorCode);
    }
    let attempt = behavior.strip_prefix("succeed-on-retry-attempt-")?;
    attempt.parse().ok().map(Behavior::SucceedOnRetryAttempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(behaviors: &[&'static str], attempt: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for behavior in behaviors {
            headers.append("rpc-behavior", http::HeaderValue::from_static(behavior));
        }
        if let Some(attempt) = attempt {
            headers.insert("grpc-previous-rpc-attempts", http::HeaderValue::from_static(attempt));
        }
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn behaviors_are_obeyed_in_order() {
        let begin = time::Instant::now();
        assert_eq!(obey(&call(&["sleep-3,error-code-14"], None), "a").await, Verdict::Fail(14));
        assert_eq!(begin.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test]
    async fn a_hostname_prefix_chooses_the_backend() {
        let headers = call(&["hostname=b error-code-5"], None);
        assert_eq!(obey(&headers, "a").await, Verdict::Proceed);
        assert_eq!(obey(&headers, "b").await, Verdict::Fail(5));
    }

    #[tokio::test]
    async fn only_the_named_attempt_succeeds() {
        let behaviors = ["succeed-on-retry-attempt-2,error-code-14"];
        assert_eq!(obey(&call(&behaviors, None), "a").await, Verdict::Fail(14));
        assert_eq!(obey(&call(&behaviors, Some("1")), "a").await, Verdict::Fail(14));
        assert_eq!(obey(&call(&behaviors, Some("2")), "a").await, Verdict::Proceed);
    }

    #[tokio::test]
    async fn an_unknown_behavior_is_malformed() {
        for unknown in ["dance", "sleep-long", "hostname=a"] {
            assert!(matches!(obey(&call(&[unknown], None), "a").await, Verdict::Malformed(_)), "{unknown}");
        }
    }
}
