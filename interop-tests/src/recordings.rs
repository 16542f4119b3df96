//! What an istiod 1.14 sent in 57 scenarios (`fixtures/istiod/`), as responses, and as what it had at each time.
//!
//! A recording is one conversation; another client asks in another order. So besides the responses there is what the
//! istiod *had* under each of its versions, which a control plane can serve to anybody. This module does NOT serve it.

use bytes::Bytes;
use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse},
    google::protobuf::Any,
};
use mesh_xds::{decode::peek_name, resource::Kind};
use prost::{DecodeError, Message};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

/// One response, SotW or delta.
#[derive(Clone, Debug)]
pub struct Response {
    /// Scenario and file.
    pub file: String,
    /// Of what is in it.
    pub kind: Kind,
    /// `version_info` or `system_version_info`: the same for all types of a push.
    pub version: String,
    /// By name.
    pub resources: BTreeMap<String, Any>,
    /// `removed_resources`.
    pub removed: Vec<String>,
}

/// Everything that the istiod was seen to have under one version.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// The version.
    pub version: String,
    /// By kind and name.
    pub resources: BTreeMap<Kind, BTreeMap<String, Any>>,
}

/// The names of all scenarios, sorted.
///
/// # Errors
/// The files are not where the repository has them.
pub fn scenarios() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether a scenario was recorded with incremental ADS.
pub fn is_delta(scenario: &str) -> bool {
    scenario.starts_with('8')
}

/// Whether its client asked for no names: each response is all there is.
fn is_wildcard(scenario: &str) -> bool {
    scenario.starts_with('7') || scenario.starts_with("57")
}

/// The responses of a scenario, in order of arrival.
///
/// # Errors
/// A file cannot be read, or is none of the recordings.
pub fn responses(scenario: &str) -> io::Result<Vec<Response>> {
    let files = fs::read_dir(folder().join(scenario))?.map(|entry| entry.map(|entry| entry.path()));
    let mut files: Vec<PathBuf> = files.collect::<io::Result<_>>()?;
    files.sort();
    let read = |path: PathBuf| {
        let file = format!("{scenario}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        let response = response(scenario, file, Bytes::from(fs::read(&path)?));
        response.map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
    };
    files.into_iter().map(read).collect()
}

/// What the istiod had, version by version. What was not asked for under a version is as it was under the last one.
///
/// # Errors
/// As [`responses`].
pub fn configurations(scenario: &str) -> io::Result<Vec<Configuration>> {
    let mut configurations: Vec<Configuration> = Vec::new();
    let mut seen = BTreeSet::new();
    for response in responses(scenario)? {
        if configurations.last().is_none_or(|last| last.version != response.version) {
            let resources = configurations.last().map(|last| last.resources.clone()).unwrap_or_default();
            configurations.push(Configuration { version: response.version.clone(), resources });
            seen.clear();
        }
        let Some(current) = configurations.last_mut() else { continue };
        let known = current.resources.entry(response.kind).or_default();
        // "Nothing of what you asked for exists": whatever had been asked for is gone, unless it was there under the
        // same version. Then nothing was asked for.
        let is_emptied = response.resources.is_empty() && !is_delta(scenario) && !seen.contains(&response.kind);
        seen.insert(response.kind);
        if is_emptied || is_wildcard(scenario) && response.kind.is_full_state() {
            known.clear();
        }
        for name in &response.removed {
            known.remove(name);
        }
        known.extend(response.resources);
    }
    Ok(configurations)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/istiod")
}

fn response(scenario: &str, file: String, bytes: Bytes) -> Result<Response, DecodeError> {
    let (type_url, version, resources, removed) = if is_delta(scenario) {
        let response = DeltaDiscoveryResponse::decode(bytes)?;
        let resources = response.resources.into_iter().filter_map(|resource| resource.resource).collect();
        (response.type_url, response.system_version_info, resources, response.removed_resources)
    } else {
        let response = DiscoveryResponse::decode(bytes)?;
        (response.type_url, response.version_info, response.resources, Vec::new())
    };
    let kind = Kind::from_type_url(&type_url).unwrap_or(Kind::Listener);
    let named = |any: Any| (peek_name(&any.value).unwrap_or_default().to_owned(), any);
    Ok(Response { file, kind, version, resources: resources.into_iter().map(named).collect(), removed })
}
