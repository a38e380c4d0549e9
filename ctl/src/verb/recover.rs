//! `firedrill recover`: undoes what a dead owner left.

use std::time::Duration;

use anyhow::Result;
use firedrill_agent::owner::{Holder, Owner};
use firedrill_agent::{aftermath, host, recover};
use firedrill_model::verdict::ExitCode;

use super::UsageError;
use crate::cli::JsonArg;
use crate::demo;
use crate::render::say::say;

pub fn run(args: &JsonArg) -> Result<ExitCode> {
    let directories = args.places.directories();
    if !nix::unistd::Uid::effective().is_root() {
        return Err(UsageError("undoing needs root; try: sudo firedrill recover".into()).into());
    }
    let holder = Holder::clearing_up("recover");
    // Never beside a live owner: its changes are its own.
    let owner = Owner::take(&directories.run, &holder, Duration::from_secs(2))?;
    let boot = host::facts().boot_id;
    let mut done = aftermath::clear_up(&directories, &boot, &owner, "it was killed", "`firedrill recover`");
    // What cannot be read is told here, and kept for whoever looks into it; then the next run need not refuse.
    let kept = recover::set_aside(&directories);
    drop(owner);
    // A demo's stage has a lock and a journal of its own.
    let stages = demo::sweep(&directories);
    done.undone.extend(stages.undone);
    done.left.extend(stages.left);
    let kept = kept.unwrap_or_else(|e| {
        done.left.push(e.to_string());
        Vec::new()
    });
    if args.json {
        say(serde_json::json!({ "undone": done.undone, "left": done.left, "kept": kept }))?;
    } else {
        for (what, note) in &done.undone {
            say(format!("undone: {what}: {note}"))?;
        }
        for left in &done.left {
            say(format!("NOT undone: {left}"))?;
        }
        for kept in &kept {
            say(format!("kept, and not read again: {}", kept.display()))?;
        }
        say(match (done.undone.is_empty(), done.left.is_empty()) {
            (true, true) => "nothing to undo: no earlier run has left anything on this host",
            (false, true) => "all that an earlier run left is undone",
            _ if !kept.is_empty() => "what could not be read was put aside: runs may begin again, once you have looked",
            (_, false) => "what is not undone stays recorded: mend it, and `firedrill recover` tries again",
        })?;
    }
    Ok(if done.left.is_empty() { ExitCode::Held } else { ExitCode::NotRestored })
}
