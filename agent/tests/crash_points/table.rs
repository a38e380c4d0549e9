//! What was tried and found, for people and for `cargo xtask crash`.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::json;

/// File that takes the table, as JSON.
const FILE: &str = "FIREDRILL_CRASH_TABLE";

/// One fault on one sort of target.
#[derive(Debug)]
pub struct Row {
    fault: String,
    target: &'static str,
    points: usize,
    states: usize,
    died_in: BTreeSet<usize>,
    deaths: Vec<Duration>,
    /// What was left, and where.
    pub survivors: Vec<String>,
}

impl Row {
    pub fn new(fault: &str, target: &'static str, points: usize, states: usize) -> Self {
        Self {
            fault: fault.to_owned(),
            target,
            points,
            states,
            died_in: BTreeSet::new(),
            deaths: Vec::new(),
            survivors: Vec::new(),
        }
    }

    /// A death in a state after which the host was clean within `time`.
    pub fn ran(&mut self, state: usize, time: Duration) {
        self.died_in.insert(state);
        self.deaths.push(time);
    }
}

/// All of them.
#[derive(Debug)]
pub struct Table {
    seed: u64,
    all: bool,
    pub rows: Vec<Row>,
}

fn ms(time: Option<Duration>) -> f64 {
    time.map_or(0.0, |time| (time.as_secs_f64() * 1e4).round() / 10.0)
}

impl Table {
    pub fn new(seed: u64, all: bool, rows: Vec<Row>) -> Self {
        Self { seed, all, rows }
    }

    /// Prints and writes the table. An error when anything was left, or nothing tried.
    pub fn finish(mut self, took: Duration) -> Result<(), String> {
        println!(
            "fault            target                      points  states  tried  deaths  survivors  median ms  slowest ms"
        );
        for row in &mut self.rows {
            row.deaths.sort_unstable();
            let (median, slowest) = (ms(row.deaths.get(row.deaths.len() / 2).copied()), ms(row.deaths.last().copied()));
            let Row { fault, target, points, states, died_in, deaths, survivors } = row;
            println!(
                "{fault:16} {target:27} {points:6} {states:7} {:6} {:7} {:10} {median:10.1} {slowest:11.1}",
                died_in.len(),
                deaths.len(),
                survivors.len()
            );
        }
        println!("in {:.0} s", took.as_secs_f64());
        if let Some(path) = std::env::var_os(FILE) {
            fs::write(path, self.json().to_string()).map_err(|e| format!("the table cannot be written: {e}"))?;
        }
        let survivors: Vec<&str> = self.rows.iter().flat_map(|row| &row.survivors).map(String::as_str).collect();
        if !survivors.is_empty() {
            return Err(survivors.join("\n"));
        }
        match self.rows.iter().find(|row| row.deaths.is_empty()) {
            Some(row) => Err(format!("no time was left for {} on {}", row.fault, row.target)),
            None if self.rows.is_empty() => Err("nothing was tried: there is no such fault".into()),
            None => Ok(()),
        }
    }

    fn json(&self) -> serde_json::Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "fault": row.fault,
                "target": row.target,
                "points": row.points,
                "states": row.states,
                "tried": row.died_in.len(),
                "deaths": row.deaths.len(),
                "survivors": row.survivors,
                "median_ms": ms(row.deaths.get(row.deaths.len() / 2).copied()),
                "slowest_ms": ms(row.deaths.last().copied()),
            })
        });
        json!({ "seed": self.seed, "all": self.all, "rows": rows.collect::<Vec<_>>() })
    }
}
