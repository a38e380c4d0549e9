//! Every call of the agent that changes the host stands between two crash points: inside of `crash_point::around(…)`.
//! Otherwise no test has ever died there.

/// Where this holds; `sys/` is what is called, and `snapshot` and `target/` only look.
const FOLDER: &str = "agent/src/";
const ELSEWHERE: [&str; 4] = ["agent/src/sys/", "agent/src/snapshot", "agent/src/target/", "agent/src/crash_point.rs"];
/// How such calls begin.
const CHANGES: [&str; 35] = [
    "fs::write(",
    "fs::create_dir",
    "fs::remove_",
    "fs::rename(",
    "fs::set_permissions(",
    "fs::hard_link(",
    "symlink(",
    ".create(true)",
    ".create_new(true)",
    ".set_len(",
    ".write_all(",
    ".sync_all(",
    " mount(",
    "umount2(",
    "unshare(CloneFlags",
    ".spawn()",
    ".status()",
    ".output()",
    "child.kill()",
    "signal::kill(",
    "pidfd_send_signal(",
    ".attach(&",
    ".attach_with_options(",
    "load::load",
    "fallocate(",
    "counters.insert(",
    "refused.set(",
    "maps.rules.",
    "maps.scopes.insert(",
    "maps.interfaces.",
    "maps.taps.",
    "_tags.insert(",
    "create_tap(",
    "send(netlink",
    "socket.send(",
];
/// What excuses a call, in a comment on its line or the two before.
const EXCUSE: &str = "rash point";

/// The calls of a file that are not between crash points: line and call.
pub fn unguarded(path: &str, text: &str) -> Vec<(usize, &'static str)> {
    if !path.starts_with(FOLDER)
        || !path.ends_with(".rs")
        || path.ends_with("tests.rs")
        || path.contains("/tests/")
        || ELSEWHERE.iter().any(|other| path.starts_with(other))
    {
        return Vec::new();
    }
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let excused = |at: usize| lines[at.saturating_sub(2)..=at].iter().any(|line| line.contains(EXCUSE));
    let mut found = Vec::new();
    // How many parentheses are open inside of an `around(`; 0 outside of one.
    let mut open = 0_usize;
    for (at, line) in lines.iter().enumerate() {
        let code = code_of(line);
        for (i, byte) in code.bytes().enumerate() {
            let rest = &code[i..];
            if let Some(call) = CHANGES.into_iter().find(|call| rest.starts_with(call))
                && open == 0
                && !excused(at)
            {
                found.push((at + 1, call));
            }
            match byte {
                b'(' if open > 0 || code[..i].ends_with("crash_point::around") => open += 1,
                b')' => open = open.saturating_sub(1),
                _ => {}
            }
        }
    }
    found
}

/// A line without its comment, and with the text of its strings blanked: parentheses in them do not count.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut quoted = false;
    let mut bytes = line.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if quoted => {
                bytes.next();
            }
            b'"' => quoted = !quoted,
            b'/' if !quoted && bytes.peek() == Some(&b'/') => break,
            _ if quoted || !byte.is_ascii() => {}
            _ => code.push(byte.into()),
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(usize, &'static str)> {
        unguarded("agent/src/stage/mod.rs", text)
    }

    #[test]
    fn a_change_outside_of_around_is_found_and_one_inside_is_not() {
        assert_eq!(found("let a = 1;\nfs::write(path, text)?;\n"), [(2, "fs::write(")]);
        assert_eq!(found("crash_point::around(\"a(\", || fs::write(path(key), text))?;\n"), []);
        assert_eq!(
            found("crash_point::around(\"a\", || {\n    fs::write(path, text)\n})?;\nfs::remove_dir(path)?;\n"),
            [(4, "fs::remove_")]
        );
    }

    #[test]
    fn comments_strings_tests_and_other_crates_are_not_looked_at() {
        assert_eq!(found("// fs::write(path)\nlet text = \"fs::write(\";\n"), []);
        assert_eq!(found("#[cfg(test)]\nmod tests {\n    fs::write(path, text);\n}\n"), []);
        assert_eq!(unguarded("ctl/src/main.rs", "fs::write(path, text);"), []);
    }

    #[test]
    fn a_comment_that_says_why_excuses_a_call() {
        assert_eq!(found("// No crash point: a file of our own.\nfs::write(path, text)?;\n"), []);
    }
}
