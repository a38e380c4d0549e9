//! The last drill: Firedrill itself is killed while its faults are in force. How long until traffic is clean again, by
//! a probe of ours that goes on, and what is different on the host afterwards.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use firedrill_agent::host::process::{self, is_alive};
use firedrill_agent::host::{self, cgroup};
use firedrill_agent::snapshot::{Difference, Line, Snapshot};
use firedrill_model::event::Sample;
use firedrill_model::facts::ProcessRef;
use firedrill_model::log::Run;
use firedrill_model::lower::Lowered;
use firedrill_model::units::Span;
use firedrill_verifier::probe::Runner;
use tokio::sync::mpsc;

use super::{drills, stage};
use crate::cli::Places;

/// Time between two of our own probes: the resolution of the result.
const PROBE_EVERY: Span = Span::from_millis(10);
/// How long the child may take until its faults are in force: its baseline, with room for a busy host.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(45);
/// How long the faults hurt before the kill.
const HURT_FOR: Duration = Duration::from_millis(1500);
/// Without a bad answer for this long, traffic is clean.
const CLEAN_FOR: Duration = Duration::from_millis(1000);
/// How long to wait for that.
const CLEAN_WITHIN: Duration = Duration::from_secs(20);
/// How long the host may take to be as before, and how long a difference must last to count.
const AS_BEFORE_WITHIN: Duration = Duration::from_secs(10);

/// What was seen.
#[derive(Debug)]
pub struct Survival {
    /// From the kill to the first question that was answered well, with none answered badly after it; `None` when that
    /// did not happen in time.
    pub clean_after: Option<Duration>,
    /// Questions asked between the faults' beginning and the end that were answered badly.
    pub bad: usize,
    /// What the guardian undid, in words.
    pub undone: Vec<String>,
    /// Differences of the host's state that are our concern; empty when it is as before.
    pub differences: Vec<Difference>,
    /// Lines of the host's state that were compared.
    pub compared: usize,
    /// Folder of the killed run's log.
    pub folder: PathBuf,
}

/// What the drill needs.
#[derive(Debug)]
pub struct Setting<'a> {
    /// Where runs and the agent's files are.
    pub places: &'a Places,
    /// This program.
    pub program: &'a Path,
    /// Folder of the experiment's files.
    pub files: &'a Path,
    /// Folder for the killed run and its output.
    pub folder: &'a Path,
    /// Namespaces of the stage.
    pub netns: &'a [String],
    /// Prefix of the stage's names.
    pub prefix: &'a str,
}

/// Runs a child with faults, kills it, and watches.
///
/// # Errors
/// When the child did not get its faults in force, or our own probe could not be started. The child is killed then.
pub async fn run(setting: &Setting<'_>, lowered: &Lowered) -> anyhow::Result<Survival> {
    let before = tokio::task::block_in_place(|| Snapshot::take(setting.netns)).context("cannot look at the host")?;

    // The users' own probe, but faster.
    let user = lowered.plan.probes.iter().position(|p| p.netns.as_deref().is_some_and(|n| n.ends_with("client")));
    let user = user.context("no probe looks at the shop as its users do")?;
    let mut probe = lowered.plan.probes[user].clone();
    probe.every = PROBE_EVERY;
    let started = Instant::now();
    let (sink, mut inbox) = mpsc::unbounded_channel();
    let runner = Runner::start(&[probe], &lowered.checks[user..=user], started, sink)?;

    let mut child = Victim::start(setting)?;
    let folder = child.until_in_force(setting.folder).await?;
    tokio::time::sleep(HURT_FOR).await;
    let guardian = child.guardian();
    let killed = started.elapsed();
    child.kill()?;

    let mut samples = Vec::new();
    let clean_after = loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        while let Ok(sample) = inbox.try_recv() {
            samples.push(sample);
        }
        let clean = clean_after(&samples, killed);
        if clean.is_some_and(|c| started.elapsed() > killed + c + CLEAN_FOR)
            || started.elapsed() > killed + CLEAN_WITHIN
        {
            break clean;
        }
    };
    runner.stop().await;
    while let Ok(sample) = inbox.try_recv() {
        samples.push(sample);
    }
    // Once more with the answers that were still out.
    let clean_after = clean_after.and_then(|_| self::clean_after(&samples, killed));

    let gone =
        tokio::task::block_in_place(|| host::wait_until(AS_BEFORE_WITHIN, || !guardian.as_ref().is_some_and(is_alive)));
    let look = || before.left_behind(setting.netns, &[setting.prefix], AS_BEFORE_WITHIN);
    let mut differences = tokio::task::block_in_place(look)?;
    if let (Some(guardian), false) = (&guardian, gone) {
        let what = format!("{} (the guardian, still there)", guardian.pid);
        differences
            .push(Difference { line: Line { place: "host".into(), kind: "process".into(), what }, appeared: true });
    }
    Ok(Survival {
        clean_after,
        bad: samples.iter().filter(|s| s.outcome.is_bad()).count(),
        undone: undone(&setting.places.host.run_dir, &child),
        differences,
        compared: before.lines().count(),
        folder,
    })
}

/// From the kill to the first question that was answered well with no bad answer to a later one; `None` while there is
/// no such question. Questions count by the time at which they were asked.
fn clean_after(samples: &[Sample], killed: Duration) -> Option<Duration> {
    let killed = killed.as_secs_f64();
    let after = || samples.iter().filter(|s| s.due >= killed);
    let last_bad = after().filter(|s| !s.outcome.is_good()).map(|s| s.due).max_by(f64::total_cmp).unwrap_or(killed);
    let first_good =
        after().filter(|s| s.outcome.is_good() && s.due >= last_bad).map(|s| s.due).min_by(f64::total_cmp)?;
    Some(Duration::from_secs_f64(first_good - killed))
}

/// What the guardian of the killed agent says that it undid.
fn undone(run_dir: &Path, child: &Victim) -> Vec<String> {
    let path = run_dir.join("last-recovery.json");
    let fresh = fs::metadata(&path).and_then(|m| m.modified()).is_ok_and(|written| written >= child.started);
    let text = if fresh { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
    let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let pairs = report["undone"].as_array().cloned().unwrap_or_default();
    let word = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    pairs.iter().map(|pair| format!("{}: {}", word(&pair[0]), word(&pair[1]))).collect()
}

/// The Firedrill that is killed. Killed when dropped, too.
#[derive(Debug)]
struct Victim {
    child: Child,
    log: PathBuf,
    started: std::time::SystemTime,
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It is gone already when all went well.
        let _ = self.kill();
    }
}

impl Victim {
    fn start(setting: &Setting<'_>) -> anyhow::Result<Self> {
        let Setting { places, program, files, folder, .. } = setting;
        let log = folder.join("killed.log");
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = Command::new(program)
            .arg("run")
            .args([files.join(drills::SHOP.name), files.join(drills::KILLED.name)])
            .args(["--experiment", drills::KILLED_EXPERIMENT, "--quiet", "--runs"])
            .arg(folder)
            .arg("--run-dir")
            .arg(&places.host.run_dir)
            .arg("--state-dir")
            .arg(&places.host.state_dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start the Firedrill that is to be killed")?;
        let victim = Self { child, log, started: std::time::SystemTime::now() };
        let root = cgroup::mount_point().context("no cgroup v2 hierarchy is mounted")?;
        let procs = root.join(stage::cgroup(setting.prefix, stage::VICTIM)).join("cgroup.procs");
        fs::write(&procs, victim.child.id().to_string())
            .with_context(|| format!("cannot write {}", procs.display()))?;
        Ok(victim)
    }

    /// Waits until its log says that all its faults are in force. The folder of its run.
    async fn until_in_force(&mut self, runs: &Path) -> anyhow::Result<PathBuf> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                let output = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("the Firedrill that was to be killed ended by itself ({status}): {}", output.trim());
            }
            for (folder, run) in logs(runs) {
                if !run.steps.is_empty() && run.steps.iter().all(|s| s.in_force.is_some()) {
                    return Ok(folder);
                }
            }
            if began.elapsed() > IN_FORCE_WITHIN {
                bail!(
                    "its faults were not in force within {IN_FORCE_WITHIN:?}; its output is in {}",
                    self.log.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Its guardian: its only child, for its faults need no other.
    fn guardian(&self) -> Option<ProcessRef> {
        let pid = self.child.id().cast_signed();
        process::all().into_iter().find(|s| s.parent == pid).map(|s| s.process)
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        // SIGKILL; and reaped, so that its guardian sees a process that is wholly gone.
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

/// The runs in a folder whose logs can be read.
fn logs(runs: &Path) -> Vec<(PathBuf, Run)> {
    let folders = fs::read_dir(runs).into_iter().flatten().flatten().map(|e| e.path());
    folders
        .filter_map(|f| Some((f.clone(), Run::parse(&fs::read_to_string(f.join("events.ndjson")).ok()?).ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use firedrill_model::event::{Bad, Outcome};

    use super::*;

    fn trace(text: &str) -> Vec<Sample> {
        let outcome = |c| match c {
            '+' => Outcome::Good(1.0),
            '-' => Outcome::Bad(Bad { ms: 1000.0, why: "timed out".into() }),
            _ => Outcome::Missed("busy".into()),
        };
        // One sample every 10 ms.
        text.chars().enumerate().map(|(i, c)| Sample { probe: 0, due: i as f64 / 100.0, outcome: outcome(c) }).collect()
    }

    fn clean(text: &str, killed_ms: u64) -> Option<u128> {
        clean_after(&trace(text), Duration::from_millis(killed_ms)).map(|d| d.as_millis())
    }

    #[test]
    fn traffic_is_clean_from_the_first_good_answer_that_no_bad_one_follows() {
        assert_eq!(clean("++---++++", 45), Some(5));
        assert_eq!(clean("++---+-++", 35), Some(35), "one bad answer after a good one starts the wait anew");
        assert_eq!(clean("++----", 35), None, "still bad");
        assert_eq!(clean("++---++", 90), None, "nothing was asked since");
    }

    #[test]
    fn a_question_that_could_not_be_asked_is_not_clean() {
        assert_eq!(clean("--?++", 5), Some(25));
    }

    #[test]
    fn the_order_in_which_answers_come_does_not_matter() {
        let mut samples = trace("++---++++");
        samples.reverse();
        assert_eq!(clean_after(&samples, Duration::from_millis(45)).map(|d| d.as_millis()), Some(5));
    }
}
