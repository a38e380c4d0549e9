//! The other parts that this binary plays, chosen by its first argument.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use firedrill_agent::agent::{Agent, InjectError};
use firedrill_agent::crash_point;
use firedrill_agent::journal::Directories;
use firedrill_model::change::Plan;
use firedrill_model::fault::Fault;
use firedrill_model::run::TargetPlan;
use serde::{Deserialize, Serialize};

use crate::support;

/// What an agent does before it says farewell, if it gets that far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    pub run: PathBuf,
    pub state: PathBuf,
    pub stage: Plan,
    pub fault: Option<(TargetPlan, Fault)>,
    /// How long before it reverts.
    pub hold: Duration,
}

/// Exit code of an agent whose fault cannot act on such a target.
pub const NOT_FOR_THIS_TARGET: u8 = 3;
/// Exit code of an agent that failed otherwise.
pub const FAILED: u8 = 4;

/// Where a guardian says which process it is.
pub fn guardian_file(run: &Path) -> PathBuf {
    run.join("guardian-pid")
}

/// Plays a part, when one is asked for.
pub fn play() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["guardian", run, state] => {
            fs::write(guardian_file(run.as_ref()), std::process::id().to_string()).expect("written");
            crash_point::arm("guardian").expect("armed");
            Some(firedrill_agent::guardian::main(run.into(), state.into()).into())
        }
        ["agent", orders] => {
            let orders = serde_json::from_str(orders).expect("orders");
            crash_point::arm("agent").expect("armed");
            Some(ExitCode::from(agent(orders)))
        }
        ["answer", port] => {
            keep_connected(port);
            Some(support::answer(port))
        }
        _ => None,
    }
}

/// One whole life: start, stage, fault, and all of it undone.
fn agent(orders: Orders) -> u8 {
    const LONG: Duration = Duration::from_secs(60);
    let directories = Directories { run: orders.run, state: orders.state };
    let agent = match Agent::start(support::options(&directories, "a run that dies")) {
        Ok(agent) => agent,
        Err(e) => return failed(&e),
    };
    let mut in_force = Vec::new();
    if !orders.stage.changes.is_empty() {
        match agent.apply(&orders.stage, LONG) {
            Ok(stage) => in_force.push(stage.id),
            Err(e) => return failed(&e),
        }
    }
    if let Some((target, fault)) = &orders.fault {
        let found = match agent.resolve(target) {
            Ok(found) => found,
            Err(e) => return failed(&e),
        };
        match agent.inject(&found, fault, LONG) {
            Ok(injected) => in_force.push(injected.id),
            Err(InjectError::Plan(why)) => {
                eprintln!("{why}");
                agent.stop();
                return NOT_FOR_THIS_TARGET;
            }
            Err(e) => return failed(&e),
        }
    }
    std::thread::sleep(orders.hold);
    for id in in_force.into_iter().rev() {
        agent.revert(id);
    }
    let left = agent.stop().left_over;
    if left.is_empty() { 0 } else { failed(&left.join("; ")) }
}

fn failed(why: &dyn std::fmt::Display) -> u8 {
    eprintln!("{why}");
    FAILED
}

/// Keeps a connection to itself up, which can be destroyed.
fn keep_connected(port: &str) {
    let port: u16 = port.parse().expect("a port");
    std::thread::spawn(move || {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a listener");
        loop {
            let ends = TcpStream::connect(("127.0.0.1", port)).and_then(|near| Ok((near, listener.accept()?)));
            if let Ok((mut near, _far)) = ends {
                // Until it is destroyed: nothing is ever sent.
                let _ = near.read(&mut [0]);
            }
        }
    });
}
