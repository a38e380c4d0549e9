//! Clearing up after an owner that was killed, and what people can read of it afterwards: `last-recovery.json` in the
//! run directory. Nothing depends on that file. It stays until the next run begins on a host with nothing to undo.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::crash_point;
use crate::journal::Directories;
use crate::owner::{Holder, Owner};
use crate::recover::{self, Recovery};

/// What was done after the death of an owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Aftermath {
    /// When it was done: seconds since 1970.
    pub at: u64,
    /// Who was dead, if the owner file still told.
    pub owner: Option<Holder>,
    /// Why that was so, in a few words.
    pub why: String,
    /// Who did it: `its guardian`, `firedrill halt`.
    pub by: String,
    /// Each change that was found open, in words, and what was done about it.
    pub undone: Vec<(String, String)>,
    /// What could not be undone, and what is left to do by hand.
    pub left: Vec<String>,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
}

fn path(run: &Path) -> PathBuf {
    run.join("last-recovery.json")
}

/// Undoes what a dead owner left, and writes down what was found. `owner` is the lock that the caller holds.
pub fn clear_up(directories: &Directories, boot: &str, owner: &Owner, why: &str, by: &str) -> Recovery {
    let begun = Instant::now();
    let recovery = recover::recover(directories, boot);
    if owner.dead().is_some() || recovery != Recovery::default() {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs());
        tell(
            &directories.run,
            &Aftermath {
                at: at.unwrap_or_default(),
                owner: owner.dead().cloned(),
                why: why.to_owned(),
                by: by.to_owned(),
                undone: recovery.undone.clone(),
                left: recovery.left.clone(),
                took_ms: begun.elapsed().as_secs_f64() * 1e3,
            },
        );
    }
    recovery
}

/// Replaces the file. The host is clean whether or not it can be written.
fn tell(run: &Path, aftermath: &Aftermath) {
    let new = run.join("last-recovery.json.new");
    if let Ok(text) = serde_json::to_vec(aftermath)
        && crash_point::around("aftermath.write", || fs::write(&new, text)).is_ok()
    {
        let _ = crash_point::around("aftermath.rename", || fs::rename(&new, path(run)));
    }
}

/// Removes the file: somebody begins anew, on a clean host.
pub(crate) fn forget(run: &Path) {
    let _ = crash_point::around("aftermath.remove", || fs::remove_file(path(run)));
}

/// What was done after the last death; `None` when nobody has died, or a run has begun since.
pub fn read(run: &Path) -> Option<Aftermath> {
    serde_json::from_slice(&fs::read(path(run)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    #[test]
    fn a_death_is_told_of_once_and_an_orderly_end_never() {
        let base = std::env::temp_dir().join(format!("firedrill-aftermath-{}", std::process::id()));
        let directories = Directories { run: base.join("run"), state: base.join("state") };
        let take = || {
            Owner::take(&directories.run, &Holder::clearing_up("recover"), Duration::from_secs(1)).expect("the lock")
        };
        clear_up(&directories, "boot", &take(), "-", "-");
        assert_eq!(read(&directories.run), None, "nobody died");
        let killed = Holder::this("run a");
        fs::write(directories.run.join("owner"), serde_json::to_string(&killed).expect("JSON")).expect("written");
        clear_up(&directories, "boot", &take(), "it was killed", "`firedrill recover`");
        let told = read(&directories.run).expect("told");
        assert_eq!((told.owner.as_ref(), told.by.as_str()), (Some(&killed), "`firedrill recover`"));
        clear_up(&directories, "boot", &take(), "-", "-");
        assert_eq!(read(&directories.run), Some(told), "doing it twice says nothing new");
        forget(&directories.run);
        assert_eq!(read(&directories.run), None);
        let _ = fs::remove_dir_all(&base);
    }
}
