//! How numbers, times and verdicts are put into words: the same way in every report.

use firedrill_model::receipt::Effect;
use firedrill_model::units::Span;
use firedrill_model::verdict::{Containment, Healed, Outage, ProbeJudgement, Verdict, WindowStats};
use serde::Serialize;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// What a reader should feel about a word. Names the colour on a terminal and the class in HTML; never the only
/// bearer of a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tone {
    /// As hoped.
    Good,
    /// Look at this.
    Warn,
    /// Not as promised.
    Bad,
    /// Not known.
    Unknown,
    /// Neither.
    Plain,
}

/// A word with its sign and tone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The word.
    pub word: String,
    /// One character that says the same without colour.
    pub sign: &'static str,
    /// The tone.
    pub tone: Tone,
}

impl Mark {
    /// A mark of these parts.
    pub fn new(word: impl Into<String>, sign: &'static str, tone: Tone) -> Self {
        Self { word: word.into(), sign, tone }
    }
}

impl From<Verdict> for Mark {
    fn from(verdict: Verdict) -> Self {
        let (sign, tone) = match verdict {
            Verdict::Held => ("✓", Tone::Good),
            Verdict::Degraded => ("▲", Tone::Warn),
            Verdict::Broken => ("✗", Tone::Bad),
            Verdict::Inconclusive => ("?", Tone::Unknown),
            Verdict::Invalid => ("∅", Tone::Unknown),
            Verdict::Aborted => ("■", Tone::Warn),
        };
        Self::new(verdict.to_string(), sign, tone)
    }
}

impl From<Effect> for Mark {
    fn from(effect: Effect) -> Self {
        let (word, sign, tone) = match effect {
            Effect::Effective => ("effective", "✓", Tone::Good),
            Effect::ArmedNoTraffic => ("armed, no traffic", "?", Tone::Warn),
            Effect::None => ("no effect", "∅", Tone::Bad),
        };
        Self::new(word, sign, tone)
    }
}

impl From<Containment> for Mark {
    fn from(containment: Containment) -> Self {
        let (sign, tone) = match containment {
            Containment::Contained => ("✓", Tone::Good),
            Containment::Leaked => ("✗", Tone::Bad),
            Containment::Unproven => ("?", Tone::Unknown),
        };
        Self::new(containment.to_string(), sign, tone)
    }
}

/// Stands where there is no value.
pub const NOTHING: &str = "–";

/// Milliseconds: `0.42 ms`, `4.1 ms`, `123 ms`, `1.23 s`.
pub fn ms(ms: f64) -> String {
    match ms {
        m if !m.is_finite() => NOTHING.into(),
        m if m < 0.995 => format!("{m:.2} ms"),
        m if m < 9.95 => format!("{m:.1} ms"),
        m if m < 999.5 => format!("{m:.0} ms"),
        m if m < 9_995.0 => format!("{:.2} s", m / 1e3),
        m => secs(m / 1e3),
    }
}

/// Milliseconds, where there are any.
pub fn some_ms(value: Option<f64>) -> String {
    value.map_or_else(|| NOTHING.into(), ms)
}

/// Seconds: `0 s`, `850 ms`, `4.2 s`, `42 s`, `2 min 05 s`, `1 h 02 min`.
pub fn secs(secs: f64) -> String {
    match secs {
        s if !s.is_finite() => NOTHING.into(),
        s if s < 0.0005 => "0 s".into(),
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 9.95 => trim_zero(format!("{s:.1}"), " s"),
        s if s < 119.5 => format!("{s:.0} s"),
        s if s < 3599.5 => {
            let s = s.round() as u64;
            if s.is_multiple_of(60) { format!("{} min", s / 60) } else { format!("{} min {:02} s", s / 60, s % 60) }
        }
        s => {
            let minutes = (s / 60.0).round() as u64;
            format!("{} h {:02} min", minutes / 60, minutes % 60)
        }
    }
}

fn trim_zero(number: String, unit: &str) -> String {
    format!("{}{unit}", number.strip_suffix(".0").unwrap_or(&number))
}

/// A span in the words of [`secs`].
pub fn span(span: Span) -> String {
    secs(span.as_secs_f64())
}

/// A moment of the run: `+12.34 s`.
pub fn moment(at: f64) -> String {
    format!("+{at:.2} s")
}

/// A share given as a fraction: `0 %`, `< 0.1 %`, `1.3 %`, `34 %`. Only what is all is called 100 %.
pub fn share(fraction: f64) -> String {
    match 100.0 * fraction {
        p if !p.is_finite() => NOTHING.into(),
        p if p <= 0.0 => "0 %".into(),
        p if p < 0.1 => "< 0.1 %".into(),
        p if p < 9.95 => format!("{p:.1} %"),
        p if p >= 100.0 => "100 %".into(),
        p if p >= 99.5 => "> 99 %".into(),
        p => format!("{p:.0} %"),
    }
}

/// Bad share of a window, or that there is none.
pub fn bad(window: &WindowStats) -> String {
    if window.taken == 0 { "no data".into() } else { share(window.bad_share()) }
}

/// Length of an outage; `> 4.2 s` when it went on until the fault ended.
pub fn outage(outage: Option<&Outage>) -> String {
    match outage {
        None => "none".into(),
        Some(o) if o.censored => format!("> {}", span(o.lasted)),
        Some(o) => span(o.lasted),
    }
}

/// How a probe came back.
pub fn healed(probe: &ProbeJudgement) -> String {
    match probe.healed {
        Healed::After(span) if span.0.is_zero() && probe.outage.is_none() => NOTHING.into(),
        Healed::After(after) if after.0.is_zero() => "at once".into(),
        Healed::After(after) => span(after),
        Healed::NotWithin(within) => format!("not in {}", span(within)),
        Healed::Unknown => "unknown".into(),
    }
}

/// `1 change`, `2 changes`.
pub fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// `a`, `a and b`, `a, b and c`; `nothing` when there is none.
pub fn list<S: AsRef<str>>(items: &[S], nothing: &str) -> String {
    match items {
        [] => nothing.into(),
        [one] => one.as_ref().into(),
        [first @ .., last] => {
            let first: Vec<&str> = first.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", first.join(", "), last.as_ref())
        }
    }
}

/// A command line that a POSIX shell reads as these very words.
pub fn command_line(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    let quote = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// First letter in upper case.
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Columns that a text takes on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text in at most `columns`, with `…` where something was left out, and without control characters.
pub fn cut(text: &str, columns: usize) -> String {
    let clean = printable(text);
    if width(&clean) <= columns {
        return clean;
    }
    let mut out = String::new();
    let mut used = 0;
    for c in clean.chars() {
        let w = c.width().unwrap_or(0);
        if used + w + 1 > columns {
            break;
        }
        out.push(c);
        used += w;
    }
    if columns > 0 {
        out.push('…');
    }
    out
}

/// The text padded to `columns` on the right.
pub fn pad(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// The text without control characters: what a probe quotes from a server must not steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c == '\n' || c == '\t' { ' ' } else { c }).filter(|c| !c.is_control()).collect()
}

/// Lines of at most `columns`, broken at spaces, with `first` before the first and spaces before the rest.
pub fn wrap(text: &str, columns: usize, first: &str) -> String {
    let indent = " ".repeat(width(first));
    let room = columns.saturating_sub(width(first)).max(16);
    let mut lines: Vec<String> = vec![String::new()];
    for word in printable(text).split_whitespace() {
        let mut word = word.to_owned();
        while width(&word) > room {
            // Longer than a line (a path, a digest): broken, never lost.
            let head: String = word.chars().take(room).collect();
            word = word.chars().skip(room).collect();
            lines.push(head);
        }
        let last = lines.last_mut().expect("there is always a line");
        if last.is_empty() {
            *last = word;
        } else if width(last) + 1 + width(&word) <= room {
            last.push(' ');
            last.push_str(&word);
        } else {
            lines.push(word);
        }
    }
    if lines.len() > 1 && lines[0].is_empty() {
        lines.remove(0);
    }
    lines
        .iter()
        .enumerate()
        .map(|(i, l)| format!("{}{l}", if i == 0 { first } else { &indent }))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_a_person_would_say_them() {
        let times = [(0.0, "0 s"), (0.85, "850 ms"), (0.9999, "1 s"), (4.0, "4 s"), (4.25, "4.2 s"), (42.4, "42 s")];
        for (value, text) in times.into_iter().chain([(125.0, "2 min 05 s"), (180.0, "3 min"), (3720.0, "1 h 02 min")])
        {
            assert_eq!(secs(value), text);
        }
        for (value, text) in
            [(0.42, "0.42 ms"), (0.999, "1.0 ms"), (123.4, "123 ms"), (1234.0, "1.23 s"), (12e3, "12 s")]
        {
            assert_eq!(ms(value), text);
        }
    }

    #[test]
    fn only_everything_is_100_percent_and_only_nothing_is_0() {
        assert_eq!(share(0.0), "0 %");
        assert_eq!(share(0.0004), "< 0.1 %");
        assert_eq!(share(0.9996), "> 99 %");
        assert_eq!(share(1.0), "100 %");
    }

    #[test]
    fn a_command_line_survives_the_shell() {
        let words = ["firedrill", "run", "my file.yaml", "it's", "--seed=7"].map(str::to_owned);
        assert_eq!(command_line(&words), r"firedrill run 'my file.yaml' 'it'\''s' --seed=7");
    }

    #[test]
    fn wrapped_text_fits_and_loses_nothing() {
        let text = format!("some words and a {} path", "x".repeat(70));
        let wrapped = wrap(&text, 40, "  - ");
        assert!(wrapped.lines().all(|l| width(l) <= 40), "{wrapped}");
        let squeeze = |t: &str| t.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        assert_eq!(squeeze(&wrapped), format!("-{}", squeeze(&text)));
    }

    #[test]
    fn a_cut_text_never_takes_more_columns_than_it_is_given() {
        for text in ["short", "a rather long text", "日本語のテキスト", "tab\tand\u{1b}[31mcolour"] {
            for columns in 0..20 {
                assert!(width(&cut(text, columns)) <= columns, "{text} in {columns}");
            }
        }
        assert!(!cut("\u{1b}[31mred", 10).contains('\u{1b}'));
    }
}
