//! `tidy`: rules of this repository that no compiler checks. It runs as a test, too.

mod points;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};

use crate::{repo, run};

/// Longer files get a warning.
const LONG: usize = 500;
/// Longer files are an error.
const TOO_LONG: usize = 700;
/// The only folders with `unsafe` code.
const UNSAFE: [&str; 2] = ["agent/src/sys/", "ebpf/"];
/// Paths and hosts of one machine; written in two parts, so that this file does not contain them.
const MACHINE: [&str; 6] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("deb.deb", "ian.org"),
    concat!("index.cra", "tes.io"),
    concat!("crates", ".io/api"),
];
/// Text files that are not ours to shorten or reword.
const FOREIGN: [&str; 3] = ["Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT"];

/// Prints what is wrong.
pub fn run() -> Result<ExitCode> {
    let found = check()?;
    for warning in &found.warnings {
        eprintln!("warning: {warning}");
    }
    for error in &found.errors {
        eprintln!("error: {error}");
    }
    println!("tidy: {} errors, {} warnings", found.errors.len(), found.warnings.len());
    Ok(if found.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is wrong.
#[derive(Default)]
struct Found {
    errors: Vec<String>,
    warnings: Vec<String>,
}

fn check() -> Result<Found> {
    let mut found = Found::default();
    for path in files()? {
        let Ok(text) = fs::read_to_string(repo::root().join(&path)) else {
            continue; // deleted and not yet committed, or not text
        };
        file(&path, &text, &mut found);
    }
    faults(&mut found)?;
    Ok(found)
}

/// All files that git knows or would add, relative to the repository; all but build output where there is no git.
fn files() -> Result<Vec<String>> {
    if repo::root().join(".git").exists() && run::find("git").is_some() {
        let mut command = run::command("git", ["ls-files", "--cached", "--others", "--exclude-standard"]);
        let text = run::output(command.current_dir(repo::root()))?;
        return Ok(text.lines().map(str::to_owned).collect());
    }
    let mut files = Vec::new();
    walk(&repo::root(), &mut files)?;
    Ok(files)
}

fn walk(folder: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        let name = repo::short(&path);
        if path.is_dir() {
            if !["target", "runs", ".git"].iter().any(|output| path.ends_with(output)) {
                walk(&path, files)?;
            }
        } else {
            files.push(name);
        }
    }
    Ok(())
}

fn file(path: &str, text: &str, found: &mut Found) {
    if FOREIGN.iter().any(|foreign| path.ends_with(foreign)) {
        return;
    }
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(word) = MACHINE.iter().find(|word| line.contains(**word)) {
            found.errors.push(format!("{path}:{number}: `{word}` is a path or host of one machine"));
            break; // one is enough to look at the file
        }
    }
    for (number, line) in (1..).zip(text.lines()) {
        if path.ends_with(".rs") && has_unsafe(line) && !UNSAFE.iter().any(|folder| path.starts_with(folder)) {
            found.errors.push(format!("{path}:{number}: `unsafe` outside {}", UNSAFE.join(" and ")));
        }
    }
    for (number, call) in points::unguarded(path, text) {
        let what = format!("`{call}` changes the host without crash points: put it into `crash_point::around`");
        found.errors.push(format!("{path}:{number}: {what}, or say in a comment why it has none"));
    }
    let lines = text.lines().count();
    if path.ends_with(".rs") && lines > TOO_LONG {
        found.errors.push(format!("{path}: {lines} lines, more than {TOO_LONG}: split it"));
    } else if path.ends_with(".rs") && lines > LONG {
        found.warnings.push(format!("{path}: {lines} lines, more than {LONG}"));
    }
}

/// True for code with the keyword: not for comments, strings or lint names.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default().replace("\\\"", "");
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe trait", "unsafe extern"]
        .iter()
        .filter_map(|form| code.find(form))
        .any(|at| code[..at].matches('"').count().is_multiple_of(2))
}

/// Every fault has an example that can be run, and is described.
fn faults(found: &mut Found) -> Result<()> {
    let docs = documentation()?;
    for name in fault_names()? {
        let example = format!("experiments/faults/{name}.yaml");
        if !repo::root().join(&example).exists() {
            found.errors.push(format!("the fault `{name}` has no example: {example} is missing"));
        }
        if !docs.contains(&format!("`{name}`")) {
            found.errors.push(format!("the fault `{name}` is described neither in README.md nor in docs/"));
        }
    }
    Ok(())
}

/// A fault is a file of `model/src/fault/` whose module implements one; `mod.rs` lists them in its table.
fn fault_names() -> Result<Vec<String>> {
    let folder = repo::root().join("model/src/fault");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if name != "mod" && text.contains("impl FaultKind for ") {
            names.push(name);
        }
    }
    ensure!(!names.is_empty(), "no file of {} has an `impl FaultKind for`", folder.display());
    names.sort();
    Ok(names)
}

fn documentation() -> Result<String> {
    let mut text = fs::read_to_string(repo::root().join("README.md")).unwrap_or_default();
    let docs: Vec<PathBuf> = match fs::read_dir(repo::root().join("docs")) {
        Ok(entries) => entries.filter_map(Result::ok).map(|entry| entry.path()).collect(),
        Err(_) => Vec::new(),
    };
    for path in docs.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        text.push_str(&read(path)?);
    }
    Ok(text)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        let found = check().unwrap();
        assert!(found.errors.is_empty(), "{}", found.errors.join("\n"));
    }

    #[test]
    fn unsafe_is_seen_in_code_only() {
        assert!(has_unsafe("    let x = unsafe { read() };"));
        assert!(!has_unsafe("// unsafe { never }"));
        assert!(!has_unsafe("let text = \"unsafe {\";"));
        assert!(!has_unsafe("#![forbid(unsafe_code)]"));
    }

    #[test]
    fn a_file_that_is_too_long_and_names_a_machine_is_refused() {
        let mut found = Found::default();
        let text = format!("// {}tmp\n", MACHINE[0]) + &"\n".repeat(TOO_LONG);
        file("model/src/lib.rs", &text, &mut found);
        assert_eq!(found.errors.len(), 2, "{:?}", found.errors);
    }
}
