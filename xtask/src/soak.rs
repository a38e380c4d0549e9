//! `soak`: one agent applies and reverts every fault thousands of times, and prints what it held over its life.

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{cargo, repo, run};

/// Options of `soak`.
#[derive(clap::Args)]
pub struct Args {
    /// How many times a fault is applied and reverted
    #[arg(long, default_value_t = 10_000)]
    cycles: usize,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command. Fails when anything grows.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !repo::is_root() {
        bail!("this needs root for namespaces, control groups and eBPF: run it with sudo");
    }
    let test = cargo::test_binary("firedrill-agent", "soak")?;
    let file = repo::target().join(format!("soak-{}.json", std::process::id()));
    let mut command = run::command(&test.path, ["--nocapture"]);
    command.current_dir(&test.package);
    command.env("FIREDRILL_SOAK_CYCLES", args.cycles.to_string()).env("FIREDRILL_SOAK_FIGURES", &file);
    if args.json {
        // What the test prints goes where it does not stand in the way.
        command.stdout(std::io::stderr());
    }
    let status = command.status().with_context(|| format!("cannot start `{}`", run::line(&command)))?;
    let text = fs::read_to_string(&file).context("the test did not come to its end, so there are no figures")?;
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    let figures: Value = serde_json::from_str(&text).context("the figures are not JSON")?;
    println!("{}", if args.json { figures.to_string() } else { markdown(&figures)? });
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The figures, as Markdown.
fn markdown(figures: &Value) -> Result<String> {
    let mut text = String::from("| held while nothing is in force | first | last | most |\n|---|---:|---:|---:|\n");
    for row in figures["rows"].as_array().context("there are no figures")? {
        let number = |key: &str| row[key].as_u64().with_context(|| format!("a row without `{key}`"));
        let what = row["what"].as_str().context("a row without `what`")?;
        text.push_str(&format!("| {what} | {} | {} | {} |\n", number("first")?, number("last")?, number("most")?));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_become_a_table_and_nothing_is_made_up_for_what_is_missing() {
        let row = serde_json::json!({"what": "threads", "first": 3, "last": 4, "most": 5});
        let text = markdown(&serde_json::json!({"rows": [row]})).expect("a table");
        assert!(text.ends_with("| threads | 3 | 4 | 5 |\n"), "{text}");
        assert!(markdown(&serde_json::json!({"rows": [{}]})).is_err());
        assert!(markdown(&serde_json::json!({})).is_err());
    }
}
