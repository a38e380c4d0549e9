//! The VM suite: tests for guests on several kernels.

use std::thread;

use super::{build::Built, outcome::Outcome};
use crate::{cargo::Executable, vm};

/// One that is too old, which must be said; the oldest that is supported, which has no tcx; the newest.
const KERNELS: [&str; 3] = ["5.10", "6.1", vm::kernel::NEWEST];
/// How many tests of one guest are tried again; when more fail, it is not the lack of a processor.
const AGAIN: usize = 3;

/// Whether a test for guests is among those of the suite. All would take too long: the crash points and the soak are lived through on
/// the oldest kernel, and `host` and the random kills are left to `vm-test`, which runs everything on any.
fn is_usual(kernel: &str, test: &str) -> bool {
    let left_out: &[&str] = match kernel {
        vm::kernel::NEWEST => &["crash_", "soak", "host"],
        _ => &["crash_random", "host"],
    };
    !left_out.iter().any(|name| test.starts_with(name))
}

/// Whether a test that failed may be tried again. What looks for something rare may have found it.
fn may_have_been_slow(test: &str) -> bool {
    !["the_host_is_clean_wherever", "whoever_is_killed"].iter().any(|rare| test.starts_with(rare))
}

/// All guests at once: software emulation takes a processor each, and the one that is too old is soon over.
///
/// A test that fails there is tried once more when the others are done, in a guest that has the machine for itself: in emulation beside
/// others, a guest may stand still for longer than a test waits. That is told, and it fails if it fails again.
pub fn run(built: &Built) -> Outcome {
    // Packages are fetched one after another.
    let kernels = KERNELS.map(|name| (name, vm::kernel::Kernel::get(name)));
    let first: Vec<Outcome> = thread::scope(|scope| {
        let guests = kernels.each_ref().map(|(name, kernel)| scope.spawn(move || in_guest(name, kernel, built, &[])));
        guests.into_iter().map(|guest| guest.join().unwrap_or_else(|_| Outcome::of(false))).collect()
    });
    let mut sum = Outcome::default();
    for (mut outcome, (name, kernel)) in first.into_iter().zip(&kernels) {
        let known = outcome.failures.len() as u64 == outcome.failed && outcome.failures.len() <= AGAIN;
        if known && outcome.failures.iter().all(|test| may_have_been_slow(test)) {
            for test in std::mem::take(&mut outcome.failures) {
                println!("VM with Linux {name}: {test} failed beside other guests; once more, alone");
                let again = in_guest(name, kernel, built, &["--exact".to_owned(), test.clone()]);
                if again.failed == 0 && again.passed == 1 {
                    println!("VM with Linux {name}: {test} held AT THE SECOND TRY only");
                    outcome.failed -= 1;
                    outcome.passed += 1;
                }
            }
        }
        outcome.prefix(&format!("VM with Linux {name}"));
        sum += outcome;
    }
    sum
}

/// Boots a guest and runs its tests, or with `options` some of them.
fn in_guest(name: &str, kernel: &anyhow::Result<vm::kernel::Kernel>, built: &Built, options: &[String]) -> Outcome {
    let kernel = match kernel {
        Ok(kernel) => kernel,
        Err(error) => {
            println!("VM with Linux {name}: {error:#}");
            return Outcome::of(false);
        }
    };
    let tests: Vec<&Executable> =
        built.for_guests(kernel.is_too_old()).into_iter().filter(|test| is_usual(name, &test.name)).collect();
    vm::run_these(&vm::Guest::with_kernel(name), kernel, built, &tests, options).unwrap_or_else(|error| {
        println!("VM with Linux {name}: {error:#}");
        Outcome::of(false)
    })
}
