//! Where things are: the repository, its build folder and the cache outside it.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The only platform that Firedrill is built for.
pub const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the repository").to_path_buf()
}

/// Cargo's build folder (`$CARGO_TARGET_DIR`, else `target/`).
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Where a binary of the workspace is put by `profile` (`debug` or `release`).
pub fn binary(profile: &str, name: &str) -> PathBuf {
    target().join(TRIPLE).join(profile).join(name)
}

/// A folder for downloads that outlive a clean build: `$XDG_CACHE_HOME/firedrill`, else `~/.cache/firedrill`.
pub fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) if Path::new(&dir).is_absolute() => PathBuf::from(dir),
        _ => home()?.join(".cache"),
    };
    Ok(base.join("firedrill"))
}

/// Cargo's home: `$CARGO_HOME`, else `~/.cargo`.
pub fn cargo_home() -> Result<PathBuf> {
    match env::var_os("CARGO_HOME") {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => Ok(home()?.join(".cargo")),
    }
}

fn home() -> Result<PathBuf> {
    env::home_dir().context("no home folder is known: set HOME")
}

/// True when we run as root.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// A path as a person wants to read it: relative to the repository where it is inside it.
pub fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
