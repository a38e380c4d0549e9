//! `ci`: all that must hold before a change is taken. Every check runs, even after one failed.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::{
    cargo, ebpf, run, setup,
    test::{self, outcome::Outcome, section},
};

/// Pinned, so that a new release of it cannot turn an old commit red.
const CARGO_DENY: &str = "0.20.2";

/// Runs every check. The last line that it prints is the sum of the checks and of all tests.
pub fn run() -> Result<ExitCode> {
    let mut sum = Outcome::default();
    sum += step("set-up", || setup::all().map(|()| true));
    sum += step("format", || passes(&["fmt", "--all", "--check"]));
    sum += step("in-kernel format", in_kernel_format);
    sum +=
        step("clippy", || passes(&["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"]));
    sum += dependencies();
    sum += step("in-kernel object", || ebpf::run(&ebpf::Args { check: true }).map(is_success));
    sum += test::suites(&test::Args::default()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        Outcome::of(false)
    });
    Ok(test::close(&sum, true))
}

/// One check: an error of it is a failure, and the next one runs all the same.
fn step(name: &str, check: impl FnOnce() -> Result<bool>) -> Outcome {
    section(name);
    let passed = check().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        false
    });
    println!("{name}: {}", if passed { "ok" } else { "FAILED" });
    Outcome::of(passed)
}

fn is_success(code: ExitCode) -> bool {
    code == ExitCode::SUCCESS
}

/// True when a cargo command succeeds.
fn passes(args: &[&str]) -> Result<bool> {
    let mut command = cargo::cargo(args.iter().copied());
    eprintln!("$ {}", run::line(&command));
    Ok(command.status().with_context(|| format!("cannot start `{}`", run::line(&command)))?.success())
}

/// `ebpf/` is a workspace of its own, which `cargo fmt --all` does not visit.
fn in_kernel_format() -> Result<bool> {
    passes(&["fmt", "--manifest-path", "ebpf/Cargo.toml", "--check"])
}

/// cargo-deny: licences, sources and bans always; advisories where their database can be fetched.
fn dependencies() -> Outcome {
    let mut sum = step("dependencies", || {
        if run::find("cargo-deny").is_none() {
            run::checked(&mut cargo::cargo(["install", "cargo-deny", "--version", CARGO_DENY, "--locked"]))?;
        }
        passes(&["deny", "--workspace", "--locked", "check", "bans", "licenses", "sources"])
    });
    section("advisories");
    let done = cargo::cargo(["deny", "--workspace", "--locked", "check", "advisories"]).output();
    sum += match done {
        Ok(done) if done.status.success() => Outcome::of(true),
        Ok(done) => {
            let text = String::from_utf8_lossy(&done.stderr).into_owned();
            eprintln!("{text}");
            if is_unreachable(&text) {
                println!("WARNING: ADVISORIES WERE NOT CHECKED: their database cannot be reached from here");
                Outcome::unsupported("advisories: their database cannot be reached from here")
            } else {
                Outcome::of(false)
            }
        }
        Err(error) => {
            eprintln!("error: cannot start cargo deny: {error}");
            Outcome::of(false)
        }
    };
    sum
}

/// True when cargo-deny failed before it looked at any dependency.
fn is_unreachable(text: &str) -> bool {
    text.contains("failed to fetch advisory database") && !text.contains("error[")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advisory_is_a_failure_and_a_dead_network_is_not() {
        assert!(is_unreachable("[ERROR] failed to fetch advisory database https://example\nCaused by: timed out"));
        assert!(!is_unreachable("error[vulnerability]: something in crate"));
    }
}
