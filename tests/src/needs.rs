//! What a test needs of the machine.

use std::path::PathBuf;

/// Whether a program is installed.
pub fn is_installed(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    // Not in the PATH of every user.
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&folders).chain(more).any(|folder| folder.join(program).is_file())
}

/// What is missing: root's rights, a program. `None` when all is there.
pub fn missing(programs: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root is needed for namespaces, control groups and eBPF; cargo xtask test asks for it".to_owned());
    }
    let missing = programs.iter().find(|program| !is_installed(program))?;
    Some(format!("{missing} is not installed; cargo xtask setup installs it"))
}

/// Whether this is a guest of `cargo xtask vm-test`, with a kernel of its own. Asked of the kernel's command line, which
/// nobody sets by mistake.
pub fn is_guest() -> bool {
    std::fs::read_to_string("/proc/cmdline")
        .is_ok_and(|line| line.split_whitespace().any(|word| word == "firedrill.guest=1"))
}
