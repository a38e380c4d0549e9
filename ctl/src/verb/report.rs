//! `firedrill report`: any report of any run, from its log alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use firedrill_model::log::Run;
use firedrill_model::verdict::ExitCode;

use super::{UsageError, runs};
use crate::cli::{Format, ReportArgs};
use crate::render::paint::Screen;
use crate::render::say::{aside, say};
use crate::render::{html, json, junit, markdown, summary};

pub fn run(args: &ReportArgs) -> Result<ExitCode> {
    let folder = find(args)?;
    let run = runs::load(&folder)?;
    let text = match args.format {
        Format::Text => summary::text(&run, None, Screen::stdout().paint()),
        Format::Html => html::report(&run)?,
        Format::Junit => junit::report(&[&run])?,
        Format::Markdown => markdown::report(&run),
        Format::Json => json::report(&run),
    };
    match &args.output {
        Some(path) => {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
            aside(format_args!("written: {}", path.display()));
        }
        None => say(text.trim_end())?,
    }
    Ok(ExitCode::Held)
}

fn find(args: &ReportArgs) -> Result<PathBuf> {
    let all = runs::folders(&args.places.runs);
    let Some(wanted) = &args.run else {
        let none = || UsageError(format!("there are no runs in {}", args.places.runs.display()));
        return Ok(all.into_iter().next_back().ok_or_else(none)?);
    };
    if Path::new(wanted).is_dir() {
        return Ok(PathBuf::from(wanted));
    }
    let name = |p: &PathBuf| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut hits: Vec<PathBuf> = all.iter().filter(|p| name(p).contains(wanted.as_str())).cloned().collect();
    match (hits.pop(), hits.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => {
            Err(UsageError(format!("several runs match `{wanted}`; `firedrill runs` lists them")).into())
        }
        (None, _) => {
            let names: Vec<String> = all.iter().map(name).collect();
            let help = firedrill_model::file::did_you_mean(wanted, names.iter().rev().take(8).map(String::as_str));
            Err(UsageError(format!("no run matches `{wanted}`; {help}")).into())
        }
    }
}

/// Writes every report of a run into its folder. The path of the page.
///
/// # Errors
/// A file cannot be written.
pub fn write_all(run: &Run, folder: &Path) -> Result<PathBuf> {
    let page = folder.join("report.html");
    let write =
        |path: &Path, text: String| fs::write(path, text).with_context(|| format!("cannot write {}", path.display()));
    write(&page, html::report(run)?)?;
    write(&folder.join("junit.xml"), junit::report(&[run])?)?;
    write(&folder.join("report.md"), markdown::report(run))?;
    write(&folder.join("result.json"), json::report(run))?;
    Ok(page)
}
