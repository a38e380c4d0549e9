//! The lines of a journal: a JSON object, a tab and a checksum each, so that nothing is undone by a record that is not
//! as it was written, and no record is lost in silence.

use std::io;

use serde::{Deserialize, Serialize};

use crate::undo::Undo;

/// Length of the checksum, in hexadecimal digits.
const SUM: usize = 16;
/// How much of an unreadable record is shown.
const SHOWN: usize = 300;
/// How the records begin.
const KINDS: [&[u8]; 3] = [b"{\"intent\":", b"{\"applied\":", b"{\"reverted\":"];

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Entry {
    /// A change is about to be made.
    Intent {
        /// Its number, unique within the journal.
        change: u64,
        /// The boot that it belongs to.
        boot: String,
        /// The change, in words: its inverse is all that is needed, and a later version may know other changes.
        what: String,
        /// Its inverse.
        undo: Undo,
    },
    /// It was made.
    Applied {
        /// Its number.
        change: u64,
    },
    /// It was undone, or found to need no undoing.
    Reverted {
        /// Its number.
        change: u64,
    },
}

impl Entry {
    /// The name of the crash points around its writing.
    pub(super) fn crash_point(&self) -> &'static str {
        match self {
            Self::Intent { .. } => "journal.intent",
            Self::Applied { .. } => "journal.applied",
            Self::Reverted { .. } => "journal.reverted",
        }
    }

    /// Its line, with the line end.
    ///
    /// # Errors
    /// A path in it is no text.
    pub fn line(&self) -> io::Result<String> {
        let json = serde_json::to_string(self).map_err(io::Error::other)?;
        Ok(format!("{json}\t{:016x}\n", checksum(json.as_bytes())))
    }
}

/// A change that was begun and not undone.
#[derive(Clone, Debug, PartialEq)]
pub struct Outstanding {
    /// Its number.
    pub change: u64,
    /// The boot that it belongs to.
    pub boot: String,
    /// The change, in words.
    pub what: String,
    /// Its inverse.
    pub undo: Undo,
}

/// A line that is no record, or is not as it was written. It may be all that tells of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its number in the file, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
    /// What it says, as far as that can be shown: its beginning, without control characters and users' own commands,
    /// which may be secret.
    pub text: String,
}

/// What a journal says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    /// What it leaves to be undone, last change first.
    pub open: Vec<Outstanding>,
    /// What it says besides that cannot be understood.
    pub unreadable: Vec<Unreadable>,
}

impl Content {
    /// Whether nothing is left to be undone, as far as anybody can know.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty() && self.unreadable.is_empty()
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Intent { change, boot, what, undo } => self.open.push(Outstanding { change, boot, what, undo }),
            Entry::Reverted { change } => self.open.retain(|o| o.change != change),
            Entry::Applied { .. } => {}
        }
    }
}

/// Reads a journal. A torn record is passed over: it is complete before its change is made, so that a torn one has no
/// change behind it.
pub fn read(bytes: &[u8]) -> Content {
    let mut content = Content::default();
    for (at, line) in bytes.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        match parse(line) {
            Line::Whole(entry) => content.take(entry),
            Line::Torn => {}
            Line::Unreadable(why) => {
                // Where a line end was lost, a whole record may stand behind what cannot be read.
                let behind = (1..line.len()).filter(|at| KINDS.iter().any(|kind| line[*at..].starts_with(kind)));
                let whole = behind.filter(|at| has_its_sum(&line[*at..])).find_map(|at| match parse(&line[at..]) {
                    Line::Whole(entry) => Some((at, entry)),
                    _ => None,
                });
                let bad = &line[..whole.as_ref().map_or(line.len(), |(at, _)| *at)];
                content.unreadable.push(Unreadable { line: at + 1, why, text: shown(bad) });
                if let Some((_, entry)) = whole {
                    content.take(entry);
                }
            }
        }
    }
    content.open.reverse();
    content
}

enum Line {
    Whole(Entry),
    /// Its writer died or failed in the middle of it.
    Torn,
    Unreadable(String),
}

fn parse(line: &[u8]) -> Line {
    let (json, sum) = split(line);
    let entry = serde_json::from_slice::<Entry>(json);
    match (entry, sum) {
        (entry, Some(sum)) if sum.len() == SUM => match entry {
            _ if !has_its_sum(line) => Line::Unreadable("its checksum does not match: it was damaged".into()),
            Ok(entry) => Line::Whole(entry),
            Err(e) => Line::Unreadable(format!("it is undamaged, so another version of Firedrill wrote it: {e}")),
        },
        // Torn in its checksum. Undoing a change that was not made is harmless, losing one that was is not.
        (Ok(entry), None) => Line::Whole(entry),
        (Ok(entry), Some(sum)) if sum.len() < SUM => Line::Whole(entry),
        (Err(e), None) if e.is_eof() && begins_like_a_record(json) => Line::Torn,
        (Err(e), _) => Line::Unreadable(e.to_string()),
        (Ok(_), Some(_)) => Line::Unreadable("something stands behind it: it was damaged".into()),
    }
}

/// A line's object, and its checksum as far as there is one.
fn split(line: &[u8]) -> (&[u8], Option<&[u8]>) {
    match line.iter().rposition(|b| *b == b'\t') {
        Some(at) => (&line[..at], Some(&line[at + 1..])),
        None => (line, None),
    }
}

fn has_its_sum(line: &[u8]) -> bool {
    let (json, sum) = split(line);
    sum == Some(format!("{:016x}", checksum(json)).as_bytes())
}

fn begins_like_a_record(text: &[u8]) -> bool {
    KINDS.iter().any(|kind| text.starts_with(kind) || kind.starts_with(text))
}

fn shown(bytes: &[u8]) -> String {
    // Four bytes a character at most.
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN)]);
    let public = ["{\"command\"", "\"argv\""].iter().filter_map(|secret| text.find(secret)).min();
    let text = &text[..public.unwrap_or(text.len())];
    let cut: String = text.chars().take(SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if bytes.len() > cut.len() { format!("{cut}… ({} bytes)", bytes.len()) } else { cut }
}

/// FNV-1a, 64 bits: for accidents, not for forgers, who could as well write to the host.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(change: u64, name: &str) -> Entry {
        let undo = Undo::DeleteNetns { name: name.into() };
        Entry::Intent { change, boot: "boot".into(), what: format!("make network namespace {name}"), undo }
    }

    fn text(entries: &[Entry]) -> Vec<u8> {
        entries.iter().flat_map(|e| e.line().expect("a line").into_bytes()).collect()
    }

    fn numbers(content: &Content) -> Vec<u64> {
        content.open.iter().map(|o| o.change).collect()
    }

    /// Three changes, of which the second is undone.
    fn journal() -> Vec<u8> {
        let applied = |change| Entry::Applied { change };
        text(&[
            intent(1, "a"),
            applied(1),
            intent(2, "b"),
            applied(2),
            Entry::Reverted { change: 2 },
            intent(3, "tab*JI)"),
            applied(3),
        ])
    }

    #[test]
    fn a_journal_cut_at_any_byte_loses_at_most_the_record_that_is_cut() {
        let whole = journal();
        for length in 0..=whole.len() {
            let content = read(&whole[..length]);
            assert_eq!(content.unreadable, [], "at {length}");
            let begin = whole[..length].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let end = begin + whole[begin..].iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
            // One that lacks only its line end, or some of its checksum, counts already.
            let expected = [&whole[..begin], &whole[..end]].map(|part| numbers(&read(part)));
            assert!(expected.contains(&numbers(&content)), "at {length}: {content:?}, not {expected:?}");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_told_and_changes_no_record() {
        let whole = journal();
        let sound = read(&whole);
        assert_eq!((numbers(&sound), sound.unreadable.len()), (vec![3, 1], 0));
        let all = text(&[intent(1, "a"), intent(2, "b"), intent(3, "tab*JI)")]);
        let written = read(&all).open;
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let content = read(&bytes);
                assert!(!content.unreadable.is_empty(), "byte {at}, bit {bit} passes unseen: {content:?}");
                assert!(content.open.iter().all(|o| written.contains(o)), "byte {at}, bit {bit}: {content:?}");
            }
        }
    }

    #[test]
    fn garbage_between_records_is_told_and_hides_none_of_them() {
        let garbage: [&[u8]; 5] = [&[0; 4096], b"\xff\xfe\x00garbage\n", &[b'x'; 1 << 20], b"\n\n{}\n", b"[1,2,3]\n"];
        for garbage in garbage {
            let bytes = [&text(&[intent(1, "a")]), garbage, &text(&[intent(2, "b")])].concat();
            let content = read(&bytes);
            assert_eq!(numbers(&content), [2, 1], "{:?}", content.unreadable);
            assert_eq!(content.unreadable.len(), 1, "{:?}", content.unreadable);
            let shown = &content.unreadable[0].text;
            assert!(shown.chars().count() < 400 && !shown.contains(char::is_control), "{shown:?}");
        }
    }

    #[test]
    fn a_record_of_another_version_is_told_with_what_it_says() {
        for record in [
            r#"{"intent":{"change":1,"boot":"b","what":"w","undo":{"reattach":{"pin":"x"}}}}"#,
            r#"{"intent":{"change":1,"boot":"b","what":"w","undo":"dies-with-agent","unless":"tuesday"}}"#,
            r#"{"intent":{"change":1,"boot":"b","what":"w","undo":{"delete-netns":{"name":"a","softly":true}}}}"#,
            r#"{"compacted":{"until":7}}"#,
        ] {
            let line = format!("{record}\t{:016x}\n", checksum(record.as_bytes()));
            let content = read(line.as_bytes());
            assert_eq!(content.open, []);
            let [told] = content.unreadable.as_slice() else { panic!("{record}: {content:?}") };
            assert!(told.why.contains("another version"), "{told:?}");
            assert!(told.text.starts_with(&record[..12]), "{told:?}");
        }
    }

    #[test]
    fn a_record_that_follows_a_torn_one_is_read() {
        let bytes = [b"{\"intent\":{\"change\":1,\"boo\n".as_slice(), &text(&[intent(2, "b")])].concat();
        let content = read(&bytes);
        assert_eq!((numbers(&content), content.unreadable.len()), (vec![2], 0));
    }
}
