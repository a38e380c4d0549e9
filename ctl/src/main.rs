//! The `firedrill` command.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    firedrill::main()
}
