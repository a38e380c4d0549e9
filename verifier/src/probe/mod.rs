//! Probes: they ask the system under test on a fixed schedule and turn every answer into a sample.
//!
//! Each probe has its own phase-shifted schedule, and each question is a task of its own, so that a slow answer
//! never delays the next question (no coordinated omission). A question that this host had no time for, or that
//! found too many answers still out, gives a *missed* sample: never a good one.
//!
//! Sockets belong to the network namespace of the thread that makes them. So every namespace, the host's own
//! included, gets one dedicated thread that enters it once and for all and runs its probes there.

mod dns;
mod exec;
mod http;
mod names;
mod schedule;
mod tcp;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use firedrill_model::event::Sample;
use firedrill_model::file::Check;
use firedrill_model::run::ProbePlan;
use tokio::sync::{mpsc as async_mpsc, oneshot, watch};

use schedule::Schedule;

/// Looks up the addresses of a host as probes do, from the calling thread's network namespace. `netns` is the name of that
/// one, when it has a name. Blocks.
///
/// # Errors
/// It has none, or nobody could be asked.
pub fn resolve(netns: Option<&str>, host: &str) -> Result<Vec<IpAddr>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(names::Names::of(netns).resolve(host)).map_err(|e| e.to_string())
}

/// Why probes cannot be started. Nothing was asked then.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A caller's mistake.
    #[error("there are {probes} probes and {checks} checks; each probe needs its own check")]
    Mismatch {
        /// Number of probes.
        probes: usize,
        /// Number of checks.
        checks: usize,
    },
    /// The namespace cannot be entered.
    #[error(
        "probes cannot run in the network namespace {netns}: {why}; `ip netns list` shows what exists, and entering one takes root"
    )]
    Netns {
        /// As the file names it.
        netns: String,
        /// What the kernel says.
        why: String,
    },
    /// A check can never work.
    #[error("probe `{probe}` cannot be asked: {why}")]
    Check {
        /// `component/probe`.
        probe: String,
        /// What is wrong, and how to mend it. Without secrets.
        why: String,
    },
    /// A thread or its runtime could not be made.
    #[error("no thread for probes could be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Probes that are running. Dropping it stops them, without waiting for answers that are still out.
#[derive(Debug)]
pub struct Runner {
    stop: watch::Sender<bool>,
    /// One for each thread; resolved when it is over.
    threads: Vec<oneshot::Receiver<()>>,
}

/// The check of a probe, made ready.
pub struct Asker(Kind);

enum Kind {
    Http(Box<http::Asker>),
    Tcp(tcp::Asker),
    Dns(dns::Asker),
    Exec(exec::Asker),
}

/// One thread's share.
struct Group {
    netns: Option<String>,
    /// Index in the plan, probe and check.
    probes: Vec<(usize, ProbePlan, Check)>,
    started: Instant,
    sink: async_mpsc::UnboundedSender<Sample>,
    stop: watch::Receiver<bool>,
}

impl Runner {
    /// Starts all probes. `checks` has the check of each probe, in the same order. Times in samples are counted from
    /// `started`. Every sample goes to `sink`; when nobody listens any more, samples are dropped.
    ///
    /// Blocks until all threads are ready, some milliseconds; longer where system certificates are read.
    ///
    /// # Errors
    /// When a namespace cannot be entered, or a check can never work: a bad header, an unknown user, a command that
    /// is not there. Then none of the probes runs.
    pub fn start(
        probes: &[ProbePlan],
        checks: &[Check],
        started: Instant,
        sink: async_mpsc::UnboundedSender<Sample>,
    ) -> Result<Self, ProbeError> {
        if probes.len() != checks.len() {
            return Err(ProbeError::Mismatch { probes: probes.len(), checks: checks.len() });
        }
        let (stop, stopped) = watch::channel(false);
        let mut groups: BTreeMap<Option<String>, Vec<(usize, ProbePlan, Check)>> = BTreeMap::new();
        for (i, (probe, check)) in probes.iter().zip(checks).enumerate() {
            groups.entry(probe.netns.clone()).or_default().push((i, probe.clone(), check.clone()));
        }
        let mut threads = Vec::new();
        let (ready, readiness) = mpsc::channel();
        for (netns, probes) in groups {
            let group = Group { netns, probes, started, sink: sink.clone(), stop: stopped.clone() };
            let (done, over) = oneshot::channel();
            let ready = ready.clone();
            std::thread::Builder::new().name("probes".into()).spawn(move || {
                group.run(ready);
                // Nobody may be waiting any more.
                let _ = done.send(());
            })?;
            threads.push(over);
        }
        drop(ready);
        let mut reported = 0;
        for outcome in readiness {
            outcome?;
            reported += 1;
        }
        if reported < threads.len() {
            return Err(std::io::Error::other("one ended before its probes were ready").into());
        }
        Ok(Self { stop, threads })
    }

    /// Asks no more, at once, and waits for the answers that are still out, at most their time-outs. Every sample
    /// that was due has been sent to the sink when this returns.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for over in self.threads {
            // An error means that the thread is gone, which is just as well.
            let _ = over.await;
        }
    }
}

impl Group {
    /// The whole life of a thread.
    fn run(self, ready: mpsc::Sender<Result<(), ProbeError>>) {
        let entered = match &self.netns {
            Some(name) => enter(name),
            None => Ok(()),
        };
        let runtime = entered.and_then(|()| Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?));
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        runtime.block_on(async {
            match self.schedules() {
                Ok(schedules) => {
                    // The starter has given up when another thread failed; the stop signal tells.
                    let _ = ready.send(Ok(()));
                    // The starter waits until nobody is left who could still report.
                    drop(ready);
                    let mut running = tokio::task::JoinSet::new();
                    for schedule in schedules {
                        running.spawn(schedule.run(self.stop.clone()));
                    }
                    while running.join_next().await.is_some() {}
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
    }

    fn schedules(&self) -> Result<Vec<Schedule>, ProbeError> {
        let each = self.probes.iter().map(|(index, plan, check)| {
            let asker = Asker::new(check, self.netns.as_deref())
                .map_err(|why| ProbeError::Check { probe: plan.name.clone(), why })?;
            Ok(Schedule::new(*index, plan, asker, self.started, self.sink.clone()))
        });
        each.collect()
    }
}

/// Moves this thread, and all that it will start, into a network namespace.
fn enter(name: &str) -> Result<(), ProbeError> {
    let path = if name.contains('/') { PathBuf::from(name) } else { PathBuf::from("/run/netns").join(name) };
    let failed = |why: String| ProbeError::Netns { netns: name.to_owned(), why };
    let file = File::open(&path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|error| failed(error.desc().to_owned()))
}

impl Asker {
    /// Makes a check ready. It asks from the network namespace of its thread; names are resolved as in `netns`.
    ///
    /// # Errors
    /// The check can never work; what is wrong and how to mend it, without secrets.
    pub fn new(check: &Check, netns: Option<&str>) -> Result<Self, String> {
        Ok(Self(match check {
            Check::Http(http) => Kind::Http(Box::new(http::Asker::new(http, netns)?)),
            Check::Tcp(tcp) => Kind::Tcp(tcp::Asker::new(tcp, netns)?),
            Check::Dns(dns) => Kind::Dns(dns::Asker::new(dns, netns)?),
            Check::Exec(exec) => Kind::Exec(exec::Asker::new(exec)?),
        }))
    }

    /// Asks once.
    ///
    /// # Errors
    /// Says in a few words, without secrets, what was bad. An answer that does not come in time is the caller's to tell, by
    /// the clock.
    pub async fn ask(&self, timeout: Duration) -> Result<(), String> {
        let late = || Err("timed out".to_owned());
        match &self.0 {
            Kind::Http(http) => tokio::time::timeout(timeout, http.ask()).await.unwrap_or_else(|_| late()),
            Kind::Tcp(tcp) => tokio::time::timeout(timeout, tcp.ask()).await.unwrap_or_else(|_| late()),
            Kind::Dns(dns) => tokio::time::timeout(timeout, dns.ask()).await.unwrap_or_else(|_| late()),
            // It has to clean up when its time is over.
            Kind::Exec(exec) => exec.ask(timeout).await,
        }
    }
}

/// An I/O error in a few words that do not change from one kernel to the next.
fn io_reason(error: &std::io::Error) -> String {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused => "connection refused".into(),
        Kind::ConnectionReset => "connection reset".into(),
        Kind::ConnectionAborted => "connection aborted".into(),
        Kind::BrokenPipe | Kind::NotConnected | Kind::UnexpectedEof => "connection closed".into(),
        Kind::TimedOut => "connection timed out".into(),
        Kind::HostUnreachable => "host unreachable".into(),
        Kind::NetworkUnreachable => "network unreachable".into(),
        Kind::AddrNotAvailable => "no local address or port left".into(),
        Kind::PermissionDenied => "not permitted by this host".into(),
        kind => kind.to_string(),
    }
}
