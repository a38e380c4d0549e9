//! What is wrong with a file, where, and what would mend it.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

/// A place in a file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Line; 0 when the place is the file as a whole.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl Place {
    /// Where a value stands.
    pub fn of<T>(value: &Spanned<T>) -> Self {
        Self::from_location(value.referenced)
    }

    pub(super) fn from_location(location: serde_saphyr::Location) -> Self {
        let number = |n: u64| usize::try_from(n).unwrap_or(0);
        Self { line: number(location.line()), column: number(location.column()) }
    }
}

/// One finding about a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Diagnostic {
    /// The file's name as it was given.
    pub file: String,
    /// Where in it.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What would mend it.
    pub help: Option<String>,
    /// The text of the line.
    pub line: String,
}

impl Diagnostic {
    /// A finding at a place of `text`, the content of `file`.
    pub fn new(file: &str, text: &str, place: Place, message: impl Into<String>, help: Option<String>) -> Self {
        // As YAML counts them: a carriage return alone ends a line, too.
        let text = text.replace("\r\n", "\n");
        let line = place.line.checked_sub(1).and_then(|n| text.split(['\n', '\r']).nth(n)).unwrap_or_default();
        // A file must not be able to steer the terminal that shows what is wrong with it.
        let line = line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
        Self { file: file.to_owned(), place, message: message.into(), help, line }
    }
}

/// In the manner of rustc: the message, the place, the line with a caret, the help.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.message)?;
        if self.place.line == 0 {
            write!(f, "  --> {}", self.file)?;
        } else {
            let number = self.place.line.to_string();
            let gap = " ".repeat(number.len());
            writeln!(f, "{gap}--> {}:{}:{}", self.file, self.place.line, self.place.column)?;
            writeln!(f, "{gap} |")?;
            writeln!(f, "{number} | {}", self.line)?;
            // Tabs keep their width, so that the caret stands under its column on any terminal.
            let lead: String = self
                .line
                .chars()
                .take(self.place.column.saturating_sub(1))
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            write!(f, "{gap} | {lead}^")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n   = help: {help}")?;
        }
        Ok(())
    }
}
