//! The summary at the end of a run: for a terminal, in 80 columns, the finding first.

use std::fmt::Write as _;

use firedrill_model::log::Run;

use super::digest::{self, ProbeRow};
use super::paint::Paint;
use super::words::{self, Mark, Tone};

const COLUMNS: usize = 80;

/// The summary. `report` is the path of the HTML report, where one was written.
pub fn text(run: &Run, report: Option<&str>, paint: Paint) -> String {
    let mut out = String::new();
    headline(&mut out, run, paint);
    expectations(&mut out, run, paint);
    probes(&mut out, run, paint);
    radius(&mut out, run, paint);
    receipts(&mut out, run, paint);
    host(&mut out, run, paint);
    unproven(&mut out, run, paint);
    out.push('\n');
    if let Some(path) = report {
        line(&mut out, "Report  ", path, paint);
    }
    line(&mut out, "Replay  ", &words::command_line(&run.replay), paint);
    out
}

fn headline(out: &mut String, run: &Run, paint: Paint) {
    let head = digest::headline(run);
    let sign = format!("{} {}", head.mark.sign, head.mark.word.to_uppercase());
    let (first, rest) = split(&words::wrap(&head.finding, COLUMNS, &format!("{sign}  ")));
    let first = first.replacen(&sign, &paint.strong(head.mark.tone, &sign), 1);
    let _ = writeln!(out, "{first}");
    for text in rest.lines() {
        let _ = writeln!(out, "{text}");
    }
    for alert in &head.alerts {
        let _ = writeln!(out, "{}", paint.strong(Tone::Bad, &words::wrap(alert, COLUMNS, "! ")));
    }
    let title = if run.plan.title.is_empty() { &run.plan.experiment } else { &run.plan.title };
    let about = format!("{title} · {} · {}", run.plan.system, words::secs(run.last_event));
    let _ = writeln!(out, "{}", paint.dim(&words::wrap(&about, COLUMNS, "")));
    let _ = writeln!(out, "{}", paint.dim(&words::wrap(&run.id, COLUMNS, "run ")));
}

fn split(text: &str) -> (String, String) {
    text.split_once('\n').map_or_else(|| (text.to_owned(), String::new()), |(a, b)| (a.to_owned(), b.to_owned()))
}

fn title(out: &mut String, text: &str, paint: Paint) {
    let _ = writeln!(out, "\n{}", paint.bold(text));
}

/// A marked item: sign and text, wrapped, with the sign in its colour.
fn item(out: &mut String, mark: &Mark, text: &str, paint: Paint) {
    let wrapped = words::wrap(text, COLUMNS, &format!("{} ", mark.sign));
    let _ = writeln!(out, "{}", wrapped.replacen(mark.sign, &paint.tone(mark.tone, mark.sign), 1));
}

fn line(out: &mut String, label: &str, text: &str, paint: Paint) {
    // Paths and commands are copied, so they are not wrapped.
    let _ = writeln!(out, "{}{}", paint.dim(label), words::printable(text));
}

fn expectations(out: &mut String, run: &Run, paint: Paint) {
    let Some(judgement) = run.judgement.as_ref().filter(|j| !j.expectations.is_empty()) else { return };
    title(out, "Expected", paint);
    for e in &judgement.expectations {
        let mark = Mark::from(e.verdict);
        item(out, &mark, &format!("{}: {} – {}", mark.word, e.what, e.reason), paint);
    }
}

fn probes(out: &mut String, run: &Run, paint: Paint) {
    let rows = digest::probes(run);
    if rows.is_empty() {
        return;
    }
    title(out, "Probes", paint);
    let name = rows.iter().map(|r| words::width(&r.name)).max().unwrap_or(0).clamp(8, 22);
    let over = format!("{}{:<17}{:<17}{:<17}", " ".repeat(name + 3), "before", "fault", "after");
    let _ = writeln!(out, "{}", paint.dim(over.trim_end()));
    let columns = "bad     p95      ";
    let under = format!("{}{columns}{columns}{columns}outage", " ".repeat(name + 3));
    let _ = writeln!(out, "{}", paint.dim(&under));
    for row in &rows {
        probe(out, row, name, paint);
    }
}

fn probe(out: &mut String, row: &ProbeRow, width: usize, paint: Paint) {
    let sign = if row.judged { row.mark.sign } else { "·" };
    let tone = if row.judged { row.mark.tone } else { Tone::Plain };
    if words::width(&row.name) > width {
        let _ = writeln!(out, "{} {}", paint.tone(tone, sign), words::cut(&row.name, COLUMNS - 2));
        let _ = write!(out, "{}", " ".repeat(width + 3));
    } else {
        let _ = write!(out, "{} {} ", paint.tone(tone, sign), words::pad(&words::printable(&row.name), width));
    }
    for window in &row.windows {
        let _ = write!(out, "{}{}", words::pad(&window.bad, 8), words::pad(&window.p95, 9));
    }
    let _ = writeln!(out, "{}", row.outage);
    let mut text = if row.judged { row.mark.word.clone() } else { format!("{} ({})", row.role, row.mark.word) };
    let _ = write!(text, ": {}", row.reason);
    if row.healed != words::NOTHING {
        let _ = write!(text, "; healed: {}", row.healed);
    }
    for window in row.windows.iter().filter(|w| w.missing > 0) {
        let _ = write!(text, "; {} not taken ({})", words::count(window.missing, "sample", "samples"), window.name);
    }
    let _ = writeln!(out, "{}", paint.dim(&words::wrap(&text, COLUMNS, "    ")));
}

fn radius(out: &mut String, run: &Run, paint: Paint) {
    let Some(judgement) = &run.judgement else { return };
    let radius = &judgement.radius;
    if radius.components == 0 || !run.plan.judged {
        return;
    }
    title(out, "Blast radius", paint);
    let mark = Mark::from(radius.containment);
    let reach = digest::reach(run).unwrap_or_default();
    item(out, &mark, &format!("{}: {reach}", mark.word), paint);
    let mut row = |label: &str, names: &[String], tone: Tone| {
        let text = words::wrap(&words::list(names, "none"), COLUMNS, &words::pad(&format!("  {label}"), 22));
        let text = if names.is_empty() { text } else { paint.tone(tone, &text) };
        let _ = writeln!(out, "{text}");
    };
    row("declared", &radius.declared, Tone::Plain);
    row("observed", &radius.observed, Tone::Plain);
    if !radius.escapes.is_empty() {
        row("escaped to", &radius.escapes, Tone::Bad);
    }
    if !radius.over_predicted.is_empty() {
        row("declared, unmoved", &radius.over_predicted, Tone::Plain);
    }
    if !radius.unprobed.is_empty() {
        row("without a probe", &radius.unprobed, Tone::Unknown);
    }
}

fn receipts(out: &mut String, run: &Run, paint: Paint) {
    if run.receipts.is_empty() {
        return;
    }
    title(out, "Receipts (what the faults really did)", paint);
    for (step, receipt) in &run.receipts {
        let mark = Mark::from(receipt.effect);
        let text =
            format!("{} on {} (step {}): {}; {}", receipt.fault, receipt.target, step + 1, mark.word, receipt.says);
        item(out, &mark, &text, paint);
        for l in &receipt.lines {
            let text = format!("{}: requested {}, applied {}", l.what, l.requested, l.applied);
            let _ = writeln!(out, "{}", paint.dim(&words::wrap(&text, COLUMNS, "    ")));
        }
    }
}

fn host(out: &mut String, run: &Run, paint: Paint) {
    title(out, "Host", paint);
    let restored = digest::restored(run);
    let sign = match restored.tone {
        Tone::Good => "✓",
        Tone::Unknown => "?",
        _ => "✗",
    };
    item(out, &Mark::new("", sign, restored.tone), &restored.says, paint);
    for left in &restored.left {
        let _ = writeln!(out, "{}", paint.strong(Tone::Bad, &words::wrap(left, COLUMNS, "  LEFT BEHIND: ")));
    }
    for what in &restored.unknown {
        let _ =
            writeln!(out, "{}", paint.strong(Tone::Unknown, &words::wrap(what, COLUMNS, "  NOT KNOWN TO BE UNDONE: ")));
    }
    for what in &restored.irreversible {
        let _ = writeln!(out, "{}", paint.dim(&words::wrap(what, COLUMNS, "  not undoable: ")));
    }
}

fn unproven(out: &mut String, run: &Run, paint: Paint) {
    let unproven = run.judgement.as_ref().map(|j| j.unproven.as_slice()).unwrap_or_default();
    if unproven.is_empty() && run.notes.is_empty() {
        return;
    }
    if !unproven.is_empty() {
        title(out, "Not proven", paint);
        for text in unproven {
            item(out, &Mark::new("", "?", Tone::Unknown), text, paint);
        }
    }
    if !run.notes.is_empty() {
        title(out, "Notes", paint);
        for (at, text) in &run.notes {
            let _ = writeln!(out, "{}", words::wrap(text, COLUMNS, &format!("  {} ", words::moment(*at))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{self, golden};
    use super::*;

    #[test]
    fn the_summaries_are_as_they_should_be() {
        for (name, run) in sample::all() {
            golden(&format!("summary-{name}.txt"), &text(&run, Some("runs/r1/report.html"), Paint::new(false)));
        }
    }

    #[test]
    fn the_first_line_says_the_verdict_and_the_finding() {
        let run = sample::shared_store();
        let text = text(&run, None, Paint::new(false));
        let first = text.lines().next().expect("a line");
        assert!(first.starts_with("✗ BROKEN  "), "{first}");
        let finding = &run.judgement.expect("judged").finding;
        assert!(finding.starts_with(first.split_once("  ").expect("two parts").1), "{first}");
    }

    #[test]
    fn it_fits_80_columns_but_for_paths_and_commands() {
        for (name, run) in sample::all() {
            for line in text(&run, None, Paint::new(false)).lines().filter(|l| !l.starts_with("Replay")) {
                assert!(words::width(line) <= COLUMNS, "{name}: {line}");
            }
        }
    }

    #[test]
    fn what_is_left_behind_is_said_twice_first_and_where_the_host_is_described() {
        let text = text(&sample::left_over(), None, Paint::new(false));
        assert!(text.lines().take(4).any(|l| l.starts_with("! The host is not fully restored")), "{text}");
        assert!(text.contains("LEFT BEHIND"), "{text}");
    }

    #[test]
    fn a_log_that_was_cut_never_reads_as_a_pass() {
        let text = text(&sample::cut(), None, Paint::new(false));
        assert!(text.starts_with("? UNFINISHED"), "{text}");
        assert!(!text.contains("held") && !text.contains("all undone"), "{text}");
        assert!(text.contains("NOT KNOWN TO BE UNDONE"), "{text}");
    }

    #[test]
    fn colours_are_only_there_when_wanted_and_change_no_word() {
        let run = sample::shared_store();
        let plain = text(&run, None, Paint::new(false));
        let coloured = text(&run, None, Paint::new(true));
        assert!(!plain.contains('\u{1b}'));
        assert!(coloured.contains("\u{1b}[31m") || coloured.contains("\u{1b}[1m\u{1b}[31m"));
        assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
    }
}
