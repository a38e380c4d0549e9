//! Stock Debian kernels: fetched with `apt-get download` from the mirror that this machine is configured with,
//! unpacked into the cache, never installed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{repo, run};

/// The suites of Debian that have stock kernels of these versions. The package's exact version is resolved on the day,
/// because mirrors drop old ones.
const KERNELS: &[(&str, &str)] = &[("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "bookworm-backports")];
/// Has all newer ones, for as long as they are new.
const NEWER: &str = "trixie-backports";
/// Stands for the newest version that the suite of the newer ones has.
pub const NEWEST: &str = "newest";
/// The small kernel for virtual machines.
const FLAVOUR: &str = "-cloud-amd64";
/// Overrides the mirror, for machines that are not Debian.
const MIRROR: &str = "FIREDRILL_DEBIAN_MIRROR";
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An unpacked kernel.
pub struct Kernel {
    /// Such as `6.1`.
    pub version: String,
    /// The file that QEMU boots.
    pub image: PathBuf,
    /// The package's files.
    pub root: PathBuf,
}

impl Kernel {
    /// Returns the kernel from the cache, or fetches it. The newest one is looked for anew each time.
    pub fn get(version: &str) -> Result<Self> {
        let cache = repo::cache()?.join("kernels");
        let version = if version == NEWEST { newest_version(&cache)? } else { version.to_owned() };
        let root = cache.join(&version).join("root");
        if !root.is_dir() {
            let suite = KERNELS.iter().find(|(known, _)| *known == version).map_or(NEWER, |(_, suite)| suite);
            fetch(&version, suite, &root)
                .with_context(|| format!("cannot fetch kernel {version} from Debian {suite}"))?;
        }
        let image = image(&root)?;
        Ok(Self { version, image, root })
    }
}

impl Kernel {
    /// True for one without `bpf_loop`, on which Firedrill refuses to work.
    pub fn is_too_old(&self) -> bool {
        numbers(&self.version).as_slice() < [5, 17].as_slice()
    }
}

/// The newest version that Debian has; when the mirror cannot be reached, the newest in the cache.
fn newest_version(cache: &Path) -> Result<String> {
    let asked = Apt::new(NEWER).and_then(|apt| {
        let names = apt.kernels()?;
        let release = newest(&names, "").with_context(|| format!("Debian {NEWER} has no kernel"))?;
        Ok(numbers(release).iter().take(2).map(u64::to_string).collect::<Vec<_>>().join("."))
    });
    asked.or_else(|error| {
        let there = fs::read_dir(cache).into_iter().flatten().filter_map(Result::ok);
        let there = there.filter(|entry| entry.path().join("root").is_dir());
        let versions = there.filter_map(|entry| entry.file_name().into_string().ok());
        let newest = versions.max_by_key(|version| numbers(version)).ok_or_else(|| {
            error.context("which kernel is the newest cannot be found out, and there is none in the cache")
        })?;
        println!("WARNING: Debian cannot be asked for its newest kernel: {newest} is the newest in the cache");
        Ok(newest)
    })
}

/// `boot/vmlinuz-RELEASE`, or `lib/modules/RELEASE/vmlinuz` of newer packages.
fn image(root: &Path) -> Result<PathBuf> {
    let mut folders = vec![root.join("boot")];
    for modules in ["lib/modules", "usr/lib/modules"] {
        let releases = fs::read_dir(root.join(modules)).into_iter().flatten().filter_map(Result::ok);
        folders.extend(releases.map(|release| release.path()));
    }
    folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz"))
        .map(|entry| entry.path())
        .with_context(|| format!("{} has no vmlinuz", root.display()))
}

/// Downloads and unpacks; `root` appears only when it is complete.
fn fetch(version: &str, suite: &str, root: &Path) -> Result<()> {
    let apt = Apt::new(suite)?;
    let names = apt.kernels()?;
    let release =
        newest(&names, version).with_context(|| format!("there is no package linux-image-{version}.*{FLAVOUR}"))?;
    // From 6.19 on the image's package is split.
    let packages: Vec<String> = ["linux-image-", "linux-base-", "linux-binary-", "linux-modules-"]
        .map(|part| format!("{part}{release}"))
        .into_iter()
        .filter(|package| names.lines().any(|name| name == package))
        .collect();
    let debs = apt.folder.join("debs");
    fresh(&debs)?;
    let mut download = apt.command("apt-get", ["-qq", "download"]);
    run::checked(download.args(&packages).current_dir(&debs))?;

    let unpacked = apt.folder.join("unpacked");
    fresh(&unpacked)?;
    for deb in fs::read_dir(&debs).context("cannot list the packages")? {
        let deb = deb.context("cannot list the packages")?.path();
        run::checked(Command::new("dpkg").arg("-x").arg(&deb).arg(&unpacked))?;
    }
    let parent = root.parent().context("the cache has no root")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    match fs::rename(&unpacked, root) {
        Err(_) if root.is_dir() => Ok(()), // another one was faster
        done => done.with_context(|| format!("cannot rename the unpacked kernel to {}", root.display())),
    }
}

/// The newest release of a version among package names: `6.1.0-50-cloud-amd64` for 6.1. No version means any.
fn newest<'a>(names: &'a str, version: &str) -> Option<&'a str> {
    let of_version =
        |release: &str| version.is_empty() || release.strip_prefix(version).is_some_and(|rest| rest.starts_with('.'));
    names
        .lines()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| release.ends_with(FLAVOUR) && release.starts_with(|sign: char| sign.is_ascii_digit()))
        .filter(|release| of_version(release))
        .max_by_key(|release| numbers(release))
}

/// The numbers in a release, by which it is compared.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|sign: char| !sign.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn fresh(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// An apt of our own: the machine's proxies and keys, another suite, and nothing of it in the machine's lists. Its folder
/// goes with it.
struct Apt {
    folder: PathBuf,
    sources: PathBuf,
}

impl Drop for Apt {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("warning: {} is left: {error}", self.folder.display());
        }
    }
}

impl Apt {
    fn new(suite: &str) -> Result<Self> {
        let folder = repo::cache()?.join("kernels").join(format!(".apt-{suite}-{}", std::process::id()));
        fresh(&folder)?;
        for part in ["lists/partial", "cache/archives/partial", "parts"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let apt = Self { sources: folder.join("sources.list"), folder };
        ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing: apt-get install debian-archive-keyring");
        let line = format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()?);
        fs::write(&apt.sources, line).with_context(|| format!("cannot write {}", apt.sources.display()))?;
        run::checked(&mut apt.command("apt-get", ["-qq", "update"]))?;
        Ok(apt)
    }

    /// The names of the packages of kernels, one a line.
    fn kernels(&self) -> Result<String> {
        run::output(&mut self.command("apt-cache", ["pkgnames", "linux-"]))
    }

    fn command<'a>(&self, program: &str, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(program);
        for (option, value) in [
            ("Dir::Etc::sourcelist", self.sources.clone()),
            ("Dir::Etc::sourceparts", self.folder.join("parts")),
            ("Dir::State::lists", self.folder.join("lists")),
            ("Dir::Cache", self.folder.join("cache")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        // The sandbox's user could not write into a home folder.
        command.args(["-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root"]);
        command.args(args);
        command
    }
}

/// The Debian archive that this machine's apt uses.
pub fn mirror() -> Result<String> {
    if let Ok(mirror) = env::var(MIRROR) {
        return Ok(mirror);
    }
    let mut command = run::command("apt-get", ["indextargets", "--format", "$(REPO_URI) $(COMPONENT)"]);
    let targets = run::output(command.arg("Created-By: Packages"))?;
    archive(&targets).with_context(|| {
        format!("apt on this machine has no Debian archive: set {MIRROR} to the URL of one (it ends in /debian)")
    })
}

/// Of all that apt knows, the main Debian archive: security updates are kept in another one.
fn archive(targets: &str) -> Option<String> {
    targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(uri, component)| *component == "main" && uri.trim_end_matches('/').ends_with("/debian"))
        .map(|(uri, _)| uri.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_of_a_version_is_chosen_by_number() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-50-cloud-amd64\nlinux-image-6.1.0-60-amd64\n\
                     linux-image-6.1.0-70-cloud-amd64-unsigned\nlinux-image-6.12.1-cloud-amd64\n";
        assert_eq!(newest(names, "6.1"), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(newest(names, "6.2"), None);
        assert_eq!(newest(names, ""), Some("6.12.1-cloud-amd64"));
    }

    #[test]
    fn the_security_archive_and_foreign_archives_are_not_the_mirror() {
        let targets = "https://packages.example/apt/ main\nhttp://m.example/debian-security/ main\n\
                       http://m.example/debian/ contrib\nhttp://m.example/debian/ main\n";
        assert_eq!(archive(targets).as_deref(), Some("http://m.example/debian/"));
        assert_eq!(archive("http://m.example/ubuntu/ main\n"), None);
    }
}
