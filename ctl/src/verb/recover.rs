//! `firedrill recover`: undoes what a dead owner left.

use std::time::Duration;

use anyhow::Result;
use firedrill_agent::owner::{Holder, Owner};
use firedrill_agent::{host, recover};
use firedrill_model::verdict::ExitCode;

use crate::cli::JsonArg;
use crate::demo;
use crate::render::say::say;

pub fn run(args: &JsonArg) -> Result<ExitCode> {
    let directories = args.places.directories();
    let holder = Holder::clearing_up("recover");
    // Never beside a live owner: its changes are its own.
    let owner = Owner::take(&directories.run, &holder, Duration::from_secs(2))?;
    let mut done = recover::recover(&directories, &host::facts().boot_id);
    drop(owner);
    // A demo's stage has a lock and a journal of its own.
    let stages = demo::sweep(&directories);
    done.undone.extend(stages.undone);
    done.left.extend(stages.left);
    if args.json {
        say(serde_json::json!({ "undone": done.undone, "left": done.left }))?;
    } else {
        for (what, note) in &done.undone {
            say(format!("undone: {what}: {note}"))?;
        }
        for left in &done.left {
            say(format!("NOT undone: {left}"))?;
        }
        if done.undone.is_empty() && done.left.is_empty() {
            say("nothing to undo: the host is as it was")?;
        }
    }
    Ok(if done.left.is_empty() { ExitCode::Held } else { ExitCode::NotRestored })
}
