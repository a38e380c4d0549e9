//! Complaints about files, coloured.

use firedrill_model::file::Diagnostic;

use super::paint::Paint;
use super::words::{self, Tone};

/// One complaint, beginning with `error:`.
pub fn text(diagnostic: &Diagnostic, paint: Paint) -> String {
    let plain = diagnostic.to_string();
    let mut lines = plain.lines();
    let message = words::printable(lines.next().unwrap_or_default());
    let mut out = format!("{} {}", paint.strong(Tone::Bad, "error:"), paint.bold(&message));
    let mut source_shown = false;
    for line in lines {
        let start = line.trim_start();
        let line = line.chars().filter(|c| *c == '\t' || !c.is_control()).collect::<String>();
        let painted = if start.starts_with("--> ") {
            paint.dim(&line)
        } else if start.starts_with("= help: ") {
            paint.tone(Tone::Good, &line)
        } else if source_shown && start.starts_with('|') && start.trim_end().ends_with('^') {
            let (rule, caret) = line.split_at(line.len() - 1);
            format!("{rule}{}", paint.strong(Tone::Bad, caret))
        } else {
            source_shown |= start.starts_with(|c: char| c.is_ascii_digit());
            line
        };
        out.push('\n');
        out.push_str(&painted);
    }
    out.push('\n');
    out
}

/// All complaints, and how many there are.
pub fn all(diagnostics: &[Diagnostic], paint: Paint) -> String {
    let mut out: String = diagnostics.iter().map(|d| text(d, paint) + "\n").collect();
    if !diagnostics.is_empty() {
        out.push_str(&words::count(diagnostics.len(), "error", "errors"));
        out.push('\n');
    }
    out
}

/// An error that ends the program, with what caused it.
pub fn failure(error: &anyhow::Error, paint: Paint) -> String {
    let first = error.to_string();
    // Complaints about files come with their own prefix, and may be coloured already.
    let plain = anstream::adapter::strip_str(&first).to_string();
    let mut out = if plain.starts_with("error:") {
        first.trim_end().to_owned()
    } else {
        format!("{} {first}", paint.strong(Tone::Bad, "error:"))
    };
    let mut said = plain;
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many errors already quote what caused them.
        if !said.contains(&cause) {
            out.push_str("\n  because: ");
            out.push_str(&cause);
        }
        said.push_str(&cause);
    }
    out
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use firedrill_model::file::Place;

    use super::super::sample::golden;
    use super::*;

    fn example() -> Vec<Diagnostic> {
        let file = "kind: Experiment\nname: x\nsteps:\n  - inject: [{latncy: {delay: 1s}}]\n";
        let help = Some("did you mean `latency`?".to_owned());
        vec![
            Diagnostic::new("shop.yaml", file, Place { line: 4, column: 15 }, "there is no fault `latncy`", help),
            Diagnostic::new("shop.yaml", file, Place::default(), "no system is defined", None),
        ]
    }

    #[test]
    fn complaints_show_the_place_the_line_and_the_fix() {
        golden("diagnostics.txt", &all(&example(), Paint::new(false)));
    }

    #[test]
    fn colour_changes_no_word_and_reaches_the_caret() {
        let plain = all(&example(), Paint::new(false));
        let coloured = all(&example(), Paint::new(true));
        assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
        assert!(coloured.lines().any(|l| l.contains("\u{1b}[31m^") || l.contains("31m^")), "{coloured}");
    }

    #[test]
    fn an_error_says_what_caused_it_once_and_has_one_prefix() {
        let error = Err::<(), _>(anyhow::anyhow!("no such file")).context("cannot read shop.yaml").expect_err("fails");
        assert_eq!(failure(&error, Paint::new(false)), "error: cannot read shop.yaml\n  because: no such file");
        let quoting = Err::<(), _>(anyhow::anyhow!("no such file")).context("cannot read x: no such file");
        let quoting = quoting.expect_err("fails");
        assert_eq!(failure(&quoting, Paint::new(false)), "error: cannot read x: no such file");
        let findings = anyhow::anyhow!(all(&example(), Paint::new(true)));
        assert_eq!(failure(&findings, Paint::new(true)).matches("error:").count(), 2);
    }
}
