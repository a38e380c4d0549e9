//! `bench network`: what the packet data plane costs, delays and holds, measured here, as a table in docs/performance.md.

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, repo, run};

/// The page with the table, between two marks.
const DOCUMENT: &str = "docs/performance.md";
const BEGIN: &str = "<!-- cargo xtask bench network -->\n";
const END: &str = "<!-- end -->";

/// Options of `bench`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Traffic beside faults, delays, bulk TCP, floods, reaction and memory: some minutes; writes docs/performance.md
    Network {
        /// Measure little, and only print the table
        #[arg(long)]
        quick: bool,
    },
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    let What::Network { quick } = args.what;
    if !repo::is_root() {
        bail!("this needs root for namespaces and eBPF: run it with sudo");
    }
    let test = cargo::release_test_binary("firedrill-agent", "bench_network")?;
    let file = repo::target().join(format!("bench-network-{}.md", std::process::id()));
    let mut command = run::command(&test.path, ["--nocapture"]);
    command.current_dir(&test.package).env("FIREDRILL_BENCH_TABLE", &file);
    if quick {
        command.env("FIREDRILL_BENCH_QUICK", "1");
    }
    run::checked(&mut command)?;
    let table = fs::read_to_string(&file).context("the benchmark wrote no table")?;
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    if !quick {
        write(&table)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts a table into the page.
fn write(table: &str) -> Result<()> {
    let path = repo::root().join(DOCUMENT);
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let processors = std::thread::available_parallelism().context("cannot count the processors")?;
    let load = fs::read_to_string("/proc/loadavg").context("cannot read the load")?;
    let load = load.split(' ').nth(1).context("the load has no second number")?;
    let kernel = kernel.trim();
    let head = format!("Linux {kernel}, {processors} processors, a load of {load} over the last five minutes.\n\n");
    let page = replaced(&page, &format!("{head}{table}")).with_context(|| format!("{DOCUMENT} has lost its marks"))?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written: {DOCUMENT}");
    Ok(())
}

/// The page with something else between its marks.
fn replaced(page: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{text}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_the_last_one_and_of_nothing_else() {
        let page = format!("before\n{BEGIN}old{END}\nafter\n");
        let once = replaced(&page, "new").expect("marks");
        assert_eq!(once, format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert_eq!(replaced(&once, "new").as_deref(), Some(once.as_str()));
        assert_eq!(replaced("no marks", "new"), None);
    }

    #[test]
    fn the_page_has_its_marks() {
        let page = fs::read_to_string(repo::root().join(DOCUMENT)).expect("the page");
        assert!(replaced(&page, "").is_some());
    }
}
