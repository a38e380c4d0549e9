//! Running other programs: said before, checked after.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Starts a command line from a program and its arguments.
pub fn command<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command
}

/// Prints the command line, runs it with the terminal's output, and fails when it fails.
pub fn checked(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", line(command));
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs a command quietly and returns what it wrote to standard output; its errors go to the terminal.
pub fn output(command: &mut Command) -> Result<String> {
    let done =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !done.status.success() {
        bail!("`{}` ended with {}", line(command), done.status);
    }
    String::from_utf8(done.stdout).with_context(|| format!("`{}` wrote something that is not text", line(command)))
}

/// The command line as one would type it.
pub fn line(command: &Command) -> String {
    let mut text = String::new();
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        if !text.is_empty() {
            text.push(' ');
        }
        let word = word.to_string_lossy();
        if word.is_empty() || word.contains([' ', '"', '\'', '$', ';', '&', '|', '*']) {
            text.push_str(&format!("'{}'", word.replace('\'', r"'\''")));
        } else {
            text.push_str(&word);
        }
    }
    text
}

/// The path of an installed program. `/usr/sbin` and `/sbin` are looked through as well, because ordinary
/// users on Debian do not have them on their `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
