//! Undoing what a dead owner left, from its journal. Run by the guardian, by `firedrill recover`, and by every
//! start that becomes the owner. The caller owns the host.

use std::fs;
use std::path::Path;

use crate::journal::{self, Directories, Outstanding};
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
    for path in [directories.journal(), directories.durable()] {
        replay(&path, boot, &mut recovery);
    }
    recovery
}

fn replay(path: &Path, boot: &str, recovery: &mut Recovery) {
    let Ok(bytes) = fs::read(path) else { return };
    for Outstanding { change, boot: its_boot, what, undo } in journal::outstanding(&bytes) {
        // A reboot has undone everything but what is known to outlive it; pids and namespaces of another boot are
        // strangers.
        let result = if its_boot == boot || undo.outlives_reboot() {
            undo.revert()
        } else {
            Ok("gone with a reboot".into())
        };
        match result {
            Ok(note) => {
                if let Err(e) = journal::settle(path, change) {
                    recovery.left.push(format!("{what} was undone, but the journal could not be written: {e}"));
                }
                if !matches!(undo, Undo::DiesWithAgent) {
                    recovery.undone.push((what.to_string(), note));
                }
            }
            Err(error) => recovery.left.push(error.to_string()),
        }
    }
    if let Err(e) = journal::remove_if_settled(path) {
        recovery.left.push(format!("the journal {} could not be removed: {e}", path.display()));
    }
}

/// Whether anything is outstanding, in words; reads only.
pub fn outstanding(directories: &Directories) -> Vec<String> {
    let mut found = Vec::new();
    for path in [directories.journal(), directories.durable()] {
        let bytes = fs::read(path).unwrap_or_default();
        found.extend(journal::outstanding(&bytes).into_iter().map(|o| o.what.to_string()));
    }
    found.dedup();
    found
}
