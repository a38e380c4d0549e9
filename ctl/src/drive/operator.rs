//! The operator: a thread that does to the host what the lifecycle says, one thing after another, and reports.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use firedrill_agent::agent::{Agent, BACKSTOP, Ended, InjectError};
use firedrill_agent::engine::{FaultId, RevertedChange};
use firedrill_model::event::Event;
use firedrill_model::lifecycle::Input;
use firedrill_model::run::RunPlan;
use tokio::sync::mpsc;

/// What is to be done.
#[derive(Debug)]
pub enum Command {
    /// Resolve the targets of a step and inject its faults.
    Inject(usize),
    /// End the faults of a step.
    Revert(usize),
    /// End everything.
    RevertAll,
}

/// What was done.
#[derive(Debug)]
pub enum Report {
    /// Something for the log.
    Event(Box<Event>),
    /// Something for the lifecycle.
    Input(Input),
}

/// Which step each fault belongs to.
type Steps = Arc<Mutex<HashMap<FaultId, usize>>>;

/// The driver's end of the operator.
#[derive(Debug)]
pub struct Operator {
    commands: Sender<Command>,
    /// Set before a sweep: a step that is just being injected stops half-way, and the sweep ends what it did.
    sweeping: Arc<AtomicBool>,
    steps: Steps,
}

impl Operator {
    /// Starts the thread. It ends when the operator is dropped.
    pub fn start(agent: Agent, plan: RunPlan) -> std::io::Result<(Self, mpsc::UnboundedReceiver<Report>)> {
        let (commands, inbox) = channel();
        let (reports, outbox) = mpsc::unbounded_channel();
        let (sweeping, steps) = (Arc::new(AtomicBool::new(false)), Steps::default());
        let worker = Worker { agent, plan, reports, sweeping: Arc::clone(&sweeping), steps: Arc::clone(&steps) };
        std::thread::Builder::new().name("fd-operator".into()).spawn(move || worker.work(&inbox))?;
        Ok((Self { commands, sweeping, steps }, outbox))
    }

    /// Adds a command to the queue.
    pub fn send(&self, command: Command) {
        // The worker outlives the operator by construction; if it panicked, the sweep at the end reverts.
        let _ = self.commands.send(command);
    }

    /// Ends everything, as soon as the call under way returns.
    pub fn revert_all(&self) {
        self.sweeping.store(true, Ordering::SeqCst);
        self.send(Command::RevertAll);
    }

    /// The step that a fault belongs to.
    pub fn step_of(&self, id: FaultId) -> Option<usize> {
        lock(&self.steps).get(&id).copied()
    }

    /// What the log must know of a fault that has ended.
    pub fn events_of(&self, ended: Ended) -> Vec<Event> {
        let step = self.step_of(ended.id);
        events_of(step, ended)
    }
}

struct Worker {
    agent: Agent,
    plan: RunPlan,
    reports: mpsc::UnboundedSender<Report>,
    sweeping: Arc<AtomicBool>,
    steps: Steps,
}

impl Worker {
    fn work(self, inbox: &Receiver<Command>) {
        while let Ok(command) = inbox.recv() {
            match command {
                Command::Inject(step) => match self.inject(step) {
                    Ok(true) => self.say(Input::Injected(step)),
                    // A sweep is on its way.
                    Ok(false) => {}
                    Err(why) => self.say(Input::InjectFailed(step, why)),
                },
                Command::Revert(step) => {
                    for id in self.faults_of(step) {
                        if let Some(ended) = self.agent.revert(id) {
                            self.log_end(ended);
                        }
                    }
                    self.say(Input::StepReverted(step));
                }
                Command::RevertAll => {
                    for ended in self.agent.revert_all() {
                        self.log_end(ended);
                    }
                    self.say(Input::AllReverted);
                }
            }
        }
    }

    /// Injects a step; false when a sweep came in between.
    fn inject(&self, index: usize) -> Result<bool, String> {
        let step = &self.plan.steps[index];
        let mut targets = Vec::new();
        for target in &step.targets {
            targets.push(self.agent.resolve(target).map_err(|e| e.to_string())?);
        }
        if self.sweeping.load(Ordering::SeqCst) {
            return Ok(false);
        }
        self.log(Event::StepBegan { step: index, targets: targets.clone() });
        for target in &targets {
            for fault in &step.faults {
                if self.sweeping.load(Ordering::SeqCst) {
                    return Ok(false);
                }
                match self.agent.inject(target, fault, step.lasts.0 + BACKSTOP) {
                    Ok(injected) => {
                        lock(&self.steps).insert(injected.id, index);
                        for note in injected.notes {
                            self.log(Event::Note { text: note });
                        }
                        for change in injected.applied {
                            self.log(Event::Applied {
                                change: change.number,
                                step: index,
                                target: target.name.clone(),
                                fault: fault.name().into(),
                                what: Box::new(change.what),
                            });
                        }
                    }
                    Err(InjectError::Change { error, reverted }) => {
                        self.log_reverts(reverted);
                        return Err(format!("{} on {}: {error}", fault.name(), target.name));
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
        Ok(true)
    }

    fn faults_of(&self, step: usize) -> Vec<FaultId> {
        let mut ids: Vec<FaultId> = lock(&self.steps).iter().filter(|(_, s)| **s == step).map(|(id, _)| *id).collect();
        // The youngest first: the reverse of how they were injected.
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids
    }

    fn log_end(&self, ended: Ended) {
        let step = lock(&self.steps).get(&ended.id).copied();
        for event in events_of(step, ended) {
            self.log(event);
        }
    }

    fn log_reverts(&self, changes: Vec<RevertedChange>) {
        for event in reverts(changes) {
            self.log(event);
        }
    }

    fn log(&self, event: Event) {
        // Nobody listens any more only when the run has failed; then there is no log to write to.
        let _ = self.reports.send(Report::Event(Box::new(event)));
    }

    fn say(&self, input: Input) {
        let _ = self.reports.send(Report::Input(input));
    }
}

fn lock(steps: &Steps) -> std::sync::MutexGuard<'_, HashMap<FaultId, usize>> {
    steps.lock().unwrap_or_else(PoisonError::into_inner)
}

fn events_of(step: Option<usize>, ended: Ended) -> Vec<Event> {
    let mut events = reverts(ended.changes);
    if let (Some(step), Some(receipt)) = (step, ended.receipt) {
        events.push(Event::Receipt { step, last: true, receipt });
    }
    events
}

fn reverts(changes: Vec<RevertedChange>) -> Vec<Event> {
    changes.into_iter().map(|c| Event::Reverted { change: c.number, note: c.note, error: c.error }).collect()
}
