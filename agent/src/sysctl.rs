//! Kernel parameters of a network namespace: written with the old value kept, restored only if still ours.

use std::fs;
use std::io;

use firedrill_model::facts::NetnsRef;

use crate::crash_point;
use crate::host::netns;

/// `/proc/sys/net` shows the namespace of the process that looks (proc_sys_net(5)), so everything runs inside.
fn path(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}

/// Reads a parameter.
///
/// # Errors
/// The namespace is gone, or there is no such parameter.
pub fn read(namespace: &NetnsRef, key: &str) -> io::Result<String> {
    netns::within(namespace, || fs::read_to_string(path(key)))?.map(|t| t.trim().to_owned())
}

/// Writes a parameter and reads it back.
///
/// # Errors
/// As [`read`], or the kernel did not take the value.
pub fn write(namespace: &NetnsRef, key: &str, value: &str) -> io::Result<()> {
    netns::within(namespace, || crash_point::around("sysctl.write", || fs::write(path(key), value)))??;
    let now = read(namespace, key)?;
    if now == value { Ok(()) } else { Err(io::Error::other(format!("{key} is {now} after writing {value}"))) }
}

/// Restores `old`, unless somebody has changed our value since.
///
/// # Errors
/// As [`write`].
pub fn restore(namespace: &NetnsRef, key: &str, old: &str, ours: &str) -> io::Result<String> {
    let now = match read(namespace, key) {
        Ok(now) => now,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok("its namespace is gone".into()),
        Err(e) => return Err(e),
    };
    if now == old {
        Ok(format!("was {old} already"))
    } else if now == ours {
        write(namespace, key, old)?;
        Ok(format!("{old} again"))
    } else {
        Ok(format!("somebody else has set it to {now} since; left so"))
    }
}
