//! The engine's thread: it owns engine and guardian, and answers what the handles ask.

use std::ffi::OsString;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use firedrill_model::change::Plan;
use firedrill_model::config::{Config, Held};
use firedrill_model::facts::{FactsSnapshot, HostFacts, TargetFacts};
use firedrill_model::fault::Fault;
use firedrill_model::fight::Hold;
use firedrill_model::receipt::{Measured, Receipt};
use firedrill_model::units::Span;

use super::{BACKSTOP, Ended, Farewell, InjectError, Injected, Request};
use crate::engine::{ChangeError, Engine, FaultId, Reverted};
use crate::guardian::{Guardian, Watch};
use crate::halt::{self, Halted};
use crate::host::cgroup;
use crate::journal::Directories;
use crate::local::LocalHost;
use crate::owner::Owner;
use crate::pulse;
use crate::standing::{self, Board, Standing};
use crate::target::{self, Protected, Resolver};

/// A fault or stage in force.
pub(super) struct InForce {
    id: FaultId,
    /// The fault and its target; `None` for a stage.
    fault: Option<Box<(Fault, TargetFacts)>>,
    /// What it holds of the life of processes.
    hold: Option<Hold>,
    /// When it came into force.
    since: Instant,
}

impl InForce {
    /// What it is, for whoever finds something held by it.
    fn name(&self) -> String {
        match self.fault.as_deref() {
            Some((fault, target)) => format!("`{}` on {}, of this run", fault.name(), target.name),
            None => "a stage of this run".to_owned(),
        }
    }
}

/// What the engine's thread owns.
pub(super) struct Core {
    pub(super) engine: Engine<LocalHost>,
    pub(super) owner: Owner,
    pub(super) guardian: Option<Guardian>,
    pub(super) guardian_command: Vec<OsString>,
    /// Why there is no guardian any more. Then nothing is in force.
    pub(super) unguarded: Option<String>,
    pub(super) host: HostFacts,
    pub(super) protected: Protected,
    pub(super) resolver: Resolver,
    pub(super) config: Config,
    pub(super) faults: Vec<InForce>,
    pub(super) lapsed: Vec<Ended>,
    /// Tells other processes what is in force.
    pub(super) board: Board,
    /// Where lock, journal and the sign of a halt are.
    pub(super) directories: Directories,
    /// Once halted, an agent begins nothing any more, whether or not the sign is taken away.
    pub(super) halted: Option<Halted>,
}

impl Core {
    /// Answers requests until told to stop. A caller that did not wait for its answer is no reason to stop.
    pub(super) fn run(mut self, inbox: &Receiver<Request>) {
        const TICK: Duration = Duration::from_millis(50);
        self.feel_pulse();
        loop {
            let mut next = inbox.recv_timeout(TICK);
            // All that waits is answered before the leases are looked at: a renewal may have been waiting behind a
            // slow stop of a unit.
            loop {
                match next {
                    Ok(Request::Stop(answer)) => {
                        let _ = answer.send(self.finish());
                        return;
                    }
                    Ok(request) => self.answer(request),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        self.finish();
                        return;
                    }
                }
                next = inbox.try_recv().map_err(|e| match e {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                });
            }
            pulse::beat();
            for reverted in self.engine.tick() {
                let ended = self.ended(reverted);
                self.lapsed.push(ended);
            }
            self.look_for_halt();
            self.look_after_guardian();
            if self.board.is_due() {
                self.tell_standing();
            }
        }
    }

    fn look_for_halt(&mut self) {
        if self.halted.is_none()
            && let Err(halted) = halt::check(&self.directories.run)
        {
            self.halted = Some(halted);
            let ended = self.revert_all();
            self.lapsed = ended.into_iter().map(|e| Ended { lapsed: true, ..e }).collect();
        }
    }

    fn answer(&mut self, request: Request) {
        pulse::beat();
        match request {
            Request::Resolve(plan, answer) => {
                let _ = answer.send(target::resolve(&plan, &self.host, &self.protected, self.resolver));
            }
            Request::Inject(what, lasts, answer) => {
                let (target, fault) = *what;
                let _ = answer.send(self.inject(target, fault, lasts));
            }
            Request::Apply(plan, lasts, answer) => {
                let _ = answer.send(self.apply(&plan, lasts, None, None));
            }
            Request::Revert(id, answer) => {
                let known = self.faults.iter().any(|f| f.id == id);
                let _ = answer.send(known.then(|| self.revert(id)));
            }
            Request::RevertAll(answer) => {
                let _ = answer.send(self.revert_all());
            }
            Request::Receipts(answer) => {
                let engine = &mut self.engine;
                let receipts = self.faults.iter().filter_map(|f| {
                    let (fault, target) = f.fault.as_deref()?;
                    let measured = engine.measure(f.id);
                    Some((f.id, receipt(fault, &target.name, measured, engine.silent(f.id))))
                });
                let _ = answer.send(receipts.collect());
            }
            Request::Renew(answer) => {
                let _ = answer.send(self.renew());
            }
            Request::LeftOver(answer) => {
                let _ = answer.send(self.engine.left_over().to_vec());
            }
            // Answered by `run`, which ends with it.
            Request::Stop(_) => {}
        }
    }

    fn inject(&mut self, target: TargetFacts, fault: Fault, lasts: Duration) -> Result<Injected, InjectError> {
        self.is_permitted(&target, lasts)?;
        let facts = FactsSnapshot { host: self.host.clone(), target };
        let plan = fault.plan(&facts)?;
        let hold = Hold::of(&facts.target, &plan);
        if let Some(holder) = self.holder(&plan, hold.as_ref()) {
            let what = format!("`{}` on {}", fault.name(), facts.target.name);
            let error = ChangeError::Taken { what, holder: holder.name() };
            return Err(InjectError::Change { error, reverted: Vec::new() });
        }
        self.apply(&plan, lasts, Some(Box::new((fault, facts.target))), hold)
    }

    /// Asked for the target as it is now: a group may have got a member since it was resolved.
    fn is_permitted(&self, target: &TargetFacts, lasts: Duration) -> Result<(), InjectError> {
        let held: Vec<Held<'_>> = self.faults.iter().filter_map(|f| Some(f.fault.as_deref()?.1.held())).collect();
        self.config.permits(&held, target.held(), lasts.saturating_sub(BACKSTOP))?;
        let mut now = target.clone();
        if let Some(group) = &target.cgroup {
            now.processes = cgroup::processes(group);
        }
        self.protected.admit(now, &target.lifted, &self.host)?;
        Ok(())
    }

    /// The fault in force that has what a plan needs for itself, or with which it would fight.
    fn holder(&self, plan: &Plan, hold: Option<&Hold>) -> Option<&InForce> {
        let same = self.engine.holder(plan);
        let fights = |f: &InForce, hold: &Hold| {
            f.hold.clone().is_some_and(|other| {
                let group = other.group().and_then(|path| cgroup::at(Path::new(path)).ok());
                let members = group.map(|group| cgroup::processes(&group)).unwrap_or_default();
                other.with(&members).fights(hold)
            })
        };
        self.faults.iter().find(|f| Some(f.id) == same || hold.is_some_and(|hold| fights(f, hold)))
    }

    fn apply(
        &mut self,
        plan: &Plan,
        lasts: Duration,
        fault: Option<Box<(Fault, TargetFacts)>>,
        hold: Option<Hold>,
    ) -> Result<Injected, InjectError> {
        self.look_after_guardian();
        if let Some(why) = &self.unguarded {
            return Err(InjectError::Unguarded(why.clone()));
        }
        // The sign may be there since the last tick.
        self.look_for_halt();
        if let Some(halted) = &self.halted {
            return Err(halted.clone().into());
        }
        match self.engine.apply(plan, lasts) {
            Ok((id, applied)) => {
                self.faults.push(InForce { id, fault, hold, since: Instant::now() });
                self.tell_standing();
                Ok(Injected { id, applied, notes: plan.notes.clone() })
            }
            Err((error, reverted)) => Err(InjectError::Change { error, reverted: reverted.changes }),
        }
    }

    fn renew(&mut self) -> Result<Vec<Ended>, String> {
        self.look_after_guardian();
        if let Some(why) = &self.unguarded {
            return Err(why.clone());
        }
        if let Some(halted) = &self.halted {
            return Err(halted.to_string());
        }
        if let Some(why) = self.engine.journal_failure() {
            return Err(format!("{why}; what is not recorded cannot be kept in force"));
        }
        self.engine.honour().map_err(|e| format!("a lease could not be renewed: {e}"))?;
        Ok(std::mem::take(&mut self.lapsed))
    }

    /// From now on each sign of life of this thread reaches the guardian, and honours the renewals that wait.
    fn feel_pulse(&mut self) {
        let leases = self.engine.leases().clone();
        match self.guardian.as_ref().map(Guardian::pulse) {
            Some(Ok(mut tell)) => pulse::set(move || {
                tell();
                leases.honour(Instant::now());
            }),
            // Without a sign of life it would kill us.
            Some(Err(e)) => self.go_unguarded(&format!("the guardian cannot be told that we live: {e}")),
            None => {}
        }
    }

    /// Replaces a guardian that has died or does not answer. Without one, nothing stays in force.
    fn look_after_guardian(&mut self) {
        let Some(guardian) = &mut self.guardian else { return };
        let fate = match guardian.look() {
            Watch::Kept => return,
            Watch::Dead => "has died",
            Watch::Deaf => "does not answer",
        };
        tracing::warn!("the guardian {fate}; another one takes its place");
        match Guardian::start(&self.guardian_command, &self.directories) {
            Ok(next) => {
                self.protected = Protected::new(Some(next.pid()), &self.config.protect);
                self.engine.host().protect(self.protected.clone());
                let last = self.guardian.replace(next);
                self.feel_pulse();
                // Only now: there was never a moment without one.
                if let Some(last) = last {
                    last.dismiss_deaf();
                }
            }
            Err(e) => self.go_unguarded(&format!("the guardian {fate}, and another one could not be started: {e}")),
        }
    }

    fn go_unguarded(&mut self, why: &str) {
        self.unguarded = Some(format!("{why}; without it no fault stays in force"));
        let ended = self.revert_all();
        self.lapsed = ended.into_iter().map(|e| Ended { lapsed: true, ..e }).collect();
        if let Some(last) = self.guardian.take() {
            last.dismiss_deaf();
        }
    }

    fn revert(&mut self, id: FaultId) -> Ended {
        let reverted = self.engine.revert(id);
        self.ended(reverted)
    }

    fn revert_all(&mut self) -> Vec<Ended> {
        let reverted = self.engine.revert_all();
        let mut all = std::mem::take(&mut self.lapsed);
        all.extend(reverted.into_iter().map(|r| self.ended(r)));
        all
    }

    fn ended(&mut self, reverted: Reverted) -> Ended {
        let at = self.faults.iter().position(|f| f.id == reverted.fault);
        let fault = at.map(|at| self.faults.remove(at)).and_then(|f| f.fault);
        self.tell_standing();
        let receipt = fault.map(|it| receipt(&it.0, &it.1.name, reverted.measured, reverted.silent));
        Ended { id: reverted.fault, receipt, changes: reverted.changes, lapsed: reverted.lapsed }
    }

    /// Tells what is in force, for `firedrill status`.
    fn tell_standing(&mut self) {
        let engine = &mut self.engine;
        let standing = self.faults.iter().filter_map(|f| {
            let (fault, target) = f.fault.as_deref()?;
            let (lease, ends) = engine.deadlines(f.id)?;
            Some(Standing {
                fault: fault.name().to_owned(),
                target: target.name.clone(),
                since_ns: standing::ns(f.since),
                lease_ns: standing::ns(lease),
                ends_ns: standing::ns(ends),
                receipt: receipt(fault, &target.name, engine.measure(f.id), engine.silent(f.id)),
            })
        });
        self.board.tell(standing.collect());
    }

    fn finish(&mut self) -> Farewell {
        let ended = self.revert_all();
        let mut left_over = self.engine.left_over().to_vec();
        if let Err(e) = self.engine.end_journal() {
            left_over.push(format!("{e}; all of it was undone, and would be again by the next run"));
        }
        if let Some(guardian) = self.guardian.take()
            && let Err(e) = guardian.dismiss()
        {
            left_over.push(format!("the guardian could not be waited for: {e}"));
        }
        self.board.tell(Vec::new());
        let _owned_until_here = &self.owner;
        Farewell { ended, left_over }
    }
}

/// The least time that rules were ignored in the kernel before their fault ended that a receipt tells of. A lease that
/// lapses is seen some time later.
const SILENCE_TOLD: Duration = Duration::from_millis(250);

fn receipt(fault: &Fault, target: &str, measured: Vec<Measured>, silent: Duration) -> Receipt {
    let mut receipt = fault.receipt(target, measured);
    if silent >= SILENCE_TOLD {
        receipt.was_silent(Span(Duration::from_millis(u64::try_from(silent.as_millis()).unwrap_or(u64::MAX))));
    }
    receipt
}
