//! The view of a run while it goes on: redrawn in place on a terminal, plain lines elsewhere.
//!
//! The cursor is never hidden and the screen never switched, so a run that is killed leaves a terminal as it should be.

use std::fmt::Write as _;
use std::io::Write;

use firedrill_model::event::{Event, Outcome, Phase, Record};
use firedrill_model::log::Run;

use super::paint::{Paint, Screen};
use super::words::{self, Tone};
use super::{digest, spark};

/// Redrawn at most this often, in seconds.
const FRAME: f64 = 0.2;
/// Where nothing is redrawn, a sign of life this often, in seconds.
const HEARTBEAT: f64 = 10.0;
/// Stretch of time of one character of a sparkline, in seconds.
const CELL: f64 = 0.5;
/// Longest sparkline.
const CELLS: usize = 40;
/// Percentiles while a run goes on are those of the latest samples, at most so many.
const LATEST: usize = 2000;

/// The live view of one run.
pub struct Live {
    view: View,
    out: std::io::Stderr,
}

impl Live {
    /// On standard error, so that standard output is free for reports.
    pub fn stderr() -> Self {
        Self { view: View::new(Screen::stderr()), out: std::io::stderr() }
    }

    /// Shows an event that was just added to `run`.
    pub fn event(&mut self, run: &Run, record: &Record) {
        let text = self.view.event(run, record);
        self.write(&text);
    }

    /// Time has passed; `now` is in seconds since the run began. May be called as often as one likes.
    pub fn tick(&mut self, run: &Run, now: f64) {
        if self.view.is_due(now) {
            // The window may have a new size.
            let Screen { columns, rows, .. } = Screen::stderr();
            self.view.resize(columns, rows);
            let text = self.view.tick(run, now);
            self.write(&text);
        }
    }

    /// The run is over: takes the picture away, for the summary to stand in its place.
    pub fn finish(&mut self) {
        let text = self.view.finish();
        self.write(&text);
    }

    /// In one piece, so that a picture is never seen half drawn. When nobody can read it any more (a closed pipe), the
    /// run goes on: it is in the log.
    fn write(&mut self, text: &str) {
        if !text.is_empty() {
            let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        }
    }
}

/// What to write, and what stands on the terminal.
#[derive(Debug)]
struct View {
    screen: Screen,
    /// Widths of the lines that stand on the terminal now.
    drawn: Vec<usize>,
    last_frame: f64,
    last_beat: f64,
}

/// A line in pieces, so that it can be cut to the width of the terminal before it is coloured.
#[derive(Default)]
struct Line(Vec<(Tone, bool, String)>);

impl Line {
    fn add(&mut self, tone: Tone, text: impl AsRef<str>) -> &mut Self {
        self.0.push((tone, false, words::printable(text.as_ref())));
        self
    }

    fn bold(&mut self, tone: Tone, text: impl AsRef<str>) -> &mut Self {
        self.0.push((tone, true, words::printable(text.as_ref())));
        self
    }

    fn width(&self) -> usize {
        self.0.iter().map(|p| words::width(&p.2)).sum()
    }

    /// The line in at most `columns`, and the columns that it takes.
    fn fit(&self, paint: Paint, columns: usize) -> (String, usize) {
        let (mut out, mut used) = (String::new(), 0);
        for (tone, bold, text) in &self.0 {
            let part = words::cut(text, columns - used);
            used += words::width(&part);
            out += &if *bold { paint.strong(*tone, &part) } else { paint.tone(*tone, &part) };
            if part != *text {
                break;
            }
        }
        (out, used)
    }
}

impl View {
    fn new(screen: Screen) -> Self {
        Self { screen, drawn: Vec::new(), last_frame: f64::NEG_INFINITY, last_beat: 0.0 }
    }

    fn resize(&mut self, columns: usize, rows: usize) {
        (self.screen.columns, self.screen.rows) = (columns, rows);
    }

    /// Whether there would be anything to write at `now`.
    fn is_due(&self, now: f64) -> bool {
        if self.screen.terminal { now - self.last_frame >= FRAME } else { now - self.last_beat >= HEARTBEAT }
    }

    fn event(&mut self, run: &Run, record: &Record) -> String {
        let paint = self.screen.paint();
        let Some((tone, lasting, text)) = announce(run, record) else { return String::new() };
        let stamp = words::pad(&words::moment(record.at), 10);
        if !self.screen.terminal {
            self.last_beat = record.at;
            return format!("{} {}\n", paint.dim(&stamp), paint.tone(tone, &words::printable(&text)));
        }
        if !lasting {
            // The picture shows it; draw it soon.
            self.last_frame = f64::NEG_INFINITY;
            return String::new();
        }
        // Stays above the picture.
        let mut out = self.back();
        let text = words::wrap(&text, self.screen.columns.max(30) - 1, "");
        for line in text.lines() {
            let _ = writeln!(out, "{}\x1b[K", paint.tone(tone, line));
        }
        self.drawn.clear();
        out + &self.draw(run, record.at)
    }

    fn tick(&mut self, run: &Run, now: f64) -> String {
        if !self.is_due(now) {
            return String::new();
        }
        if self.screen.terminal {
            self.last_frame = now;
            return self.back() + &self.draw(run, now);
        }
        self.last_beat = now;
        let stamp = words::pad(&words::moment(now), 10);
        format!("{} {}\n", self.screen.paint().dim(&stamp), heartbeat(run, now))
    }

    fn finish(&mut self) -> String {
        let out = self.back() + if self.drawn.is_empty() { "" } else { "\x1b[J" };
        self.drawn.clear();
        out
    }

    /// Back to the first line of the picture. A terminal that became narrower has wrapped its lines.
    fn back(&self) -> String {
        let columns = self.screen.columns.max(1);
        let rows: usize = self.drawn.iter().map(|w| w.div_ceil(columns).max(1)).sum();
        if rows == 0 { String::new() } else { format!("\x1b[{rows}A\r") }
    }

    fn draw(&mut self, run: &Run, now: f64) -> String {
        // The last column stays free: some terminals wrap as soon as it is written.
        let columns = self.screen.columns.max(12) - 1;
        let lines = frame(run, now, columns, self.screen.rows.max(4) - 1);
        let mut out = String::new();
        self.drawn.clear();
        for line in lines {
            let (text, width) = line.fit(self.screen.paint(), columns);
            let _ = writeln!(out, "{text}\x1b[K");
            self.drawn.push(width);
        }
        out + "\x1b[J"
    }
}

/// What an event says, its tone, and whether it should stay on a terminal.
fn announce(run: &Run, record: &Record) -> Option<(Tone, bool, String)> {
    let step = |i: usize| {
        let plan = run.plan.steps.get(i);
        plan.map_or_else(
            || format!("step {}", i + 1),
            |p| format!("step {}: {} on {}", i + 1, digest::faults(p), digest::targets(p)),
        )
    };
    Some(match &record.event {
        Event::RunStarted { id, plan, .. } => {
            let title = if plan.title.is_empty() { &plan.experiment } else { &plan.title };
            (Tone::Plain, false, format!("run {id}: {title} (about {})", words::span(plan.expected_length())))
        }
        Event::PhaseBegan { phase } => (Tone::Plain, false, format!("phase: {}", phase.name())),
        Event::StepBegan { step: i, .. } => (Tone::Warn, false, format!("{}, being injected", step(*i))),
        Event::StepInForce { step: i } => (Tone::Warn, false, format!("{}, in force", step(*i))),
        Event::StepEnded { step: i } => (Tone::Plain, false, format!("{}, ended", step(*i))),
        Event::Receipt { last: true, receipt, .. } => {
            let mark = words::Mark::from(receipt.effect);
            let text = format!("receipt: {} on {}: {}; {}", receipt.fault, receipt.target, mark.word, receipt.says);
            (mark.tone, false, text)
        }
        Event::Note { text } => (Tone::Unknown, true, format!("note: {text}")),
        Event::Aborted { why, invalid } => {
            let word = if *invalid { "nothing can be tested" } else { "aborted" };
            (Tone::Bad, true, format!("{word}: {why}"))
        }
        Event::Reverted { change, error: Some(error), .. } => {
            let what = run.changes.iter().find(|c| c.number == *change).map(|c| c.what.to_string());
            (
                Tone::Bad,
                true,
                format!("could not undo: {}: {error}", what.unwrap_or_else(|| format!("change {change}"))),
            )
        }
        _ => return None,
    })
}

/// The phase, the time that it has taken, and the time that it should take.
fn progress(run: &Run, now: f64) -> (&'static str, f64, f64) {
    let plan = &run.plan;
    let (phase, began) = run.phases.last().copied().unwrap_or((Phase::Baseline, 0.0));
    let fault = run.began(Phase::Inject).unwrap_or(began);
    let (since, expected) = match phase {
        Phase::Baseline => (began, plan.baseline.as_secs_f64()),
        Phase::Inject | Phase::Hold | Phase::Revert => (fault, plan.fault_window().as_secs_f64()),
        Phase::Recovery => (began, plan.healed.as_secs_f64()),
        Phase::Verdict => (began, 0.0),
    };
    (phase.name(), (now - since).max(0.0), expected)
}

/// Length of the whole run as it looks now.
fn expected(run: &Run, now: f64) -> f64 {
    let planned = run.plan.expected_length().as_secs_f64();
    // A baseline that took longer, or shorter, moves everything after it.
    let moved = run.began(Phase::Inject).map_or(0.0, |at| at - run.plan.baseline.as_secs_f64());
    (planned + moved).max(now)
}

fn frame(run: &Run, now: f64, columns: usize, rows: usize) -> Vec<Line> {
    let (phase, elapsed, of) = progress(run, now);
    let mut head = Line::default();
    head.bold(Tone::Plain, &run.plan.experiment).add(Tone::Plain, format!(" · {}   ", run.plan.system));
    let tone = if matches!(phase, "inject" | "hold" | "revert") { Tone::Warn } else { Tone::Plain };
    head.bold(tone, phase);
    head.add(
        Tone::Plain,
        if of > 0.0 { format!(" {} of {}", words::secs(elapsed.floor()), words::secs(of)) } else { String::new() },
    );
    let mut lines = vec![head, bar(run, now, columns)];
    let faults = faults(run, now);
    let room = rows.saturating_sub(lines.len() + faults.len()).max(1);
    let all = run.plan.probes.len();
    let shown = if all > room { room.saturating_sub(1) } else { all };
    let name = run.plan.probes.iter().map(|p| words::width(&p.name)).max().unwrap_or(0).clamp(4, (columns / 3).max(4));
    // When not all fit, those that are bad now come first.
    let mut order: Vec<usize> = (0..all).collect();
    if shown < all {
        order.sort_by_key(|i| !run.samples.get(*i).and_then(|s| s.last()).is_some_and(|s| s.outcome.is_bad()));
    }
    lines.extend(order[..shown].iter().map(|i| probe(run, *i, now, columns, name)));
    if shown < all {
        let mut more = Line::default();
        more.add(Tone::Plain, format!("… {} more", words::count(all - shown, "probe", "probes")));
        lines.push(more);
    }
    lines.extend(faults);
    lines.truncate(rows);
    lines
}

fn bar(run: &Run, now: f64, columns: usize) -> Line {
    let whole = expected(run, now);
    let clock = |s: f64| format!("{}:{:02}", s as u64 / 60, s as u64 % 60);
    let text = format!(" {} of about {}", clock(now), clock(whole));
    let cells = columns.saturating_sub(text.len()).min(50);
    let (from, to) = match run.fault_window() {
        Some((from, _)) => (from, from + run.plan.fault_window().as_secs_f64()),
        None => (run.plan.baseline.as_secs_f64(), (run.plan.baseline.0 + run.plan.fault_window().0).as_secs_f64()),
    };
    let mut line = Line::default();
    for i in 0..cells {
        let at = (i as f64 + 0.5) / cells as f64 * whole;
        let done = at <= now;
        let in_fault = (from..to).contains(&at);
        let sign = match (done, in_fault) {
            (true, true) => "▓",
            (true, false) => "█",
            (false, true) => "▒",
            (false, false) => "░",
        };
        line.add(if in_fault { Tone::Warn } else { Tone::Plain }, sign);
    }
    line.add(Tone::Plain, text);
    line
}

/// Numbers of a probe since the phase began.
fn since_phase(run: &Run, probe: usize) -> (usize, usize, Option<f64>) {
    let Some(samples) = run.samples.get(probe) else { return (0, 0, None) };
    let from = match run.phases.last() {
        Some((Phase::Inject | Phase::Hold | Phase::Revert, at)) => run.began(Phase::Inject).unwrap_or(*at),
        Some((_, at)) => *at,
        None => 0.0,
    };
    let here = &samples[samples.partition_point(|s| s.due < from)..];
    let bad = here.iter().filter(|s| s.outcome.is_bad()).count();
    let taken = here.iter().filter(|s| !matches!(s.outcome, Outcome::Missed(_))).count();
    let latest = &here[here.len().saturating_sub(LATEST)..];
    let mut good: Vec<f64> =
        latest.iter().filter_map(|s| if let Outcome::Good(ms) = s.outcome { Some(ms) } else { None }).collect();
    good.sort_by(f64::total_cmp);
    let p95 = good.get((good.len() * 95 / 100).min(good.len().saturating_sub(1))).copied();
    (bad, taken, p95)
}

fn probe(run: &Run, i: usize, now: f64, columns: usize, name: usize) -> Line {
    let (bad, taken, p95) = since_phase(run, i);
    let plan = &run.plan.probes[i];
    let no_samples = Vec::new();
    let samples = run.samples.get(i).unwrap_or(&no_samples);
    let mut line = Line::default();
    let (sign, tone) = match samples.last().map(|s| &s.outcome) {
        None => ("…", Tone::Plain),
        Some(Outcome::Good(_)) => ("✓", Tone::Good),
        Some(Outcome::Bad(_)) => ("✗", Tone::Bad),
        Some(Outcome::Missed(_)) => ("?", Tone::Unknown),
    };
    line.bold(tone, sign).add(Tone::Plain, format!(" {}", words::pad(&words::cut(&plan.name, name), name)));
    let share = if taken == 0 { words::NOTHING.into() } else { words::share(bad as f64 / taken as f64) };
    line.add(if bad > 0 { Tone::Bad } else { Tone::Plain }, format!(" {share:>7} bad"));
    if columns >= 60 {
        line.add(Tone::Plain, format!("  p95 {:>7}", words::some_ms(p95)));
    }
    line.add(Tone::Plain, "  ");
    let cells = columns.saturating_sub(line.width()).min(CELLS);
    let width = CELL.max(plan.every.as_secs_f64());
    let limit = plan.steady.p95.map_or(f64::INFINITY, |limit| 1e3 * limit.as_secs_f64());
    for (sign, tone) in spark::cells(samples, now, cells, width, spark::usual(samples), limit) {
        line.add(tone, sign);
    }
    if let Some(Outcome::Bad(bad)) = samples.last().map(|s| &s.outcome) {
        line.add(Tone::Bad, format!(" {}", bad.why));
    }
    line
}

/// Faults in force, with what they have measured so far.
fn faults(run: &Run, now: f64) -> Vec<Line> {
    let mut lines = Vec::new();
    for (i, (plan, went)) in run.plan.steps.iter().zip(&run.steps).enumerate() {
        let (Some(began), None) = (went.began, went.ended) else { continue };
        let mut line = Line::default();
        line.bold(Tone::Warn, format!("⚡ {}", digest::faults(plan)))
            .add(Tone::Plain, format!(" on {}", digest::targets(plan)));
        match went.in_force {
            Some(at) => {
                let left = at + plan.lasts.as_secs_f64() - now;
                let text =
                    if left > 0.0 { format!(", {} left", words::secs(left.ceil())) } else { ", being reverted".into() };
                line.add(Tone::Plain, text)
            }
            None => line.add(Tone::Plain, format!(", being injected for {}", words::secs((now - began).max(0.0)))),
        };
        lines.push(line);
        for (_, receipt) in run.receipts.iter().filter(|(step, _)| *step == i) {
            let mark = words::Mark::from(receipt.effect);
            let mut line = Line::default();
            line.add(mark.tone, format!("   {} ", mark.sign))
                .add(Tone::Plain, format!("{}: {}", receipt.target, receipt.says));
            lines.push(line);
        }
    }
    lines
}

/// One line of life: the phase, and what each probe does.
fn heartbeat(run: &Run, now: f64) -> String {
    let (phase, elapsed, of) = progress(run, now);
    let mut out = format!("{phase}, {} of {}", words::secs(elapsed), words::secs(of));
    for (i, plan) in run.plan.probes.iter().enumerate() {
        let (bad, taken, p95) = since_phase(run, i);
        let _ = write!(out, "; {} {bad} bad of {taken}, p95 {}", plan.name, words::some_ms(p95));
    }
    words::printable(&out)
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
