//! What a host looks like, as plain lines of text, so that before and after a drill can be compared by anybody: the
//! `diff` of two snapshots is empty when nothing was left behind.
//!
//! Looked at on the host: named network namespaces; control groups with their settings and programs, and whether they are
//! frozen; stopped processes; mounts; eBPF programs, maps, links and pins; files of Firedrill that a process without a
//! run holds open. And, in the host's own network namespace and in those asked for: interfaces, addresses, routes, routing
//! rules, neighbours that somebody set, queueing disciplines with classes and filters, programs at tcx hooks, nftables,
//! IP sets, iptables-legacy and kernel parameters.
//!
//! The kernel is asked itself, by netlink and files, so that no tool need be installed. Only the tables of
//! iptables-legacy, where there are any, need `iptables-legacy-save`.
//!
//! Not looked at: whatever changes by itself. Each module says what that is, and why.

mod ebpf;
mod files;
mod netfilter;
mod network;
mod open_files;
mod traffic;
mod words;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::ebpf::Loaded;
use crate::dataplane;
use crate::host::netns;

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
                || what.split(' ').next().is_some_and(dataplane::is_own_tap)
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
        let processes = open_files::processes();
        let held = open_files::held_by_others(&processes);
        let mut loaded = ebpf::loaded(&held);
        let groups = files::groups(&loaded);
        add("network namespace", netns::names());
        add("cgroup", groups.groups);
        add("frozen cgroup", groups.frozen);
        add("cgroup setting", groups.settings);
        add("cgroup program", groups.programs);
        add("stopped process", open_files::stopped(&processes));
        add("open file", held.orphans);
        add("mount", files::mounts());
        add("eBPF program", std::mem::take(&mut loaded.programs));
        add("eBPF map", std::mem::take(&mut loaded.maps));
        add("eBPF link", std::mem::take(&mut loaded.links));
        add("eBPF pin", ebpf::pins());
        lines.extend(network(HOST, &loaded)?);
        for name in namespaces {
            if let Ok(namespace) = netns::named(name) {
                // It may go away while we look.
                lines.extend(netns::within(&namespace, || network(name, &loaded)).and_then(|r| r).unwrap_or_default());
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

/// What the calling thread's network namespace looks like.
fn network(place: &str, loaded: &Loaded) -> io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut add = |kind: &'static str, list: Vec<String>| {
        lines.extend(list.into_iter().map(|what| Line { place: place.to_owned(), kind: kind.into(), what }));
    };
    let (links, names) = network::links()?;
    let traffic = traffic::traffic(&names)?;
    add("interface", links);
    add("address", network::addresses(&names)?);
    add("route", network::routes(&names)?);
    add("rule", network::rules(&names)?);
    add("neighbour", network::neighbours(&names)?);
    add("qdisc", traffic.qdiscs);
    add("class", traffic.classes);
    add("filter", traffic.filters);
    add("tcx program", loaded.at_interfaces(&names));
    add("nftables", netfilter::nftables()?);
    add("IP set", netfilter::ipsets()?);
    add("iptables", netfilter::legacy());
    add("parameter", files::parameters());
    Ok(lines)
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
            ("host", "interface", "fdl0 index 9"),
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
                "fdl0 index 9",
                "fdemo7-lb",
                "/proc/sys/net/ipv4/conf/lo/accept_local = 1"
            ]
        );
        let gone = after.diff(&before).into_iter().filter(ours).map(|d| d.line.what).collect::<Vec<_>>();
        assert_eq!(gone, ["clsact", "/proc/sys/net/ipv4/conf/lo/accept_local = 1"], "what others took away is theirs");
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
