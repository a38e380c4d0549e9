//! A halted host: everything ends now, and nothing begins.

use std::time::{Duration, Instant};

use firedrill_agent::agent::{Agent, InjectError, StartError};
use firedrill_agent::halt::{self, Ending};
use firedrill_agent::host::process;
use firedrill_agent::recover::{self, Recovery};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::crash::Doomed;
use crate::support::{Bench, Folder, Group, LONG, eventually, fault, guardian_of, in_guest, options, plan, target};

/// A frozen group, and the agent, another process, that keeps it so.
fn frozen(folder: &Folder, group: &Group) -> Doomed {
    let faults = vec![(target(group.spec()), fault("pause", json!({})))];
    Doomed::armed(&folder.directories(), plan(Vec::new()), faults)
}

pub fn a_halted_agent_reverts_by_itself_and_begins_nothing() {
    let (group, bench) = (Group::new("halted"), Bench::new());
    let _member = group.start(&["sleep", "1000"], None);
    let found = bench.resolve(group.spec());
    let id = bench.agent.inject(&found, &fault("pause", json!({})), LONG).expect("injected").id;
    let run = bench.folder.directories().run;
    halt::set(&run, "by a test").expect("halted");
    let begun = Instant::now();
    eventually("it is thawed, though nobody asked the agent for anything", || !group.is_frozen());
    eprintln!("reverted {:.0?} after the sign", begun.elapsed());
    let why = bench.agent.renew().expect_err("whoever holds faults must know");
    assert!(why.contains("by a test") && why.contains("--clear"), "{why}");
    let refused = bench.agent.inject(&found, &fault("pause", json!({})), LONG);
    assert!(matches!(&refused, Err(InjectError::Halted(_))), "{refused:?}");
    halt::clear(&run).expect("cleared");
    let refused = bench.agent.inject(&found, &fault("pause", json!({})), LONG);
    assert!(refused.is_err() && !group.is_frozen(), "a run that was halted does not go on");
    let ended = bench.agent.revert_all();
    assert!(ended.len() == 1 && ended[0].id == id && ended[0].lapsed, "its end is told once: {ended:?}");
    assert!(bench.agent.stop().ended.is_empty());
}

pub fn a_halted_host_refuses_the_next_agent_until_it_is_cleared() {
    let folder = Folder::new();
    let directories = folder.directories();
    halt::set(&directories.run, "incident 4711").expect("halted");
    match Agent::start(options(&directories, "another")) {
        Err(error @ StartError::Halted(_)) => assert!(error.to_string().contains("incident 4711"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(guardian_of(&directories).is_none());
    assert!(halt::clear(&directories.run).expect("cleared"));
    Agent::start(options(&directories, "another")).expect("allowed again");
}

pub fn an_agent_that_is_stopped_is_halted_at_once() {
    let (folder, group) = (Folder::new(), Group::new("wedged"));
    let _member = group.start(&["sleep", "1000"], None);
    let mut doomed = frozen(&folder, &group);
    let agent = doomed.identity();
    process::signal(&agent, Signal::SIGSTOP as i32).expect("stopped");
    eventually("it is stopped", || process::is_stopped(&agent));
    let begun = Instant::now();
    let halt = halt::end(&folder.directories(), recover::outstanding(&folder.directories())).expect("ended");
    let took = begun.elapsed();
    eprintln!("a stopped agent and its fault are gone after {took:.0?}");
    assert!(!group.is_frozen(), "when it returns all is over");
    assert!(doomed.has_ended());
    assert_eq!(halt.ending, Ending::Killed);
    assert_eq!(halt.holder.map(|h| h.process().pid), Some(agent.pid));
    assert_eq!(halt.recovery.undone.len(), 1, "{:?}", halt.recovery);
    assert!(halt.recovery.undone[0].0.contains("freeze") && halt.recovery.left.is_empty(), "{:?}", halt.recovery);
    assert!(took < Duration::from_secs(if in_guest() { 10 } else { 2 }), "{took:?}: its deafness is not waited for");
    eventually("its guardian has gone, too", || guardian_of(&folder.directories()).is_none());
}

pub fn what_is_left_by_an_agent_and_its_guardian_is_undone_by_a_halt() {
    let (folder, group) = (Folder::new(), Group::new("orphan"));
    let _member = group.start(&["sleep", "1000"], None);
    let doomed = frozen(&folder, &group);
    let directories = folder.directories();
    let guardian = guardian_of(&directories).expect("a guardian");
    let identity = process::stat(guardian).expect("it lives").process;
    // Stopped first, so that it does not get itself another one.
    process::signal(&doomed.identity(), Signal::SIGSTOP as i32).expect("stopped");
    process::signal(&identity, Signal::SIGKILL as i32).expect("killed");
    let halt = halt::end(&directories, recover::outstanding(&directories)).expect("ended");
    assert_eq!(halt.ending, Ending::Killed);
    assert!(!group.is_frozen() && recover::outstanding(&directories).is_empty(), "{halt:?}");
    assert_eq!(halt.recovery.undone.len(), 1, "{halt:?}");
    drop(doomed);
}

pub fn a_halt_of_an_idle_host_finds_nothing() {
    let folder = Folder::new();
    let halt = halt::end(&folder.directories(), Vec::new()).expect("nothing to end");
    assert_eq!((halt.ending, halt.holder, halt.recovery), (Ending::Nobody, None, Recovery::default()));
}
