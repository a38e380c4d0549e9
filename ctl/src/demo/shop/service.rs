//! A service manager of one service, so that the shop's replicas can be stopped and started as a real one's can: it
//! runs a role as a child process, starts it again when it dies, and takes `stop` and `start` on a port of its own
//! loopback (so that nothing of it is left in any file system). `tell` is the other end, as the system file's
//! `control:` commands use it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader as AsyncBufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

/// Where a service manager listens, in its own namespace.
pub const CONTROL_PORT: u16 = 7000;
/// Rest before a child that died is started again.
const RESTART_AFTER: Duration = Duration::from_millis(200);
/// How long a child may take to end by SIGTERM or SIGKILL, and to listen after its start.
const SETTLE_WITHIN: Duration = Duration::from_secs(3);
/// How long `tell` waits for the word to be carried out: an end and a start, with some room.
const TELL_WITHIN: Duration = Duration::from_secs(8);

/// How long a stage may take to be gone, once its services are.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// What a service can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Word {
    /// End the process and keep it down.
    Stop,
    /// Start it, and wait until it listens.
    Start,
}

/// Why a service could not be run or told.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The control port is taken.
    #[error("cannot listen on {0}: {1}; is another service running in this namespace?")]
    Listen(SocketAddr, std::io::Error),
    /// The child cannot be started.
    #[error("cannot start `{0}`: {1}")]
    Start(String, std::io::Error),
    /// The namespace cannot be entered.
    #[error("cannot enter network namespace {0}: {1}; is the stage still up, and are you root?")]
    Netns(String, std::io::Error),
    /// The service manager does not answer.
    #[error("the service manager in {0} did not answer: {1}")]
    Silent(String, std::io::Error),
    /// It answered that it could not.
    #[error("the service in {0} could not {1}: {2}")]
    Refused(String, &'static str, String),
}

/// Runs `program args` as a service until killed; `listens` is where the role listens once it is ready.
///
/// # Errors
/// When the control port is taken, or the first start fails.
pub async fn run(control: SocketAddr, program: &str, args: &[String], listens: SocketAddr) -> Result<(), ServiceError> {
    let listener = TcpListener::bind(control).await.map_err(|e| ServiceError::Listen(control, e))?;
    let start = || {
        Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| ServiceError::Start(program.to_owned(), e))
    };
    let mut child: Option<Child> = Some(start()?);
    loop {
        let died = async {
            match &mut child {
                Some(child) => child.wait().await.map(|_| ()),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = died => {
                tokio::time::sleep(RESTART_AFTER).await;
                child = Some(start()?);
            }
            peer = listener.accept() => {
                let Ok((stream, _)) = peer else { continue };
                let mut stream = AsyncBufReader::new(stream);
                let mut line = String::new();
                if !matches!(tokio::time::timeout(Duration::from_secs(1), stream.read_line(&mut line)).await, Ok(Ok(_))) {
                    continue;
                }
                let outcome = match line.trim() {
                    "stop" => stop(&mut child, listens).await,
                    "start" => {
                        if child.is_none() {
                            child = Some(start()?);
                        }
                        listening(listens, true).await
                    }
                    other => Err(format!("`{other}` is neither stop nor start")),
                };
                let answer = match outcome {
                    Ok(()) => "done\n".to_owned(),
                    Err(why) => format!("{why}\n"),
                };
                // Whoever asked may have gone; the word is carried out all the same.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    }
}

async fn stop(child: &mut Option<Child>, listens: SocketAddr) -> Result<(), String> {
    if let Some(mut running) = child.take() {
        // The roles keep nothing that a gentler end could save.
        running.start_kill().map_err(|e| format!("it cannot be signalled: {e}"))?;
        match tokio::time::timeout(SETTLE_WITHIN, running.wait()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("its end cannot be seen: {error}")),
            Err(_) => return Err(format!("it still runs after {SETTLE_WITHIN:?}")),
        }
    }
    listening(listens, false).await
}

/// Waits until somebody does, or nobody does, listen there.
async fn listening(address: SocketAddr, wanted: bool) -> Result<(), String> {
    let before = tokio::time::Instant::now();
    while tokio::net::TcpStream::connect(address).await.is_ok() != wanted {
        if before.elapsed() > SETTLE_WITHIN {
            let state = if wanted { "nobody listens" } else { "somebody still listens" };
            return Err(format!("{state} on {address} after {SETTLE_WITHIN:?}"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Tells the service in a namespace, and waits until it is done. Called from a process of one thread, for it moves
/// that thread into the namespace.
///
/// Where the stage is gone, or is just being taken down, there is nothing left to start, and that is no error: this is
/// how a stopped replica is restored when the demo itself was killed.
///
/// # Errors
/// When the namespace cannot be entered, or the word could not be carried out.
pub fn tell(netns: &str, word: Word) -> Result<(), ServiceError> {
    let path = if netns.contains('/') { netns.to_owned() } else { format!("/run/netns/{netns}") };
    let gone = || word == Word::Start && !std::path::Path::new(&path).exists();
    if gone() {
        return Ok(());
    }
    let failed = |error: std::io::Error| ServiceError::Netns(path.clone(), error);
    let entered = File::open(&path).and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWNET)?));
    let told = entered
        .map_err(failed)
        .and_then(|()| tell_at(SocketAddr::from((Ipv4Addr::LOCALHOST, CONTROL_PORT)), netns, word));
    let begun = std::time::Instant::now();
    while told.is_err() && word == Word::Start && begun.elapsed() < GONE_WITHIN {
        if gone() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    told
}

fn tell_at(control: SocketAddr, netns: &str, word: Word) -> Result<(), ServiceError> {
    let verb = match word {
        Word::Stop => "stop",
        Word::Start => "start",
    };
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&control, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(TELL_WITHIN))?;
        stream.write_all(format!("{verb}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|e| ServiceError::Silent(netns.to_owned(), e))?;
    match answer.trim() {
        "done" => Ok(()),
        why => Err(ServiceError::Refused(netns.to_owned(), verb, why.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A free port of loopback.
    fn free() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("loopback")
    }

    const CHILD: &str = "demo::shop::service::tests::child_that_listens";

    #[test]
    #[ignore = "run by other tests, as a process that listens"]
    fn child_that_listens() {
        let address = std::env::args().find_map(|a| a.strip_prefix("listen=").map(str::to_owned));
        let listener = std::net::TcpListener::bind(address.expect("given by the test")).expect("free");
        std::thread::sleep(Duration::from_secs(60));
        drop(listener);
    }

    async fn told(control: SocketAddr, word: Word) -> Result<(), ServiceError> {
        tokio::task::spawn_blocking(move || tell_at(control, "here", word)).await.expect("no panic")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_service_is_down_after_stop_and_up_again_after_start() {
        let (control, listens) = (free(), free());
        let me = std::env::current_exe().expect("this test");
        let child = ["--ignored", "--exact", CHILD].map(String::from).into_iter().chain([format!("listen={listens}")]);
        let child: Vec<String> = child.collect();
        let service = tokio::spawn(async move { run(control, &me.to_string_lossy(), &child, listens).await });
        listening(control, true).await.expect("the manager listens");
        told(control, Word::Start).await.expect("start waits until it listens");
        let is_up = || async { tokio::net::TcpStream::connect(listens).await.is_ok() };
        assert!(is_up().await);
        told(control, Word::Stop).await.expect("stop");
        assert!(!is_up().await);
        told(control, Word::Stop).await.expect("stopping twice is fine");
        tokio::time::sleep(RESTART_AFTER * 2).await;
        assert!(!is_up().await, "a service that was told to stop stays down");
        told(control, Word::Start).await.expect("start");
        assert!(is_up().await);
        service.abort();
    }

    #[test]
    fn there_is_nothing_to_start_where_the_stage_is_gone_but_nothing_was_stopped_either() {
        let nowhere = format!("firedrill-none-{}", std::process::id());
        tell(&nowhere, Word::Start).expect("nothing is left to start");
        assert!(matches!(tell(&nowhere, Word::Stop), Err(ServiceError::Netns(..))));
    }
}
