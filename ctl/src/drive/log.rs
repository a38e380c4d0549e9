//! The folder of a run, and its log: append-only, one event a line.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use firedrill_model::event::Record;

/// The log of a run.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Begins a log that must not be there yet.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot begin the log {}", path.display()))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Adds an event. One write a line: a reader, or our death, never meets half of one but at the end.
    pub fn write(&mut self, record: &Record) -> anyhow::Result<()> {
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write to the log {}; is the disk full?", self.path.display()))
    }
}

/// Makes the folder of a new run, named by time, experiment and a few random letters.
pub fn make_folder(runs: &Path, experiment: &str) -> anyhow::Result<(String, PathBuf)> {
    fs::create_dir_all(runs).with_context(|| format!("cannot make the folder {}", runs.display()))?;
    let time = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
    let name: String =
        experiment.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).take(40).collect();
    let id = format!("{time}-{name}-{:04x}", rand::random::<u16>());
    let folder = runs.join(&id);
    fs::create_dir(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok((id, folder))
}
