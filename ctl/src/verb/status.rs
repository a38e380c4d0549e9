//! `firedrill status`: who owns the host, what is outstanding, and whether the host is halted.

use anyhow::Result;
use firedrill_agent::{halt, owner, recover, standing};
use firedrill_model::units::Span;
use firedrill_model::verdict::ExitCode;

use crate::cli::JsonArg;
use crate::render::say::say;

pub fn run(args: &JsonArg) -> Result<ExitCode> {
    let directories = args.places.directories();
    let holder = owner::current(&directories.run);
    let open = recover::outstanding(&directories);
    let halted = halt::check(&directories.run).err();
    let faults = if holder.is_some() { standing::read(&directories.run) } else { Vec::new() };
    if args.json {
        let faults: Vec<_> = faults
            .iter()
            .map(|f| {
                let seconds = f.remaining().as_secs_f64();
                serde_json::json!({ "fault": f.fault, "target": f.target, "ends_in_s": seconds })
            })
            .collect();
        let halted = halted.map(|h| h.0);
        let json = serde_json::json!({ "owner": holder, "faults": faults, "in_force": open, "halted": halted });
        say(json)?;
    } else {
        match &holder {
            Some(h) => say(format_args!("process {} owns this host: {}", h.pid, h.what))?,
            None => say(format_args!("nobody owns this host"))?,
        }
        for fault in &faults {
            // Whole tenths are enough for people.
            let tenths = std::time::Duration::from_millis((fault.remaining().as_millis() / 100 * 100) as u64);
            let (name, target) = (&fault.fault, &fault.target);
            say(format_args!("  {name} on {target}: ends in {} at the latest", Span(tenths)))?;
        }
        for change in &open {
            say(format_args!("  in force: {change}"))?;
        }
        if holder.is_none() && !open.is_empty() {
            say(format_args!("these were left by a run that is dead: `firedrill recover` undoes them"))?;
        }
        if let Some(halted) = &halted {
            say(format_args!("{halted}"))?;
        }
    }
    // Left by the dead is a finding; in force for the living is not.
    Ok(if holder.is_none() && !open.is_empty() { ExitCode::NotRestored } else { ExitCode::Held })
}
