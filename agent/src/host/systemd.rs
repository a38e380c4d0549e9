//! systemd's units, through `systemctl`: its output for machines (`show`) is a stable interface, and no bus
//! library has to be built for it.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use firedrill_model::facts::UnitFacts;

use crate::{crash_point, pulse};

/// The longest that a unit may take to stop or start before we go on and say so.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Whether systemd runs this host (sd_booted(3)).
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// A unit as systemd shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Whether systemd knows a unit of that name: `LoadState`.
    pub load: String,
    /// `ActiveState`, `TriggeredBy` and the full name.
    pub facts: Option<UnitFacts>,
    /// Its control group below the mount point; empty when it does not run.
    pub cgroup: String,
    /// Units that systemd stops together with it, active or not: `RequiredBy`, `BoundBy`, `ConsistsOf`,
    /// `PropagatesStopTo`.
    pub dependents: Vec<String>,
    /// Whether its owner wants systemd to start it again when it has ended: `Restart` other than `no`.
    pub restarts: bool,
    /// Made by a program, not by a file: it is forgotten once it has stopped.
    transient: bool,
    /// Whether systemd lets people start and stop it: `CanStart`, `CanStop`.
    manual: bool,
}

/// What [`show`] asks for.
const PROPERTIES: &str = "--property=Id,LoadState,ActiveState,ControlGroup,TriggeredBy,RequiredBy,BoundBy,ConsistsOf,\
                          PropagatesStopTo,Transient,CanStart,CanStop,Restart";

/// Looks a unit up. `nginx` is taken for `nginx.service`.
///
/// # Errors
/// `systemctl` cannot be run, or says no.
pub fn show(unit: &str) -> io::Result<Unit> {
    let name = full_name(unit);
    let text = run(&["show", PROPERTIES, "--", &name], PATIENCE)?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Unit {
    let value = |key: &str| {
        let found = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_default().to_owned()
    };
    let names = |key: &str| value(key).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let facts = UnitFacts {
        name: value("Id"),
        active: value("ActiveState"),
        triggered_by: names("TriggeredBy"),
        stops_with: Vec::new(),
        no_way_back: None,
    };
    Unit {
        load: value("LoadState"),
        facts: Some(facts),
        cgroup: value("ControlGroup"),
        dependents: ["RequiredBy", "BoundBy", "ConsistsOf", "PropagatesStopTo"].into_iter().flat_map(names).collect(),
        restarts: !matches!(value("Restart").as_str(), "" | "no"),
        transient: value("Transient") == "yes",
        manual: value("CanStart") != "no" && value("CanStop") != "no",
    }
}

/// A unit with all that a stop of it would touch: its triggers that are active, and the active units that systemd
/// would stop with it.
///
/// # Errors
/// As [`show`].
pub fn with_neighbours(unit: &str) -> io::Result<Unit> {
    let mut found = show(unit)?;
    let Some(facts) = &mut found.facts else { return Ok(found) };
    let is_active = |name: &String| active_state(name).is_ok_and(|state| state == "active");
    facts.triggered_by.retain(is_active);
    facts.no_way_back = no_way_back(&facts.name, found.transient, found.manual);
    let mut next: Vec<String> = found.dependents.clone();
    while let Some(name) = next.pop() {
        if name == facts.name || facts.stops_with.contains(&name) || facts.triggered_by.contains(&name) {
            continue;
        }
        let dependent = show(&name)?;
        if dependent.facts.is_none_or(|f| !matches!(f.active.as_str(), "active" | "activating" | "reloading")) {
            continue;
        }
        if let Some(why) = no_way_back(&name, dependent.transient, dependent.manual) {
            facts.no_way_back.get_or_insert(format!("systemd would stop {name} with it, and {why}"));
        }
        next.extend(dependent.dependents);
        facts.stops_with.push(name);
    }
    // What is needed by others is started before them.
    facts.stops_with.reverse();
    Ok(found)
}

/// Why a unit that was stopped could not be started again, with all that went down with it.
fn no_way_back(name: &str, transient: bool, manual: bool) -> Option<String> {
    let kind = name.rsplit('.').next().unwrap_or_default();
    if transient {
        return Some(format!("{name} was made by a program (transient) and is forgotten once it has stopped"));
    }
    if !manual {
        return Some(format!("systemd starts and stops {name} only as a dependency of others (CanStart, CanStop)"));
    }
    (!matches!(kind, "service" | "socket" | "timer" | "path"))
        .then(|| format!("{name} is a {kind}; only services, sockets, timers and paths come back as they were"))
}

/// A unit name with its suffix.
pub fn full_name(unit: &str) -> String {
    if unit.contains('.') { unit.to_owned() } else { format!("{unit}.service") }
}

/// `ActiveState` of a unit.
///
/// # Errors
/// As [`show`].
pub fn active_state(unit: &str) -> io::Result<String> {
    Ok(show(unit)?.facts.map(|f| f.active).unwrap_or_default())
}

/// Names of the services that are loaded.
pub fn services() -> Vec<String> {
    let text = run(&["list-units", "--type=service", "--all", "--plain", "--no-legend", "--no-pager"], PATIENCE);
    text.unwrap_or_default().lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect()
}

/// Stops a unit and waits until it is down.
///
/// # Errors
/// As [`show`]; the text is systemd's own.
pub fn stop(unit: &str) -> io::Result<()> {
    act("unit.stop", "stop", unit)
}

/// Starts a unit and waits until it is up. Drills count as starts: when systemd refuses one more
/// (`StartLimitBurst`), the count is reset, once.
///
/// # Errors
/// As [`show`]; the text is systemd's own.
pub fn start(unit: &str) -> io::Result<()> {
    let first = act("unit.start", "start", unit);
    if first.is_ok() || active_state(unit)? != "failed" {
        return first;
    }
    reset(unit)?;
    act("unit.start", "start", unit)
}

/// Gives back a unit that was killed whenever it came back: the count of its restarts begins anew, and when systemd
/// has given up already, it is started. The text says which.
///
/// # Errors
/// As [`show`]; the text is systemd's own.
pub fn revive(unit: &str) -> io::Result<String> {
    // Before the state is looked at: a restart that is under way now must not be the one too many.
    let found = show(unit)?;
    if found.load != "loaded" {
        return Ok("the unit is gone".into());
    }
    if !found.restarts {
        // Its failure is left for people to see.
        return Ok("nobody restarts it (Restart=no)".into());
    }
    let is = |unit: &Unit, states: &[&str]| unit.facts.as_ref().is_some_and(|f| states.contains(&f.active.as_str()));
    let done = reset(unit);
    let now = show(unit)?;
    // One that is restarted is never at rest by itself: it was reset by one who died before it could start it. (Or stopped by
    // hand, which looks the same; it ran when the fault began.)
    let at_rest = [&found, &now].into_iter().any(|unit| is(unit, &["failed", "inactive"]));
    // One that was reset may not be known any more, which is no failure of ours.
    if !at_rest || is(&now, &["failed"]) {
        done?;
    }
    if !at_rest {
        return Ok("left to its supervisor".into());
    }
    act("unit.start", "start", unit)?;
    Ok("systemd had given up after so many kills; started".into())
}

/// Forgets a failure, and how often the unit was started of late (systemctl(1), `reset-failed`).
fn reset(unit: &str) -> io::Result<()> {
    act("unit.reset", "reset-failed", unit)
}

/// Has systemd do something to a unit, and waits until it is done.
fn act(point: &'static str, verb: &str, unit: &str) -> io::Result<()> {
    let asked = || crash_point::pass("systemctl.started");
    crash_point::around(point, || run_and(&[verb, "--", unit], PATIENCE, asked)).map(drop)
}

/// Asks systemd something.
fn run(args: &[&str], patience: Duration) -> io::Result<String> {
    run_and(args, patience, || ())
}

fn run_and(args: &[&str], patience: Duration, once_started: impl FnOnce()) -> io::Result<String> {
    let mut command = Command::new("systemctl");
    command.arg("--no-ask-password").args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The crash points are those of `act`: all others only look.
    let mut child = command.spawn()?;
    once_started();
    let begun = Instant::now();
    // Output of the calls above fits into a pipe many times over, except a very long list of units, which `show`
    // and `list-units` write only as fast as it is read: read first, then wait.
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || stdout.map(io::read_to_string).transpose());
    let status = loop {
        pulse::beat();
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > patience {
            // Likewise: a crash point of `act` follows.
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("`systemctl {}` took longer than {} s", args.join(" "), patience.as_secs()),
            ));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let out = reader.join().map_err(|_| io::Error::other("reading from systemctl failed"))??.unwrap_or_default();
    if status.success() {
        return Ok(out);
    }
    let why = child.stderr.take().map(io::read_to_string).transpose()?.unwrap_or_default();
    Err(io::Error::other(format!("`systemctl {}`: {}", args.join(" "), why.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_shows_is_read_by_key_in_any_order() {
        let unit = parse(
            "LoadState=loaded\nControlGroup=/system.slice/a.service\nTriggeredBy=a.socket a.timer\nId=a.service\nActiveState=active\n",
        );
        let facts = unit.facts.expect("facts");
        assert_eq!((facts.name.as_str(), facts.active.as_str()), ("a.service", "active"));
        assert_eq!(facts.triggered_by, ["a.socket", "a.timer"]);
        assert_eq!((unit.load.as_str(), unit.cgroup.as_str()), ("loaded", "/system.slice/a.service"));
    }

    #[test]
    fn what_cannot_be_started_again_is_told() {
        assert_eq!(no_way_back("a.service", false, true), None);
        assert_eq!(no_way_back("a.timer", false, true), None);
        assert!(no_way_back("run-u1.service", true, true).is_some_and(|why| why.contains("transient")));
        assert!(no_way_back("basic.target", false, true).is_some_and(|why| why.contains("is a target")));
        assert!(no_way_back("a.service", false, false).is_some_and(|why| why.contains("CanStart")));
    }

    #[test]
    fn a_unit_without_a_suffix_is_a_service() {
        assert_eq!(full_name("nginx"), "nginx.service");
        assert_eq!(full_name("a.socket"), "a.socket");
    }
}
