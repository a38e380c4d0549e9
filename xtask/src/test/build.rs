//! Builds everything once and sorts the test binaries into suites.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cargo::{self, Executable};

/// The packages whose files under `tests/` need root.
const PRIVILEGED: [&str; 2] = ["agent", "tests"];

/// Measures: in software emulation that says nothing.
const BENCHMARK: &str = "bench_";
/// Tests for kernels on which nothing else can run.
const TOO_OLD: &str = "vm_too_old";

/// Everything that was built.
pub struct Built {
    /// The `firedrill` binary, development profile.
    pub firedrill: PathBuf,
    /// `firedrill-stage`, which tests of the whole program start.
    pub stage: PathBuf,
    tests: Vec<Executable>,
}

/// Which suite a test binary belongs to; decided by its folder and by the beginning of its file's name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Needs nothing: unit tests, and `tests/` of other packages than the two below.
    Unit,
    /// Needs root: `agent/tests/`, `tests/tests/`.
    Privileged,
    /// Needs the real services: `tests/tests/services*`.
    Services,
    /// Faults on systemd's units: `tests/tests/units*`.
    Units,
    /// Plays the demo: `tests/tests/demo*`.
    Demo,
    /// Runs in guests only: `tests/tests/vm_*`.
    Vm,
}

/// Builds the workspace: one call, so that every crate is compiled with one set of features.
pub fn all() -> Result<Built> {
    let mut command =
        cargo::cargo(["build", "--workspace", "--all-targets", "--message-format=json-render-diagnostics"]);
    let built = cargo::executables(&mut command)?;
    let program = |name: &str| {
        let found = built.iter().find(|e| e.kind == "bin" && e.name == name && !e.test);
        found.map(|e| e.path.clone()).with_context(|| format!("cargo built no `{name}` binary"))
    };
    let (firedrill, stage) = (program("firedrill")?, program("firedrill-stage")?);
    Ok(Built { firedrill, stage, tests: built.into_iter().filter(|executable| executable.test).collect() })
}

impl Built {
    /// The test binaries of a suite.
    pub fn suite(&self, suite: Suite) -> Vec<&Executable> {
        self.tests.iter().filter(|test| suite_of(&test.folder(), &test.kind, &test.name) == suite).collect()
    }

    /// The test binaries that run in a guest: those made for guests, those of the agent, and the random kills. On a kernel
    /// that is too old, those that see that this is said.
    pub fn for_guests(&self, too_old: bool) -> Vec<&Executable> {
        let chosen = |test: &&Executable| {
            let folder = test.folder();
            let suite = suite_of(&folder, &test.kind, &test.name);
            let of_any = suite == Suite::Vm
                || (suite == Suite::Privileged && (folder == "agent" || test.name == "crash_random"));
            of_any && !test.name.starts_with(BENCHMARK) && test.name.starts_with(TOO_OLD) == too_old
        };
        self.tests.iter().filter(chosen).collect()
    }
}

fn suite_of(folder: &str, kind: &str, name: &str) -> Suite {
    if kind != "test" || !PRIVILEGED.contains(&folder) {
        return Suite::Unit;
    }
    [("services", Suite::Services), ("units", Suite::Units), ("demo", Suite::Demo), ("vm_", Suite::Vm)]
        .into_iter()
        .find(|(prefix, _)| name.starts_with(prefix))
        .map_or(Suite::Privileged, |(_, suite)| suite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_file_belongs_to_the_suite_that_its_name_says() {
        assert!(suite_of("model", "lib", "firedrill_model") == Suite::Unit);
        assert!(suite_of("ctl", "test", "demo_help") == Suite::Unit);
        assert!(suite_of("agent", "lib", "firedrill_agent") == Suite::Unit);
        assert!(suite_of("agent", "test", "dataplane_loss") == Suite::Privileged);
        assert!(suite_of("tests", "test", "services_etcd") == Suite::Services);
        assert!(suite_of("tests", "test", "units") == Suite::Units);
        assert!(suite_of("tests", "test", "demo") == Suite::Demo);
        assert!(suite_of("tests", "test", "vm_clsact") == Suite::Vm);
    }
}
