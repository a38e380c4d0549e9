//! `firedrill check`: everything that is wrong with files, without looking at the host.

use anyhow::Result;
use firedrill_model::verdict::ExitCode;

use super::files;
use crate::cli::CheckArgs;
use crate::render::diagnostic;
use crate::render::paint::Screen;

pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    let (library, names) = files::read(&args.files)?;
    let findings = library.check();
    if args.json {
        anstream::println!("{}", serde_json::to_string_pretty(&findings)?);
    } else if findings.is_empty() {
        anstream::println!("{} documents in {} files: nothing wrong", library.len(), names.len());
    } else {
        anstream::println!("{}", diagnostic::all(&findings, Screen::stdout().paint()).trim_end());
    }
    Ok(if findings.is_empty() { ExitCode::Held } else { ExitCode::Usage })
}
