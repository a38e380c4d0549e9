//! Calling cargo on this workspace, with the flags of `.cargo/config.toml` and no others.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{repo, run};

/// Variables that would change the flags, and so compile everything a second time.
const FOREIGN: [&str; 6] =
    ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC", "RUSTC_WRAPPER"];

/// `cargo ARGS` in the root of the repository.
pub fn cargo<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = run::command(program, args);
    command.current_dir(repo::root());
    for name in FOREIGN {
        command.env_remove(name);
    }
    // Set for xtask itself by `cargo run`; crates' build scripts would be run again because of them.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// One thing that cargo built and that can be run.
pub struct Executable {
    /// Name of the target: of the test file, the binary, or the library.
    pub name: String,
    /// `lib`, `bin`, `test` …
    pub kind: String,
    /// Folder of the package's `Cargo.toml`: tests expect to be started there.
    pub package: std::path::PathBuf,
    /// True for a libtest binary.
    pub test: bool,
    /// The file.
    pub path: std::path::PathBuf,
}

/// Runs a build (`args` must ask for `--message-format=json-render-diagnostics`), progress going to the
/// terminal, and returns the executables, fresh or not.
pub fn executables(command: &mut Command) -> Result<Vec<Executable>> {
    eprintln!("$ {}", run::line(command));
    let done = command
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("cannot start `{}`", run::line(command)))?;
    if !done.status.success() {
        bail!("`{}` ended with {}", run::line(command), done.status);
    }
    let text = String::from_utf8(done.stdout).context("cargo's messages are not UTF-8")?;
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cargo wrote a message that is not JSON")?;
        if let Some(executable) = executable(&message) {
            found.push(executable);
        }
    }
    Ok(found)
}

/// Builds one test binary of a package, and says where it is.
pub fn test_binary(package: &str, name: &str) -> Result<Executable> {
    build_test(package, name, &[])
}

/// As [`test_binary`], optimised as what users get.
pub fn release_test_binary(package: &str, name: &str) -> Result<Executable> {
    build_test(package, name, &["--release"])
}

fn build_test(package: &str, name: &str, options: &[&str]) -> Result<Executable> {
    let build = ["test", "--package", package, "--test", name, "--no-run", "--message-format=json-render-diagnostics"];
    let built = executables(&mut cargo(build.iter().chain(options).copied()))?;
    built.into_iter().find(|e| e.name == name).with_context(|| format!("cargo built no test `{name}` of {package}"))
}

impl Executable {
    /// The name of the package's folder, such as `agent`.
    pub fn folder(&self) -> String {
        self.package.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// A name that is its own among all test binaries, such as `agent/dataplane` or `model/lib`.
    pub fn label(&self) -> String {
        match self.kind.as_str() {
            "test" => format!("{}/{}", self.folder(), self.name),
            kind => format!("{}/{kind}", self.folder()),
        }
    }
}

fn executable(message: &Value) -> Option<Executable> {
    let path = message["executable"].as_str()?;
    let manifest = std::path::Path::new(message["manifest_path"].as_str()?);
    Some(Executable {
        name: message["target"]["name"].as_str()?.to_owned(),
        kind: message["target"]["kind"][0].as_str()?.to_owned(),
        package: manifest.parent()?.to_path_buf(),
        test: message["profile"]["test"].as_bool()?,
        path: path.into(),
    })
}
