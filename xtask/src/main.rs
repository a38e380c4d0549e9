//! Developer commands: `cargo xtask help` lists them. One file a command.

mod bench;
mod cargo;
mod ci;
mod crash;
mod debian;
mod dist;
mod ebpf;
mod fuzz;
mod quickstart;
mod repo;
mod run;
mod setup;
mod soak;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, test and package Firedrill.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check what the demo needs, build `firedrill` and play the demo
    Quickstart(quickstart::Args),
    /// Build the in-kernel programs and write the object that is embedded in the agent
    BuildEbpf(ebpf::Args),
    /// Install what building the in-kernel programs and the larger tests need (Debian)
    Setup(setup::Args),
    /// Run the tests: all, or the suites named
    Test(test::Args),
    /// Run tests on a stock Debian kernel in QEMU
    VmTest(vm::Args),
    /// Kill agents at every crash point of every fault, and print what was left
    Crash(crash::Args),
    /// Look for input that breaks a reader or a report, for as long as you like (needs cargo-fuzz)
    Fuzz(fuzz::Args),
    /// Let one agent apply and revert every fault thousands of times, and print what grows
    Soak(soak::Args),
    /// Measure what faults cost others, how exact they are and how quick
    Bench(bench::Args),
    /// Check the rules that no compiler checks
    Tidy,
    /// Make the tarball with the static binary
    Dist,
    /// Every check and every test, as in continuous integration
    Ci,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Quickstart(args) => quickstart::run(&args),
        Command::BuildEbpf(args) => ebpf::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Test(args) => test::run(&args),
        Command::VmTest(args) => vm::run(&args),
        Command::Crash(args) => crash::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tidy => tidy::run(),
        Command::Dist => dist::run(),
        Command::Ci => ci::run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
