//! `firedrill check`: everything that is wrong with files, without looking at the host.

use anyhow::Result;
use firedrill_model::file::{Diagnostic, Place};
use firedrill_model::lower::{Choices, Library};
use firedrill_model::verdict::ExitCode;

use super::{FileErrors, files};
use crate::cli::CheckArgs;
use crate::render::diagnostic;
use crate::render::paint::Screen;
use crate::render::say::say;
use crate::render::words::count;

pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    let (library, names) = match files::read(&args.files) {
        Ok(read) => read,
        // A file that cannot be parsed is a finding like any other.
        Err(error) => match error.downcast::<FileErrors>() {
            Ok(FileErrors(findings)) => return tell(args, &findings, ""),
            Err(other) => return Err(other),
        },
    };
    let right = format!(
        "{} in {}: nothing wrong",
        count(library.len(), "document", "documents"),
        count(names.len(), "file", "files")
    );
    let mut findings = library.check();
    if findings.is_empty() {
        findings = over_caps(&library)?;
    }
    tell(args, &findings, &right)
}

/// Experiments that this host's caps do not permit.
fn over_caps(library: &Library) -> Result<Vec<Diagnostic>> {
    let config = super::config()?;
    let mut findings = Vec::new();
    for name in library.experiments(None) {
        // Which replicas are picked changes nothing for a cap.
        let choices = Choices { seed: 0, force_seed: false, env: &|name| std::env::var(name).ok() };
        // What does not lower without its environment is no matter of caps, and is said by `plan` and `run`.
        let Ok(lowered) = library.lower(&name, &choices) else { continue };
        findings.extend(config.objections(&lowered.plan).iter().map(|objection| {
            Diagnostic::new(&format!("experiment {name}"), "", Place::default(), objection.to_string(), None)
        }));
    }
    Ok(findings)
}

fn tell(args: &CheckArgs, findings: &[Diagnostic], right: &str) -> Result<ExitCode> {
    if args.json {
        say(serde_json::to_string_pretty(findings)?)?;
    } else if findings.is_empty() {
        say(right)?;
    } else {
        say(diagnostic::all(findings, Screen::stdout().paint()).trim_end())?;
    }
    Ok(if findings.is_empty() { ExitCode::Held } else { ExitCode::Usage })
}
