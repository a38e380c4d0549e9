//! Printing what was asked for, and what is said beside.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};

use anyhow::{Context as _, Result};

/// Prints a text, and the end of the line, on standard output. A reader who has seen enough (`| head`) is no error.
///
/// # Errors
/// It cannot be written, because a disk is full for example: then nobody may believe that the result is there.
pub fn say(text: impl Display) -> Result<()> {
    let line = format!("{text}\n");
    let mut out = anstream::stdout();
    match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Says something beside, on standard error. If even that cannot be written, as when the terminal is gone, there is
/// nobody to tell, and what is being done goes on.
pub fn aside(text: impl Display) {
    let _ = writeln!(anstream::stderr(), "{text}");
}
