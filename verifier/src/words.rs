//! Numbers as people read them in sentences.

use firedrill_model::units::Span;

/// A length of time in seconds: `120ms`, `5.1s`, `2m 5s`.
pub(crate) fn seconds(seconds: f64) -> String {
    let s = if seconds.is_finite() { seconds.max(0.0) } else { 0.0 };
    if s == 0.0 {
        "0s".into()
    } else if s < 0.9995 {
        format!("{}ms", millis(s * 1e3))
    } else if s < 59.95 {
        format!("{}s", trimmed(format!("{s:.1}")))
    } else {
        let whole = s.round() as u64;
        let (minutes, rest) = (whole / 60, whole % 60);
        if rest == 0 { format!("{minutes}m") } else { format!("{minutes}m {rest}s") }
    }
}

/// A [`Span`] in the same way.
pub(crate) fn span(span: Span) -> String {
    seconds(span.as_secs_f64())
}

/// A number of milliseconds without its unit: `0.4`, `12`, `1500`.
pub(crate) fn millis(ms: f64) -> String {
    if ms < 9.95 { trimmed(format!("{ms:.1}")) } else { format!("{ms:.0}") }
}

/// A fraction as a percentage with about two digits: `100 %`, `4.1 %`, `0.38 %`.
pub(crate) fn percent(fraction: f64) -> String {
    let p = fraction * 100.0;
    let text = if p == 0.0 {
        "0".into()
    } else if p < 0.995 {
        trimmed(format!("{p:.2}"))
    } else if p < 9.95 || (p > 99.0 && p < 100.0) {
        // Just below everything is not everything.
        trimmed(format!("{:.1}", if p > 99.0 { p.min(99.9) } else { p }))
    } else {
        format!("{p:.0}")
    };
    format!("{text} %")
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn list<S: AsRef<str>>(items: &[S]) -> String {
    match items {
        [] => String::new(),
        [one] => one.as_ref().to_owned(),
        [most @ .., last] => {
            let most: Vec<&str> = most.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", most.join(", "), last.as_ref())
        }
    }
}

/// `1 sample`, `2 samples`.
pub(crate) fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// The text with its first letter in upper case.
pub(crate) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn trimmed(number: String) -> String {
    match number.split_once('.') {
        Some((whole, fraction)) if fraction.chars().all(|c| c == '0') => whole.to_owned(),
        Some(_) => number.trim_end_matches('0').to_owned(),
        None => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0.0, 0.0004, 0.12, 1.0, 5.1, 59.94, 60.0, 125.0].map(seconds),
            ["0s", "0.4ms", "120ms", "1s", "5.1s", "59.9s", "1m", "2m 5s"]
        );
        assert_eq!(
            [0.0, 0.0038, 0.01, 0.041, 0.5, 0.999, 0.99999, 1.0].map(percent),
            ["0 %", "0.38 %", "1 %", "4.1 %", "50 %", "99.9 %", "99.9 %", "100 %"]
        );
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
        assert_eq!(list::<&str>(&[]), "");
    }
}
