//! The schedule of one probe.

use std::sync::Arc;
use std::time::{Duration, Instant};

use firedrill_model::event::{Bad, Outcome, Sample};
use firedrill_model::run::ProbePlan;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Asker;
use crate::words;

/// Most answers of one probe that may be out at the same time, whatever its time-out and interval.
const MOST_UNDER_WAY: usize = 4096;

/// Shifts the probes' schedules against each other: successive multiples of the golden ratio fill the interval
/// evenly, however many probes there are.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// One probe and its schedule.
pub(super) struct Schedule {
    probe: usize,
    every: Duration,
    timeout: Duration,
    /// Due time of slot 0 in seconds; slot k is due k intervals later.
    shift: f64,
    /// Most answers that may be out.
    limit: usize,
    asker: Arc<Asker>,
    started: Instant,
    sink: mpsc::UnboundedSender<Sample>,
}

/// A sample that is owed: it is sent when its outcome is known, and as missed when its task comes to nothing.
struct Owed {
    sink: mpsc::UnboundedSender<Sample>,
    probe: usize,
    due: f64,
    paid: bool,
}

impl Owed {
    fn pay(mut self, outcome: Outcome) {
        self.send(outcome);
    }

    fn send(&mut self, outcome: Outcome) {
        self.paid = true;
        // When nobody listens any more there is nobody to tell.
        let _ = self.sink.send(Sample { probe: self.probe, due: self.due, outcome });
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if !self.paid {
            self.send(Outcome::Missed("the probe was cut off before its answer came".into()));
        }
    }
}

impl Schedule {
    pub(super) fn new(
        probe: usize,
        plan: &ProbePlan,
        asker: Asker,
        started: Instant,
        sink: mpsc::UnboundedSender<Sample>,
    ) -> Self {
        // Zero is refused in files.
        let every = plan.every.0.max(Duration::from_millis(1));
        let timeout = plan.timeout.0.max(Duration::from_millis(1));
        let limit = (timeout.as_secs_f64() / every.as_secs_f64()).ceil() as usize + 1;
        Self {
            probe,
            every,
            timeout,
            shift: every.as_secs_f64() * (probe as f64 * GOLDEN).fract(),
            limit: limit.min(MOST_UNDER_WAY),
            asker: Arc::new(asker),
            started,
            sink,
        }
    }

    /// Asks until it is told to stop, and returns when the last answer is in.
    pub(super) async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut slot = self.first_slot();
        let mut under_way = JoinSet::new();
        loop {
            let due = self.shift + slot * self.every.as_secs_f64();
            let at = self.started + Duration::from_secs_f64(due);
            tokio::select! {
                // What is due already is asked, or noted as missed, before a stop is obeyed.
                biased;
                () = tokio::time::sleep_until(at.into()) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            slot += 1.0;
            while under_way.try_join_next().is_some() {}
            let owed = Owed { sink: self.sink.clone(), probe: self.probe, due, paid: false };
            if let Some(why) = self.hindrance(at.elapsed(), under_way.len()) {
                owed.pay(Outcome::Missed(why));
                continue;
            }
            let (asker, timeout) = (Arc::clone(&self.asker), self.timeout);
            let (latest, every) = (at + self.every, self.every);
            under_way.spawn(async move {
                // The task may have had to wait for its turn.
                let late = Instant::now().saturating_duration_since(latest);
                let outcome =
                    if late.is_zero() { ask(&asker, timeout).await } else { Outcome::Missed(too_late(late + every)) };
                owed.pay(outcome);
            });
        }
        while under_way.join_next().await.is_some() {}
    }

    /// The first slot that lies ahead.
    fn first_slot(&self) -> f64 {
        let ahead = self.started.elapsed().as_secs_f64() - self.shift;
        (ahead / self.every.as_secs_f64()).ceil().max(0.0)
    }

    /// Why the question cannot be asked, if it cannot.
    fn hindrance(&self, late: Duration, under_way: usize) -> Option<String> {
        if late > self.every {
            Some(too_late(late))
        } else if under_way >= self.limit {
            Some(format!("not sent: {under_way} earlier answers were still out"))
        } else {
            None
        }
    }
}

fn too_late(late: Duration) -> String {
    format!("not sent: this host was {} late with it", words::seconds(late.as_secs_f64()))
}

/// Asks once and takes the time, from when the question is really asked.
async fn ask(asker: &Asker, timeout: Duration) -> Outcome {
    let sent = Instant::now();
    let result = asker.ask(timeout).await;
    let took = sent.elapsed();
    // Whole microseconds: the rest is noise, and the log is long.
    let ms = |t: Duration| t.as_micros() as f64 / 1e3;
    match result {
        _ if took >= timeout => {
            let why = format!("timed out after {}", words::seconds(timeout.as_secs_f64()));
            Outcome::Bad(Bad { ms: ms(timeout), why })
        }
        Ok(()) => Outcome::Good(ms(took)),
        Err(why) => Outcome::Bad(Bad { ms: ms(took), why }),
    }
}
