//! What a host looks like, as plain lines of text, so that before and after a drill can be compared by anybody: the
//! `diff` of two snapshots is empty when nothing was left behind.
//!
//! Looked at: named network namespaces; control groups and whether they are frozen; stopped processes; eBPF programs
//! and links; and, in the host's own namespace and in those asked for, the interfaces (TAP devices among them),
//! queueing disciplines, packet filters, nftables and kernel parameters. What the kernel shows only through `tc` and
//! `nft` is looked at where these programs are installed.
//!
//! Not looked at: counters, and whatever else changes by itself.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use aya::programs::{loaded_links, loaded_programs};
use serde::{Deserialize, Serialize};

use crate::dataplane;
use crate::guardian;
use crate::host::{cgroup, netns, process};

/// A line of a snapshot: where (`host`, or the name of a network namespace), what kind of thing, and the thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Line {
    /// `host`, or the name of a network namespace.
    pub place: String,
    /// The kind of thing, such as `qdisc`.
    pub kind: Cow<'static, str>,
    /// The thing itself, in the words of the kernel or its tools.
    pub what: String,
}

/// A host at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    lines: BTreeSet<Line>,
}

/// A line that only one of two snapshots has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// The line.
    #[serde(flatten)]
    pub line: Line,
    /// Whether it is in the later snapshot only; otherwise in the earlier only.
    pub appeared: bool,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Line { place, kind, what } = &self.line;
        write!(f, "{} {place}: {kind} {what}", if self.appeared { '+' } else { '-' })
    }
}

impl Difference {
    /// Whether it can only be Firedrill's doing or concern: it lies in a namespace that was asked for, is new and bears a
    /// name of ours or one of `marks`, or is a parameter of the host that our faults change. Anything else on a busy
    /// host comes and goes without us.
    pub fn concerns(&self, marks: &[&str]) -> bool {
        let Line { place, kind, what } = &self.line;
        let ours = || {
            what.contains("firedrill")
                || what.contains(PROGRAM_MARK)
                || dataplane::is_own_tap(what)
                || marks.iter().any(|mark| what.contains(mark))
        };
        place != HOST || (self.appeared && ours()) || (*kind == "parameter" && what.contains(CHANGED_PARAMETERS))
    }
}

/// The place of everything that is in no namespace that was asked for.
const HOST: &str = "host";
/// The parameters of the host's own namespace that a fault may change are all of its loopback interface.
const CHANGED_PARAMETERS: &str = "/conf/lo/";
/// What the names of our eBPF programs begin with.
const PROGRAM_MARK: &str = "fdrill_";
/// Below this, kernel parameters of a network namespace are compared. What is beside them are counters and
/// settings of the whole machine.
const PARAMETERS: [&str; 2] = ["/proc/sys/net/ipv4", "/proc/sys/net/ipv6"];

impl FromIterator<Line> for Snapshot {
    fn from_iter<I: IntoIterator<Item = Line>>(lines: I) -> Self {
        Self { lines: lines.into_iter().collect() }
    }
}

impl Snapshot {
    /// Looks at the host and into the named network namespaces. One that is not there has no lines.
    ///
    /// # Errors
    /// The host's own namespace cannot be read.
    pub fn take(namespaces: &[String]) -> io::Result<Self> {
        let mut lines = BTreeSet::new();
        let mut add = |kind: &'static str, list: Vec<String>| {
            lines.extend(list.into_iter().map(|what| Line { place: HOST.into(), kind: kind.into(), what }));
        };
        add("network namespace", netns::names());
        add("cgroup", cgroup::all().into_iter().filter(|path| !is_guardian_on_duty(path)).collect());
        add("frozen cgroup", frozen_groups());
        add("stopped process", stopped_processes());
        let (programs, links) = bpf_objects();
        add("eBPF program", programs);
        add("eBPF link", links);
        lines.extend(network(HOST)?);
        for name in namespaces {
            if let Ok(namespace) = netns::named(name) {
                // It may go away while we look.
                lines.extend(netns::within(&namespace, || network(name)).and_then(|r| r).unwrap_or_default());
            }
        }
        Ok(Self { lines })
    }

    /// All lines, in order.
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter()
    }

    /// What is in one of the two only, in order. Empty when the host is as before.
    pub fn diff(&self, later: &Self) -> Vec<Difference> {
        let only = |a: &Self, b: &Self, appeared| {
            let lines = a.lines.difference(&b.lines).cloned();
            lines.map(|line| Difference { line, appeared }).collect::<Vec<_>>()
        };
        let mut all = only(self, later, false);
        all.extend(only(later, self, true));
        all.sort();
        all
    }

    /// The diff against the host of now that lasts: what is different at every look until `patience` is over. Other
    /// programs' short-lived things, and our own that are just going, are not in it.
    ///
    /// # Errors
    /// As [`Snapshot::take`].
    pub fn lasting_diff(&self, namespaces: &[String], patience: Duration) -> io::Result<Vec<Difference>> {
        self.lasting(namespaces, patience, |_| true)
    }

    /// The part of it that [`Difference::concerns`] us. Returns as soon as that is empty.
    ///
    /// # Errors
    /// As [`Snapshot::take`].
    pub fn left_behind(
        &self,
        namespaces: &[String],
        marks: &[&str],
        patience: Duration,
    ) -> io::Result<Vec<Difference>> {
        self.lasting(namespaces, patience, |d| d.concerns(marks))
    }

    fn lasting(
        &self,
        namespaces: &[String],
        patience: Duration,
        counts: impl Fn(&Difference) -> bool,
    ) -> io::Result<Vec<Difference>> {
        let begun = std::time::Instant::now();
        let mut lasting = self.diff(&Self::take(namespaces)?);
        lasting.retain(&counts);
        while !lasting.is_empty() && begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.diff(&Self::take(namespaces)?);
            lasting.retain(|d| now.contains(d));
        }
        Ok(lasting)
    }
}

/// Whether a group is that of a guardian, ours or another's, that is still there: it goes when its work is done. An
/// empty one was left.
fn is_guardian_on_duty(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with(guardian::SHELTER))
        && cgroup::find(path).is_ok_and(|group| !cgroup::processes(&group).is_empty())
}

fn frozen_groups() -> Vec<String> {
    let frozen =
        |path: &String| cgroup::find(path).is_ok_and(|group| cgroup::freeze_value(&group).is_ok_and(|v| v == "1"));
    cgroup::all().into_iter().filter(frozen).collect()
}

fn stopped_processes() -> Vec<String> {
    let stopped = process::all().into_iter().filter(|s| s.state == 'T').map(|s| s.process);
    stopped.map(|p| format!("{} ({})", p.pid, p.comm)).collect()
}

/// eBPF programs and links that nobody holds but the kernel or ourselves. What another living process holds a
/// descriptor of is its own affair, and goes with it.
fn bpf_objects() -> (Vec<String>, Vec<String>) {
    let held = held_by_others();
    let names: BTreeMap<u32, String> = loaded_programs()
        .filter_map(Result::ok)
        .map(|p| (p.id(), p.name_as_str().unwrap_or_default().to_owned()))
        .collect();
    let free = names.iter().filter(|(id, _)| !held.programs.contains(id));
    let programs = free.map(|(id, name)| format!("{id} {name}")).collect();
    let links = loaded_links().filter_map(Result::ok).filter(|l| !held.links.contains(&l.id()));
    let name_of = |id: u32| names.get(&id).map_or("", String::as_str);
    let links = links.map(|l| format!("{} of {} {}", l.id(), l.program_id(), name_of(l.program_id()))).collect();
    (programs, links)
}

#[derive(Default)]
struct Held {
    programs: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

/// Ids that the descriptors of other processes lead to (`prog_id` and `link_id` of `/proc/PID/fdinfo`; a link names
/// its program as well).
fn held_by_others() -> Held {
    let mut held = Held::default();
    let me = std::process::id().cast_signed();
    for pid in process::all().into_iter().map(|s| s.process.pid).filter(|pid| *pid != me) {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { continue };
        for entry in entries.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let id = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u32>().ok());
            held.programs.extend(id("prog_id:"));
            held.links.extend(id("link_id:"));
        }
    }
    held
}

/// What the calling thread's network namespace looks like.
fn network(place: &str) -> io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut add = |kind: &'static str, list: Vec<String>| {
        lines.extend(list.into_iter().map(|what| Line { place: place.to_owned(), kind: kind.into(), what }));
    };
    let names: Vec<String> =
        nix::net::if_::if_nameindex()?.iter().map(|i| i.name().to_string_lossy().into_owned()).collect();
    let qdiscs = tool("tc", &["qdisc", "show"]);
    // Only these two have filters of the kind that packet programs are.
    let hooked = |name: &str| {
        qdiscs.iter().any(|q| {
            let mut words = q.split(' ').skip(1);
            matches!(words.next(), Some("clsact" | "ingress")) && words.any(|w| w == name)
        })
    };
    for name in names.iter().filter(|name| hooked(name)) {
        for way in ["ingress", "egress"] {
            let filters = tool("tc", &["filter", "show", "dev", name, way]);
            add("filter", filters.into_iter().map(|l| format!("{name} {way}: {l}")).collect());
        }
    }
    add("interface", names);
    add("qdisc", qdiscs);
    add("nftables", tool("nft", &["-s", "list", "ruleset"]));
    let mut values = BTreeMap::new();
    for directory in PARAMETERS {
        parameters(Path::new(directory), 0, &mut values);
    }
    add("parameter", values.into_iter().map(|(path, value)| format!("{} = {value}", path.display())).collect());
    Ok(lines)
}

/// Kernel parameters below a directory, three levels deep: that is where an interface's own are.
fn parameters(directory: &Path, depth: u32, into: &mut BTreeMap<PathBuf, String>) {
    const DEEPEST: u32 = 3;
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if depth < DEEPEST {
                parameters(&path, depth + 1, into);
            }
        } else if let Ok(value) = fs::read_to_string(&path) {
            // Some are write-only or refuse to be read until they are set.
            into.insert(path, value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
}

/// The lines that a program prints, without the reference counts that `tc` shows; nothing when it is not installed.
fn tool(program: &str, args: &[&str]) -> Vec<String> {
    let Ok(output) = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(without_references).filter(|l| !l.is_empty()).collect()
}

fn without_references(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    if let Some(at) = words.iter().position(|w| *w == "refcnt") {
        words.drain(at..(at + 2).min(words.len()));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(lines: &[(&str, &'static str, &str)]) -> Snapshot {
        let line = |(place, kind, what): &(&str, &'static str, &str)| Line {
            place: (*place).to_owned(),
            kind: (*kind).into(),
            what: (*what).to_owned(),
        };
        Snapshot { lines: lines.iter().map(line).collect() }
    }

    #[test]
    fn a_changed_value_shows_as_one_gone_and_one_new() {
        let before = snapshot(&[("blue", "parameter", "/x = 0"), ("host", "cgroup", "a")]);
        let after = snapshot(&[("blue", "parameter", "/x = 1"), ("host", "cgroup", "a")]);
        let shown: Vec<String> = before.diff(&after).iter().map(Difference::to_string).collect();
        assert_eq!(shown, ["- blue: parameter /x = 0", "+ blue: parameter /x = 1"]);
        assert_eq!(before.diff(&before), []);
    }

    #[test]
    fn what_others_do_on_the_host_is_not_our_concern_but_what_bears_our_name_is() {
        let before = snapshot(&[]);
        let after = snapshot(&[
            ("blue", "qdisc", "clsact"),
            ("host", "cgroup", "docker/abc"),
            ("host", "cgroup", "firedrill-guardian-7"),
            ("host", "eBPF link", "3 of 8 sd_devices"),
            ("host", "eBPF program", "9 fdrill_egress"),
            ("host", "interface", "fdl0"),
            ("host", "network namespace", "fdemo7-lb"),
            ("host", "parameter", "/proc/sys/net/ipv4/conf/docker0/forwarding = 1"),
            ("host", "parameter", "/proc/sys/net/ipv4/conf/lo/accept_local = 1"),
        ]);
        let ours = |d: &Difference| d.concerns(&["fdemo7"]);
        let shown: Vec<String> = before.diff(&after).into_iter().filter(ours).map(|d| d.line.what).collect();
        assert_eq!(
            shown,
            [
                "clsact",
                "firedrill-guardian-7",
                "9 fdrill_egress",
                "fdl0",
                "fdemo7-lb",
                "/proc/sys/net/ipv4/conf/lo/accept_local = 1"
            ]
        );
        let gone = after.diff(&before).into_iter().filter(ours).map(|d| d.line.what).collect::<Vec<_>>();
        assert_eq!(gone, ["clsact", "/proc/sys/net/ipv4/conf/lo/accept_local = 1"], "what others took away is theirs");
    }

    #[test]
    fn reference_counts_are_left_out() {
        assert_eq!(without_references("qdisc noqueue 0: dev lo root refcnt 2 "), "qdisc noqueue 0: dev lo root");
        assert_eq!(without_references("qdisc fq 1: root refcnt"), "qdisc fq 1: root");
    }

    #[test]
    fn a_host_differs_from_itself_in_nothing_that_concerns_us() {
        let first = Snapshot::take(&[]).expect("readable");
        assert!(first.lines().any(|l| l.kind == "interface"), "even the smallest host has lo");
        let lasting = first.lasting_diff(&[], Duration::from_secs(2)).expect("readable");
        let mine: Vec<_> = lasting.iter().filter(|d| d.line.kind == "parameter" || d.line.kind == "qdisc").collect();
        assert!(mine.is_empty(), "{mine:?}");
    }
}
