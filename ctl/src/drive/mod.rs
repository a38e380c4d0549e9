//! Driving a run: one task owns its state, feeds the [`lifecycle`] and does what it says.
//!
//! ```text
//!   probes ──samples──▶ ┌────────┐ ──commands──▶ operator (a thread) ──▶ agent
//!   signals ──────────▶ │ driver │ ◀──reports──┘
//!   clock ────────────▶ └────────┘ ──events──▶ log ──▶ live view
//! ```

mod log;
mod operator;
mod signals;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use firedrill_agent::agent::{Agent, Ended};
use firedrill_model::event::{Event, Phase, Record, Sample};
use firedrill_model::lifecycle::{self, Effect, Input, State};
use firedrill_model::log::Run;
use firedrill_model::lower::Lowered;
use firedrill_model::verdict::{ExitCode, Verdict};
use firedrill_verifier::guard::Guard;
use firedrill_verifier::judge;
use firedrill_verifier::probe::Runner;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::render::live::Live;
use log::Log;
use operator::{Command, Operator, Report};
pub use signals::Signals;

/// A run that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Everything that its log tells.
    pub run: Run,
    /// The folder of its log and reports.
    pub folder: PathBuf,
    /// Exit code.
    pub exit: ExitCode,
}

/// What a run is given.
pub struct Job<'a> {
    /// What to do.
    pub lowered: Lowered,
    /// The agent to do it with.
    pub agent: &'a Agent,
    /// Where folders of runs are made.
    pub runs: &'a Path,
    /// Command line that replays it.
    pub replay: Vec<String>,
    /// What its author wants in the report.
    pub notes: Vec<String>,
    /// Shows it as it goes.
    pub live: Option<Live>,
    /// Ctrl-C and its like.
    pub signals: &'a mut Signals,
}

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(20);
/// How often leases are renewed; the agent's lease lasts several times as long.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How often receipts are asked for while faults are in force.
const RECEIPTS_EVERY: Duration = Duration::from_secs(1);
/// How often the baseline and the recovery are judged.
const JUDGE_EVERY: Duration = Duration::from_millis(100);

/// Runs an experiment from baseline to verdict.
///
/// # Errors
/// The log could not be written, or the probes not started; what was injected is reverted before this returns.
pub async fn run(job: Job<'_>) -> anyhow::Result<Finished> {
    let Job { lowered, agent, runs, replay, notes, live, signals } = job;
    let started = Instant::now();
    // Before there is a folder: where no probe can be sent, there is no run to be found later.
    let (samples_in, samples) = mpsc::unbounded_channel();
    let runner = Runner::start(&lowered.plan.probes, &lowered.checks, started, samples_in)?;
    let (id, folder) = log::make_folder(runs, &lowered.plan.experiment)?;
    let first = Event::RunStarted {
        id,
        version: env!("CARGO_PKG_VERSION").into(),
        started: jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
        replay,
        host: Box::new(agent.host().clone()),
        plan: Box::new(lowered.plan.clone()),
    };
    let record = Record { at: 0.0, event: first.masked() };
    let run = Run::start(&record).context("the first event begins a run")?;
    let mut log = Log::create(&folder.join("events.ndjson"))?;
    log.write(&record)?;

    let (operator, reports) = Operator::start(agent.clone(), lowered.plan.clone())?;
    let mut driver = Driver {
        started,
        guard: Guard::new(&run.plan),
        run,
        log,
        live,
        operator,
        state: State::Ready,
        recovery_since: None,
        closing: false,
    };
    for text in notes {
        driver.emit(Event::Note { text })?;
    }
    let outcome = driver.live_through(agent, samples, reports, signals, runner).await;
    // Whatever went wrong above, nothing may stay in force.
    let rest = tokio::task::block_in_place(|| agent.revert_all());
    let left_over = agent.left_over();
    outcome?;
    driver.end(rest, left_over)?;
    let exit = driver.run.ended.as_ref().map_or(ExitCode::Unproven, |(exit, _)| *exit);
    if let Some(live) = &mut driver.live {
        live.finish();
    }
    Ok(Finished { run: driver.run, folder, exit })
}

struct Driver {
    started: Instant,
    guard: Guard,
    run: Run,
    log: Log,
    live: Option<Live>,
    operator: Operator,
    state: State,
    recovery_since: Option<Duration>,
    closing: bool,
}

impl Driver {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Logs an event, and shows it.
    fn emit(&mut self, event: Event) -> anyhow::Result<()> {
        // Microseconds are finer than anything that is measured, and keep the log readable.
        let at = (self.now().as_secs_f64() * 1e6).round() / 1e6;
        let record = Record { at, event: event.masked() };
        self.log.write(&record)?;
        self.run.push(&record);
        if let Some(live) = &mut self.live {
            live.event(&self.run, &record);
        }
        Ok(())
    }

    /// Tells the lifecycle something, and does what it says.
    fn tell(&mut self, input: Input) -> anyhow::Result<()> {
        let now = self.now();
        let state = std::mem::replace(&mut self.state, State::Done);
        let (state, effects) = lifecycle::step(&self.run.plan, state, input, now);
        self.state = state;
        for effect in effects {
            match effect {
                Effect::Enter(phase) => {
                    if phase == Phase::Recovery {
                        self.recovery_since = Some(now);
                    }
                    self.emit(Event::PhaseBegan { phase })?;
                }
                Effect::Inject(step) => self.operator.send(Command::Inject(step)),
                Effect::Revert(step) => self.operator.send(Command::Revert(step)),
                Effect::RevertAll => self.operator.revert_all(),
                Effect::Aborted { why, invalid } => self.emit(Event::Aborted { why, invalid })?,
                Effect::Close => self.closing = true,
            }
        }
        Ok(())
    }

    async fn live_through(
        &mut self,
        agent: &Agent,
        mut samples: mpsc::UnboundedReceiver<Sample>,
        mut reports: mpsc::UnboundedReceiver<Report>,
        signals: &mut Signals,
        runner: Runner,
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut judging = tokio::time::interval(JUDGE_EVERY);
        judging.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let keeper = Keeper::start(agent.clone());
        let mut kept = keeper.news;
        self.tell(Input::Begin)?;
        while !self.closing {
            tokio::select! {
                Some(sample) = samples.recv() => self.on_sample(sample)?,
                Some(report) = reports.recv() => self.on_report(report)?,
                Some(news) = kept.recv() => self.on_news(news)?,
                signal = signals.next() => {
                    if matches!(self.state, State::Reverting) {
                        self.emit(Event::Note { text: format!("{signal}: still reverting; this is not skipped") })?;
                    }
                    self.tell(Input::Stop(format!("stopped by {signal}")))?;
                }
                _ = judging.tick() => self.judge_so_far()?,
                _ = tick.tick() => {
                    self.tell(Input::Tick)?;
                    let now = self.now().as_secs_f64();
                    if let Some(live) = &mut self.live {
                        live.tick(&self.run, now);
                    }
                }
            }
        }
        // Answers that are still under way belong to the run.
        let stopping = runner.stop();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                Some(sample) = samples.recv() => self.emit(Event::Sample(sample))?,
                () = &mut stopping => break,
            }
        }
        while let Ok(sample) = samples.try_recv() {
            self.emit(Event::Sample(sample))?;
        }
        while let Ok(report) = reports.try_recv() {
            self.on_report(report)?;
        }
        Ok(())
    }

    fn on_sample(&mut self, sample: Sample) -> anyhow::Result<()> {
        let fired = self.guard.on(&sample);
        self.emit(Event::Sample(sample))?;
        // Before the first fault a bad probe is a matter of the steady state, after the last one of healing.
        if let (Some(why), State::Acting { .. }) = (fired, &self.state) {
            self.tell(Input::Stop(why))?;
        }
        Ok(())
    }

    fn on_report(&mut self, report: Report) -> anyhow::Result<()> {
        match report {
            Report::Event(event) => self.emit(*event),
            Report::Input(input) => {
                match &input {
                    Input::Injected(step) => self.emit(Event::StepInForce { step: *step })?,
                    Input::StepReverted(step) => self.emit(Event::StepEnded { step: *step })?,
                    Input::AllReverted => self.end_open_steps()?,
                    _ => {}
                }
                self.tell(input)
            }
        }
    }

    /// Steps that a sweep has ended are over, too.
    fn end_open_steps(&mut self) -> anyhow::Result<()> {
        let open: Vec<usize> = self
            .run
            .steps
            .iter()
            .enumerate()
            .filter(|(_, s)| s.began.is_some() && s.ended.is_none())
            .map(|(i, _)| i)
            .collect();
        for step in open {
            self.emit(Event::StepEnded { step })?;
        }
        Ok(())
    }

    fn on_news(&mut self, news: News) -> anyhow::Result<()> {
        match news {
            News::Receipts(receipts) => {
                for (id, receipt) in receipts {
                    if let Some(step) = self.operator.step_of(id) {
                        self.emit(Event::Receipt { step, last: false, receipt })?;
                    }
                }
                Ok(())
            }
            News::Lapsed(ended) => {
                for one in ended {
                    for event in self.operator.events_of(one) {
                        self.emit(event)?;
                    }
                }
                self.tell(Input::Stop("a fault ended by itself: its lease was not renewed in time".into()))
            }
            News::Trouble(why) => self.tell(Input::Stop(why)),
        }
    }

    fn judge_so_far(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        match self.state {
            State::Baseline => match judge::baseline(&self.run, now.as_secs_f64()) {
                judge::Baseline::Steady => self.tell(Input::Steady),
                judge::Baseline::NotSteady(why) => self.tell(Input::NotSteady(why)),
                judge::Baseline::NeedMore { .. } => Ok(()),
            },
            State::Recovery { .. } if judge::clean(&self.run, now.as_secs_f64()) => self.tell(Input::Clean),
            _ => Ok(()),
        }
    }

    /// Judges, and writes the end of the log.
    fn end(&mut self, rest: Vec<Ended>, left_over: Vec<String>) -> anyhow::Result<()> {
        for ended in rest {
            for event in self.operator.events_of(ended) {
                self.emit(event)?;
            }
        }
        self.end_open_steps()?;
        let judgement = judge::run(&self.run);
        let verdict = judgement.verdict;
        self.emit(Event::Judged(Box::new(judgement)))?;
        let exit = exit_of(verdict, &left_over);
        self.emit(Event::RunEnded { exit, left_over })?;
        self.tell(Input::Closed)
    }
}

fn exit_of(verdict: Verdict, left_over: &[String]) -> ExitCode {
    let exit = ExitCode::of(verdict);
    if left_over.is_empty() { exit } else { exit.worse(ExitCode::NotRestored) }
}

/// What the keeper has to tell.
enum News {
    Receipts(Vec<(firedrill_agent::engine::FaultId, firedrill_model::receipt::Receipt)>),
    Lapsed(Vec<Ended>),
    Trouble(String),
}

/// Renews the leases and asks for receipts, on a thread of its own, so that neither a slow log nor a slow stop of a
/// unit lets a lease lapse. It ends when nobody listens any more.
struct Keeper {
    news: mpsc::UnboundedReceiver<News>,
}

impl Keeper {
    fn start(agent: Agent) -> Self {
        let (tell, news) = mpsc::unbounded_channel();
        tokio::task::spawn_blocking(move || {
            let mut asked = Instant::now();
            loop {
                let told = match agent.renew() {
                    Ok(lapsed) if lapsed.is_empty() => Ok(()),
                    Ok(lapsed) => tell.send(News::Lapsed(lapsed)),
                    Err(why) => tell.send(News::Trouble(why)),
                };
                if told.is_err() || tell.is_closed() {
                    return;
                }
                if asked.elapsed() >= RECEIPTS_EVERY {
                    asked = Instant::now();
                    let receipts = agent.receipts();
                    if !receipts.is_empty() && tell.send(News::Receipts(receipts)).is_err() {
                        return;
                    }
                }
                let until = Instant::now() + RENEW_EVERY;
                while Instant::now() < until {
                    if tell.is_closed() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Self { news }
    }
}
