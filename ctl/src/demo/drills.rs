//! The demo's drills: their files, what they are expected to show, and nothing of how they come out.

use firedrill_model::file::Diagnostic;
use firedrill_model::lower::Library;
use firedrill_model::verdict::Verdict;

/// Stands in the files for the prefix of the stage's names.
const PREFIX: &str = "demo0";
/// Stands in the files for the path of this program.
const PROGRAM: &str = "FIREDRILL";

/// A file of `experiments/demo/`.
#[derive(Debug)]
pub struct File {
    /// Its name.
    pub name: &'static str,
    text: &'static str,
}

macro_rules! files {
    ($($constant:ident = $name:literal;)+) => {
        $( #[doc = $name]
        pub const $constant: File =
            File { name: $name, text: include_str!(concat!("../../../experiments/demo/", $name)) }; )+
    };
}

files! {
    SHOP = "shop.yaml";
    LOSE_ONE_WEB = "lose-one-web.yaml";
    SLOW_WEB = "slow-web.yaml";
    LOSE_ONE_STORE = "lose-one-store.yaml";
    LOSE_THE_DATASTORE = "lose-the-datastore.yaml";
    MISSPELT_TARGET = "misspelt-target.yaml";
    ABORT_RULE = "abort-rule.yaml";
    KILLED = "killed-in-mid-fault.yaml";
}

/// What a drill is expected to come to. Only compared with what was computed, never used to compute it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This verdict.
    Is(Verdict),
    /// It depends on the host: whatever is measured is right.
    AsMeasured,
}

/// A drill.
#[derive(Debug)]
pub struct Drill {
    /// Name of the experiment.
    pub experiment: &'static str,
    /// What is done, for the terminal.
    pub does: &'static str,
    /// What it should come to.
    pub expected: Expected,
}

/// The drills, in order.
pub const DRILLS: &[Drill] = &[
    Drill {
        experiment: "lose-one-web",
        does: "one of three web replicas is stopped",
        expected: Expected::Is(Verdict::Held),
    },
    Drill { experiment: "slow-web", does: "one web replica answers late, but answers", expected: Expected::AsMeasured },
    Drill {
        experiment: "lose-one-store",
        does: "one of the two session stores is stopped",
        expected: Expected::Is(Verdict::Held),
    },
    Drill {
        experiment: "lose-the-datastore",
        does: "what both session stores share hangs",
        expected: Expected::Is(Verdict::Broken),
    },
    Drill {
        experiment: "misspelt-target",
        does: "a fault whose target does not exist",
        expected: Expected::Is(Verdict::Invalid),
    },
    Drill {
        experiment: "abort-rule",
        does: "the load balancer is cut off, and a rule ends that early",
        expected: Expected::Is(Verdict::Aborted),
    },
];

/// The experiment during which Firedrill itself is killed.
pub const KILLED_EXPERIMENT: &str = "killed-in-mid-fault";

/// All files, the system first.
pub const FILES: &[File] =
    &[SHOP, LOSE_ONE_WEB, SLOW_WEB, LOSE_ONE_STORE, LOSE_THE_DATASTORE, MISSPELT_TARGET, ABORT_RULE, KILLED];

impl File {
    /// Its text for the stage with this prefix.
    pub fn text(&self, prefix: &str, program: &str) -> String {
        // A JSON string is a YAML string, whatever the path holds.
        let program = serde_json::Value::from(program).to_string();
        self.text.replace(PREFIX, prefix).replace(PROGRAM, &program)
    }
}

/// All files, read for the stage with this prefix.
///
/// # Errors
/// When one of them does not fit the format, which a test rules out.
pub fn library(prefix: &str, program: &str) -> Result<Library, Box<Diagnostic>> {
    let mut library = Library::default();
    for file in FILES {
        library.add(file.name, &file.text(prefix, program))?;
    }
    Ok(library)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use firedrill_model::change::Change;
    use firedrill_model::lower::{Choices, Lowered};

    use super::super::stage;
    use super::*;

    fn lower(experiment: &str) -> Lowered {
        let library = library("d9", "/opt/fire drill/bin").expect("valid files");
        let choices = Choices { seed: 1, force_seed: false, env: &|_| None };
        library.lower(experiment, &choices).unwrap_or_else(|found| panic!("{experiment}: {found:?}"))
    }

    fn all() -> Vec<Lowered> {
        DRILLS.iter().map(|d| d.experiment).chain([KILLED_EXPERIMENT]).map(lower).collect()
    }

    #[test]
    fn the_files_have_no_mistakes_with_and_without_a_stage() {
        assert_eq!(library("d9", "/bin/fd").expect("valid").check(), []);
        let mut plain = Library::default();
        for file in FILES {
            plain.add(file.name, file.text).expect("readable as it is");
        }
        assert_eq!(plain.check(), []);
    }

    #[test]
    fn every_experiment_of_the_files_is_a_drill() {
        let listed: BTreeSet<_> = DRILLS.iter().map(|d| d.experiment).chain([KILLED_EXPERIMENT]).collect();
        let written = library("d9", "/bin/fd").expect("valid").experiments(None);
        assert_eq!(listed, written.iter().map(String::as_str).collect());
    }

    #[test]
    fn every_namespace_and_group_that_a_drill_names_is_on_the_stage() {
        let changes = stage::plan("d9", "fd", true).changes;
        let has = |wanted: &str| {
            changes.iter().any(|c| match c {
                Change::Netns { name } => name == wanted,
                Change::MakeCgroup { path } => path == wanted,
                _ => false,
            })
        };
        for Lowered { plan, .. } in all() {
            for probe in &plan.probes {
                assert!(has(probe.netns.as_deref().expect("a namespace")), "{}", probe.name);
                assert!(
                    probe.netns.as_deref() != Some("d9-client") || probe.describe.contains(&stage::front().to_string())
                );
            }
            for target in plan.steps.iter().flat_map(|s| &s.targets) {
                for name in [&target.spec.netns, &target.spec.cgroup].into_iter().flatten() {
                    assert_eq!(has(name), plan.experiment != "misspelt-target", "{name}");
                }
            }
        }
    }

    #[test]
    fn a_path_with_spaces_stays_one_argument() {
        let plan = lower("lose-one-web").plan;
        let control = plan.steps[0].targets[0].control.as_ref().expect("control");
        assert_eq!(control.stop[0], "/opt/fire drill/bin");
        assert_eq!(control.stop[4], "stop");
    }

    #[test]
    fn all_drills_together_fit_into_two_minutes_and_the_first_into_fifteen_seconds() {
        // Opening the stage takes two seconds, an abort and a refused target less than the plan allows for.
        let lengths: Vec<Duration> = DRILLS.iter().map(|d| lower(d.experiment).plan.expected_length().0).collect();
        assert!(lengths[0] < Duration::from_secs(11), "{lengths:?}");
        let abort = DRILLS.iter().position(|d| d.experiment == "abort-rule").expect("there");
        let sum: Duration = lengths.iter().enumerate().filter(|(i, _)| *i != abort).map(|(_, l)| *l).sum();
        assert!(sum < Duration::from_secs(70), "{lengths:?}");
    }
}
