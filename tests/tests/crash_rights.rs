//! Too little of what a run needs of its host: capabilities, descriptors, control groups. Each is an error that names
//! it, before anything is changed, and `doctor` tells beforehand.

mod private;

use private::{Private, Said, private};

fn without(private: &Private, capability: &str, args: &[&str]) -> Said {
    let drop = format!("-{capability}");
    let before = ["setpriv", "--bounding-set", &drop, "--inh-caps", &drop];
    Said::of(private.behind(&before, args).output().expect("setpriv"))
}

#[test]
fn a_missing_capability_is_named_by_the_fault_that_wants_it_and_by_doctor() {
    let Some(private) = private() else { return };
    let group = private.group.name.as_str();
    let loss = ["inject", "loss", "--percent", "10%", "--cgroup", group, "--for", "200ms"];
    for (capability, name) in [("sys_admin", "CAP_SYS_ADMIN"), ("sys_ptrace", "CAP_SYS_PTRACE")] {
        let said = without(&private, capability, &loss);
        said.expect(3, &["process lacks", name, "give it to the container or unit"]);
    }
    let said = without(&private, "sys_admin", &["doctor"]);
    assert!(said.text.contains("lacks CAP_SYS_ADMIN"), "{}", said.text);
    // What does not want it works.
    without(&private, "net_admin", &private.pause("200ms")).expect(0, &["1 change on the host, undone"]);
    private.run(&["status"]).expect(0, &["nobody owns this host"]);
}

#[test]
fn too_few_descriptors_are_an_error_before_anything_is_done() {
    let Some(private) = private() else { return };
    let pause = private.pause("200ms");
    for limit in ["--nofile=24", "--nofile=100"] {
        let said = Said::of(private.behind(&["prlimit", limit], &pause).output().expect("prlimit"));
        said.expect(2, &["descriptors, and faults need at least 256", "LimitNOFILE"]);
    }
    assert!(!private.group.is_frozen());
    // A soft limit is raised.
    let said = Said::of(private.behind(&["prlimit", "--nofile=24:4096"], &pause).output().expect("prlimit"));
    said.expect(0, &["1 change on the host, undone"]);
}

#[test]
fn no_memory_may_be_locked_and_faults_work_all_the_same() {
    let Some(private) = private() else { return };
    let drop = "-ipc_lock,-sys_resource";
    let before = ["prlimit", "--memlock=0", "setpriv", "--bounding-set", drop, "--inh-caps", drop];
    let said = Said::of(private.behind(&before, &private.pause("200ms")).output().expect("prlimit"));
    said.expect(0, &["1 change on the host, undone"]);
}

#[test]
fn without_control_groups_a_group_is_an_error_that_says_so() {
    let Some(private) = private() else { return };
    private.must("for m in $(awk '$3 == \"cgroup2\" {print $2}' /proc/mounts); do umount -l $m; done");
    let said = private.run(&private.pause("200ms"));
    assert_ne!(said.code, 0, "{}", said.text);
    assert!(said.text.contains("no cgroup v2 hierarchy is mounted"), "{}", said.text);
    private.run(&["doctor"]).expect(0, &["not mounted"]);
}

#[test]
fn a_group_in_a_hierarchy_that_cannot_be_written_is_an_error_and_stays_as_it_is() {
    let Some(private) = private() else { return };
    private.must("for m in $(awk '$3 == \"cgroup2\" {print $2}' /proc/mounts); do mount -o remount,bind,ro $m; done");
    private.run(&private.pause("200ms")).expect(3, &["freeze cgroup", "Read-only file system"]);
    assert!(!private.group.is_frozen());
    private.run(&["recover"]).expect(0, &["nothing to undo"]);
}
