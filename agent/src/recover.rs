//! Undoing what a dead owner left, from its journal. Run by the guardian, by `firedrill recover`, and by every
//! start that becomes the owner. The caller owns the host.

use std::path::PathBuf;

use crate::crash_point;
use crate::guardian;
use crate::journal::{self, Content, Directories, JournalError, Outstanding, Unreadable};
use crate::standing;
use crate::undo::{Undo, UndoError};

/// How many unreadable records of a journal are told of one by one.
const TOLD: usize = 5;

/// What a recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Each change that was found open, in words, and what was done about it.
    pub undone: Vec<(String, String)>,
    /// What could not be undone, and what is left to do by hand.
    pub left: Vec<String>,
}

/// Undoes everything outstanding, last change first. Tries all of it; what fails stays in the journal, to be tried
/// again, and so does a record that cannot be read, until [`set_aside`]. Doing it twice is harmless.
pub fn recover(directories: &Directories, boot: &str) -> Recovery {
    let recovery = recover_by(directories, boot, Undo::revert);
    crash_point::pass("recover.sweep.before");
    guardian::sweep(&directories.run);
    if recovery.left.is_empty() {
        standing::forget(&directories.run);
    }
    crash_point::pass("recover.end");
    recovery
}

/// The same with other hands, which tests have.
pub(crate) fn recover_by(
    directories: &Directories,
    boot: &str,
    mut revert: impl FnMut(&Undo) -> Result<String, UndoError>,
) -> Recovery {
    let mut recovery = Recovery::default();
    let found = Found::read(directories);
    let mut failed = Vec::new();
    let mut unsettled = Vec::new();
    crash_point::pass("recover.begin");
    for (path, Outstanding { change, boot: its_boot, what, undo }) in found.open() {
        // A reboot has undone everything but what is known to outlive it; pids and namespaces of another boot are
        // strangers.
        crash_point::pass("recover.undo.before");
        let result =
            if *its_boot == boot || undo.outlives_reboot() { revert(undo) } else { Ok("gone with a reboot".into()) };
        crash_point::pass("recover.undo.after");
        match result {
            Ok(note) => {
                // What outlives a reboot stands in both journals. Settling what is not there is harmless.
                let both = [directories.journal(), directories.durable()];
                for place in both.into_iter().filter(|p| p == path || (undo.outlives_reboot() && p.exists())) {
                    if let Err(e) = journal::settle(&place, *change) {
                        unsettled.push((place, format!("{what} was undone, and would be again: {e}")));
                    }
                }
                if !matches!(undo, Undo::DiesWithAgent) {
                    recovery.undone.push((what.clone(), note));
                }
            }
            Err(error) => failed.push(error.to_string()),
        }
    }
    for (path, content) in &found.journals {
        let readable = content.as_ref().is_ok_and(|c| c.unreadable.is_empty());
        // All of it was undone. Where that could not be recorded, as on a full disk, it is enough to remove the file.
        if readable && failed.is_empty() {
            match journal::remove_settled(path) {
                Ok(()) => unsettled.retain(|(place, _)| place != path),
                Err(e) => unsettled.push((path.clone(), e.to_string())),
            }
        }
    }
    recovery.left.extend(failed);
    recovery.left.extend(unsettled.into_iter().map(|(_, text)| text));
    recovery.left.extend(found.unreadable().into_iter().map(|text| {
        format!("{text}; see whether it is in force, and then `firedrill recover` puts the journal aside")
    }));
    recovery
}

/// Puts journals aside that cannot be read, or not wholly, once all that can be read of them is undone: somebody has
/// been told, and the next run need not refuse. Gives where they are kept now.
///
/// # Errors
/// One of them cannot be moved.
pub fn set_aside(directories: &Directories) -> Result<Vec<PathBuf>, JournalError> {
    let mut kept = Vec::new();
    for (path, content) in Found::read(directories).journals {
        let unusable = content.map_or(true, |c| c.open.is_empty() && !c.unreadable.is_empty());
        if unusable {
            kept.push(journal::set_aside(&path)?);
        }
    }
    Ok(kept)
}

/// What both journals say.
struct Found {
    journals: Vec<(PathBuf, Result<Content, JournalError>)>,
}

impl Found {
    fn read(directories: &Directories) -> Self {
        let paths = [directories.journal(), directories.durable()];
        let read = |path: PathBuf| journal::read_file(&path).transpose().map(|content| (path, content));
        Self { journals: paths.into_iter().filter_map(read).collect() }
    }

    /// Every open change once, last first, with the journal that holds it.
    fn open(&self) -> Vec<(&PathBuf, &Outstanding)> {
        let mut found: Vec<(&PathBuf, &Outstanding)> = Vec::new();
        for (path, content) in &self.journals {
            for open in content.iter().flat_map(|c| &c.open) {
                if !found.iter().any(|(_, known)| (known.change, &known.boot) == (open.change, &open.boot)) {
                    found.push((path, open));
                }
            }
        }
        found
    }

    /// What cannot be read, in words.
    fn unreadable(&self) -> Vec<String> {
        let mut told = Vec::new();
        for (path, content) in &self.journals {
            let path = path.display();
            match content {
                Err(e) => told.push(format!("{e}; what it says may still be in force")),
                Ok(Content { unreadable, .. }) => {
                    told.extend(unreadable.iter().take(TOLD).map(|Unreadable { line, why, text }| {
                        format!(
                            "line {line} of {path} cannot be read ({why}), and may be of a change in force: `{text}`"
                        )
                    }));
                    if let Some(more) = unreadable.len().checked_sub(TOLD).filter(|more| *more > 0) {
                        told.push(format!("{more} more lines of {path} cannot be read"));
                    }
                }
            }
        }
        told
    }
}

/// Whether anything is outstanding, in words; reads only.
pub fn outstanding(directories: &Directories) -> Vec<String> {
    let found = Found::read(directories);
    let open = found.open().into_iter().map(|(_, open)| open.what.clone());
    open.chain(found.unreadable()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;

    use firedrill_model::change::Change;

    use crate::journal::Journal;

    /// A dead owner's journals, in a folder that goes with them.
    struct Dead {
        directories: Directories,
        base: PathBuf,
    }

    impl Drop for Dead {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.base);
        }
    }

    impl Dead {
        fn new(name: &str) -> Self {
            let base = std::env::temp_dir().join(format!("firedrill-recover-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&base);
            let directories = Directories { run: base.join("run"), state: base.join("state") };
            fs::create_dir_all(&directories.state).expect("a folder");
            Self { directories, base }
        }

        /// An owner of the given boot that died with a command outstanding, whose undoing leaves a line in a file.
        fn with_commands(name: &str, boot: &str, words: &[&str]) -> Self {
            let dead = Self::new(name);
            let mut journal = Journal::begin(&dead.directories, boot).expect("a journal");
            for word in words {
                let argv = ["sh", "-c", "echo $0 >> undone", word].map(str::to_owned).to_vec();
                let what = Change::Command { run: vec![(*word).to_owned()], undo: argv.clone() };
                journal.intend(&what, &Undo::Command { argv, directory: dead.base.clone() }).expect("recorded");
            }
            dead
        }

        fn undone(&self) -> String {
            fs::read_to_string(self.base.join("undone")).unwrap_or_default()
        }
    }

    #[test]
    fn what_a_dead_owner_left_is_undone_last_first_and_once_though_two_journals_hold_it() {
        let dead = Dead::with_commands("order", "boot", &["a", "b"]);
        assert_eq!(outstanding(&dead.directories).len(), 2);
        let recovery = recover(&dead.directories, "boot");
        assert_eq!((recovery.undone.len(), recovery.left.len()), (2, 0), "{recovery:?}");
        assert_eq!(dead.undone(), "b\na\n");
        assert!(!dead.directories.journal().exists() && !dead.directories.durable().exists());
        assert_eq!(recover(&dead.directories, "boot"), Recovery::default(), "twice is harmless");
        assert_eq!(dead.undone(), "b\na\n");
    }

    #[test]
    fn what_outlives_a_reboot_is_undone_after_it_from_the_durable_journal_alone() {
        let dead = Dead::with_commands("reboot", "the boot before", &["a"]);
        fs::remove_file(dead.directories.journal()).expect("gone with /run");
        assert_eq!(recover(&dead.directories, "this boot").undone.len(), 1);
        assert_eq!(dead.undone(), "a\n");
        assert!(!dead.directories.durable().exists());
    }

    #[test]
    fn a_record_of_another_boot_that_does_not_outlive_it_is_settled_and_not_undone() {
        let dead = Dead::new("stranger");
        let canary = dead.base.join("canary");
        fs::create_dir(&canary).expect("a folder");
        let mut journal = Journal::begin(&dead.directories, "the boot before").expect("a journal");
        let what = Change::MakeCgroup { path: "x".into() };
        journal.intend(&what, &Undo::RemoveCgroup { path: canary.clone() }).expect("recorded");
        let recovery = recover(&dead.directories, "this boot");
        assert_eq!(recovery.undone, [(what.to_string(), "gone with a reboot".to_owned())]);
        assert!(canary.exists(), "a namesake of this boot is left alone");
        assert!(!dead.directories.journal().exists());
    }

    #[test]
    fn what_cannot_be_undone_stays_recorded_and_does_not_keep_the_others_from_it() {
        let dead = Dead::new("stuck");
        let mut journal = Journal::begin(&dead.directories, "boot").expect("a journal");
        for (word, script) in [("a", "echo a >> undone"), ("b", "echo because >&2; exit 3"), ("c", "echo c >> undone")]
        {
            let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
            let what = Change::Command { run: vec![word.to_owned()], undo: argv.clone() };
            journal.intend(&what, &Undo::Command { argv, directory: dead.base.clone() }).expect("recorded");
        }
        let recovery = recover(&dead.directories, "boot");
        assert_eq!(dead.undone(), "c\na\n");
        assert_eq!(recovery.left.len(), 1);
        assert!(recovery.left[0].contains("because") && recovery.left[0].contains("by hand"), "{recovery:?}");
        assert_eq!(outstanding(&dead.directories).len(), 1);
        assert_eq!(recover(&dead.directories, "boot").left.len(), 1, "tried again");
        assert_eq!(dead.undone(), "c\na\n", "and only that one");
    }

    #[test]
    fn an_owner_that_died_in_the_middle_of_a_record_leaves_a_journal_that_can_be_settled() {
        let dead = Dead::with_commands("torn", "boot", &["a"]);
        for path in [dead.directories.journal(), dead.directories.durable()] {
            let mut text = fs::read(&path).expect("a journal");
            text.extend(b"{\"intent\":{\"change\":2,\"boo");
            fs::write(&path, text).expect("torn");
        }
        let recovery = recover(&dead.directories, "boot");
        assert!(recovery.left.is_empty(), "{recovery:?}");
        assert_eq!(dead.undone(), "a\n");
        assert!(!dead.directories.journal().exists() && !dead.directories.durable().exists());
    }

    #[test]
    fn a_journal_that_was_never_begun_is_nothing_to_recover() {
        let dead = Dead::new("none");
        assert_eq!(recover(&dead.directories, "boot"), Recovery::default());
        assert!(outstanding(&dead.directories).is_empty());
    }

    #[test]
    fn what_cannot_be_read_blocks_until_it_is_put_aside_and_is_kept() {
        let dead = Dead::with_commands("damaged", "boot", &["a", "b"]);
        let path = dead.directories.journal();
        fs::remove_file(dead.directories.durable()).expect("only one journal");
        let mut bytes = fs::read(&path).expect("a journal");
        let at = bytes.windows(6).position(|w| w == b"echo $").expect("the first record");
        bytes[at] ^= 1;
        fs::write(&path, &bytes).expect("damaged");

        let recovery = recover(&dead.directories, "boot");
        assert_eq!(dead.undone(), "b\n", "the sound record is undone, the damaged one is not followed");
        let [left] = recovery.left.as_slice() else { panic!("{recovery:?}") };
        assert!(left.contains("line 1") && left.contains("run `a`") && left.contains("firedrill recover"), "{left}");
        assert!(!left.contains("dcho"), "a user's own command may be secret: {left}");
        assert_eq!(outstanding(&dead.directories).len(), 1);
        assert_eq!(recover(&dead.directories, "boot").left.len(), 1, "it is told again");

        let kept = set_aside(&dead.directories).expect("moved");
        let [kept] = kept.as_slice() else { panic!("{kept:?}") };
        assert!(fs::read(kept).expect("kept").starts_with(&bytes), "as evidence");
        assert_eq!(recover(&dead.directories, "boot"), Recovery::default());
        assert_eq!(set_aside(&dead.directories).expect("nothing to do"), [] as [PathBuf; 0]);
    }

    #[test]
    fn a_journal_is_not_put_aside_while_something_in_it_can_still_be_undone() {
        let dead = Dead::new("stuck-and-damaged");
        let mut journal = Journal::begin(&dead.directories, "boot").expect("a journal");
        let argv = ["false".to_owned()].to_vec();
        let what = Change::Command { run: argv.clone(), undo: argv.clone() };
        journal.intend(&what, &Undo::Command { argv, directory: dead.base.clone() }).expect("recorded");
        let path = dead.directories.journal();
        let text = [fs::read(&path).expect("a journal"), b"garbage\n".to_vec()].concat();
        fs::write(&path, text).expect("damaged");
        assert_eq!(recover(&dead.directories, "boot").left.len(), 2);
        assert_eq!(set_aside(&dead.directories).expect("nothing moved"), [] as [PathBuf; 0]);
    }

    #[test]
    fn a_journal_that_is_no_file_is_told_and_can_be_put_aside() {
        let dead = Dead::new("folder");
        fs::create_dir_all(dead.directories.journal()).expect("a folder in its place");
        let recovery = recover(&dead.directories, "boot");
        let [left] = recovery.left.as_slice() else { panic!("{recovery:?}") };
        assert!(left.contains("could not be read") && left.contains("journal.ndjson"), "{left}");
        assert_eq!(set_aside(&dead.directories).expect("moved").len(), 1);
        assert_eq!(recover(&dead.directories, "boot"), Recovery::default());
    }

    #[test]
    fn a_journal_longer_than_any_of_ours_is_not_read_into_memory() {
        let dead = Dead::new("huge");
        fs::create_dir_all(&dead.directories.run).expect("a folder");
        let file = fs::File::create(dead.directories.journal()).expect("a file");
        file.set_len(1 << 40).expect("sparse");
        let recovery = recover(&dead.directories, "boot");
        assert!(recovery.left.len() == 1 && recovery.left[0].contains("longer than 64 MiB"), "{recovery:?}");
    }
}
