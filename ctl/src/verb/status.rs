//! `firedrill status`: who owns the host, and what is outstanding.

use anyhow::Result;
use firedrill_agent::{owner, recover};
use firedrill_model::verdict::ExitCode;

use crate::cli::JsonArg;

pub fn run(args: &JsonArg) -> Result<ExitCode> {
    let directories = args.places.directories();
    let holder = owner::current(&directories.run);
    let open = recover::outstanding(&directories);
    if args.json {
        anstream::println!("{}", serde_json::json!({ "owner": holder, "in_force": open }));
    } else {
        match &holder {
            Some(h) => anstream::println!("process {} owns this host: {}", h.pid, h.what),
            None => anstream::println!("nobody owns this host"),
        }
        for change in &open {
            anstream::println!("  in force: {change}");
        }
        if holder.is_none() && !open.is_empty() {
            anstream::println!("these were left by a run that is dead: `firedrill recover` undoes them");
        }
    }
    // Left by the dead is a finding; in force for the living is not.
    Ok(if holder.is_none() && !open.is_empty() { ExitCode::NotRestored } else { ExitCode::Held })
}
