//! What is in force, for people: a small file beside the journal, which knows changes but not faults and their times.
//! Nothing depends on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys;

/// A fault in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its name.
    pub fault: String,
    /// Its target's name.
    pub target: String,
    /// When it ends whatever happens: `CLOCK_MONOTONIC`, nanoseconds.
    pub ends_ns: u64,
}

impl Standing {
    /// How long it still lasts at most.
    pub fn remaining(&self) -> Duration {
        Duration::from_nanos(self.ends_ns.saturating_sub(sys::clock::monotonic_ns()))
    }
}

fn path(run: &Path) -> PathBuf {
    run.join("standing.json")
}

/// Replaces the file. A fault does not fail because it cannot be shown.
pub(crate) fn tell(run: &Path, faults: &[Standing]) {
    let new = run.join("standing.json.new");
    if let Ok(text) = serde_json::to_vec(faults)
        && fs::write(&new, text).is_ok()
    {
        let _ = fs::rename(&new, path(run));
    }
}

/// Removes the file.
pub(crate) fn forget(run: &Path) {
    let _ = fs::remove_file(path(run));
}

/// The faults in force, as the living owner of the host tells; of a dead one it is history.
pub fn read(run: &Path) -> Vec<Standing> {
    fs::read(path(run)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_is_read_as_it_was_told_and_then_forgotten() {
        let run = std::env::temp_dir().join(format!("firedrill-standing-{}", std::process::id()));
        fs::create_dir_all(&run).expect("a folder");
        assert_eq!(read(&run), []);
        let ends_ns = sys::clock::monotonic_ns() + 60_000_000_000;
        let fault = Standing { fault: "loss".into(), target: "netns blue".into(), ends_ns };
        tell(&run, std::slice::from_ref(&fault));
        assert_eq!(read(&run), std::slice::from_ref(&fault));
        assert!(fault.remaining() > Duration::from_secs(50) && fault.remaining() <= Duration::from_secs(60));
        forget(&run);
        assert_eq!(read(&run), []);
        assert_eq!(Standing { ends_ns: 1, ..fault }.remaining(), Duration::ZERO, "one that is over");
        let _ = fs::remove_dir_all(&run);
    }
}
