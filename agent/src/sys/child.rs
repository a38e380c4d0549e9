//! Processes that we start.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

/// Has a command that is yet to be started killed when the thread that starts it ends (PR_SET_PDEATHSIG(2const)), as it
/// does with us: whoever undoes afterwards what the command does must not be overtaken by it. A set-user-ID program
/// loses the setting, and children of the command do not inherit it.
pub fn end_with_us(command: &mut Command) -> &mut Command {
    let us = Pid::this();
    let before_exec = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // We died before it was set: then nobody would tell.
        if getppid() == us { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: runs in the child between fork and exec, where only async-signal-safe calls are allowed: these are two
    // plain system calls, and an error that is made from a number allocates nothing.
    unsafe { command.pre_exec(before_exec) }
}
