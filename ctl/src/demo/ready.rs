//! What the demo needs of a host: looked at before anything is touched, and said all at once.

use std::fs;
use std::path::Path;

use firedrill_agent::dataplane;
use firedrill_agent::host::{self, cgroup};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Uid;

/// What is missing, each with the way to get it; empty when the demo can run.
pub fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    if !Uid::effective().is_root() {
        // Nothing below can be told without it.
        return vec!["it needs root, for network namespaces, cgroups and eBPF; try: sudo firedrill demo".into()];
    }
    let facts = host::facts();
    if !host::release_at_least(&facts.kernel, 6, 1) {
        missing.push(format!(
            "it needs Linux 6.1 or later, and this is {}; run it on a newer kernel or in a VM",
            facts.kernel
        ));
    }
    match cgroup::mount_point() {
        None => {
            missing.push("no cgroup v2 hierarchy is mounted; try: mount -t cgroup2 none /sys/fs/cgroup/unified".into())
        }
        Some(root) => {
            let probe = root.join(format!("fdemo-probe-{}", std::process::id()));
            if let Err(error) = fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)) {
                missing.push(format!(
                    "no cgroup can be made in {}: {error}; in a container, run it with --privileged --cgroupns=host",
                    root.display()
                ));
            }
        }
    }
    if !Path::new("/dev/net/tun").exists() {
        missing.push("there is no /dev/net/tun, by which packets are delayed; try: modprobe tun".into());
    }
    // On a thread of its own, which takes the new namespace with it.
    let namespace = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
        dataplane_loads()
    });
    match namespace.join() {
        Ok(Ok(())) => {}
        Ok(Err(why)) => missing.push(format!(
            "{why}\n    (root alone does not suffice in a container: it takes CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_BPF, for \
             example by --privileged)"
        )),
        Err(_) => missing.push("network namespaces could not be tried".into()),
    }
    missing
}

/// Loads the packet programs in the thread's namespace, and lets go of them.
fn dataplane_loads() -> Result<(), String> {
    let here = fs::File::open("/proc/thread-self/ns/net").map_err(|e| format!("/proc is not mounted: {e}"))?;
    let opened = dataplane::DataPlane::open(std::os::fd::AsFd::as_fd(&here));
    opened.map(drop).map_err(|e| e.to_string())
}

/// Whether the kernel has IPv6.
pub fn ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}
