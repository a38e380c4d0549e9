//! The journal: what was done to the host and how it is undone, written before it is done.
//!
//! One JSON object a line. A plain write survives the death of the writer, because the page cache does; what
//! outlives a reboot is also written, and synced, where a reboot does not reach it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use firedrill_model::change::Change;
use serde::{Deserialize, Serialize};

use crate::crash_point;
use crate::undo::Undo;

/// Nobody but root reads a journal: it holds users' own commands in full, which may be secret.
const PRIVATE: u32 = 0o600;

/// Where Firedrill keeps what it must not forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// Gone with a reboot: owner lock, journal. `/run/firedrill`.
    pub run: PathBuf,
    /// Kept over a reboot: records of changes that are, too. `/var/lib/firedrill`.
    pub state: PathBuf,
}

impl Default for Directories {
    fn default() -> Self {
        Self { run: PathBuf::from("/run/firedrill"), state: PathBuf::from("/var/lib/firedrill") }
    }
}

impl Directories {
    /// Path of the journal.
    pub fn journal(&self) -> PathBuf {
        self.run.join("journal.ndjson")
    }

    /// Path of the part of the journal that outlives a reboot.
    pub fn durable(&self) -> PathBuf {
        self.state.join("journal.ndjson")
    }
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// A change is about to be made.
    Intent {
        /// Its number, unique within the journal.
        change: u64,
        /// The boot that it belongs to.
        boot: String,
        /// The change.
        what: Box<Change>,
        /// Its inverse.
        undo: Undo,
    },
    /// It was made.
    Applied {
        /// Its number.
        change: u64,
    },
    /// It was undone, or found to need no undoing.
    Reverted {
        /// Its number.
        change: u64,
    },
}

impl Entry {
    /// The points before and after it is written.
    fn crash_points(&self) -> (&'static str, &'static str) {
        match self {
            Self::Intent { .. } => ("journal.intent.before", "journal.intent.after"),
            Self::Applied { .. } => ("journal.applied.before", "journal.applied.after"),
            Self::Reverted { .. } => ("journal.reverted.before", "journal.reverted.after"),
        }
    }
}

/// A change that was begun and not undone.
#[derive(Clone, Debug, PartialEq)]
pub struct Outstanding {
    /// Its number.
    pub change: u64,
    /// The boot that it belongs to.
    pub boot: String,
    /// The change.
    pub what: Change,
    /// Its inverse.
    pub undo: Undo,
}

/// The journal of the owner of a host.
#[derive(Debug)]
pub struct Journal {
    directories: Directories,
    boot: String,
    file: File,
    next: u64,
    torn: bool,
}

impl Journal {
    /// Opens the journal, which must have nothing outstanding (see [`crate::recover`]), and begins it anew.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn begin(directories: &Directories, boot: &str) -> io::Result<Self> {
        fs::create_dir_all(&directories.run)?;
        crash_point::pass("journal.begin.before");
        let file =
            OpenOptions::new().create(true).write(true).truncate(true).mode(PRIVATE).open(directories.journal())?;
        crash_point::pass("journal.begin.after");
        Ok(Self { directories: directories.clone(), boot: boot.to_owned(), file, next: 1, torn: false })
    }

    /// Records a change that is about to be made, and gives it a number.
    ///
    /// # Errors
    /// The record could not be written; the change must then not be made.
    pub fn intend(&mut self, what: &Change, undo: &Undo) -> io::Result<u64> {
        let change = self.next;
        // Never given twice, even when it cannot be recorded.
        self.next += 1;
        let entry = Entry::Intent { change, boot: self.boot.clone(), what: Box::new(what.clone()), undo: undo.clone() };
        if undo.outlives_reboot() {
            self.write_durable(&entry)?;
        }
        if let Err(e) = self.write(&entry) {
            if undo.outlives_reboot() {
                // The change is not made; its durable record would be undone in vain.
                self.write_durable(&Entry::Reverted { change })?;
            }
            return Err(e);
        }
        Ok(change)
    }

    /// Records that it was made.
    ///
    /// # Errors
    /// The record could not be written.
    pub fn applied(&mut self, change: u64) -> io::Result<()> {
        self.write(&Entry::Applied { change })
    }

    /// Records that it was undone.
    ///
    /// # Errors
    /// The record could not be written; it would be undone again, which is harmless.
    pub fn reverted(&mut self, change: u64, undo: &Undo) -> io::Result<()> {
        if undo.outlives_reboot() {
            self.write_durable(&Entry::Reverted { change })?;
        }
        self.write(&Entry::Reverted { change })
    }

    /// Ends the journal: with nothing outstanding its files are removed.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn end(&self) -> io::Result<()> {
        remove_if_settled(&self.directories.journal())?;
        remove_if_settled(&self.directories.durable())
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        // One write call a line, so that a line is torn only if the disk is full. The next one must not continue it.
        let text = if self.torn { format!("\n{}", line(entry)?) } else { line(entry)? };
        let (before, after) = entry.crash_points();
        crash_point::pass(before);
        let written = self.file.write_all(text.as_bytes());
        crash_point::pass(after);
        self.torn = written.is_err();
        written
    }

    fn write_durable(&self, entry: &Entry) -> io::Result<()> {
        append_synced(&self.directories.durable(), entry)
    }
}

fn line(entry: &Entry) -> io::Result<String> {
    let mut text = serde_json::to_string(entry).map_err(io::Error::other)?;
    text.push('\n');
    Ok(text)
}

fn append_synced(path: &Path, entry: &Entry) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = OpenOptions::new().create(true).append(true).mode(PRIVATE).open(path)?;
    crash_point::pass("journal.durable.before");
    file.write_all(format!("{}{}", line_end(path)?, line(entry)?).as_bytes())?;
    crash_point::pass("journal.durable.written");
    file.sync_all()?;
    crash_point::pass("journal.durable.synced");
    Ok(())
}

/// What ends the last line of a journal whose writer died or failed in the middle of it.
fn line_end(path: &Path) -> io::Result<&'static str> {
    let bytes = fs::read(path)?;
    Ok(if bytes.last().is_none_or(|b| *b == b'\n') { "" } else { "\n" })
}

/// Marks a change as undone in a journal of a dead owner.
///
/// # Errors
/// The record could not be written.
pub fn settle(path: &Path, change: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    crash_point::pass("journal.settle.before");
    file.write_all(format!("{}{}", line_end(path)?, line(&Entry::Reverted { change })?).as_bytes())?;
    crash_point::pass("journal.settle.after");
    Ok(())
}

/// Removes a journal without anything outstanding. Not there is as good.
///
/// # Errors
/// It cannot be read or removed.
pub fn remove_if_settled(path: &Path) -> io::Result<()> {
    match fs::read(path) {
        Ok(bytes) if outstanding(&bytes).is_empty() => {
            crash_point::pass("journal.remove.before");
            fs::remove_file(path)?;
            crash_point::pass("journal.remove.after");
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// What a journal's content leaves to be undone, last change first. Lines that are torn or unreadable are passed
/// over: a record is complete before its change is made, so a torn one has no change behind it.
pub fn outstanding(bytes: &[u8]) -> Vec<Outstanding> {
    let mut open: Vec<Outstanding> = Vec::new();
    for line in bytes.split(|b| *b == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Entry::Intent { change, boot, what, undo }) => {
                open.push(Outstanding { change, boot, what: *what, undo });
            }
            Ok(Entry::Reverted { change }) => open.retain(|o| o.change != change),
            Ok(Entry::Applied { .. }) | Err(_) => {}
        }
    }
    open.reverse();
    open
}

#[cfg(test)]
mod tests {
    use std::ops::Deref;

    use super::*;

    fn change(name: &str) -> Change {
        Change::Netns { name: name.into() }
    }

    fn undo(name: &str) -> Undo {
        Undo::DeleteNetns { name: name.into() }
    }

    /// Folders that go with the test.
    struct Places(Directories);

    impl Deref for Places {
        type Target = Directories;
        fn deref(&self) -> &Directories {
            &self.0
        }
    }

    impl Drop for Places {
        fn drop(&mut self) {
            if let Some(base) = self.run.parent() {
                let _ = fs::remove_dir_all(base);
            }
        }
    }

    fn directories(name: &str) -> Places {
        let base = std::env::temp_dir().join(format!("firedrill-journal-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        Places(Directories { run: base.join("run"), state: base.join("state") })
    }

    #[test]
    fn what_was_begun_and_not_undone_is_outstanding_last_first() {
        let places = directories("order");
        let mut journal = Journal::begin(&places, "boot").expect("begins");
        let a = journal.intend(&change("a"), &undo("a")).expect("written");
        let b = journal.intend(&change("b"), &undo("b")).expect("written");
        let c = journal.intend(&change("c"), &undo("c")).expect("written");
        journal.applied(a).expect("written");
        journal.reverted(b, &undo("b")).expect("written");
        let open = outstanding(&fs::read(places.journal()).expect("there"));
        assert_eq!(open.iter().map(|o| o.change).collect::<Vec<_>>(), [c, a]);
        journal.end().expect("ends");
        assert!(places.journal().exists(), "a journal with something outstanding stays");
    }

    #[test]
    fn a_journal_cut_at_any_byte_loses_at_most_its_last_record() {
        let places = directories("cut");
        let mut journal = Journal::begin(&places, "boot").expect("begins");
        for name in ["a", "b", "c"] {
            let number = journal.intend(&change(name), &undo(name)).expect("written");
            journal.applied(number).expect("written");
        }
        let whole = fs::read(places.journal()).expect("there");
        for length in 0..=whole.len() {
            let cut = &whole[..length];
            // Every complete intent line must be found again.
            let complete = cut
                .split_inclusive(|b| *b == b'\n')
                .filter(|l| l.starts_with(b"{\"intent\"") && l.ends_with(b"\n"))
                .count();
            let found = outstanding(cut).len();
            assert!(found >= complete && found <= complete + 1, "{length}: {found} of {complete}");
        }
    }

    #[test]
    fn a_settled_journal_is_removed_at_its_end() {
        let places = directories("settled");
        let mut journal = Journal::begin(&places, "boot").expect("begins");
        let number = journal.intend(&change("a"), &undo("a")).expect("written");
        journal.reverted(number, &undo("a")).expect("written");
        journal.end().expect("ends");
        assert!(!places.journal().exists());
    }

    #[test]
    fn a_change_that_outlives_a_reboot_is_recorded_where_the_record_does_too() {
        let places = directories("durable");
        let mut journal = Journal::begin(&places, "boot").expect("begins");
        let undo = Undo::Command { argv: vec!["true".into()], directory: "/".into() };
        let what = Change::Command { run: vec!["true".into()], undo: vec!["true".into()] };
        let number = journal.intend(&what, &undo).expect("written");
        assert_eq!(outstanding(&fs::read(places.durable()).expect("there")).len(), 1);
        journal.reverted(number, &undo).expect("written");
        assert!(outstanding(&fs::read(places.durable()).expect("there")).is_empty());
    }
}
