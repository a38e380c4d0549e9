//! systemd's units, through `systemctl`: its output for machines (`show`) is a stable interface, and no bus
//! library has to be built for it.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use firedrill_model::facts::UnitFacts;

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
}

/// Looks a unit up. `nginx` is taken for `nginx.service`.
///
/// # Errors
/// `systemctl` cannot be run, or says no.
pub fn show(unit: &str) -> io::Result<Unit> {
    let name = full_name(unit);
    let text = run(&["show", "--property=Id,LoadState,ActiveState,ControlGroup,TriggeredBy", "--", &name], PATIENCE)?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Unit {
    let value = |key: &str| {
        let found = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_default().to_owned()
    };
    let facts = UnitFacts {
        name: value("Id"),
        active: value("ActiveState"),
        triggered_by: value("TriggeredBy").split_whitespace().map(str::to_owned).collect(),
    };
    Unit { load: value("LoadState"), facts: Some(facts), cgroup: value("ControlGroup") }
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
    run(&["stop", "--", unit], PATIENCE).map(drop)
}

/// Starts a unit and waits until it is up.
///
/// # Errors
/// As [`show`]; the text is systemd's own.
pub fn start(unit: &str) -> io::Result<()> {
    run(&["start", "--", unit], PATIENCE).map(drop)
}

fn run(args: &[&str], patience: Duration) -> io::Result<String> {
    let mut child = Command::new("systemctl")
        .arg("--no-ask-password")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let begun = Instant::now();
    // Output of the calls above fits into a pipe many times over, except a very long list of units, which `show`
    // and `list-units` write only as fast as it is read: read first, then wait.
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || stdout.map(io::read_to_string).transpose());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > patience {
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
        let unit = parse("LoadState=loaded\nControlGroup=/system.slice/a.service\nTriggeredBy=a.socket a.timer\nId=a.service\nActiveState=active\n");
        let facts = unit.facts.expect("facts");
        assert_eq!((facts.name.as_str(), facts.active.as_str()), ("a.service", "active"));
        assert_eq!(facts.triggered_by, ["a.socket", "a.timer"]);
        assert_eq!((unit.load.as_str(), unit.cgroup.as_str()), ("loaded", "/system.slice/a.service"));
    }

    #[test]
    fn a_unit_without_a_suffix_is_a_service() {
        assert_eq!(full_name("nginx"), "nginx.service");
        assert_eq!(full_name("a.socket"), "a.socket");
    }
}
