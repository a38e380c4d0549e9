//! `firedrill demo`: a small shop of real processes, each in a network namespace and cgroup of its own, and drills on
//! it that end in computed verdicts.
//!
//! ```text
//!   ready ──▶ stage up ──▶ drill, drill, … ──▶ survive (SIGKILL) ──▶ stage down ──▶ as before? ──▶ conclusion
//! ```
//!
//! [`stage`] is a plan of changes like any fault's, held by an agent of its own ([`home`]); the drills are files
//! ([`drills`]), driven as `firedrill run` drives them. Nothing here computes a verdict.

mod conclude;
mod drills;
mod home;
mod index;
mod ready;
pub mod shop;
mod stage;
mod survive;
mod tell;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use firedrill_agent::agent::Agent;
use firedrill_agent::snapshot::{Difference, Snapshot};
use firedrill_model::lower::{Choices, Library, Lowered};
use firedrill_model::verdict::ExitCode;

use crate::cli::{DemoArgs, Places};
use crate::drive::{self, Job, Signals};
use crate::render::live::Live;
use crate::verb::{self, UsageError, report};
use conclude::Outcome;
use drills::{DRILLS, Drill};
use home::Stage;
pub use home::{stages, sweep};
use survive::{Setting, Survival};
use tell::Teller;

/// How long the shop may take to open, on a busy host.
const OPEN_WITHIN: Duration = Duration::from_secs(20);
/// How long the host may take to be as before once the stage is down.
const AS_BEFORE_WITHIN: Duration = Duration::from_secs(10);

/// Runs the demo.
///
/// # Errors
/// When the host cannot run it (nothing was touched then), or a drill could not be run. Whatever was made is gone.
pub fn run(args: &DemoArgs) -> Result<ExitCode> {
    let missing = ready::missing();
    if !missing.is_empty() {
        let list: Vec<String> = missing.iter().map(|m| format!("  - {m}")).collect();
        return Err(UsageError(format!("the demo cannot run here; nothing was touched:\n{}", list.join("\n"))).into());
    }
    let directories = args.places.host.directories();
    let left = sweep(&directories).left;
    if !left.is_empty() {
        bail!("an earlier demo left something that could not be undone: {}", left.join("; "));
    }
    verb::runtime()?.block_on(Demo::new(&args.places)?.run())
}

/// One demo.
struct Demo<'a> {
    places: &'a Places,
    began: Instant,
    prefix: String,
    program: PathBuf,
    folder: PathBuf,
    library: Library,
    tell: Teller,
}

/// Why a demo ended before its end: an error, or a person.
enum Stop {
    Signal(&'static str),
    Error(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// What the drills came to, as far as they got.
#[derive(Default)]
struct Results {
    outcomes: Vec<Outcome>,
    survival: Option<Survival>,
}

impl<'a> Demo<'a> {
    fn new(places: &'a Places) -> Result<Self> {
        let prefix = format!("fdemo{}", std::process::id());
        let program = std::env::current_exe().context("cannot find this program")?;
        let stamp = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
        let folder = places.folder.runs.join(format!("demo-{stamp}-{}", std::process::id()));
        fs::create_dir_all(folder.join("files"))
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        for file in drills::FILES {
            let path = folder.join("files").join(file.name);
            let text = file.text(&prefix, &program.to_string_lossy());
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let library = drills::library(&prefix, &program.to_string_lossy()).map_err(|d| anyhow::anyhow!("{d}"))?;
        Ok(Self {
            places,
            began: Instant::now(),
            prefix,
            program,
            folder,
            library,
            tell: Teller::new(DRILLS.len() + 1),
        })
    }

    async fn run(self) -> Result<ExitCode> {
        self.tell.welcome();
        let mut signals = Signals::take()?;
        let nothing = tokio::task::block_in_place(|| Snapshot::take(&[])).context("cannot look at the host")?;
        let plan = stage::plan(&self.prefix, &self.program.to_string_lossy(), ready::ipv6());
        let stage =
            tokio::task::block_in_place(|| Stage::put_up(&self.places.host.directories(), &plan, &self.folder))?;
        let mut results = Results::default();
        let outcome = self.on_stage(&stage, &mut signals, &mut results).await;

        self.tell.step("Closing the shop");
        let mut left_over = tokio::task::block_in_place(|| stage.take_down());
        let look = || nothing.left_behind(&[], &[&self.prefix], AS_BEFORE_WITHIN);
        left_over.extend(tokio::task::block_in_place(look)?.iter().map(Difference::to_string));
        if let Some(survival) = &results.survival {
            left_over.extend(survival.differences.iter().map(Difference::to_string));
        }
        left_over.sort();
        left_over.dedup();
        self.tell.closed(&left_over);
        match outcome {
            Ok(()) => self.conclude(&results, &left_over),
            Err(Stop::Signal(signal)) => {
                self.tell.stopped(signal);
                Ok(worst(ExitCode::Aborted, &left_over))
            }
            Err(Stop::Error(error)) if left_over.is_empty() => Err(error),
            Err(Stop::Error(error)) => {
                self.tell.failed(&error);
                Ok(ExitCode::NotRestored)
            }
        }
    }

    /// Everything that needs the shop.
    async fn on_stage(&self, stage: &Stage, signals: &mut Signals, results: &mut Results) -> Result<(), Stop> {
        self.tell.step("Opening the shop");
        let prefix = self.prefix.clone();
        let opening = tokio::task::spawn_blocking(move || stage::wait_until_open(&prefix, OPEN_WITHIN));
        tokio::select! {
            opened = opening => opened?.with_context(|| format!("its processes' output is in {}", self.folder.display()))?,
            signal = signals.next() => return Err(Stop::Signal(signal)),
        }
        self.tell.open(self.began.elapsed());

        let agent = tokio::task::block_in_place(|| verb::start_agent(self.places, "the demo's drills"))?;
        for (number, drill) in DRILLS.iter().enumerate() {
            let mut outcome = self.drill(number + 1, drill, &agent, stage, signals).await?;
            if !outcome.was_judged() && !outcome.was_stopped() && outcome.never_began() {
                // Nothing was injected: a host that was busy for a moment gets a second chance, and is told so.
                self.tell.again();
                outcome = self.drill(number + 1, drill, &agent, stage, signals).await?;
            }
            let stopped = outcome.was_stopped();
            results.outcomes.push(outcome);
            if stopped {
                return Err(Stop::Signal("you"));
            }
        }
        // The Firedrill that is to be killed must be the owner of the host.
        tokio::task::block_in_place(|| agent.stop());
        self.survive(stage, signals, results).await
    }

    /// One drill, as `firedrill run` would run it.
    async fn drill(
        &self,
        number: usize,
        drill: &'static Drill,
        agent: &Agent,
        stage: &Stage,
        signals: &mut Signals,
    ) -> Result<Outcome> {
        stage.check()?;
        let lowered = self.lower(drill.experiment)?;
        let bound = if lowered.plan.abort.is_empty() { "about" } else { "at most" };
        self.tell.begin(number, drill.does, bound, lowered.plan.expected_length().0);
        let live = self.tell.terminal().then(Live::stderr);
        let replay = vec!["firedrill".to_owned(), "demo".to_owned()];
        let finished = drive::run(Job {
            lowered,
            agent,
            runs: &self.places.folder.runs,
            replay,
            notes: Vec::new(),
            live,
            signals,
        })
        .await?;
        report::write_all(&finished.run, &finished.folder)?;
        let outcome = Outcome { drill, run: finished.run, folder: finished.folder };
        self.tell.came_to(&outcome, self.began.elapsed());
        Ok(outcome)
    }

    async fn survive(&self, stage: &Stage, signals: &mut Signals, results: &mut Results) -> Result<(), Stop> {
        stage.check()?;
        self.tell.begin(
            DRILLS.len() + 1,
            "Firedrill itself is killed (SIGKILL) in mid-fault",
            "about",
            Duration::from_secs(8),
        );
        let folder = self.folder.join("killed");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let files = self.folder.join("files");
        let netns = stage::all_netns(&self.prefix);
        let setting = Setting {
            places: self.places,
            program: &self.program,
            files: &files,
            folder: &folder,
            netns: &netns,
            prefix: &self.prefix,
        };
        let lowered = self.lower(drills::KILLED_EXPERIMENT)?;
        let survival = tokio::select! {
            survival = survive::run(&setting, &lowered) => survival?,
            signal = signals.next() => return Err(Stop::Signal(signal)),
        };
        self.tell.survived(&survival);
        results.survival = Some(survival);
        Ok(())
    }

    fn lower(&self, experiment: &str) -> Result<Lowered> {
        // The demo is the same every time, so its choices are, too.
        let choices = Choices { seed: 1, force_seed: true, env: &|name| std::env::var(name).ok() };
        self.library.lower(experiment, &choices).map_err(|found| verb::refuse(&found))
    }

    fn conclude(&self, results: &Results, left_over: &[String]) -> Result<ExitCode> {
        let Results { outcomes, survival } = results;
        let findings = conclude::findings(&outcomes.iter().map(|o| &o.run).collect::<Vec<_>>());
        let when = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M").to_string();
        let page = self.folder.join("index.html");
        let text = index::page(outcomes, &findings, survival.as_ref(), left_over, &when)?;
        fs::write(&page, text).with_context(|| format!("cannot write {}", page.display()))?;
        let clean = survival.as_ref().is_some_and(|s| s.clean_after.is_some());
        let exit = conclude::exit_code(outcomes, DRILLS.len(), clean, left_over);
        self.write_result(results, &findings, left_over, exit)?;
        self.tell.conclusion(outcomes, survival.as_ref(), &findings, self.began.elapsed());
        self.tell.goodbye(&absolute(&page));
        Ok(exit)
    }

    /// The same for scripts.
    fn write_result(&self, results: &Results, findings: &[String], left_over: &[String], exit: ExitCode) -> Result<()> {
        let row = |o: &Outcome| {
            serde_json::json!({
                "experiment": o.drill.experiment,
                "verdict": o.verdict().to_string(),
                "expected": index::expected(o.drill.expected),
                "as_expected": o.as_expected(),
                "finding": o.finding(),
                "folder": o.folder,
            })
        };
        let survival = results.survival.as_ref().map(|s| {
            serde_json::json!({
                "clean_after_ms": s.clean_after.map(|d| d.as_secs_f64() * 1e3),
                "undone": s.undone,
                "differences": s.differences.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "folder": s.folder,
            })
        });
        let value = serde_json::json!({
            "drills": results.outcomes.iter().map(row).collect::<Vec<_>>(),
            "survival": survival,
            "findings": findings,
            "left_over": left_over,
            "seconds": self.began.elapsed().as_secs_f64(),
            "exit": exit as u8,
        });
        let path = self.folder.join("demo.json");
        let text = serde_json::to_string_pretty(&value)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn worst(code: ExitCode, left_over: &[String]) -> ExitCode {
    if left_over.is_empty() { code } else { code.worse(ExitCode::NotRestored) }
}

fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests;
