//! The live view is checked on a small terminal made here, which knows the few sequences that it uses.

use super::super::sample::{self, golden};
use super::*;

fn screen(terminal: bool, columns: usize, rows: usize) -> Screen {
    Screen { terminal, colour: false, columns, rows }
}

/// A terminal: lines, and where the cursor is.
struct Terminal {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
    columns: usize,
}

impl Terminal {
    fn new(columns: usize) -> Self {
        Self { lines: vec![Vec::new()], row: 0, column: 0, columns }
    }

    fn write(&mut self, text: &str) {
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '\n' => (self.row, self.column) = (self.row + 1, 0),
                '\r' => self.column = 0,
                '\u{1b}' => {
                    assert_eq!(chars.next(), Some('['), "only CSI sequences are used");
                    let mut number = String::new();
                    let end = loop {
                        let c = chars.next().expect("a whole sequence");
                        if c.is_ascii_digit() { number.push(c) } else { break c }
                    };
                    match end {
                        'A' => {
                            let up: usize = number.parse().expect("a number");
                            assert!(up <= self.row, "above the first line");
                            self.row -= up;
                        }
                        'K' => {
                            let column = self.column;
                            self.line().truncate(column);
                        }
                        'J' => {
                            let column = self.column;
                            self.line().truncate(column);
                            self.lines.truncate(self.row + 1);
                        }
                        other => panic!("unexpected sequence {other}"),
                    }
                }
                c => {
                    if self.column == self.columns {
                        (self.row, self.column) = (self.row + 1, 0);
                    }
                    let column = self.column;
                    let line = self.line();
                    line.resize(line.len().max(column + 1), ' ');
                    line[column] = c;
                    self.column += 1;
                }
            }
            while self.lines.len() <= self.row {
                self.lines.push(Vec::new());
            }
        }
    }

    fn line(&mut self) -> &mut Vec<char> {
        &mut self.lines[self.row]
    }

    /// What a narrower window does to what stands there: long lines are wrapped, the cursor keeps its line.
    fn narrow(&mut self, columns: usize) {
        let mut lines = Vec::new();
        let mut row = 0;
        for (i, line) in self.lines.iter().enumerate() {
            if i == self.row {
                row = lines.len();
            }
            let pieces: Vec<Vec<char>> = line.chunks(columns).map(<[char]>::to_vec).collect();
            if pieces.is_empty() { lines.push(Vec::new()) } else { lines.extend(pieces) }
        }
        (self.lines, self.row, self.columns) = (lines, row, columns);
    }

    fn text(&self) -> String {
        let line = |l: &Vec<char>| l.iter().collect::<String>().trim_end().to_owned();
        self.lines.iter().map(line).collect::<Vec<_>>().join("\n").trim_end().to_owned() + "\n"
    }
}

/// The run as it was at a moment.
fn until(run: &Run, at: f64) -> Run {
    let mut run = run.clone();
    run.samples.iter_mut().for_each(|s| s.retain(|x| x.due < at));
    run.phases.retain(|p| p.1 <= at);
    run.changes.retain(|c| c.applied <= at);
    for step in &mut run.steps {
        step.ended = step.ended.filter(|t| *t <= at);
        step.in_force = step.in_force.filter(|t| *t <= at);
        step.began = step.began.filter(|t| *t <= at);
    }
    let begun: Vec<bool> = run.steps.iter().map(|s| s.began.is_some()).collect();
    run.receipts.retain(|(step, _)| begun[*step]);
    (run.judgement, run.ended, run.last_event) = (None, None, at);
    run
}

#[test]
fn the_picture_is_as_it_should_be() {
    let run = sample::shared_store();
    let mut out = String::new();
    for (columns, at) in [(100, 9.0), (100, 20.0), (80, 33.0), (42, 33.0), (80, 45.0)] {
        let mut terminal = Terminal::new(columns);
        terminal.write(&View::new(screen(true, columns, 24)).tick(&until(&run, at), at));
        let _ = writeln!(out, "== {columns} columns, {}\n{}", words::moment(at), terminal.text());
    }
    golden("live.txt", &out);
}

#[test]
fn redrawing_leaves_one_picture_and_the_end_leaves_none() {
    let run = sample::shared_store();
    let mut live = View::new(screen(true, 80, 24));
    let mut terminal = Terminal::new(80);
    terminal.write("before\n");
    for tenth in (0..620).step_by(4) {
        let at = f64::from(tenth) / 10.0;
        terminal.write(&live.tick(&until(&run, at), at));
        assert!(terminal.lines.len() < 14, "{}", terminal.text());
        assert_eq!(terminal.text().matches("lose-one-store").count(), 1);
    }
    terminal.write(&live.finish());
    assert_eq!(terminal.text(), "before\n");
}

#[test]
fn a_terminal_that_becomes_narrower_or_wider_keeps_one_picture() {
    let run = until(&sample::shared_store(), 33.0);
    let mut live = View::new(screen(true, 100, 24));
    let mut terminal = Terminal::new(100);
    terminal.write("before\n");
    for (i, columns) in [100, 61, 37, 20, 120].into_iter().enumerate() {
        if columns < terminal.columns {
            terminal.narrow(columns);
        }
        terminal.columns = columns;
        live.resize(columns, 24);
        terminal.write(&live.tick(&run, 33.0 + i as f64));
        assert!(terminal.text().starts_with("before\n"), "{}", terminal.text());
        assert_eq!(terminal.text().matches("lose-one-store").count(), 1, "{columns}: {}", terminal.text());
    }
}

#[test]
fn every_line_fits_and_no_more_are_drawn_than_there_are_rows() {
    let mut run = until(&sample::shared_store(), 33.0);
    for i in 0..30 {
        let mut probe = run.plan.probes[0].clone();
        probe.name = format!("日本/probe-with-a-long-name-{i}");
        run.plan.probes.push(probe);
        run.samples.push(run.samples[0].clone());
    }
    for (columns, rows) in [(1, 1), (10, 4), (25, 8), (80, 24), (300, 60)] {
        let mut live = View::new(screen(true, columns, rows));
        let text = live.tick(&run, 33.0);
        assert!(text.matches('\n').count() < rows.max(4), "{columns} x {rows}");
        assert!(live.drawn.iter().all(|w| *w < columns.max(12)), "{columns} x {rows}: {:?}", live.drawn);
    }
}

#[test]
fn elsewhere_than_on_a_terminal_there_are_plain_lines_and_a_heartbeat() {
    let run = sample::left_over();
    let mut live = View::new(screen(false, 80, 24));
    let mut out = String::new();
    let mut events: Vec<(f64, Event)> =
        run.phases.iter().map(|(phase, at)| (*at, Event::PhaseBegan { phase: *phase })).collect();
    let (at, why, invalid) = run.aborted.clone().expect("aborted");
    events.push((at, Event::Aborted { why, invalid }));
    events.push((21.0, Event::Receipt { step: 0, last: true, receipt: run.receipts[0].1.clone() }));
    events.push((21.2, Event::Reverted { change: 2, note: String::new(), error: Some("Permission denied".into()) }));
    events.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut events = events.into_iter().peekable();
    for tenth in 0..290 {
        let now = f64::from(tenth) / 10.0;
        while let Some((at, event)) = events.next_if(|e| e.0 <= now) {
            out += &live.event(&until(&run, at), &Record { at, event });
        }
        out += &live.tick(&until(&run, now), now);
    }
    assert!(!out.contains('\u{1b}'));
    golden("live-plain.txt", &out);
}

#[test]
fn what_matters_stays_above_the_picture() {
    let run = until(&sample::left_over(), 20.0);
    let mut live = View::new(screen(true, 80, 24));
    let mut terminal = Terminal::new(80);
    terminal.write(&live.tick(&run, 20.0));
    let why = "front/checkout was bad for 5s on end".to_owned();
    terminal.write(&live.event(&run, &Record { at: 20.0, event: Event::Aborted { why, invalid: false } }));
    terminal.write(&live.tick(&run, 21.0));
    let text = terminal.text();
    assert!(text.starts_with("aborted: front/checkout was bad"), "{text}");
    assert_eq!(text.matches("slow-store").count(), 1, "{text}");
}

#[test]
fn a_server_cannot_steer_the_terminal_by_what_it_answers() {
    let mut run = until(&sample::shared_store(), 20.0);
    for sample in &mut run.samples[0] {
        sample.outcome = Outcome::Bad(firedrill_model::event::Bad { ms: 1.0, why: "\u{1b}[2J\u{7}evil\r\n".into() });
    }
    let text = View::new(screen(true, 120, 24)).tick(&run, 20.0);
    assert!(!text.contains("\u{1b}[2J") && !text.contains('\u{7}'));
}
