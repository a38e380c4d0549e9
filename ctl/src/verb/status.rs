//! `firedrill status`: who owns the host, what is in force and what it has done so far, what the dead have left, and
//! whether the host is halted.

use std::fmt::Write as _;
use std::fs::File;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::Result;
use firedrill_agent::aftermath::{self, Aftermath};
use firedrill_agent::halt::Halted;
use firedrill_agent::host::wait_until;
use firedrill_agent::journal::Directories;
use firedrill_agent::owner::{self, Holder};
use firedrill_agent::standing::{self, Account, Standing};
use firedrill_agent::{halt, recover};
use firedrill_model::verdict::ExitCode;
use serde_json::{Value, json};

use crate::cli::JsonArg;
use crate::demo;
use crate::render::paint::{Paint, Screen};
use crate::render::say::say;
use crate::render::words::{Mark, Tone, count, secs};

/// A guardian takes so long at most to begin with clearing up after its agent.
const GUARDIAN: Duration = Duration::from_millis(500);
/// A receipt that is older than this was not written in time.
const OLD: Duration = Duration::from_secs(3);

pub fn run(args: &JsonArg) -> Result<ExitCode> {
    let directories = args.places.directories();
    let status = Status::of(&directories);
    if args.json { say(status.json()) } else { say(status.text(Screen::stdout().paint()).trim_end()) }?;
    // Left by the dead is a finding; in force for the living is not.
    Ok(if status.is_left() { ExitCode::NotRestored } else { ExitCode::Held })
}

/// What the files of the run directory say, at one moment.
struct Status {
    owner: Option<Holder>,
    /// An owner that was killed, and after which nobody has cleared up.
    dead: Option<Holder>,
    account: Account,
    open: Vec<String>,
    /// Changes of demos' stages, whose owners are dead.
    stages: Vec<String>,
    /// The journal is there, and may not be read.
    unreadable: bool,
    halted: Option<Halted>,
    aftermath: Option<Aftermath>,
}

impl Status {
    fn of(directories: &Directories) -> Self {
        // Its guardian is about to become the owner.
        wait_until(GUARDIAN, || {
            owner::dead(&directories.run).is_none() || recover::outstanding(directories).is_empty()
        });
        let owner = owner::current(&directories.run);
        let stages = demo::stages(directories);
        let dead_stages = stages.iter().filter(|place| owner::current(&place.run).is_none());
        let refused = |path| File::open(path).is_err_and(|e| e.kind() == ErrorKind::PermissionDenied);
        Self {
            dead: owner::dead(&directories.run),
            account: standing::read(&directories.run),
            open: recover::outstanding(directories),
            stages: dead_stages.flat_map(recover::outstanding).collect(),
            unreadable: refused(directories.journal()) || refused(directories.durable()),
            halted: halt::check(&directories.run).err(),
            aftermath: aftermath::read(&directories.run),
            owner,
        }
    }

    /// Whether the dead have left something, as far as may be seen.
    fn is_left(&self) -> bool {
        (self.owner.is_none() && !self.open.is_empty()) || !self.stages.is_empty()
    }

    /// The faults in force. A dead owner's are history: what is left of them are changes.
    fn faults(&self) -> &[Standing] {
        if self.owner.is_some() { &self.account.faults } else { &[] }
    }

    fn json(&self) -> Value {
        let faults = self.faults().iter().map(|f| {
            json!({
                "fault": f.fault,
                "target": f.target,
                "for_s": f.lasts().as_secs_f64(),
                "lease_ends_in_s": f.lease().as_secs_f64(),
                "ends_in_s": f.remaining().as_secs_f64(),
                "receipt": f.receipt,
                "receipt_age_s": self.account.age().as_secs_f64(),
            })
        });
        json!({
            "owner": self.owner.as_ref().map(person),
            "dead": self.dead.as_ref().map(person),
            "faults": faults.collect::<Vec<_>>(),
            "in_force": self.open,
            "left_by_demos": self.stages,
            "journal_readable": !self.unreadable,
            "halted": self.halted.as_ref().map(|h| &h.0),
            "last_recovery": self.aftermath,
        })
    }

    fn text(&self, paint: Paint) -> String {
        let mut out = String::new();
        match (&self.owner, &self.dead) {
            (Some(h), _) => {
                let since = h.age().map(|age| format!(", since {}", secs(age.as_secs_f64()))).unwrap_or_default();
                line(&mut out, &paint.bold(&format!("process {} owns this host: {}{since}", h.pid, h.what)));
            }
            (None, Some(h)) => {
                line(&mut out, &paint.bold("nobody owns this host"));
                line(&mut out, &format!("process {} ({}) was killed, and its guardian, too", h.pid, h.what));
            }
            (None, None) => line(&mut out, &paint.bold("nobody owns this host")),
        }
        let age = self.account.age();
        for fault in self.faults() {
            of_fault(&mut out, fault, age, paint);
        }
        let heading = if self.owner.is_some() { "in force" } else { "left in force" };
        for change in &self.open {
            line(&mut out, &paint.dim(&format!("  {heading}: {change}")));
        }
        for change in &self.stages {
            line(&mut out, &format!("  left by a demo that was killed: {change}"));
        }
        if self.unreadable {
            line(&mut out, "only root may see the single changes: sudo firedrill status");
        }
        if self.is_left() {
            let what = "to undo what is left: sudo firedrill recover (the next run does it, too, before it begins)";
            line(&mut out, &paint.tone(Tone::Bad, what));
        }
        if let Some(aftermath) = &self.aftermath {
            of_aftermath(&mut out, aftermath, paint);
        }
        if let Some(halted) = &self.halted {
            line(&mut out, &paint.tone(Tone::Warn, &halted.to_string()));
        }
        out
    }
}

fn person(holder: &Holder) -> Value {
    let since = holder.age().map(|age| age.as_secs_f64());
    json!({ "pid": holder.pid, "what": holder.what, "for_s": since, "clears_up": holder.clears_up })
}

fn line(out: &mut String, text: &str) {
    let _ = writeln!(out, "{text}");
}

fn of_fault(out: &mut String, fault: &Standing, age: Duration, paint: Paint) {
    let Standing { fault: name, target, receipt, .. } = fault;
    let [lasts, lease, ends] = [fault.lasts(), fault.lease(), fault.remaining()].map(|d| secs(d.as_secs_f64()));
    line(out, &format!("  {name} on {target}: for {lasts}; ends in {ends} at the latest, in {lease} if not renewed"));
    let mark = Mark::from(receipt.effect);
    let old = if age > OLD { format!(" ({} ago)", secs(age.as_secs_f64())) } else { String::new() };
    line(out, &paint.tone(mark.tone, &format!("    {} {}: {}{old}", mark.sign, mark.word, receipt.says)));
    for l in &receipt.lines {
        line(out, &paint.dim(&format!("      {}: requested {}, applied {}", l.what, l.requested, l.applied)));
    }
}

fn of_aftermath(out: &mut String, told: &Aftermath, paint: Paint) {
    let who = told.owner.as_ref().map_or("an earlier run".to_owned(), |h| format!("process {} ({})", h.pid, h.what));
    let when = i64::try_from(told.at).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    let when = when.map(|at| at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string());
    let (done, ms) = (count(told.undone.len(), "change", "changes"), told.took_ms);
    let when = when.unwrap_or_default();
    line(out, &format!("earlier, until {when}: {who}: {}; {} undid {done} in {ms:.0} ms", told.why, told.by));
    for (what, note) in &told.undone {
        line(out, &paint.dim(&format!("  undone: {what}: {note}")));
    }
    for left in &told.left {
        line(out, &paint.tone(Tone::Bad, &format!("  NOT undone: {left}")));
    }
}
