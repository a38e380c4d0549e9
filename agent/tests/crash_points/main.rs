//! Every crash point of every fault: an agent dies there as by SIGKILL, whoever survives clears up, and the host must
//! be as it was before. Nothing here lists points or faults: the points are recorded while a fault comes and goes once,
//! the faults are those of the model's table, with the parameters of their examples.
//!
//! The binary has a `main` of its own because it also plays the agent that dies, its guardian and the victims.

mod cases;
mod corner;
mod deaths;
mod parts;
mod samples;
#[path = "../host/support.rs"]
#[allow(dead_code, reason = "shared with the other tests of the agent, which use all of it")]
mod support;
mod table;
mod units;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(code) = parts::play() {
        return code;
    }
    let root = support::is_root();
    let test = Trial::test("the_host_is_clean_wherever_an_agent_its_guardian_or_the_recovery_dies", || {
        cases::the_host_is_clean_wherever_an_agent_its_guardian_or_the_recovery_dies().map_err(Into::into)
    });
    libtest_mimic::run(&Arguments::from_args(), vec![test.with_ignored_flag(!root)]).exit_code()
}
