//! Figures, as Markdown.

use std::fmt::Write as _;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// Nothing was promised.
    None,
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Goal {
    fn text(self, value: f64) -> String {
        let (sign, bound, met) = match self {
            Self::None => return String::new(),
            Self::AtLeast(bound) => ("≥", bound, value >= bound),
            Self::AtMost(bound) => ("≤", bound, value <= bound),
        };
        format!("{sign} {bound}: {}", if met { "met" } else { "**missed**" })
    }
}

/// Tables, each under a title of its own.
#[derive(Debug, Default)]
pub struct Table {
    text: String,
    missing: Vec<String>,
}

impl Table {
    /// Begins another table, with a sentence that says how its figures come about.
    pub fn section(&mut self, title: &str, how: &str) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        let head = "| measured | figure | and | goal |\n|---|---:|---|---|\n";
        write!(self.text, "{gap}### {title}\n\n{how}\n\n{head}").expect("a string takes all");
    }

    /// A figure, as `shown`; what is known beside it; and whether it is as good as it should be.
    pub fn row(&mut self, what: &str, value: f64, shown: &str, and: &str, goal: Goal) {
        if !value.is_finite() {
            self.missing.push(what.to_owned());
        }
        let goal = goal.text(value);
        writeln!(self.text, "| {what} | {shown} | {and} | {goal} |").expect("a string takes all");
        eprintln!("{what}: {shown} ({and}) {goal}");
    }

    /// What came to no number.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    pub fn markdown(&self) -> &str {
        &self.text
    }
}
