//! A journal that cannot be written or read: nothing is done without a record, nothing that was done is forgotten, and
//! whoever must look is told where and at what.

mod private;

use std::fs;

use private::{Private, private};

/// Fills the file system of the journal.
const FILL: &str = "! head -c 1M /dev/zero > run/filler 2>/dev/null";

fn small() -> Option<Private> {
    let private = private()?;
    private.must("mount -t tmpfs -o size=32k none run");
    Some(private)
}

/// The journal on an ext4 of its own, which can be made read-only under a writer as a failing disk does.
fn failing() -> Option<Private> {
    let private = private()?;
    let made = "truncate -s 2M disk && mkfs.ext4 -q disk && mount -o loop disk run";
    if !private.tries(made) {
        println!("UNSUPPORTED: no loop device or ext4 here, so a disk cannot fail under the journal");
        return None;
    }
    Some(private)
}

const FAIL: &str = "mount -o remount,abort run";

#[test]
fn a_disk_that_is_full_before_the_start_is_an_error_and_nothing_is_done() {
    let Some(private) = small() else { return };
    private.must(FILL);
    private.run(&private.pause("1s")).expect(2, &["run/owner could not be", "No space left", "make room"]);
    assert!(!private.group.is_frozen());
    private.must("rm run/filler");
    private.run(&private.pause("200ms")).expect(0, &["1 change on the host, undone"]);
}

#[test]
fn a_disk_that_fills_up_under_a_fault_does_not_keep_it_from_being_undone_and_settled() {
    let Some(private) = small() else { return };
    let running = private.begin("1s");
    private.must(FILL);
    running.end().expect(0, &["1 change on the host, undone"]);
    assert!(!private.group.is_frozen());
    private.must("test ! -e run/journal.ndjson");
}

#[test]
fn after_a_kill_a_full_disk_does_not_keep_the_guardian_from_undoing() {
    let Some(private) = small() else { return };
    let mut running = private.begin("60s");
    private.must(FILL);
    running.kill();
    private.until("it is thawed", || !private.group.is_frozen());
    private.until("the journal is gone", || private.tries("test ! -e run/journal.ndjson"));
    private.run(&["recover"]).expect(0, &["nothing to undo"]);
}

#[test]
fn a_journal_that_becomes_read_only_under_a_fault_is_told_and_the_host_is_clean() {
    let Some(private) = failing() else { return };
    let running = private.begin("1500ms");
    private.must(FAIL);
    running.end().expect(5, &["journal.ndjson could not be removed: Read-only", "all of it was undone"]);
    assert!(!private.group.is_frozen());
    // What it says is out of date: undoing it again is harmless, and a run cannot begin.
    private.run(&["recover"]).expect(5, &["not frozen", "would be again", "make that file system writable"]);
    private.run(&private.pause("1s")).expect(2, &["run/owner could not be opened: Read-only"]);
    assert!(!private.group.is_frozen());
}

#[test]
fn after_a_kill_a_read_only_journal_does_not_keep_the_guardian_from_undoing() {
    let Some(private) = failing() else { return };
    let mut running = private.begin("60s");
    private.must(FAIL);
    running.kill();
    private.until("it is thawed", || !private.group.is_frozen());
}

#[test]
fn a_state_folder_that_cannot_be_written_is_an_error_before_anything_that_outlives_a_reboot_is_done() {
    let Some(private) = private() else { return };
    private.must("mount -t tmpfs -o ro none state");
    let file = format!(
        "kind: System\nname: s\ncomponents:\n  - name: web\n    replicas: [{{name: w, cgroup: {}, control: {{stop: \
         [touch, {f}/stopped], start: [rm, {f}/stopped]}}}}]\n---\nkind: Experiment\nname: e\nsystem: s\nsteps:\n  \
         - target: web/w\n    inject: [{{stop: {{}}}}]\n    for: 1s\n",
        private.group.name,
        f = private.folder()
    );
    let file = private.firedrill.folder().write("e.yaml", &file).expect("written").display().to_string();
    let said = private.run(&["run", &file, "--quiet"]);
    said.expect(3, &["state/journal.ndjson could not be written: Read-only", "without a record nothing is changed"]);
    assert!(!private.firedrill.folder().path().join("stopped").exists());
    private.run(&["recover"]).expect(0, &["nothing to undo"]);
}

/// A journal of a dead owner that still has the group frozen, damaged by `damage`.
fn left_behind(damage: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Option<Private> {
    let private = private()?;
    let journal = private.firedrill.run_directory().join("journal.ndjson");
    let mut running = private.begin("60s");
    let record = fs::read(&journal).expect("a journal");
    running.kill();
    private.until("its guardian has cleared up", || !journal.exists() && !private.group.is_frozen());
    fs::write(&journal, damage(record)).expect("written");
    private.must(&format!("echo 1 > {}/cgroup.freeze", private.group.directory().display()));
    private.until("it is frozen", || private.group.is_frozen());
    Some(private)
}

#[test]
fn a_record_with_a_flipped_bit_is_not_followed_but_told_and_kept() {
    let flipped = |mut bytes: Vec<u8>| {
        let at = bytes.windows(4).position(|w| w == b"\"id\"").expect("the group's number") + 5;
        bytes[at] ^= 1;
        bytes
    };
    let Some(private) = left_behind(flipped) else { return };
    let told = ["line 1 of", "checksum does not match", "freeze cgroup", &private.group.name];
    private.run(&private.pause("1s")).expect(5, &told);
    private.run(&["status"]).expect(5, &told);
    private.run(&["recover"]).expect(5, &[&told[..], &["kept, and not read again", "journal.unreadable-1"]].concat());
    assert!(private.group.is_frozen(), "nobody knows that it was us");
    private.must("test -s run/journal.unreadable-1");
    private.run(&["recover"]).expect(0, &["nothing to undo"]);
}

#[test]
fn what_can_be_read_of_a_damaged_journal_is_undone() {
    let garbage = |bytes: &[u8]| [&[0xff, 0, 7][..], &[b'x'; 1 << 20], b"\n", bytes, &[0; 4096]].concat();
    let Some(private) = left_behind(|bytes| garbage(&bytes)) else { return };
    private.run(&["recover"]).expect(5, &["undone: freeze cgroup", "line 1 of", "(4096 bytes)", "kept"]);
    assert!(!private.group.is_frozen());
    private.run(&private.pause("200ms")).expect(0, &[]);
}

#[test]
fn a_record_of_a_newer_version_is_told_with_what_it_says() {
    // As a version that knows another inverse would write it, the checksum included.
    let newer = |_| {
        b"{\"intent\":{\"change\":1,\"boot\":\"b\",\"what\":\"pin a program\",\"undo\":{\"unpin\":{\"path\":\"/x\"}}}}\t\
          e2a696416a7f62f0\n"
            .to_vec()
    };
    let Some(private) = left_behind(newer) else { return };
    private.run(&["recover"]).expect(5, &["another version of Firedrill", "unknown variant `unpin`", "pin a program"]);
}
