//! Probes by command: exit status and output.
//!
//! The command runs in a process group of its own, which is killed when its time is over. So that nothing outlives
//! Firedrill even when that is killed, it is started through `setpriv --pdeathsig` where the host has it (util-linux;
//! prctl(2), PR_SET_PDEATHSIG); what the command starts itself and puts elsewhere is its own affair.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use firedrill_model::file::ExecCheck;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::tcp::contains;

/// Most bytes of the output that are kept; the rest is read and dropped.
const OUTPUT_LIMIT: usize = 1024 * 1024;

/// What a killed process is given to be gone before it is left to the kernel.
const GONE: Duration = Duration::from_secs(1);

pub(super) struct Asker {
    /// Program and arguments, `setpriv` included.
    command: Vec<PathBuf>,
    user: Option<(u32, u32)>,
    exit: i32,
    contains: Option<String>,
}

impl Asker {
    pub(super) fn new(check: &ExecCheck) -> Result<Self, String> {
        let (program, arguments) = check.command.split_first().ok_or("`command` is empty")?;
        let found = find(program).ok_or_else(|| format!("there is no program `{program}`; give its full path"))?;
        let mut command = Vec::new();
        if let Some(setpriv) = find("setpriv").filter(|path| kills_with_parent(path)) {
            command.extend([setpriv, "--pdeathsig".into(), "KILL".into(), "--".into()]);
        }
        command.push(found);
        command.extend(arguments.iter().map(PathBuf::from));
        let user = check.user.as_deref().map(user).transpose()?;
        Ok(Self { command, user, exit: check.exit, contains: check.contains.clone() })
    }

    pub(super) async fn ask(&self, timeout: Duration) -> Result<(), String> {
        let (program, arguments) = self.command.split_first().ok_or("`command` is empty")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.process_group(0).kill_on_drop(true);
        if let Some((uid, gid)) = self.user {
            // With a user set, the standard library drops all supplementary groups when it runs as root.
            command.uid(uid).gid(gid);
        }
        let mut child = command.spawn().map_err(|error| format!("could not be started: {}", error.kind()))?;
        match tokio::time::timeout(timeout, outcome(&mut child)).await {
            Ok(Ok((status, output))) => self.judge(status, &output),
            Ok(Err(error)) => {
                end(&mut child).await;
                Err(format!("could not be followed: {}", error.kind()))
            }
            Err(_) => {
                end(&mut child).await;
                Err("timed out".into())
            }
        }
    }

    fn judge(&self, status: std::process::ExitStatus, output: &[u8]) -> Result<(), String> {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) if code != self.exit => return Err(format!("exit status {code}, not {}", self.exit)),
            (None, Some(signal)) => return Err(format!("killed by signal {signal}")),
            _ => {}
        }
        match &self.contains {
            Some(text) if !contains(output, text) => Err(format!("output lacks {text:?}")),
            _ => Ok(()),
        }
    }
}

/// Output first, then the status: as long as nobody has asked for the status the process id cannot be another's, and
/// its group can be killed.
async fn outcome(child: &mut Child) -> std::io::Result<(std::process::ExitStatus, Vec<u8>)> {
    let output = match child.stdout.take() {
        Some(stdout) => drain(stdout).await?,
        None => Vec::new(),
    };
    Ok((child.wait().await?, output))
}

async fn drain(mut from: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let (mut kept, mut part) = (Vec::new(), vec![0; 16 * 1024]);
    loop {
        let n = from.read(&mut part).await?;
        if n == 0 {
            return Ok(kept);
        }
        let room = OUTPUT_LIMIT.saturating_sub(kept.len());
        kept.extend_from_slice(&part[..n.min(room)]);
    }
}

/// Kills what is left of a command, and waits until it is gone.
async fn end(child: &mut Child) {
    // No id: it has ended and been noted, so the number may be another's by now.
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // ESRCH means that nothing is left.
        let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
    }
    if tokio::time::timeout(GONE, child.wait()).await.is_err() {
        tracing::warn!("a probe's command was killed and is not gone after {GONE:?}");
    }
}

/// Where a program is: its path, or the first of its name in PATH.
fn find(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs = |path: &Path| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| runs(path));
    }
    let folders = std::env::var_os("PATH")
        .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| runs(path))
}

/// Whether this `setpriv` knows the option; busybox has one that does not.
fn kills_with_parent(setpriv: &Path) -> bool {
    let mut test = std::process::Command::new(setpriv);
    test.args(["--pdeathsig", "KILL", "--", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    test.status().is_ok_and(|status| status.success())
}

/// User and group ids of a user, by name or number.
fn user(wanted: &str) -> Result<(u32, u32), String> {
    // Read by hand: in a static binary the C library's look-up needs the very C library of the build machine.
    let passwd =
        std::fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd cannot be read: {error}"))?;
    in_passwd(&passwd, wanted).ok_or_else(|| format!("there is no user `{wanted}` in /etc/passwd; a number works, too"))
}

fn in_passwd(passwd: &str, wanted: &str) -> Option<(u32, u32)> {
    let number: Option<u32> = wanted.parse().ok();
    let entry = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (name == wanted || number == Some(uid)).then_some((uid, gid))
    });
    // A number without an entry: its own number as group, and not root's.
    entry.or(number.map(|n| (n, n)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/:/bin/false\n";
        assert_eq!(in_passwd(passwd, "web"), Some((33, 34)));
        assert_eq!(in_passwd(passwd, "33"), Some((33, 34)));
        assert_eq!(in_passwd(passwd, "4000"), Some((4000, 4000)));
        assert_eq!(in_passwd(passwd, "nobody"), None);
    }
}
