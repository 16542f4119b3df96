//! How a server of the bootstrap is talked to: `channel_creds` (A27, A65) and `call_creds` (A97); and where certificates for
//! the data plane come from: `certificate_providers` (A29).
//!
//! Of the channel credentials the first supported entry counts, of the call credentials every one. An unsupported type
//! is skipped: `google_default` is one here, since Google's tokens and ALTS are not. A supported type whose config is
//! wrong makes the bootstrap invalid, so that a misspelt file name never ends in weaker credentials further down the
//! list. Files are NOT opened here.

use super::parse::{Object, object, present, string};
use crate::{resource::Invalid, tls::TlsConfig};
use serde_json::Value;
use std::{path::PathBuf, time::Duration};

/// What the connection is wrapped in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ChannelCredentials {
    /// Nothing.
    Insecure,
    /// TLS, with a certificate of our own or without.
    Tls(TlsConfig),
}

/// What each call carries; never in plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallCredentials {
    /// `authorization: Bearer`, from this file.
    JwtTokenFile(PathBuf),
}

/// "Client will stop at the first type it supports" - A27.
pub(super) fn channel_creds(creds: Option<&Value>) -> Result<ChannelCredentials, Invalid> {
    let Some(Value::Array(entries)) = creds else {
        return Err(Invalid::new("must be a list of at least one entry"));
    };
    let mut seen = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let at = |invalid: Invalid| invalid.at(index, "");
        let entry = object(entry).map_err(at)?;
        match string(entry, "type").map_err(at)? {
            "insecure" => return Ok(ChannelCredentials::Insecure),
            "tls" => return with_config(entry, tls).map(ChannelCredentials::Tls).map_err(at),
            other => seen.push(other),
        }
    }
    Err(Invalid::new(format!("no supported type among [{}]; supported: insecure, tls", seen.join(", "))))
}

/// "Client will apply all call creds types that it supports but will ignore any types that it does not support." - A97
pub(super) fn call_creds(creds: Option<&Value>) -> Result<Vec<CallCredentials>, Invalid> {
    let entries = match creds {
        None => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err(Invalid::new("must be a list")),
    };
    let mut supported = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let at = |invalid: Invalid| invalid.at(index, "");
        let entry = object(entry).map_err(at)?;
        if string(entry, "type").map_err(at)? == "jwt_token_file" {
            supported.push(with_config(entry, jwt_token_file).map_err(at)?);
        }
    }
    Ok(supported)
}

/// Whether it is of a plugin that is known here: "unknown: skipped, so that resources which refer to it are NACKed" (A29).
pub(super) fn certificate_provider(provider: &Value) -> Result<bool, Invalid> {
    let provider = object(provider)?;
    match string(provider, "plugin_name")? {
        "file_watcher" => with_config(provider, file_watcher).map(|()| true),
        _ => Ok(false),
    }
}

/// The same files as those of `tls`, but there is no other identity, and no system's roots.
fn file_watcher(config: &Object) -> Result<(), Invalid> {
    let _judged = tls(config)?;
    let files = ["certificate_file", "ca_certificate_file", "spiffe_trust_bundle_map_file"];
    for file in files {
        if !string(config, file)?.is_empty() {
            return Ok(());
        }
    }
    Err(Invalid::new("needs certificate_file and private_key_file, or ca_certificate_file"))
}

/// "It may be missing if the credential type does not require config parameters."
fn with_config<T>(entry: &Object, read: impl Fn(&Object) -> Result<T, Invalid>) -> Result<T, Invalid> {
    let empty = Object::new();
    let config = match present(entry, "config") {
        None => Ok(&empty),
        Some(config) => object(config),
    };
    config.and_then(read).map_err(|invalid| invalid.within("config"))
}

fn tls(config: &Object) -> Result<TlsConfig, Invalid> {
    let mut tls = TlsConfig::new();
    match (string(config, "certificate_file")?, string(config, "private_key_file")?) {
        ("", "") => {}
        ("", _) => return Err(Invalid::new("is needed, too: private_key_file is set").within("certificate_file")),
        (_, "") => return Err(Invalid::new("is needed, too: certificate_file is set").within("private_key_file")),
        (certificate, key) => tls = tls.identity_files(certificate, key),
    }
    match string(config, "ca_certificate_file")? {
        "" => {}
        file => tls = tls.ca_certificate_file(file),
    }
    if present(config, "spiffe_trust_bundle_map_file").is_some() {
        // gRPC without A87 does not look at it either. The CA file or the system's roots then have to vouch.
        tracing::warn!("spiffe_trust_bundle_map_file of the bootstrap has no effect");
    }
    match present(config, "refresh_interval") {
        None => Ok(tls),
        Some(interval) => {
            let interval = interval.as_str().and_then(duration).filter(|interval| !interval.is_zero());
            let wrong = || Invalid::new("must be a duration above zero, such as \"600s\"").within("refresh_interval");
            Ok(tls.refresh_interval(interval.ok_or_else(wrong)?))
        }
    }
}

fn jwt_token_file(config: &Object) -> Result<CallCredentials, Invalid> {
    match string(config, "jwt_token_file")? {
        "" => Err(Invalid::new("must not be empty").within("jwt_token_file")),
        path => Ok(CallCredentials::JwtTokenFile(path.into())),
    }
}

/// Protobuf's JSON for a duration that is not negative: seconds, up to nine digits of a fraction, `s`.
fn duration(text: &str) -> Option<Duration> {
    let number = text.strip_suffix('s')?;
    let (seconds, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds = seconds.parse().ok().filter(|seconds| *seconds <= 315_576_000_000)?;
    Some(Duration::new(seconds, format!("{fraction:0<9}").parse().ok()?))
}

#[cfg(test)]
mod tests;
