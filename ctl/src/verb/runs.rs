//! `firedrill runs`: the runs that are kept, newest last.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use firedrill_model::log::Run;
use firedrill_model::verdict::ExitCode;

use super::UsageError;
use crate::cli::RunsArgs;
use crate::render::say::say;

pub fn run(args: &RunsArgs) -> Result<ExitCode> {
    let mut rows = Vec::new();
    for folder in folders(&args.places.runs) {
        let id = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let (verdict, finding) = match load(&folder) {
            Ok(run) => match (&run.judgement, &run.ended) {
                (Some(j), Some(_)) => (j.verdict.to_string(), j.finding.clone()),
                _ => ("cut short".into(), "it was killed, or is still running".into()),
            },
            Err(e) => ("unreadable".into(), format!("{e:#}")),
        };
        rows.push((id, verdict, finding));
    }
    if args.json {
        let list: Vec<_> = rows
            .iter()
            .map(|(id, verdict, finding)| serde_json::json!({ "id": id, "verdict": verdict, "finding": finding }))
            .collect();
        say(serde_json::to_string_pretty(&list)?)?;
    } else if rows.is_empty() {
        say(format!("there are no runs in {}", args.places.runs.display()))?;
    } else {
        let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0);
        for (id, verdict, finding) in rows {
            say(format!("{id:width$}  {verdict:12}  {finding}"))?;
        }
    }
    Ok(ExitCode::Held)
}

/// Folders of runs, oldest first: their names begin with the time.
pub fn folders(runs: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(runs) else { return Vec::new() };
    let mut list: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.join("events.ndjson").is_file()).collect();
    list.sort();
    list
}

/// Reads the log of a run.
pub fn load(folder: &Path) -> Result<Run> {
    let path = folder.join("events.ndjson");
    let text = fs::read_to_string(&path).map_err(|e| UsageError(format!("cannot read {}: {e}", path.display())))?;
    Ok(Run::parse(&text).map_err(|e| UsageError(format!("{}: {e}", path.display())))?)
}
