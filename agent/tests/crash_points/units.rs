//! Units of systemd, made for one worker. Only where the binary is told to, in a container of its own: the units test of
//! the whole program starts it there.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use firedrill_agent::host::{systemd, wait_until};
use firedrill_model::change::Plan;
use firedrill_model::fault::Fault;
use firedrill_model::run::TargetPlan;
use firedrill_model::target::TargetSpec;

use crate::support::{SOON, port, target, unique};
use crate::world::Ground;

/// Set to try faults on units, and on nothing else.
const WANTED: &str = "FIREDRILL_CRASH_UNITS";
/// Where systemd finds units until the next boot (systemd.unit(5)).
const FOLDER: &str = "/run/systemd/system";

/// A unit with a timer that would start it, and another that systemd stops with it.
const UNIT: &str = "unit";
/// A unit that may not be started again by itself: whoever does must have its count reset.
const LIMITED: &str = "unit at its limit of starts";

pub struct Units {
    /// What the names of the units begin with.
    name: String,
}

impl Units {
    pub fn are_wanted() -> bool {
        std::env::var_os(WANTED).is_some()
    }

    pub fn new() -> Self {
        let this = std::env::current_exe().expect("this binary").display().to_string();
        let units = Self { name: unique("u") };
        let service = |unit: &str, restart: &str| {
            format!("[Unit]\n{unit}\n[Service]\nExecStart={this} answer {}\nRestart=always\n{restart}\n", port())
        };
        let [web, timer, app, limited] = units.all();
        let files = [
            (&web, service("StartLimitIntervalSec=0", "RestartSec=50ms")),
            (&timer, "[Timer]\nOnActiveSec=1h\n".to_owned()),
            (&app, service(&format!("Requires={web}\nAfter={web}\nStartLimitIntervalSec=0"), "RestartSec=50ms")),
            (&limited, service("StartLimitBurst=1\nStartLimitIntervalSec=1h", "RestartSec=1ms")),
        ];
        for (name, text) in files {
            fs::write(Path::new(FOLDER).join(name), text).expect("a unit");
        }
        systemctl(&["daemon-reload"]);
        systemctl(&["start", &timer, &app, &limited]);
        units
    }

    fn all(&self) -> [String; 4] {
        ["web.service", "web.timer", "app.service", "limited.service"].map(|unit| format!("{}-{unit}", self.name))
    }

    fn down(&self) -> Vec<String> {
        let state = |unit: &str| systemd::active_state(unit).unwrap_or_else(|e| e.to_string());
        let states = self.all().map(|unit| (state(&unit), unit));
        states.into_iter().filter(|(s, _)| s != "active").map(|(s, unit)| format!("unit {unit} is {s}")).collect()
    }
}

fn systemctl(args: &[&str]) {
    let done = Command::new("systemctl").args(args).output().expect("systemctl");
    assert!(done.status.success(), "systemctl {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Ground for Units {
    fn sorts(&self) -> &'static [&'static str] {
        &[UNIT, LIMITED]
    }

    fn target(&self, sort: &str) -> TargetPlan {
        let [web, _, _, limited] = self.all();
        let unit = if sort == LIMITED { limited } else { web };
        target(TargetSpec { unit: Some(unit), ..TargetSpec::default() })
    }

    /// Nobody starts what is at its limit, unless it is stopped by us, or killed for as long as the fault lasts.
    fn is_tried(&self, fault: &Fault, sort: &str, _: &[&str]) -> bool {
        sort != LIMITED
            || match fault {
                Fault::Kill(kill) => kill.keep,
                Fault::Stop(_) => true,
                _ => false,
            }
    }

    /// Until systemd has given up.
    fn hold(&self, sort: &str) -> Duration {
        Duration::from_millis(if sort == LIMITED { 200 } else { 0 })
    }

    fn stage(&self) -> Option<Plan> {
        None
    }

    fn refresh(&mut self) {
        let all = self.all();
        if !self.down().is_empty() {
            let all = all.each_ref().map(String::as_str);
            systemctl(&[&["reset-failed"], &all[..]].concat());
            systemctl(&[&["start"], &all[..]].concat());
        }
    }

    fn namespaces(&self) -> Vec<String> {
        Vec::new()
    }

    fn marks(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    /// What is not up, and does not come up by itself.
    fn left(&self) -> Vec<String> {
        let mut down = Vec::new();
        wait_until(SOON, || {
            down = self.down();
            down.is_empty()
        });
        down
    }
}
