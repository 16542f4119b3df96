//! Resources from YAML and JSON in Envoy's own format, one text or a directory of files.
//!
//! A text holds documents; a document is a typed resource (an object with `@type`), a list of them, or an object with
//! a list `resources`, as Envoy's filesystem subscriptions use. All mistakes of all files are collected. This file does
//! NOT watch anything.

use super::{
    check::Inconsistent,
    json::{self, Typed},
    resources::Resources,
};
use crate::resource::{Invalid, Kind};
use envoy_types::pb::google::protobuf::Any;
use serde::Deserialize;
use serde_json::Value;
use serde_norway::Value as Yaml;
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// Resources that cannot be loaded: everything that is wrong, not only the first thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// At least one.
    pub mistakes: Vec<Mistake>,
}

/// One mistake in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mistake {
    /// The file, if it was one.
    pub file: Option<PathBuf>,
    /// Number of the document in the file, from 1; 0 when the mistake is not in a document.
    pub document: usize,
    /// Field path in protobuf spelling (`resources[0].virtual_hosts[1].domains`); empty for the file as a whole.
    pub path: String,
    /// What is wrong there.
    pub reason: String,
}

impl Resources {
    /// Reads resources from YAML or JSON.
    ///
    /// ```
    /// # use mesh_xds::control_plane::Resources;
    /// let resources = Resources::from_yaml(r#"
    /// resources:
    /// - "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
    ///   name: greeter
    ///   type: EDS
    ///   connect_timeout: 0.25s
    ///   eds_cluster_config: { eds_config: { ads: {} } }
    /// "#)?;
    /// assert_eq!(resources.len(), 1);
    /// # Ok::<_, mesh_xds::control_plane::LoadError>(())
    /// ```
    ///
    /// # Errors
    /// [`LoadError`] with every mistake and its place.
    pub fn from_yaml(text: &str) -> Result<Self, LoadError> {
        let mut load = Load::default();
        load.text(None, text);
        load.finish()
    }

    /// Reads resources from one file.
    ///
    /// # Errors
    /// [`LoadError`] with every mistake and its place.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let mut load = Load::default();
        load.file(path.as_ref());
        load.finish()
    }

    /// Reads all files of a directory that end in `.yaml`, `.yml` or `.json`, without those in directories below
    /// it and those whose names begin with a dot.
    ///
    /// # Errors
    /// [`LoadError`] with every mistake and its place, in particular a resource that two files define.
    pub fn from_dir(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let mut load = Load::default();
        match files_of(path.as_ref()) {
            Ok(files) => files.iter().for_each(|file| load.file(file)),
            Err(error) => load.unreadable(path.as_ref(), &error),
        }
        load.finish()
    }
}

fn files_of(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let wanted = path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known));
        // Not the entry's own type: Kubernetes mounts its files as symbolic links.
        if wanted && !hidden && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

impl LoadError {
    pub(super) fn unwatchable(folder: &Path, error: &notify::Error) -> Self {
        let mut load = Load::default();
        load.mistake(Some(folder), 0, Invalid::new(format!("cannot be watched: {error}")));
        Self { mistakes: load.mistakes }
    }

    pub(super) fn inconsistent(folder: &Path, inconsistent: &Inconsistent) -> Self {
        let mut load = Load::default();
        for missing in &inconsistent.missing {
            load.mistake(Some(folder), 0, Invalid::new(format!("missing: {missing}")));
        }
        Self { mistakes: load.mistakes }
    }
}

#[derive(Default)]
struct Load {
    resources: Resources,
    mistakes: Vec<Mistake>,
}

impl Load {
    fn finish(self) -> Result<Resources, LoadError> {
        if self.mistakes.is_empty() { Ok(self.resources) } else { Err(LoadError { mistakes: self.mistakes }) }
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) {
        self.mistake(Some(path), 0, Invalid::new(format!("cannot be read: {error}")));
    }

    fn mistake(&mut self, file: Option<&Path>, document: usize, invalid: Invalid) {
        let Invalid { path, reason } = invalid;
        self.mistakes.push(Mistake { file: file.map(Path::to_owned), document, path, reason });
    }

    fn file(&mut self, path: &Path) {
        match fs::read_to_string(path) {
            Ok(text) => self.text(Some(path), &text),
            Err(error) => self.unreadable(path, &error),
        }
    }

    fn text(&mut self, file: Option<&Path>, text: &str) {
        // JSON is YAML, except that tabs may indent it.
        if file.and_then(Path::extension).is_some_and(|end| end == "json") {
            return match serde_json::from_str(text) {
                Ok(value) => self.document(file, 1, &value),
                Err(error) => self.mistake(file, 1, Invalid::new(error.to_string())),
            };
        }
        for (index, document) in serde_norway::Deserializer::from_str(text).enumerate() {
            match Yaml::deserialize(document).map_err(|error| Invalid::new(error.to_string())).and_then(json_of_yaml) {
                Ok(value) => self.document(file, index + 1, &value),
                // After a syntax error the parser cannot tell where the next document begins.
                Err(invalid) => return self.mistake(file, index + 1, invalid),
            }
        }
    }

    fn document(&mut self, file: Option<&Path>, number: usize, value: &Value) {
        let (list, values) = match value {
            // A document of comments only.
            Value::Null => return,
            Value::Array(values) => (Some(""), values.as_slice()),
            Value::Object(object) => match object.get("resources") {
                Some(Value::Array(values)) => (Some("resources"), values.as_slice()),
                Some(other) => {
                    return self.mistake(file, number, json::expected("a list", other).within("resources"));
                }
                // A DiscoveryResponse without resources: protobuf-JSON leaves empty lists out.
                None if !object.contains_key("@type") && object.contains_key("type_url") => return,
                None => (None, std::slice::from_ref(value)),
            },
            other => return self.mistake(file, number, json::expected("a resource or a list of resources", other)),
        };
        for (index, value) in values.iter().enumerate() {
            if let Err(invalid) = resource(value).and_then(|resource| self.add(resource)) {
                let placed = match list {
                    Some(list) => invalid.at(index, list),
                    None => invalid,
                };
                self.mistake(file, number, placed);
            }
        }
    }

    fn add(&mut self, Typed { type_url, value }: Typed) -> Result<(), Invalid> {
        let any = Any { type_url, value };
        let name = Resources::name_of(&any);
        if name.is_empty() {
            return Err(Invalid::new(format!("a resource of type {} without a name", any.type_url)));
        }
        if self.resources.contains(&any.type_url, &name) {
            let kind = Kind::from_type_url(&any.type_url).map_or(any.type_url, |kind| kind.to_string());
            return Err(Invalid::new(format!("{kind} {name} is defined twice")));
        }
        self.resources.insert_raw(&name, any);
        Ok(())
    }
}

/// A typed resource, also inside the `Resource` wrapper of the discovery service.
fn resource(value: &Value) -> Result<Typed, Invalid> {
    let is_wrapper = |url: &str| url.ends_with("/envoy.service.discovery.v3.Resource");
    match value.get("@type").and_then(Value::as_str) {
        Some(url) if is_wrapper(url) => match value.get("resource") {
            Some(inner) => json::typed(inner).map_err(|invalid| invalid.within("resource")),
            None => Err(Invalid::new("is missing").within("resource")),
        },
        _ => json::typed(value),
    }
}

/// YAML is more than JSON (tags, keys of any type, merge keys): what JSON has no form for is a mistake.
fn json_of_yaml(mut yaml: Yaml) -> Result<Value, Invalid> {
    fn convert(yaml: Yaml) -> Result<Value, Invalid> {
        Ok(match yaml {
            Yaml::Null => Value::Null,
            Yaml::Bool(value) => value.into(),
            Yaml::Number(value) => number(&value),
            Yaml::String(value) => value.into(),
            Yaml::Sequence(values) => {
                let values = values.into_iter().enumerate();
                Value::Array(
                    values
                        .map(|(index, value)| convert(value).map_err(|invalid| invalid.at(index, "")))
                        .collect::<Result<_, _>>()?,
                )
            }
            Yaml::Mapping(entries) => Value::Object(
                entries
                    .into_iter()
                    .map(|(key, value)| {
                        let key = match convert(key)? {
                            Value::String(key) => key,
                            scalar @ (Value::Bool(_) | Value::Number(_)) => scalar.to_string(),
                            other => return Err(json::expected("a key", &other)),
                        };
                        let value = convert(value).map_err(|invalid| invalid.within(&key))?;
                        Ok((key, value))
                    })
                    .collect::<Result<_, _>>()?,
            ),
            Yaml::Tagged(tagged) => {
                return Err(Invalid::new(format!("the YAML tag {} means nothing here", tagged.tag)));
            }
        })
    }
    yaml.apply_merge().map_err(|error| Invalid::new(error.to_string()))?;
    convert(yaml)
}

fn number(value: &serde_norway::Number) -> Value {
    let whole = value.as_u64().map(Value::from).or_else(|| value.as_i64().map(Value::from));
    whole.unwrap_or_else(|| match value.as_f64() {
        Some(float) if float.is_finite() => float.into(),
        // Protobuf-JSON spells these as strings.
        Some(float) if float.is_nan() => "NaN".into(),
        Some(float) => if float > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        None => Value::Null,
    })
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        if self.document > 1 {
            write!(f, "document {}: ", self.document)?;
        }
        if self.path.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.path, self.reason) }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mistakes.iter().enumerate().try_for_each(|(index, mistake)| {
            f.write_str(if index == 0 { "" } else { "; " })?;
            mistake.fmt(f)
        })
    }
}

impl std::error::Error for LoadError {}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

    fn names(text: &str) -> Vec<String> {
        let resources = Resources::from_yaml(text).expect("good YAML");
        resources.names(CLUSTERS).map(str::to_owned).collect()
    }

    fn mistakes(text: &str) -> Vec<String> {
        Resources::from_yaml(text).expect_err("bad YAML").mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn all_shapes_of_documents_are_read() {
        let text = format!(
            "resources: [{{'@type': {CLUSTERS}, name: a}}]\n---\n# nothing\n---\n'@type': {CLUSTERS}\nname: b\n---\n\
             - &c {{'@type': {CLUSTERS}, name: c}}\n- {{<<: *c, name: d}}\n---\nversion_info: '1'\nresources:\n\
             - '@type': type.googleapis.com/envoy.service.discovery.v3.Resource\n  name: e\n  \
             resource: {{'@type': {CLUSTERS}, name: e}}\n"
        );
        assert_eq!(names(&text), ["a", "b", "c", "d", "e"]);
        assert_eq!(names(&format!("{{\"resources\": [{{\"@type\": \"{CLUSTERS}\", \"name\": \"a\"}}]}}")), ["a"]);
        assert_eq!(names(""), [""; 0]);
    }

    #[test]
    fn every_mistake_is_reported_with_its_place() {
        let text = format!(
            "- {{'@type': {CLUSTERS}, name: a, lb_policy: X}}\n- {{'@type': {CLUSTERS}}}\n\
             - {{'@type': {CLUSTERS}, name: a}}\n- 7\n---\nname: b\n"
        );
        assert_eq!(
            mistakes(&text),
            [
                "[0].lb_policy: unrecognized enum value 'X'".to_owned(),
                format!("[1]: a resource of type {CLUSTERS} without a name"),
                "[3]: expected an object, found 7".into(),
                "document 2: \"@type\" is missing".into(),
            ]
        );
    }

    #[test]
    fn a_resource_is_defined_once() {
        let text = format!("- {{'@type': {CLUSTERS}, name: a}}\n- {{'@type': {CLUSTERS}, name: a}}\n");
        assert_eq!(mistakes(&text), ["[1]: Cluster a is defined twice"]);
    }

    #[test]
    fn broken_yaml_says_the_line() {
        let [mistake] = mistakes("a: 1\nb: [\n").try_into().expect("one mistake");
        assert!(mistake.contains("line 3"), "{mistake}");
        let [mistake] = mistakes("a: 1\na: 2\n").try_into().expect("one mistake");
        assert!(mistake.contains("duplicate"), "{mistake}");
    }
}
