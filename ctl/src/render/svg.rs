//! Drawing: the few SVG elements that the charts need, every text escaped.

use std::fmt::{Display, Write as _};

/// Text that is safe inside an element or an attribute, in XML and in HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML 1.0 has no place for these, not even escaped.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A coordinate: one decimal is a tenth of a pixel, and keeps the file small.
pub struct Px(pub f64);

impl Display for Px {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A coordinate that is not a number would break the whole picture.
        let value = if self.0.is_finite() { self.0 } else { 0.0 };
        let text = format!("{value:.1}");
        f.write_str(text.strip_suffix(".0").unwrap_or(&text))
    }
}

/// A picture in the making.
pub struct Svg {
    out: String,
}

/// A rectangle: left, top, width, height.
pub type Box = (f64, f64, f64, f64);

impl Svg {
    /// An empty picture of this size, with a text for those who do not see it.
    pub fn new(class: &str, width: f64, height: f64, label: &str) -> Self {
        let mut out = String::new();
        let _ = write!(
            out,
            r#"<svg class="{class}" viewBox="0 0 {} {}" role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg">"#,
            Px(width),
            Px(height),
            escape(label)
        );
        Self { out }
    }

    /// A rectangle. A title shows on hovering; `round` is the radius of its corners.
    pub fn rect(&mut self, class: &str, at: Box, round: f64, title: Option<&str>) {
        let (x, y, w, h) = at;
        let _ = write!(
            self.out,
            r#"<rect class="{class}" x="{}" y="{}" width="{}" height="{}""#,
            Px(x),
            Px(y),
            Px(w.max(0.0)),
            Px(h.max(0.0))
        );
        if round > 0.0 {
            let _ = write!(self.out, r#" rx="{}""#, Px(round));
        }
        match title {
            Some(title) => {
                let _ = write!(self.out, "><title>{}</title></rect>", escape(title));
            }
            None => self.out.push_str("/>"),
        }
    }

    /// A straight line between two points.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let d = format!("M{} {}L{} {}", Px(from.0), Px(from.1), Px(to.0), Px(to.1));
        self.path(class, &d);
    }

    /// A path.
    pub fn path(&mut self, class: &str, d: &str) {
        if !d.is_empty() {
            let _ = write!(self.out, r#"<path class="{class}" d="{d}"/>"#);
        }
    }

    /// Text; `anchor` is `start`, `middle` or `end`.
    pub fn text(&mut self, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
        let _ = write!(
            self.out,
            r#"<text class="{class}" x="{}" y="{}" text-anchor="{anchor}">{}</text>"#,
            Px(x),
            Px(y),
            escape(text)
        );
    }

    /// The finished picture.
    pub fn finish(mut self) -> String {
        self.out.push_str("</svg>");
        self.out
    }
}

/// Columns that a text of small letters takes at 11 px, generously.
pub fn text_width(text: &str) -> f64 {
    super::words::width(text) as f64 * 6.4
}

/// Moments for the ticks of a time axis of this many seconds: 4 to 10 of them, at round numbers.
pub fn time_ticks(length: f64) -> Vec<f64> {
    const STEPS: [f64; 18] = [
        0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0,
        21_600.0,
    ];
    let step = STEPS.into_iter().find(|s| length / s <= 10.0).unwrap_or(length / 8.0);
    let count = (length / step + 1e-9).floor().max(0.0) as u32;
    (0..=count).map(|i| f64::from(i) * step).collect()
}

/// `0 s`, `45 s`, `1:30 min`.
pub fn time_label(at: f64, step: f64) -> String {
    if step < 1.0 {
        format!("{at:.1} s")
    } else if at < 120.0 {
        format!("{at:.0} s")
    } else {
        let at = at.round() as u64;
        format!("{}:{:02} min", at / 60, at % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes_from_a_text() {
        let mut svg = Svg::new("c", 10.0, 10.0, r#"a" onload="x"#);
        svg.text("t", 0.0, 0.0, "start", "</text><script>alert(1)</script>\u{0}");
        let out = svg.finish();
        assert!(!out.contains("<script>") && !out.contains("\" onload") && !out.contains('\u{0}'), "{out}");
    }

    #[test]
    fn what_is_not_a_number_does_not_get_into_the_picture() {
        assert_eq!(Px(f64::NAN).to_string(), "0");
        assert_eq!(Px(12.04).to_string(), "12");
        assert_eq!(Px(12.06).to_string(), "12.1");
    }

    #[test]
    fn a_time_axis_of_any_length_has_a_handful_of_ticks() {
        for length in [0.4, 3.0, 17.0, 62.0, 600.0, 4000.0, 90_000.0] {
            let ticks = time_ticks(length);
            assert!((4..=11).contains(&ticks.len()), "{length}: {ticks:?}");
            assert!(ticks.last().is_some_and(|t| *t <= length + 1e-6));
        }
    }
}
