//! Reading the files that a verb is given.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use firedrill_model::file::{Diagnostic, Place};
use firedrill_model::lower::Library;

use super::{FileErrors, UsageError};

/// All documents of the files given. A folder stands for the YAML files in it. Which experiments are meant by
/// default is told by the files that were given by name, so their names come back, too.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<(Library, Vec<String>)> {
    let mut library = Library::default();
    let mut names = Vec::new();
    let mut findings = Vec::new();
    let mut seen = HashSet::new();
    for path in paths {
        for file in expand(path)? {
            // A file and the folder that it is in: named twice, read once.
            if !seen.insert(fs::canonicalize(&file).unwrap_or_else(|_| file.clone())) {
                continue;
            }
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()));
            let text = text.map_err(|e| UsageError(format!("{e:#}")))?;
            let name = file.display().to_string();
            let before = library.len();
            if let Err(finding) = library.add(&name, &text) {
                findings.push(*finding);
            } else if library.len() == before {
                // Nothing to say of it would sound like nothing wrong with it.
                let why = "there is no document in this file";
                let help = "begin one with `kind: System`, `kind: Experiment` or `kind: GameDay`".to_owned();
                findings.push(Diagnostic::new(&name, &text, Place::default(), why.to_owned(), Some(help)));
            }
            names.push(name);
        }
    }
    if findings.is_empty() { Ok((library, names)) } else { Err(refuse(&findings)) }
}

fn expand(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read the folder {}", path.display()))?;
    let yaml = |p: &PathBuf| p.extension().is_some_and(|e| e == "yaml" || e == "yml");
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(yaml).collect();
    files.sort();
    if files.is_empty() {
        return Err(UsageError(format!("there are no .yaml files in {}", path.display())).into());
    }
    Ok(files)
}

/// The error that shows these findings.
pub fn refuse(findings: &[Diagnostic]) -> anyhow::Error {
    FileErrors(findings.to_vec()).into()
}

/// The experiments that are meant: those asked for by name, or all of the files.
pub fn experiments(library: &Library, wanted: &[String]) -> anyhow::Result<Vec<String>> {
    let all = library.experiments(None);
    if wanted.is_empty() {
        if all.is_empty() {
            return Err(UsageError("there is no `kind: Experiment` in these files".into()).into());
        }
        return Ok(all);
    }
    for name in wanted {
        if !all.contains(name) {
            let help = firedrill_model::file::did_you_mean(name, all.iter().map(String::as_str));
            return Err(UsageError(format!("there is no experiment `{name}`; {help}")).into());
        }
    }
    Ok(wanted.to_vec())
}
