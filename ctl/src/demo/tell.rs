//! What the demo says on the terminal. The only place of it that prints.

use std::path::Path;
use std::time::Duration;

use super::conclude::Outcome;
use super::index;
use super::survive::Survival;
use crate::render::paint::{Paint, Screen};
use crate::render::words::{self, Mark, Tone};

/// Columns in which it stays.
const COLUMNS: usize = 80;

/// Says what the demo does.
#[derive(Debug)]
pub struct Teller {
    screen: Screen,
    paint: Paint,
    drills: usize,
}

impl Teller {
    /// For a demo of so many drills, the last one included.
    pub fn new(drills: usize) -> Self {
        let screen = Screen::stdout();
        Self { screen, paint: screen.paint(), drills }
    }

    /// Whether there is a terminal on which a run can be shown as it goes.
    pub fn terminal(&self) -> bool {
        self.screen.terminal && Screen::stderr().terminal
    }

    fn say(&self, text: &str) {
        anstream::println!("{text}");
    }

    /// The beginning.
    pub fn welcome(&self) {
        self.say(&format!(
            "{}: a small shop of real processes, and {} drills on it. One to two\nminutes; Ctrl-C takes everything down.",
            self.paint.bold("Firedrill demo"),
            self.drills
        ));
        self.say("\n  users -> lb -> web-1, web-2, web-3 -> store-1, store-2 -> db\n");
    }

    /// Something that takes longer than a moment.
    pub fn step(&self, what: &str) {
        self.say(&self.paint.dim(&format!("{what} …")));
    }

    /// The shop serves.
    pub fn open(&self, after: Duration) {
        let after = words::secs(after.as_secs_f64());
        self.say(&format!("The shop is open, {after} after the start; each part in a namespace and cgroup.\n"));
    }

    /// A drill begins. `bound` says what sort of time `takes` is: `about` or `at most`.
    pub fn begin(&self, number: usize, does: &str, bound: &str, takes: Duration) {
        let takes = words::secs(takes.as_secs_f64());
        let head = self.paint.bold(&format!("{number}/{} {}", self.drills, words::capital(does)));
        self.say(&format!("{head} {}", self.paint.dim(&format!("({bound} {takes}) …"))));
    }

    /// A drill is over.
    pub fn came_to(&self, outcome: &Outcome, since_start: Duration) {
        let Mark { word, sign, tone } = Mark::from(outcome.verdict());
        let head = self.paint.strong(tone, &format!("{sign} {word}"));
        let at = words::secs(since_start.as_secs_f64());
        self.say(&format!("    {head} {}", self.paint.dim(&format!("({at} after the start)"))));
        self.say(&indented(outcome.finding()));
        if !outcome.as_expected() && !outcome.was_stopped() {
            let expected = index::expected(outcome.drill.expected);
            let text = format!("expected was {expected}: it came out otherwise on this host");
            self.say(&self.paint.tone(Tone::Warn, &indented(&text)));
        }
        self.say("");
    }

    /// A drill that could not begin is tried once more.
    pub fn again(&self) {
        self.say(&self.paint.tone(Tone::Warn, "    Nothing was injected, so it is tried once more.\n"));
    }

    /// The last drill is over.
    pub fn survived(&self, survival: &Survival) {
        let head = match survival.clean_after {
            Some(after) => {
                let after = words::secs(after.as_secs_f64());
                self.paint.strong(Tone::Good, &format!("✓ traffic was clean {after} after the kill"))
            }
            None => self.paint.strong(Tone::Bad, "✗ traffic did not become clean after the kill"),
        };
        self.say(&format!("    {head}"));
        self.say(&indented(&format!(
            "measured by the checkout probe, every 10 ms; {} failed while the faults were in force",
            words::count(survival.bad, "checkout", "checkouts")
        )));
        for line in &survival.undone {
            self.say(&indented(&format!("its guardian undid: {line}")));
        }
        if survival.differences.is_empty() {
            self.say(&indented(&format!(
                "state of the host before and after, {} lines (namespaces, interfaces, qdiscs, filters, nftables, kernel \
                 parameters, eBPF, cgroups, stopped processes): no difference",
                survival.compared
            )));
        } else {
            for difference in &survival.differences {
                self.say(&self.paint.tone(Tone::Bad, &indented(&difference.to_string())));
            }
        }
        self.say("");
    }

    /// The stage is down.
    pub fn closed(&self, left_over: &[String]) {
        if left_over.is_empty() {
            self.say("The shop is closed; the host is as it was.\n");
            return;
        }
        self.say(&self.paint.strong(Tone::Bad, "The host could not be fully restored. Left:"));
        for left in left_over {
            self.say(&format!("  {left}"));
        }
        self.say("`firedrill recover` and the next demo try again.\n");
    }

    /// Somebody ended it.
    pub fn stopped(&self, by: &str) {
        self.say(&format!("Stopped by {by}; there is no conclusion."));
    }

    /// It broke, and something is left besides.
    pub fn failed(&self, error: &anyhow::Error) {
        self.say(&self.paint.strong(Tone::Bad, &format!("The demo could not be finished: {error:#}")));
    }

    /// All drills side by side, and what follows.
    pub fn conclusion(&self, outcomes: &[Outcome], survival: Option<&Survival>, findings: &[String], took: Duration) {
        let width = outcomes.iter().map(|o| words::width(o.drill.does)).max().unwrap_or(0);
        for outcome in outcomes {
            let Mark { word, sign, tone } = Mark::from(outcome.verdict());
            let verdict = self.paint.tone(tone, &words::pad(&format!("{sign} {word}"), 14));
            let expected = index::expected(outcome.drill.expected);
            let remark = if outcome.as_expected() { String::new() } else { format!("  expected: {expected}") };
            self.say(&format!("  {}  {verdict}{remark}", words::pad(&words::capital(outcome.drill.does), width)));
        }
        if let Some(survival) = survival {
            let clean = survival
                .clean_after
                .map_or("not clean again".to_owned(), |d| format!("clean after {}", words::secs(d.as_secs_f64())));
            let tone = if survival.clean_after.is_some() { Tone::Good } else { Tone::Bad };
            self.say(&format!(
                "  {}  {}",
                words::pad("Firedrill is killed in mid-fault", width),
                self.paint.tone(tone, &clean)
            ));
        }
        self.say("");
        for finding in findings {
            self.say(&self.paint.bold(&words::wrap(finding, COLUMNS, "")));
        }
        self.say(&format!("\nTook {} in all.", words::secs(took.as_secs_f64())));
    }

    /// Where to go from here.
    pub fn goodbye(&self, page: &Path) {
        self.say(&format!("Report: {}", self.paint.bold(&page.display().to_string())));
        self.say("\nTry it on a service of your own (it ends by itself, or with Ctrl-C):");
        self.say("  firedrill inject latency --unit nginx.service --delay 100ms --for 30s --watch http://127.0.0.1/");
    }
}

/// A paragraph under a drill.
fn indented(text: &str) -> String {
    words::wrap(text, COLUMNS - 4, "").lines().map(|l| format!("    {l}")).collect::<Vec<_>>().join("\n")
}
