//! `fuzz`: looks for input that breaks what `tests/src/hostile.rs` says, with cargo-fuzz.

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, repo, run};

/// What is fuzzed; `fuzz/targets/` has one file for each, and `fuzz/seeds/` one folder.
const TARGETS: [&str; 4] = ["experiment", "journal", "answer", "log"];

/// Options of `fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// Seconds for each target
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Only these targets
    #[arg(value_parser = TARGETS)]
    targets: Vec<String>,
}

/// Runs the command. Each target begins with its seeds and with what earlier runs have found (`fuzz/corpus/`).
pub fn run(args: &Args) -> Result<ExitCode> {
    if run::find("cargo-fuzz").is_none() {
        bail!("cargo-fuzz is not installed: `cargo install cargo-fuzz --locked`");
    }
    let fuzz = |words: &[&str]| {
        // No sanitizer, which would need a nightly compiler: the code under test is safe Rust, and panics by itself.
        let fixed = ["fuzz", words[0], "--fuzz-dir", "fuzz", "--sanitizer", "none"];
        cargo::cargo(fixed.into_iter().chain(words[1..].iter().copied()))
    };
    run::checked(&mut fuzz(&["build"]))?;
    let mut broken = Vec::new();
    for target in
        TARGETS.into_iter().filter(|target| args.targets.is_empty() || args.targets.iter().any(|t| t == target))
    {
        let corpus = repo::root().join("fuzz/corpus").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
        let (corpus, seeds) = (corpus.display().to_string(), repo::root().join("fuzz/seeds").join(target));
        let (seeds, time) = (seeds.display().to_string(), format!("-max_total_time={}", args.seconds));
        let mut command = fuzz(&["run", target, &corpus, &seeds, "--", &time, "-timeout=20", "-rss_limit_mb=4096"]);
        eprintln!("$ {}", run::line(&command));
        let status = command.status().with_context(|| format!("cannot start `{}`", run::line(&command)))?;
        println!("{target}: {}", if status.success() { "nothing found" } else { "BROKEN" });
        if !status.success() {
            broken.push(target);
        }
    }
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("{} broken: the input is in fuzz/artifacts/; mend it, and keep the input in fuzz/seeds/", broken.join(", "))
}
