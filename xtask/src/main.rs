//! Developer commands: `cargo xtask help` lists them. One file a command.

mod cargo;
mod ebpf;
mod repo;
mod run;

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
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::BuildEbpf(args) => ebpf::run(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
