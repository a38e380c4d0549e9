//! A keeper: starts a service, and starts it again when it has died, as systemd would with `Restart=always`. It stays
//! in a group of its own, so that what kills or freezes the service spares it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Joins the group whose `cgroup.procs` is the first argument, and becomes the program that the others name.
const JOIN: &str = "echo 0 > \"$1\" && shift && exec \"$@\"";

/// Keeps a service running in `group`, the path of a control group. Ends only with an error.
///
/// # Errors
/// The shell that joins the group cannot be started.
pub fn keep(group: &Path, after: Duration, command: &[String]) -> Result<std::convert::Infallible> {
    loop {
        let mut service = Command::new("/bin/sh");
        service.args(["-c", JOIN, "sh"]).arg(group.join("cgroup.procs")).args(command);
        let status = service.status().context("cannot start /bin/sh")?;
        eprintln!("firedrill-stage: {command:?} ended ({status}); it starts again in {after:?}");
        std::thread::sleep(after);
    }
}
