//! Which kernel modules a guest needs, in the order in which they must be loaded.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::run;

/// The modules of one unpacked kernel.
pub struct Modules {
    /// `lib/modules/RELEASE`.
    folder: PathBuf,
    /// Name (with `_`) → file, relative to `folder`.
    files: BTreeMap<String, String>,
    /// File → the files that it needs.
    needs: BTreeMap<String, Vec<String>>,
    /// Names of what is built into the kernel.
    built_in: Vec<String>,
}

impl Modules {
    /// Reads `modules.dep`, which `depmod` makes first where the package has none.
    pub fn open(root: &Path) -> Result<Self> {
        let all = [root.join("lib/modules"), root.join("usr/lib/modules")];
        let all = all.iter().find(|folder| folder.is_dir()).context("the kernel's package has no lib/modules")?;
        let mut releases = fs::read_dir(all).with_context(|| format!("cannot list {}", all.display()))?;
        let release = releases.next().context("lib/modules is empty")?.context("cannot list lib/modules")?;
        let folder = release.path();
        if !folder.join("modules.dep").exists() {
            let base = all.parent().and_then(Path::parent).context("lib/modules has no parent")?;
            let depmod = run::find("depmod").context("depmod is not installed: `cargo xtask setup --vm`")?;
            let mut command = run::command(depmod, ["-b"]);
            run::checked(command.arg(base).arg(release.file_name()))?;
        }
        let text = |name: &str| {
            let file = folder.join(name);
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
        };
        let (files, needs) = parse(&text("modules.dep")?);
        let built_in = text("modules.builtin")?.lines().map(name).collect();
        Ok(Self { folder, files, needs, built_in })
    }

    /// The files to load, each after those that it needs. What is built in needs no file; an unknown name is an
    /// error, because a test would otherwise find that something "is not supported".
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<String>> {
        let mut order = Vec::new();
        let mut unknown = Vec::new();
        for module in wanted {
            if let Some(file) = self.files.get(*module) {
                self.visit(file, &mut order);
            } else if !self.built_in.iter().any(|name| name == module) {
                unknown.push(*module);
            }
        }
        ensure!(unknown.is_empty(), "{} has no modules named {}", self.folder.display(), unknown.join(", "));
        Ok(order)
    }

    fn visit(&self, file: &str, order: &mut Vec<String>) {
        if order.iter().any(|done| done == file) {
            return;
        }
        for needed in self.needs.get(file).into_iter().flatten() {
            self.visit(needed, order);
        }
        order.push(file.to_owned());
    }

    /// A module's bytes, uncompressed.
    pub fn read(&self, file: &str) -> Result<Vec<u8>> {
        let path = self.folder.join(file);
        let tool = match path.extension().and_then(|extension| extension.to_str()) {
            Some("ko") => return fs::read(&path).with_context(|| format!("cannot read {}", path.display())),
            Some("xz") => "xz",
            Some("zst") => "zstd",
            Some("gz") => "gzip",
            _ => bail!("{} is compressed in an unknown way", path.display()),
        };
        let mut command = run::command(tool, ["-dc"]);
        let done = command.arg(&path).output().with_context(|| format!("cannot start {tool}"))?;
        ensure!(done.status.success(), "{tool} cannot read {}: {}", path.display(), done.status);
        Ok(done.stdout)
    }
}

/// A module's name as the kernel reports it, from its file's path.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn parse(dep: &str) -> (BTreeMap<String, String>, BTreeMap<String, Vec<String>>) {
    let mut files = BTreeMap::new();
    let mut needs = BTreeMap::new();
    for line in dep.lines() {
        if let Some((file, needed)) = line.split_once(':') {
            files.insert(name(file), file.to_owned());
            needs.insert(file.to_owned(), needed.split_whitespace().map(str::to_owned).collect());
        }
    }
    (files, needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(dep: &str) -> Modules {
        let (files, needs) = parse(dep);
        Modules { folder: "k".into(), files, needs, built_in: vec!["tcp_cubic".into()] }
    }

    #[test]
    fn a_module_is_loaded_after_what_it_needs_and_only_once() {
        let modules =
            modules("a/nft-ct.ko.xz: a/ct.ko a/tables.ko\na/tables.ko: a/netlink.ko\na/netlink.ko:\na/ct.ko:\n");
        let order = modules.closure(&["nft_ct", "tables", "tcp_cubic"]).unwrap();
        assert_eq!(order, ["a/ct.ko", "a/netlink.ko", "a/tables.ko", "a/nft-ct.ko.xz"]);
    }

    #[test]
    fn an_unknown_module_is_an_error_that_names_it() {
        let error = modules("a/b.ko:\n").closure(&["b", "sch_nothing"]).unwrap_err();
        assert!(error.to_string().contains("sch_nothing"), "{error}");
    }
}
