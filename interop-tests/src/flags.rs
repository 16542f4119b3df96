//! The command lines of the interop binaries: plain `--flag=value` arguments.
//!
//! They exist so that any harness of gRPC's PSM suite can start our binaries like everybody else's. A flag that is not
//! known is reported and skipped, because harnesses pass more than each binary needs. It does NOT know any binary's
//! flags.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// The flags of one command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    values: BTreeMap<String, String>,
}

/// Why a command line can not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadFlag {
    flag: String,
    reason: String,
}

impl BadFlag {
    /// `flag` can not be used for `reason`.
    pub fn new(flag: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { flag: flag.into(), reason: reason.into() }
    }
}

impl fmt::Display for BadFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}: {}", self.flag, self.reason)
    }
}

impl std::error::Error for BadFlag {}

impl Flags {
    /// Reads `--flag=value` (or `-flag=value`; without a value: `true`). Unknown flags are passed to `unknown`.
    ///
    /// # Errors
    /// An argument that is not a flag.
    pub fn parse(
        arguments: impl IntoIterator<Item = String>,
        known: &[&str],
        mut unknown: impl FnMut(&str),
    ) -> Result<Self, BadFlag> {
        let mut values = BTreeMap::new();
        for argument in arguments {
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                return Err(BadFlag::new(argument, "not a --flag=value"));
            };
            let (name, value) = flag.split_once('=').unwrap_or((flag, "true"));
            if known.contains(&name) {
                values.insert(name.to_owned(), value.to_owned());
            } else {
                unknown(name);
            }
        }
        Ok(Self { values })
    }

    /// The text of `flag`, if it was given.
    pub fn text(&self, flag: &str) -> Option<&str> {
        self.values.get(flag).map(String::as_str)
    }

    /// The parsed value of `flag`, or `default`.
    ///
    /// # Errors
    /// The value does not parse.
    pub fn value<T: FromStr<Err: fmt::Display>>(&self, flag: &str, default: T) -> Result<T, BadFlag> {
        self.text(flag)
            .map_or(Ok(default), |text| text.parse().map_err(|error| BadFlag::new(flag, format!("{text:?}: {error}"))))
    }

    /// Like [`Flags::value`] for a flag that must be given.
    ///
    /// # Errors
    /// The flag is missing or does not parse.
    pub fn required<T: FromStr<Err: fmt::Display>>(&self, flag: &str) -> Result<T, BadFlag> {
        let text = self.text(flag).ok_or_else(|| BadFlag::new(flag, "must be given"))?;
        text.parse().map_err(|error| BadFlag::new(flag, format!("{text:?}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> (Result<Flags, BadFlag>, Vec<String>) {
        let mut skipped = Vec::new();
        let arguments = arguments.iter().map(|&argument| argument.to_owned());
        let flags = Flags::parse(arguments, &["port", "secure_mode"], |flag| skipped.push(flag.to_owned()));
        (flags, skipped)
    }

    #[test]
    fn flags_are_parsed_and_unknown_ones_reported() {
        let (flags, skipped) = parse(&["--port=80", "--secure_mode", "--later=1"]);
        let flags = flags.expect("every argument is a flag");
        assert_eq!(flags.value("port", 0u16), Ok(80));
        assert_eq!(flags.value("secure_mode", false), Ok(true));
        assert_eq!(skipped, ["later"]);
    }

    #[test]
    fn a_bad_value_names_its_flag() {
        let flags = parse(&["--port=many"]).0.expect("every argument is a flag");
        let error = flags.value("port", 0u16).expect_err("no number");
        assert_eq!(error.to_string(), "--port: \"many\": invalid digit found in string");
        assert_eq!(
            flags.required::<bool>("secure_mode").expect_err("missing").to_string(),
            "--secure_mode: must be given"
        );
    }
}
