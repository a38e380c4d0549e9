//! Writes the `newc` archive that Linux unpacks as its first file system
//! (kernel documentation: driver-api/early-userspace/buffer-format).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being put together. Paths have no leading slash; parents are added by themselves.
#[derive(Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

impl Archive {
    /// Adds a regular file with permissions such as `0o755`.
    pub fn file(&mut self, path: &str, permissions: u32, data: impl Into<Vec<u8>>) {
        self.add(path, FILE | permissions, (0, 0), data.into());
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.add(path, LINK | 0o777, (0, 0), to.as_bytes().to_vec());
    }

    /// Adds an empty folder.
    pub fn folder(&mut self, path: &str) {
        self.add(path, DIRECTORY | 0o755, (0, 0), Vec::new());
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.add(path, CHARACTER | 0o600, (major, minor), Vec::new());
    }

    /// True when something has this path already.
    pub fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path.trim_matches('/'))
    }

    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), data: Vec<u8>) {
        let path = path.trim_matches('/');
        for (slash, _) in path.match_indices('/') {
            let parent = || Entry { mode: DIRECTORY | 0o755, device: (0, 0), data: Vec::new() };
            self.entries.entry(path[..slash].to_owned()).or_insert_with(parent);
        }
        self.entries.insert(path.to_owned(), Entry { mode, device, data });
    }

    /// The archive's bytes.
    pub fn finish(&self) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(self.entries.values().map(|entry| entry.data.len() + 256).sum());
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            write(&mut out, number, path, entry)?;
        }
        write(&mut out, 0, "TRAILER!!!", &Entry { mode: 0, device: (0, 0), data: Vec::new() })?;
        Ok(out)
    }
}

fn write(out: &mut Vec<u8>, number: u32, path: &str, entry: &Entry) -> Result<()> {
    let size = u32::try_from(entry.data.len()).with_context(|| format!("{path} is larger than 4 GiB"))?;
    let name = u32::try_from(path.len() + 1).with_context(|| format!("{path} is too long a name"))?;
    let (major, minor) = entry.device;
    out.extend_from_slice(b"070701");
    // inode, mode, uid, gid, links, mtime, size, device of the file (2), device that it is (2), name, checksum
    for field in [number, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name, 0] {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(&entry.data);
    pad(out);
    Ok(())
}

/// Headers and data start at multiples of four bytes.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_their_children_and_the_trailer_comes_last() {
        let mut archive = Archive::default();
        archive.file("usr/bin/tool", 0o755, "x");
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(at("usr") < at("usr/bin") && at("usr/bin") < at("usr/bin/tool"));
        assert!(at("usr/bin/tool") < at("TRAILER!!!"));
    }

    #[test]
    fn every_header_starts_at_a_multiple_of_four_bytes() {
        let mut archive = Archive::default();
        for length in 0..9 {
            archive.file(&format!("f{}", "x".repeat(length)), 0o644, vec![b'-'; length]);
        }
        let bytes = archive.finish().unwrap();
        let magic: Vec<usize> =
            bytes.windows(6).enumerate().filter(|(_, w)| w == b"070701").map(|(at, _)| at).collect();
        assert_eq!(magic.len(), 10);
        assert!(magic.iter().all(|at| at % 4 == 0), "{magic:?}");
        assert_eq!(bytes.len() % 4, 0);
    }
}
