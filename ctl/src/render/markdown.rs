//! `report.md`: for pull requests and job summaries, the finding first.

use std::fmt::Write as _;

use firedrill_model::log::Run;

use super::digest;
use super::words::{self, Mark};

/// The report of a run.
pub fn report(run: &Run) -> String {
    let mut out = String::new();
    let head = digest::headline(run);
    let _ = writeln!(out, "# {} {}\n\n{}\n", head.mark.sign, words::capital(&head.mark.word), escape(&head.finding));
    for alert in &head.alerts {
        let _ = writeln!(out, "> **{}**\n", escape(alert));
    }
    let title = if run.plan.title.is_empty() { &run.plan.experiment } else { &run.plan.title };
    let _ = writeln!(out, "{} · {} · {}", escape(title), escape(&run.plan.system), words::secs(run.last_event));
    expectations(&mut out, run);
    probes(&mut out, run);
    radius(&mut out, run);
    receipts(&mut out, run);
    host(&mut out, run);
    if let Some(judgement) = run.judgement.as_ref().filter(|j| !j.unproven.is_empty()) {
        let _ = writeln!(out, "\n## Not proven\n");
        for text in &judgement.unproven {
            let _ = writeln!(out, "- {}", escape(text));
        }
    }
    if !run.notes.is_empty() {
        let _ = writeln!(out, "\n## Notes\n");
        for (at, text) in &run.notes {
            let _ = writeln!(out, "- {}", escape(&format!("{} {text}", words::moment(*at))));
        }
    }
    again(&mut out, run);
    out
}

fn mark(mark: &Mark) -> String {
    format!("{} {}", mark.sign, mark.word)
}

fn table(out: &mut String, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let _ = writeln!(out, "\n| {} |\n|{}", head.join(" | "), " --- |".repeat(head.len()));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| inline(cell)).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
}

/// Text that Markdown shows as it is, at the start of a block.
fn escape(text: &str) -> String {
    let text = inline(text);
    let number = text.trim_start_matches(|c: char| c.is_ascii_digit());
    if text.starts_with(['#', '>', '+', '-', '=']) {
        format!("\\{text}")
    } else if number.len() < text.len() && number.starts_with(['.', ')']) {
        // Would begin a list.
        format!("{}\\{number}", &text[..text.len() - number.len()])
    } else {
        text
    }
}

/// Text that Markdown shows as it is within a line or a cell.
fn inline(text: &str) -> String {
    let chars: Vec<char> = words::printable(text).chars().collect();
    let mut out = String::with_capacity(chars.len());
    let word = |i: Option<usize>| i.and_then(|i| chars.get(i)).is_some_and(|c| c.is_alphanumeric());
    for (i, c) in chars.iter().enumerate() {
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            // Within a word it is a letter to GitHub.
            '_' if word(i.checked_sub(1)) && word(Some(i + 1)) => out.push('_'),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' => out.extend(['\\', *c]),
            c => out.push(*c),
        }
    }
    out
}

fn expectations(out: &mut String, run: &Run) {
    let Some(judgement) = run.judgement.as_ref().filter(|j| !j.expectations.is_empty()) else { return };
    let _ = writeln!(out, "\n## Expected");
    let rows = judgement.expectations.iter().map(|e| vec![mark(&e.verdict.into()), e.what.clone(), e.reason.clone()]);
    table(out, &["", "Expectation", "Why"], rows);
}

fn probes(out: &mut String, run: &Run) {
    let rows = digest::probes(run);
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n## Probes\n\nBad share and p95 of good answers, before → under the fault → after.");
    table(
        out,
        &["Probe", "Bad", "p95", "Outage", "Healed", "Verdict", "Why"],
        rows.iter().map(|row| {
            let over = |f: fn(&digest::WindowRow) -> &str| row.windows.iter().map(f).collect::<Vec<_>>().join(" → ");
            let missing: usize = row.windows.iter().map(|w| w.missing).sum();
            let mut why = row.reason.clone();
            if missing > 0 {
                let _ = write!(why, " ({} not taken)", words::count(missing, "sample", "samples"));
            }
            let verdict = if row.judged { mark(&row.mark) } else { format!("{}, {}", row.mark.word, row.role) };
            vec![
                row.name.clone(),
                over(|w| &w.bad),
                over(|w| &w.p95),
                row.outage.clone(),
                row.healed.clone(),
                verdict,
                why,
            ]
        }),
    );
}

fn radius(out: &mut String, run: &Run) {
    let Some(radius) = run.judgement.as_ref().map(|j| &j.radius).filter(|r| r.components > 1 && run.plan.judged) else {
        return;
    };
    let _ = writeln!(out, "\n## Blast radius: {}\n", mark(&radius.containment.into()));
    let _ = writeln!(out, "{}.\n", digest::reach(run).unwrap_or_default());
    for (label, names) in [
        ("Declared", &radius.declared),
        ("Observed", &radius.observed),
        ("Escaped to", &radius.escapes),
        ("Declared, not moved", &radius.over_predicted),
        ("Without a probe", &radius.unprobed),
    ] {
        if !names.is_empty() || matches!(label, "Declared" | "Observed") {
            let _ = writeln!(out, "- {label}: {}", escape(&words::list(names, "none")));
        }
    }
}

fn receipts(out: &mut String, run: &Run) {
    if run.receipts.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n## What the faults really did");
    let mut rows = Vec::new();
    for (step, receipt) in &run.receipts {
        let lines: Vec<String> =
            receipt.lines.iter().map(|l| format!("{}: {} → {}", l.what, l.requested, l.applied)).collect();
        let fault = format!("{} on {} (step {})", receipt.fault, receipt.target, step + 1);
        rows.push(vec![fault, mark(&receipt.effect.into()), lines.join("; "), receipt.says.clone()]);
    }
    table(out, &["Fault", "Effect", "Requested → applied", "Measured"], rows.into_iter());
}

fn host(out: &mut String, run: &Run) {
    let restored = digest::restored(run);
    let _ = writeln!(out, "\n## Host\n\n{}", escape(&restored.says));
    if !(restored.left.is_empty() && restored.unknown.is_empty()) {
        let _ = writeln!(out);
        for left in &restored.left {
            let _ = writeln!(out, "- **Left behind:** {}", escape(left));
        }
        for what in &restored.unknown {
            let _ = writeln!(out, "- **Not known to be undone:** {}", escape(what));
        }
    }
    let rows = digest::changes(run);
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n<details><summary>{}</summary>", words::count(rows.len(), "change", "changes"));
    table(
        out,
        &["No.", "Change", "For", "Applied", "Undone", "How it ended"],
        rows.into_iter().map(|c| {
            let end = if c.note.is_empty() { mark(&c.mark) } else { format!("{}: {}", mark(&c.mark), c.note) };
            vec![c.number.to_string(), c.what, c.serves, c.applied, c.undone, end]
        }),
    );
    let _ = writeln!(out, "\n</details>");
}

fn again(out: &mut String, run: &Run) {
    let command = words::command_line(&run.replay).replace('\n', " ");
    // A fence that is longer than any run of backticks in the command.
    let longest = command.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let _ = writeln!(out, "\n## Replay\n\n{fence}sh\n{command}\n{fence}");
    table(out, &["", ""], digest::about(run).into_iter().map(|(label, value)| vec![label, value]));
}

#[cfg(test)]
mod tests {
    use super::super::sample::{self, golden};
    use super::*;

    #[test]
    fn the_reports_are_as_they_should_be() {
        for (name, run) in sample::all() {
            golden(&format!("report-{name}.md"), &report(&run));
        }
    }

    #[test]
    fn a_cell_cannot_break_its_table_or_bring_markup() {
        assert_eq!(
            escape("a|b\nc <img src=x> **d** snake_case _e_"),
            r"a\|b c &lt;img src=x> \*\*d\*\* snake_case \_e\_"
        );
        assert_eq!(escape("1. not a list"), r"1\. not a list");
        assert_eq!(escape("- nor this"), r"\- nor this");
        let mut run = sample::shared_store();
        run.receipts[0].1.says = "x | y\n| z".into();
        let text = report(&run);
        let columns = |line: &str| line.replace(r"\|", "").matches('|').count();
        let row = text.lines().find(|l| l.contains(r"x \| y")).expect("the row");
        assert_eq!(columns(row), 5, "{row}");
    }
}
