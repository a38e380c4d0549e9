//! Developer commands: `cargo xtask help` lists them. One file a command.

mod cargo;
mod ebpf;
mod repo;
mod run;
mod setup;
mod test;
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
    /// Build the in-kernel programs and write the object that is embedded in the agent
    BuildEbpf(ebpf::Args),
    /// Install what building the in-kernel programs and the larger tests need (Debian)
    Setup(setup::Args),
    /// Run the tests: all, or the suites named
    Test(test::Args),
    /// Run tests on a stock Debian kernel in QEMU
    VmTest(vm::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::BuildEbpf(args) => ebpf::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Test(args) => test::run(&args),
        Command::VmTest(args) => vm::run(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
