//! The journal: what was done to the host and how it is undone, written before it is done.
//!
//! One JSON object and its checksum a line. A plain write survives the death of the writer, because the page cache does; what
//! outlives a reboot is also written, and synced, where a reboot does not reach it.

mod record;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use firedrill_model::change::Change;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

pub use record::{Content, Entry, Outstanding, Unreadable, read};

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

/// Why the journal could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("the journal {} could not be {what}: {source}{}", .path.display(), remedy(source))]
pub struct JournalError {
    /// Its file.
    pub path: PathBuf,
    /// What was tried: "written".
    pub what: &'static str,
    /// The error.
    pub source: io::Error,
}

/// What helps when a file of ours cannot be written; begins with a semicolon.
pub(crate) fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room on that file system",
        io::ErrorKind::ReadOnlyFilesystem => "; make that file system writable",
        io::ErrorKind::PermissionDenied => "; are you root?",
        _ => "",
    }
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |source| JournalError { path, what, source }
}

/// Room for the records that end a change: applied, reverted, and the ends of lines that were torn before them (bytes).
const ROOM: usize = 160;
/// The longest journal that is read (bytes). Ours is emptied whenever nothing is in force.
const LONGEST: u64 = 64 << 20;

/// The journal of the owner of a host.
#[derive(Debug)]
pub struct Journal {
    directories: Directories,
    boot: String,
    file: File,
    next: u64,
    /// What is in force, by what we know ourselves: a record of the end of a change may have failed.
    open: BTreeSet<u64>,
    /// Whether there are records of ours that outlive a reboot.
    durable: bool,
    torn: bool,
    failure: Option<String>,
}

impl Journal {
    /// Opens the journal, which must have nothing outstanding (see [`crate::recover`]), and begins it anew.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn begin(directories: &Directories, boot: &str) -> Result<Self, JournalError> {
        let path = directories.journal();
        crash_point::around("journal.directory", || fs::create_dir_all(&directories.run))
            .map_err(failed(&path, "begun"))?;
        // To be emptied in use, so always written at its end.
        let mut options = OpenOptions::new();
        // The crash points are around its opening.
        options.create(true).write(true).truncate(true).mode(PRIVATE).custom_flags(libc::O_APPEND);
        let file = crash_point::around("journal.begin", || options.open(&path)).map_err(failed(&path, "begun"))?;
        let directories = directories.clone();
        let boot = boot.to_owned();
        Ok(Self { directories, boot, file, next: 1, open: BTreeSet::new(), durable: false, torn: false, failure: None })
    }

    /// Records a change that is about to be made, and gives it a number. Room for the record of its end is taken as
    /// well, so that a disk that fills up meanwhile does not keep it from being settled.
    ///
    /// # Errors
    /// The record could not be written; the change must then not be made.
    pub fn intend(&mut self, what: &Change, undo: &Undo) -> Result<u64, JournalError> {
        let change = self.next;
        // Never given twice, even when it cannot be recorded.
        self.next += 1;
        let entry = Entry::Intent { change, boot: self.boot.clone(), what: what.to_string(), undo: undo.clone() };
        if undo.outlives_reboot() {
            self.durable = true;
            self.write_durable(&entry)?;
        }
        let reserved = self.reserve(&entry);
        if let Err(e) = reserved.and_then(|()| self.write(&entry)) {
            if undo.outlives_reboot() {
                // The change is not made; its durable record would be undone in vain.
                self.write_durable(&Entry::Reverted { change })?;
            }
            return Err(e);
        }
        self.open.insert(change);
        Ok(change)
    }

    /// Records that it was made.
    ///
    /// # Errors
    /// The record could not be written.
    pub fn applied(&mut self, change: u64) -> Result<(), JournalError> {
        self.write(&Entry::Applied { change })
    }

    /// Records that it was undone. When it was the last, the journal is empty again, and what outlives a reboot is gone.
    ///
    /// # Errors
    /// The record could not be written; it would be undone again, which is harmless.
    pub fn reverted(&mut self, change: u64, undo: &Undo) -> Result<(), JournalError> {
        if undo.outlives_reboot() {
            self.write_durable(&Entry::Reverted { change })?;
        }
        let written = self.write(&Entry::Reverted { change });
        self.open.remove(&change);
        if !self.open.is_empty() {
            return written;
        }
        // One that cannot be removed says itself that all of it is settled.
        if self.durable && remove_if_settled(&self.directories.durable()).is_ok() {
            self.durable = false;
        }
        match crash_point::around("journal.empty", || self.file.set_len(0)) {
            // An empty one says the same as the record.
            Ok(()) => {
                self.torn = false;
                Ok(())
            }
            Err(_) => written,
        }
    }

    /// Why the journal cannot be written any more, if a record has failed: nothing may stay in force then.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Ends the journal: with nothing outstanding its files are removed.
    ///
    /// # Errors
    /// A file that says otherwise cannot be removed.
    pub fn end(&self) -> Result<(), JournalError> {
        if self.open.is_empty() {
            // By what we know, whether or not it could all be recorded.
            remove_settled(&self.directories.journal())?;
        }
        remove_if_settled(&self.directories.durable())
    }

    /// Takes room for a record and for those that end it and the others in force. On file systems that can.
    fn reserve(&self, entry: &Entry) -> Result<(), JournalError> {
        let reserved = entry.line().and_then(|line| make_room(&self.file, line.len() + ROOM * (self.open.len() + 1)));
        reserved.map_err(failed(&self.directories.journal(), "written"))
    }

    fn write(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let failed = failed(&self.directories.journal(), "written");
        // One write call a line, so that a line is torn only if the disk is full. The next one must not continue it.
        let line = match entry.line() {
            Ok(line) if self.torn => format!("\n{line}"),
            Ok(line) => line,
            Err(e) => return Err(failed(e)),
        };
        let written = crash_point::around(entry.crash_point(), || self.file.write_all(line.as_bytes()));
        self.torn = written.is_err();
        let written = written.map_err(failed);
        if let Err(e) = &written {
            self.failure.get_or_insert_with(|| e.to_string());
        }
        written
    }

    fn write_durable(&self, entry: &Entry) -> Result<(), JournalError> {
        let path = self.directories.durable();
        append_synced(&path, entry).map_err(failed(&path, "written"))
    }
}

/// Takes room behind the end of a file without making it longer (fallocate(2)).
fn make_room(file: &File, bytes: usize) -> io::Result<()> {
    let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
    let (at, bytes) = (file.metadata()?.len().try_into().map_err(too_large)?, bytes.try_into().map_err(too_large)?);
    match crash_point::around("journal.room", || fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, at, bytes)) {
        // A file system that cannot: a full disk is then met at the record itself.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn append_synced(path: &Path, entry: &Entry) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        crash_point::around("journal.durable.directory", || fs::create_dir_all(directory))?;
    }
    let mut file = crash_point::around("journal.durable.open", || {
        OpenOptions::new().create(true).append(true).mode(PRIVATE).open(path)
    })?;
    let text = format!("{}{}", line_end(path)?, entry.line()?);
    if matches!(entry, Entry::Intent { .. }) {
        make_room(&file, text.len() + ROOM)?;
    }
    crash_point::around("journal.durable.write", || file.write_all(text.as_bytes()))?;
    crash_point::around("journal.durable.sync", || file.sync_all())
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
pub fn settle(path: &Path, change: u64) -> Result<(), JournalError> {
    let append = || -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(path)?;
        let text = format!("{}{}", line_end(path)?, Entry::Reverted { change }.line()?);
        crash_point::around("journal.settle", || file.write_all(text.as_bytes()))
    };
    append().map_err(failed(path, "written"))
}

/// Not there is as good.
fn remove(path: &Path) -> Result<(), JournalError> {
    match crash_point::around("journal.remove", || fs::remove_file(path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(path, "removed")(e)),
        _ => Ok(()),
    }
}

/// Removes a journal of which all is undone, by what the caller knows. One that says so itself may as well stay where
/// it cannot be removed.
///
/// # Errors
/// It cannot be removed, and says otherwise.
pub fn remove_settled(path: &Path) -> Result<(), JournalError> {
    remove(path).or_else(|e| match read_file(path) {
        Ok(content) if content.as_ref().is_none_or(Content::is_settled) => Ok(()),
        _ => Err(e),
    })
}

/// Removes a journal without anything outstanding or unreadable. Not there is as good.
///
/// # Errors
/// It cannot be read or removed.
pub fn remove_if_settled(path: &Path) -> Result<(), JournalError> {
    match read_file(path)? {
        Some(content) if content.is_settled() => remove_settled(path),
        _ => Ok(()),
    }
}

/// Puts a journal that holds something unreadable where it is kept and not read again. Gives its new path.
///
/// # Errors
/// It cannot be moved.
pub fn set_aside(path: &Path) -> Result<PathBuf, JournalError> {
    let free = (1_u32..).map(|n| path.with_extension(format!("unreadable-{n}"))).find(|p| !p.exists());
    // There are fewer files than numbers.
    let Some(aside) = free else { return Err(failed(path, "set aside")(io::ErrorKind::AlreadyExists.into())) };
    crash_point::around("journal.aside", || fs::rename(path, &aside)).map_err(failed(path, "set aside"))?;
    Ok(aside)
}

/// What a journal's file says; `None` when there is none.
///
/// # Errors
/// It cannot be read, or is longer than any of ours.
pub fn read_file(path: &Path) -> Result<Option<Content>, JournalError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(path, "read")(e)),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed(path, "read"))?;
    if bytes.len() as u64 > LONGEST {
        let why = io::Error::other(format!("it is longer than {} MiB, so it is none of ours", LONGEST >> 20));
        return Err(failed(path, "read")(why));
    }
    Ok(Some(read(&bytes)))
}

/// What a journal's content leaves to be undone, last change first.
pub fn outstanding(bytes: &[u8]) -> Vec<Outstanding> {
    read(bytes).open
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
        let other = journal.intend(&what, &undo).expect("written");
        journal.reverted(number, &undo).expect("written");
        assert_eq!(outstanding(&fs::read(places.durable()).expect("there")).len(), 1, "the other is in force");
        journal.reverted(other, &undo).expect("written");
        assert!(!places.durable().exists(), "a long life must not fill the disk");
    }
}
