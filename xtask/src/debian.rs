//! A small Debian with systemd, for the units tests: they boot it in a container. It is made once, in the cache.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::{repo, run, setup, vm::kernel};

/// Debian 12, whose systemd (252) is the oldest that the tests must hold on.
const SUITE: &str = "bookworm";
/// Counted up when [`PACKAGES`] change, so that an old one in the cache is not taken for a new one.
const EDITION: u32 = 1;
/// What is in it beside the essential packages: Python is the services.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,python3-minimal";

/// Where it is, or would be.
pub fn folder() -> Result<PathBuf> {
    Ok(repo::cache()?.join("debian").join(format!("{SUITE}-{EDITION}")))
}

/// Makes it where it is missing (half a minute to a minute, 300 MB), or says that it is.
pub fn root(may_install: bool) -> Result<()> {
    let folder = folder()?;
    if folder.is_dir() {
        return Ok(());
    }
    ensure!(may_install, "{} is not there; run `cargo xtask setup --units`", folder.display());
    ensure!(
        Path::new(kernel::KEYRING).exists(),
        "{} is missing: apt-get install debian-archive-keyring",
        kernel::KEYRING
    );
    let program = run::find("debootstrap").context("debootstrap is not installed")?;
    let unfinished = folder.with_extension(format!("making-{}", std::process::id()));
    let [program, made, finished] = [&program, &unfinished, &folder].map(|path| path.display().to_string());
    println!("making a small Debian {SUITE} in {finished}, once");
    let include = format!("--include={PACKAGES}");
    let mirror = kernel::mirror()?;
    let make = [&program, "--variant=minbase", &include, SUITE, &made, &mirror];
    let done = setup::root(&make).and_then(|mut make| run::checked(&mut make));
    // It appears under its name only when it is complete. Files of root: so must be what moves or removes it.
    let done = done.and_then(|()| run::checked(&mut setup::root(&["mv", "-T", &made, &finished])?));
    if done.is_err() && unfinished.exists() {
        run::checked(&mut setup::root(&["rm", "-rf", "--one-file-system", &made])?)?;
    }
    done.context("cannot make a small Debian for the units tests")
}
