//! Counting what libtest printed.
//!
//! A test that cannot run here says why in one line and returns: `SKIPPED: reason` when the machine lacks something
//! that it should have (root, a tool), `UNSUPPORTED: reason` when this kernel or machine cannot do it at all. libtest
//! calls both `ok`; here they are skipped. In CI a `SKIPPED` is a failure. `#[ignore = "run by other tests"]` marks an
//! entry point for a process that other tests start: it is not a test, and not counted.

use std::{fmt, ops::AddAssign};

/// Numbers of tests.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Tests that ran and held.
    pub passed: u64,
    /// Tests that failed, and test binaries that died.
    pub failed: u64,
    /// Names of the tests that failed, as far as a test binary lived to list them.
    pub failures: Vec<String>,
    /// Why tests that should have run did not.
    pub skipped: Vec<String>,
    /// Why tests could not have run here.
    pub unsupported: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped = self.skipped.len() + self.unsupported.len();
        write!(out, "{} passed, {} failed, {skipped} skipped", self.passed, self.failed)
    }
}

impl AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.skipped.extend(other.skipped);
        self.unsupported.extend(other.unsupported);
    }
}

impl Outcome {
    /// One check that is not a libtest binary.
    pub fn of(success: bool) -> Self {
        Self { passed: u64::from(success), failed: u64::from(!success), ..Self::default() }
    }

    /// A suite that could not run.
    pub fn skip(reason: impl Into<String>) -> Self {
        Self { skipped: vec![reason.into()], ..Self::default() }
    }

    /// A check that this machine cannot make.
    pub fn unsupported(reason: impl Into<String>) -> Self {
        Self { unsupported: vec![reason.into()], ..Self::default() }
    }

    /// Says of every reason where it came from.
    pub fn prefix(&mut self, label: &str) {
        for reason in self.skipped.iter_mut().chain(&mut self.unsupported) {
            *reason = format!("{label}: {reason}");
        }
    }

    /// Counts the output of test binaries that ran with `--show-output`.
    pub fn parse(output: &str) -> Self {
        let mut outcome = Self::default();
        let mut test = String::new();
        let mut helpers = 0;
        let mut said = false; // one test may say it several times, by its helpers
        let mut failures: Option<Vec<String>> = None; // first what they printed, then their names
        for line in output.lines().map(|line| line.trim_end_matches('\r')) {
            if line == "failures:" {
                failures = Some(Vec::new());
            } else if let (Some(names), Some(name)) = (&mut failures, line.strip_prefix("    ")) {
                names.push(name.to_owned());
            }
            if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
                test = name.to_owned();
                said = false;
            } else if let Some(result) = line.strip_prefix("test result: ") {
                outcome.result(result, helpers);
                outcome.failures.extend(failures.take().unwrap_or_default());
                helpers = 0;
                test.clear();
                said = false;
            } else if line.starts_with("test ") && line.contains(HELPER) {
                helpers += 1;
            } else if let Some(reason) = line.strip_prefix("SKIPPED: ").filter(|_| !said) {
                outcome.skipped.push(format!("{test}: {reason}"));
                said = true;
            } else if let Some(reason) = line.strip_prefix("UNSUPPORTED: ").filter(|_| !said) {
                outcome.unsupported.push(format!("{test}: {reason}"));
                said = true;
            }
        }
        // libtest counted them as passed.
        outcome.passed = outcome.passed.saturating_sub(outcome.not_run_by_choice());
        outcome
    }

    fn not_run_by_choice(&self) -> u64 {
        let said = |reasons: &[String]| reasons.iter().filter(|reason| !reason.starts_with(IGNORED)).count() as u64;
        said(&self.skipped) + said(&self.unsupported)
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
    fn result(&mut self, text: &str, helpers: u64) {
        let numbers = text.split_once(". ").map_or(text, |(_, numbers)| numbers);
        for part in numbers.split("; ") {
            match part.split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse::<u64>().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse::<u64>().unwrap_or(0),
                Some((number, "ignored")) => {
                    for _ in helpers..number.parse::<u64>().unwrap_or(0) {
                        self.unsupported.push(IGNORED.to_owned());
                    }
                }
                _ => {}
            }
        }
    }
}

/// How libtest shows a test with `#[ignore = "run by other tests …"]`.
const HELPER: &str = "... ignored, run by other tests";
/// A test with `#[ignore]`.
const IGNORED: &str = "ignored by its author";

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "running 4 tests\ntest a ... ok\ntest b ... ok\ntest c ... FAILED\ntest d ... ignored\n\n\
        successes:\n\n---- a stdout ----\nSKIPPED: needs root\nSKIPPED: needs root\n\n\n---- b stdout ----\nhello\n\n\
        test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";

    #[test]
    fn a_test_that_says_skipped_is_not_a_pass() {
        let outcome = Outcome::parse(OUTPUT);
        assert_eq!((outcome.passed, outcome.failed), (1, 1));
        assert_eq!(outcome.skipped, ["a: needs root"]);
        assert_eq!(outcome.to_string(), "1 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn failures_are_known_by_name() {
        let text = "test c ... FAILED\n\nfailures:\n\n---- c stdout ----\n    at line 3\n\nfailures:\n    c\n\n\
            test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        assert_eq!(Outcome::parse(&format!("{text}{OUTPUT}{text}")).failures, ["c", "c"]);
    }

    #[test]
    fn several_binaries_add_up() {
        let mut sum = Outcome::parse(&format!("{OUTPUT}{OUTPUT}"));
        sum += Outcome::of(true);
        sum += Outcome::skip("no QEMU");
        assert_eq!(sum.to_string(), "3 passed, 2 failed, 5 skipped");
    }

    #[test]
    fn the_entry_point_of_a_process_is_not_a_test() {
        let output = OUTPUT.replace("test d ... ignored", "test d ... ignored, run by other tests, as a process");
        assert_eq!(Outcome::parse(&output).to_string(), "1 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn a_serial_line_with_carriage_returns_is_understood() {
        let outcome = Outcome::parse(&OUTPUT.replace('\n', "\r\n"));
        assert_eq!(outcome.to_string(), "1 passed, 1 failed, 2 skipped");
    }
}
