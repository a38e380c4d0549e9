//! Undoing what a dead owner left, from its journal. Run by the guardian, by `firedrill recover`, and by every
//! start that becomes the owner. The caller owns the host.

use std::fs;
use std::path::PathBuf;

use crate::crash_point;
use crate::guardian;
use crate::journal::{self, Directories, Outstanding};
use crate::standing;
use crate::undo::Undo;

/// What a recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Each change that was found open, in words, and what was done about it.
    pub undone: Vec<(String, String)>,
    /// What could not be undone, and what is left to do by hand.
    pub left: Vec<String>,
}

/// Undoes everything outstanding, last change first. Tries all of it; what fails stays in the journal, to be tried
/// again. Doing it twice is harmless.
pub fn recover(directories: &Directories, boot: &str) -> Recovery {
    let mut recovery = Recovery::default();
    let mut failed = Vec::new();
    crash_point::pass("recover.begin");
    for (path, Outstanding { change, boot: its_boot, what, undo }) in open_changes(directories) {
        // A reboot has undone everything but what is known to outlive it; pids and namespaces of another boot are
        // strangers.
        crash_point::pass("recover.undo.before");
        let result =
            if its_boot == boot || undo.outlives_reboot() { undo.revert() } else { Ok("gone with a reboot".into()) };
        crash_point::pass("recover.undo.after");
        match result {
            Ok(note) => {
                // What outlives a reboot stands in both journals. Settling what is not there is harmless.
                let mut places = vec![path.clone()];
                if undo.outlives_reboot() {
                    places.extend(
                        [directories.journal(), directories.durable()].into_iter().filter(|p| *p != path && p.exists()),
                    );
                }
                for place in places {
                    if let Err(e) = journal::settle(&place, change) {
                        recovery.left.push(format!("{what} was undone, but the journal could not be written: {e}"));
                    }
                }
                if !matches!(undo, Undo::DiesWithAgent) {
                    recovery.undone.push((what.to_string(), note));
                }
            }
            Err(error) => failed.push(error.to_string()),
        }
    }
    recovery.left.extend(failed);
    for path in [directories.journal(), directories.durable()] {
        if let Err(e) = journal::remove_if_settled(&path) {
            recovery.left.push(format!("the journal {} could not be removed: {e}", path.display()));
        }
    }
    crash_point::pass("recover.sweep.before");
    guardian::sweep(&directories.run);
    if recovery.left.is_empty() {
        standing::forget(&directories.run);
    }
    crash_point::pass("recover.end");
    recovery
}

/// Every open change once, last first, with the journal that holds it.
fn open_changes(directories: &Directories) -> Vec<(PathBuf, Outstanding)> {
    let mut found: Vec<(PathBuf, Outstanding)> = Vec::new();
    for path in [directories.journal(), directories.durable()] {
        for open in journal::outstanding(&fs::read(&path).unwrap_or_default()) {
            if !found.iter().any(|(_, known)| (known.change, &known.boot) == (open.change, &open.boot)) {
                found.push((path.clone(), open));
            }
        }
    }
    found
}

/// Whether anything is outstanding, in words; reads only.
pub fn outstanding(directories: &Directories) -> Vec<String> {
    open_changes(directories).into_iter().map(|(_, open)| open.what.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
