//! What the kills came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::victim::{Cleaner, Victim};

/// One kill.
#[derive(Debug)]
pub struct Round {
    /// What was killed in which drill, and when.
    pub told: String,
    pub victim: Victim,
    /// Who cleaned up when nobody was left.
    pub by: Option<Cleaner>,
    /// Whether any change was in force.
    pub open: bool,
    /// From the kill, or the cleaner's start, to a clean host.
    pub took: Duration,
    /// What was last to go.
    pub last: &'static str,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told)
    }
}

/// All of them.
#[derive(Default)]
pub struct Figures {
    rounds: Vec<Round>,
}

impl Figures {
    pub fn add(&mut self, round: Round) {
        println!(
            "{:7.1} ms, {}: {round}{}",
            round.took.as_secs_f64() * 1e3,
            round.last,
            round.by.map(|by| format!("; cleaned by {by:?}")).unwrap_or_default()
        );
        self.rounds.push(round);
    }

    /// Times from the kill to a clean host, for kills in mid-fault that somebody lived to clean up after.
    pub fn print(&self) {
        let survived = |round: &&Round| round.open && round.by.is_none();
        println!("\nkilled in mid-fault           kills  median ms   p95 ms  worst ms");
        let mut by_victim: BTreeMap<Victim, Vec<Duration>> = BTreeMap::new();
        let mut by_last: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
        let mut all = Vec::new();
        for round in self.rounds.iter().filter(survived) {
            by_victim.entry(round.victim).or_default().push(round.took);
            by_last.entry(round.last).or_default().push(round.took);
            all.push(round.took);
        }
        for (victim, times) in by_victim {
            print_line(&victim.to_string(), times);
        }
        print_line("all", all);
        println!("last to go:");
        for (last, times) in by_last {
            print_line(last, times);
        }
        // The next run takes as long as a run.
        println!("both dead, time of the cleaner:");
        for cleaner in [Cleaner::Recover, Cleaner::Halt] {
            let times = self.rounds.iter().filter(|r| r.by == Some(cleaner)).map(|r| r.took).collect();
            print_line(&format!("{cleaner:?}"), times);
        }
        println!("{} kills, {} of them in mid-fault; nothing left", self.rounds.len(), self.open());
    }

    fn open(&self) -> usize {
        self.rounds.iter().filter(|round| round.open).count()
    }

    /// Kills that always miss would prove nothing.
    pub fn assert_meaning(&self) {
        assert!(
            3 * self.open() >= self.rounds.len(),
            "only {} of {} were in mid-fault",
            self.open(),
            self.rounds.len()
        );
    }
}

fn print_line(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
    let ms = |time: Option<&Duration>| time.map_or("-".to_owned(), |t| format!("{:.1}", t.as_secs_f64() * 1e3));
    println!("{what:30} {:4} {:>10} {:>8} {:>9}", times.len(), ms(at(0.5)), ms(at(0.95)), ms(times.last()));
}
