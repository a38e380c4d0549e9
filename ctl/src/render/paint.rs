//! Colour on a terminal, and none elsewhere.

use std::io::IsTerminal;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Effects, Style};

use super::words::Tone;

/// Puts colour on text, or leaves it as it is.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    colour: bool,
}

/// What is known of the place that output goes to.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Whether it can be redrawn in place.
    pub terminal: bool,
    /// Whether colours are wanted (`NO_COLOR`, `CLICOLOR`, `TERM=dumb` are respected).
    pub colour: bool,
    /// Columns.
    pub columns: usize,
    /// Rows.
    pub rows: usize,
}

impl Paint {
    /// With colours or without.
    pub fn new(colour: bool) -> Self {
        Self { colour }
    }

    fn with(self, style: Style, text: &str) -> String {
        if self.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// In the colour of a tone.
    pub fn tone(self, tone: Tone, text: &str) -> String {
        self.with(style(tone), text)
    }

    /// In the colour of a tone, and bold.
    pub fn strong(self, tone: Tone, text: &str) -> String {
        self.with(style(tone) | Effects::BOLD, text)
    }

    /// Bold.
    pub fn bold(self, text: &str) -> String {
        self.with(Style::new().bold(), text)
    }

    /// Less important.
    pub fn dim(self, text: &str) -> String {
        self.with(Style::new().dimmed(), text)
    }
}

fn style(tone: Tone) -> Style {
    let colour = match tone {
        Tone::Good => AnsiColor::Green,
        Tone::Warn => AnsiColor::Yellow,
        Tone::Bad => AnsiColor::Red,
        Tone::Unknown => AnsiColor::Cyan,
        Tone::Plain => return Style::new(),
    };
    colour.on_default()
}

impl Screen {
    /// What standard output is.
    pub fn stdout() -> Self {
        let stream = std::io::stdout();
        let size = terminal_size::terminal_size_of(&stream);
        Self::made(stream.is_terminal(), AutoStream::choice(&stream), size)
    }

    /// What standard error is.
    pub fn stderr() -> Self {
        let stream = std::io::stderr();
        let size = terminal_size::terminal_size_of(&stream);
        Self::made(stream.is_terminal(), AutoStream::choice(&stream), size)
    }

    fn made(terminal: bool, choice: ColorChoice, size: Option<(terminal_size::Width, terminal_size::Height)>) -> Self {
        // A dumb terminal cannot move its cursor.
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let (columns, rows) = size.map_or((80, 24), |(w, h)| (usize::from(w.0), usize::from(h.0)));
        Self { terminal: terminal && !dumb, colour: choice != ColorChoice::Never, columns, rows }
    }

    /// Paint for it.
    pub fn paint(self) -> Paint {
        Paint::new(self.colour)
    }
}
