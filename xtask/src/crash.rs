//! `crash`: kills agents at every crash point of every fault, and prints what was left: nothing, or the table says so.

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{cargo, repo, run};

/// The document that `--write` renews.
const DOCUMENT: &str = "docs/crash-points.md";

/// Options of `crash`.
#[derive(clap::Args)]
pub struct Args {
    /// Every point, not one of each state, and for each every point of the guardian's recovery; takes hours
    #[arg(long)]
    all: bool,
    /// Seconds of deaths; those that do not fit in are left out, others in each run
    #[arg(long, default_value_t = 600, conflicts_with = "all")]
    seconds: u64,
    /// Draws the same deaths as an earlier run, which printed it
    #[arg(long)]
    seed: Option<u64>,
    /// Only this fault, or `stage`, or `guardian`
    #[arg(long, conflicts_with = "write")]
    fault: Option<String>,
    /// Also write the table into docs/crash-points.md
    #[arg(long)]
    write: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !repo::is_root() {
        bail!("this needs root for namespaces, control groups and eBPF: run it with sudo");
    }
    let test = cargo::test_binary("firedrill-agent", "crash_points")?;
    let file = repo::target().join(format!("crash-points-{}.json", std::process::id()));
    let mut command = run::command(&test.path, ["--nocapture"]);
    command.current_dir(&test.package).env("FIREDRILL_CRASH_TABLE", &file);
    command.env("FIREDRILL_CRASH_BUDGET", args.seconds.to_string());
    if args.all {
        command.env("FIREDRILL_CRASH_ALL", "1");
    }
    if let Some(fault) = &args.fault {
        command.env("FIREDRILL_CRASH_ONLY", fault);
    }
    if let Some(seed) = args.seed {
        command.env("FIREDRILL_CRASH_SEED", seed.to_string());
    }
    let status = command.status().with_context(|| format!("cannot start `{}`", run::line(&command)))?;
    let text = fs::read_to_string(&file).context("the test wrote no table")?;
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    let table: Value = serde_json::from_str(&text).context("the table is not JSON")?;
    let markdown = markdown(&table)?;
    println!("\n{markdown}");
    if args.write {
        write(&markdown, &table)?;
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The table, as Markdown.
fn markdown(table: &Value) -> Result<String> {
    let mut text = String::from(
        "| fault | on | points | states | states tried | deaths | survivors | median clean-up (ms) | slowest (ms) |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let (mut points, mut states, mut tried, mut deaths, mut survivors) = (0, 0, 0, 0, 0);
    let mut slowest: f64 = 0.0;
    for row in table["rows"].as_array().context("the table has no rows")? {
        let number = |key: &str| row[key].as_u64().with_context(|| format!("a row without `{key}`"));
        let ms = |key: &str| row[key].as_f64().with_context(|| format!("a row without `{key}`"));
        let left = row["survivors"].as_array().context("a row without `survivors`")?.len();
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {left} | {:.1} | {:.1} |\n",
            row["fault"].as_str().context("a row without `fault`")?,
            row["target"].as_str().context("a row without `target`")?,
            number("points")?,
            number("states")?,
            number("tried")?,
            number("deaths")?,
            ms("median_ms")?,
            ms("slowest_ms")?,
        ));
        points += number("points")?;
        states += number("states")?;
        tried += number("tried")?;
        deaths += number("deaths")?;
        survivors += left;
        slowest = slowest.max(ms("slowest_ms")?);
    }
    text.push_str(&format!("| all | | {points} | {states} | {tried} | {deaths} | {survivors} | | {slowest:.1} |\n"));
    Ok(text)
}

/// Writes the document around a table.
fn write(markdown: &str, table: &Value) -> Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let seed = table["seed"].as_u64().context("a table without a seed")?;
    let how = if table["all"] == Value::Bool(true) {
        "Every point was tried, and for each every point of the recovery.".to_owned()
    } else {
        let sum =
            |key: &str| table["rows"].as_array().into_iter().flatten().filter_map(|r| r[key].as_u64()).sum::<u64>();
        let (tried, states) = (sum("tried"), sum("states"));
        format!("Drawn with seed {seed}; in the time given {tried} of {states} states were tried.")
    };
    let text = format!(
        "# Crash points\n\n\
         This page is written by `cargo xtask crash --write`; do not edit it.\n\n\
         A *crash point* is a named place in the agent before or after a write of the journal or a call that changes the\n\
         host (`agent/src/crash_point.rs`); `cargo xtask tidy` refuses such a call without. The test\n\
         `agent/tests/crash_points/` lets each fault come and go once and records the points that it passes. Points between\n\
         which nothing changes find the host in the same *state*: right after a call, and right before the next. In each\n\
         state, at one of its points that is drawn, an agent dies as by SIGKILL:\n\n\
         - once with the guardian alive, which clears up;\n\
         - once more with the guardian killed, too, at a point of its own recovery that is drawn (its first one is before it\n\
         \x20 has done anything), and a second recovery clears up. An agent that dies before it has a guardian, or after it has\n\
         \x20 let it go, dies once.\n\n\
         In the row `guardian` the guardian dies at each state of its own peaceful life, and its agent goes on.\n\n\
         After each death the host is compared with before, as `firedrill doctor --snapshot` sees it, and with what is no\n\
         part of a snapshot: the journals, a replica's own files, processes. What differs is a *survivor*. The time is from\n\
         the agent's death until its guardian has ended, or that of the second recovery.\n\n\
         Faults come from the table in the code, with each set of parameters in `experiments/faults/`, so a new one is tried\n\
         as soon as it is there; one that acts on nothing that the test has made fails it. Units of systemd have a run of\n\
         their own in a container: `cargo xtask test --units`. `cargo xtask crash --all` dies at every point, not in every\n\
         state, and for each at every point of the recovery: tens of thousands of deaths.\n\n\
         Linux {}. {how}\n\n{markdown}",
        kernel.trim()
    );
    let path = repo::root().join(DOCUMENT);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written: {DOCUMENT}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_sums_its_rows_and_takes_the_slowest() {
        let row = |survivors: &[&str], slowest: f64| {
            serde_json::json!({"fault": "loss", "target": "cgroup", "points": 10, "states": 6, "tried": 4, "deaths": 8,
                "survivors": survivors, "median_ms": 1.0, "slowest_ms": slowest})
        };
        let table = serde_json::json!({"seed": 1, "all": false, "rows": [row(&[], 3.0), row(&["left"], 2.5)]});
        let text = markdown(&table).expect("a table");
        assert!(text.ends_with("| all | | 20 | 12 | 8 | 16 | 1 | | 3.0 |\n"), "{text}");
        assert!(markdown(&serde_json::json!({"rows": [{}]})).is_err(), "nothing is made up for what is missing");
    }
}
