//! `firedrill halt`: ends everything on this host, now, and lets nothing new begin.

use anyhow::{Context, Result};
use firedrill_agent::halt::{self, Ending, Halt};
use firedrill_agent::journal::Directories;
use firedrill_agent::recover::{self, Recovery};
use firedrill_model::verdict::ExitCode;

use super::UsageError;
use crate::cli::HaltArgs;
use crate::demo;
use crate::render::say::say;

pub fn run(args: &HaltArgs) -> Result<ExitCode> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(UsageError("halting the host needs root; try: sudo firedrill halt".into()).into());
    }
    let directories = args.common.places.directories();
    let file = halt::path(&directories.run);
    if args.clear {
        let was = halt::clear(&directories.run).with_context(|| format!("cannot remove {}", file.display()))?;
        if args.common.json {
            say(format_args!("{}", serde_json::json!({ "halted": false, "was_halted": was })))?;
        } else {
            say(format_args!("{}", if was { "faults may begin again" } else { "this host was not halted" }))?;
        }
        return Ok(ExitCode::Held);
    }
    let now = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S%:z");
    let why = format!("{}, at {now}", args.reason.as_deref().unwrap_or("by `firedrill halt`"));
    // The host's own first: a demo's stage is what its drills are on.
    let places = || std::iter::once(directories.clone()).chain(demo::stages(&directories));
    // What is in force is looked at before the sign is set, by which owners revert by themselves.
    let open: Vec<_> = places().map(|place| (recover::outstanding(&place), place)).collect();
    // Without the sign the rest is done all the same: it is what was asked for in the first place.
    let sign = halt::set(&directories.run, &why);
    let mut all = Recovery::default();
    let mut owners = Vec::new();
    for place in places() {
        let known = open.iter().find(|(_, known)| *known == place);
        let open = known.map_or_else(|| recover::outstanding(&place), |(open, _)| open.clone());
        end(&place, open, &mut all, &mut owners);
    }
    let stages = demo::sweep(&directories);
    all.undone.extend(stages.undone);
    all.left.extend(stages.left);
    if let Err(e) = &sign {
        all.left.push(format!("new faults are not kept from beginning: {} cannot be written: {e}", file.display()));
    }
    if args.common.json {
        let json = serde_json::json!({
            "halted": sign.is_ok(), "owners": owners, "undone": all.undone, "left": all.left,
        });
        say(json)?;
    } else {
        tell(&all, &owners)?;
        if sign.is_ok() {
            say(format_args!("no fault begins on this host until `firedrill halt --clear`"))?;
        }
    }
    Ok(if all.left.is_empty() { ExitCode::Held } else { ExitCode::NotRestored })
}

/// One that cannot be ended does not keep the others from it.
fn end(directories: &Directories, open: Vec<String>, all: &mut Recovery, owners: &mut Vec<serde_json::Value>) {
    match halt::end(directories, open) {
        Ok(Halt { holder, ending, recovery }) => {
            all.undone.extend(recovery.undone);
            all.left.extend(recovery.left);
            let ending = match ending {
                Ending::Nobody => return,
                Ending::Finished => "was clearing up already, and has finished",
                Ending::Stopped => "ended when it was told to",
                Ending::Killed => "did not end and was killed",
            };
            owners.extend(holder.map(|h| serde_json::json!({ "pid": h.pid, "what": h.what, "ending": ending })));
        }
        Err(error) => all.left.push(error.to_string()),
    }
}

fn tell(all: &Recovery, owners: &[serde_json::Value]) -> Result<()> {
    for owner in owners {
        let text = |key: &str| owner[key].as_str().unwrap_or_default().to_owned();
        say(format_args!("process {} ({}) {}", owner["pid"], text("what"), text("ending")))?;
    }
    for (what, note) in &all.undone {
        say(format_args!("undone: {what}: {note}"))?;
    }
    for left in &all.left {
        say(format_args!("NOT undone: {left}"))?;
    }
    if all.undone.is_empty() && all.left.is_empty() {
        say("nothing was in force")?;
    }
    Ok(())
}
