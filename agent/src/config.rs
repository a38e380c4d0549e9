//! The host's configuration file: where it is, and reading it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use firedrill_model::config::{Config, DEFAULT_PATH};
use firedrill_model::file::Diagnostic;

/// Why the configuration could not be read. Then no fault is injected: a cap that is not known cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {0} cannot be read: {1}")]
    Unreadable(PathBuf, io::Error),
    /// What it says makes no sense.
    #[error("{0}")]
    Wrong(Box<Diagnostic>),
}

/// Reads the configuration at `path`, or at its usual place, where none is all by default.
///
/// # Errors
/// The file that was named is not there, or is wrong.
pub fn read(path: Option<&Path>) -> Result<Config, ConfigError> {
    let file = path.unwrap_or(Path::new(DEFAULT_PATH));
    match fs::read_to_string(file) {
        Ok(text) => Config::parse(&file.display().to_string(), &text).map_err(ConfigError::Wrong),
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.is_none() => Ok(Config::default()),
        Err(e) => Err(ConfigError::Unreadable(file.to_owned(), e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let error = read(Some(Path::new("/nonexistent/config.toml"))).expect_err("not there");
        assert!(error.to_string().contains("/nonexistent/config.toml"), "{error}");
    }
}
