//! Probes against small servers on the loopback interface.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use firedrill_model::event::Outcome;
use firedrill_model::file::{DnsCheck, ExecCheck, HttpCheck, Method, Steady, TcpCheck, Tls};
use firedrill_model::units::Span;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::*;

fn plan(every_ms: u64, timeout_ms: u64) -> ProbePlan {
    ProbePlan {
        name: "front/probe".into(),
        component: "front".into(),
        kind: "test".into(),
        describe: String::new(),
        every: Span::from_millis(every_ms),
        timeout: Span::from_millis(timeout_ms),
        steady: Steady::default(),
        netns: None,
        needs: 299,
    }
}

fn http(url: String) -> HttpCheck {
    HttpCheck {
        url,
        method: Method::Get,
        headers: BTreeMap::new(),
        body: None,
        status: None,
        contains: None,
        json: BTreeMap::new(),
        tls: Tls::default(),
        keep_alive: false,
    }
}

fn tcp(address: SocketAddr) -> TcpCheck {
    TcpCheck { address: address.to_string(), send: None, expect: None }
}

fn exec(command: &[&str]) -> ExecCheck {
    ExecCheck { command: command.iter().map(|s| (*s).to_owned()).collect(), user: None, exit: 0, contains: None }
}

/// A server for every connection; it ends with the test's runtime.
async fn serve<F>(answer: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    address
}

/// An HTTP server that waits, and then says always the same.
async fn web(wait: Duration, head: &'static str, body: &'static str) -> SocketAddr {
    serve(move |mut stream| async move {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        tokio::time::sleep(wait).await;
        let answer = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).await.expect("a port").local_addr().expect("an address")
}

/// Runs probes for a while and gives their samples in due order.
async fn samples(probes: &[ProbePlan], checks: &[Check], lasts: Duration) -> Vec<Sample> {
    let (sink, mut from) = async_mpsc::unbounded_channel();
    let runner = Runner::start(probes, checks, Instant::now(), sink).expect("startable");
    tokio::time::sleep(lasts).await;
    runner.stop().await;
    let mut samples = Vec::new();
    // All ends of the channel are gone with the runner, so this ends.
    while let Some(sample) = from.recv().await {
        samples.push(sample);
    }
    samples.sort_by(|a, b| a.due.total_cmp(&b.due));
    samples
}

/// The first outcome of a check.
async fn outcome_of(check: Check, timeout_ms: u64) -> Outcome {
    let (sink, mut from) = async_mpsc::unbounded_channel();
    let runner = Runner::start(&[plan(100, timeout_ms)], &[check], Instant::now(), sink).expect("startable");
    let first = from.recv().await.expect("a sample");
    runner.stop().await;
    first.outcome
}

/// The reason of a check that must be bad.
async fn why(check: Check) -> String {
    match outcome_of(check, 2000).await {
        Outcome::Bad(bad) => bad.why,
        other => panic!("{other:?}"),
    }
}

async fn is_good(check: Check) {
    let outcome = outcome_of(check, 2000).await;
    assert!(outcome.is_good(), "{outcome:?}");
}

#[tokio::test]
async fn slow_answers_do_not_delay_the_schedule() {
    let address = web(Duration::from_millis(300), "200 OK", "ok").await;
    let check = Check::Http(http(format!("http://{address}/")));
    let found = samples(&[plan(20, 1000)], &[check], Duration::from_millis(1000)).await;
    assert!(found.len() >= 48, "{} samples in a second of one each 20 ms", found.len());
    for pair in found.windows(2) {
        assert!((pair[1].due - pair[0].due - 0.02).abs() < 1e-9, "a slot was left out: {pair:?}");
    }
    let good: Vec<f64> =
        found.iter().filter_map(|s| if let Outcome::Good(ms) = s.outcome { Some(ms) } else { None }).collect();
    // A loaded machine may miss a few; a schedule that waits would send 4 in all.
    assert!(good.len() >= 25, "{found:?}");
    assert!(good.iter().all(|ms| *ms >= 300.0), "the wait belongs to the latency: {good:?}");
}

#[tokio::test]
async fn an_answer_after_the_timeout_is_bad_and_its_latency_is_the_timeout() {
    let address = web(Duration::from_secs(5), "200 OK", "ok").await;
    let Outcome::Bad(bad) = outcome_of(Check::Http(http(format!("http://{address}/"))), 200).await else {
        panic!("late")
    };
    assert_eq!((bad.why.as_str(), bad.ms), ("timed out after 200ms", 200.0));
}

#[tokio::test]
async fn stopping_waits_for_the_answers_that_are_out_and_loses_none() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let address = serve(move |stream| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(stream);
        }
    })
    .await;
    let check = Check::Tcp(TcpCheck { expect: Some("never".into()), ..tcp(address) });
    let started = Instant::now();
    let found = samples(&[plan(50, 700)], &[check], Duration::from_millis(400)).await;
    assert!(started.elapsed() >= Duration::from_millis(1000), "the last one was waited for");
    assert!(found.len() >= 7, "{found:?}");
    assert!(found.iter().all(|s| !s.outcome.is_good() && s.due < 0.45), "{found:?}");
    let sent = found.iter().filter(|s| s.outcome.is_bad()).count();
    assert_eq!(sent, asked.load(Ordering::SeqCst), "each question that was sent has its sample");
}

#[tokio::test]
async fn many_fast_probes_keep_their_pace() {
    let address = web(Duration::ZERO, "200 OK", "ok").await;
    let probes: Vec<ProbePlan> = (0..8).map(|_| plan(20, 1000)).collect();
    let checks: Vec<Check> = (0..8).map(|_| Check::Http(http(format!("http://{address}/")))).collect();
    let found = samples(&probes, &checks, Duration::from_secs(2)).await;
    let good = found.iter().filter(|s| s.outcome.is_good()).count();
    // 800 slots. A busy machine misses some, and says so; half of them is enough to tell that the cost is low.
    assert!(found.len() >= 790 && good >= 400, "{good} good of {}", found.len());
    let at_once = found.windows(2).filter(|pair| pair[1].due - pair[0].due < 1e-4).count();
    assert_eq!(at_once, 0, "schedules are shifted against each other");
}

#[tokio::test]
async fn refused_connections_say_so() {
    let address = nobody().await;
    assert_eq!(why(Check::Http(http(format!("http://{address}/")))).await, "connection refused");
    assert_eq!(why(Check::Tcp(tcp(address))).await, "connection refused");
    let dns = DnsCheck { name: "a.test".into(), record: "A".into(), server: Some(address.to_string()), expect: None };
    assert_eq!(why(Check::Dns(dns)).await, "connection refused");
}

#[tokio::test]
async fn http_checks_status_body_and_json() {
    let address = web(Duration::ZERO, "503 Down", "no").await;
    let base = http(format!("http://{address}/"));
    assert_eq!(why(Check::Http(HttpCheck { status: Some(200), ..base.clone() })).await, "status 503, not 200");
    assert_eq!(why(Check::Http(base.clone())).await, "status 503, not 2xx");
    is_good(Check::Http(HttpCheck { status: Some(503), contains: Some("no".into()), ..base.clone() })).await;
    let lacks = HttpCheck { status: Some(503), contains: Some("ok".into()), ..base };
    assert_eq!(why(Check::Http(lacks)).await, "body lacks \"ok\"");

    let address = web(Duration::ZERO, "200 OK", r#"{"status": {"ready": true}, "n": 3}"#).await;
    let json = |pointer: &str, value: serde_json::Value| {
        Check::Http(HttpCheck { json: [(pointer.to_owned(), value)].into(), ..http(format!("http://{address}/")) })
    };
    is_good(json("/status/ready", true.into())).await;
    assert_eq!(why(json("/n", 4.into())).await, "body: /n is not 4");
    assert_eq!(why(json("/nothing", 4.into())).await, "body: /nothing is not 4");
}

#[tokio::test]
async fn a_redirect_is_a_status_and_is_not_followed() {
    let address = web(Duration::ZERO, "302 Found\r\nlocation: http://127.0.0.1:1/", "").await;
    assert_eq!(why(Check::Http(http(format!("http://{address}/")))).await, "status 302, not 2xx");
    is_good(Check::Http(HttpCheck { status: Some(302), ..http(format!("http://{address}/")) })).await;
}

#[tokio::test]
async fn a_broken_answer_is_bad_with_a_reason() {
    let closed = serve(|stream| async move { drop(stream) }).await;
    let reason = why(Check::Http(http(format!("http://{closed}/")))).await;
    assert!(["connection closed before an answer", "connection reset"].contains(&reason.as_str()), "{reason}");
    let short = serve(|mut stream| async move {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
    })
    .await;
    let reason = why(Check::Http(http(format!("http://{short}/")))).await;
    assert!(["connection closed", "answer was cut short"].contains(&reason.as_str()), "{reason}");
    let garbage = serve(|mut stream| async move {
        let _ = stream.write_all(b"s3cret garbage\r\n\r\n").await;
        let _ = stream.read(&mut [0; 4096]).await;
    })
    .await;
    assert_eq!(why(Check::Http(http(format!("http://{garbage}/")))).await, "not a valid HTTP answer");
}

#[tokio::test]
async fn secrets_never_get_into_a_sample() {
    let secret = "s3cret";
    let dead = nobody().await;
    let angry = web(Duration::ZERO, "500 s3cret\r\nx-s3cret: s3cret", "s3cret").await;
    let closed = serve(|stream| async move { drop(stream) }).await;
    let slow = web(Duration::from_secs(5), "200 OK", "").await;
    let mut checks = Vec::new();
    for place in [dead.to_string(), angry.to_string(), closed.to_string(), slow.to_string(), "s3cret.invalid".into()] {
        let mut check = http(format!("http://bob:{secret}@{place}/{secret}?token={secret}"));
        check.headers.insert("authorization".into(), format!("Bearer {secret}"));
        check.body = Some(secret.into());
        check.method = Method::Post;
        checks.push(Check::Http(check.clone()));
        check.url = check.url.replace("http:", "https:");
        check.tls.insecure = true;
        checks.push(Check::Http(check));
    }
    checks.push(Check::Exec(exec(&["/bin/sh", "-c", "echo s3cret; echo s3cret >&2; exit 3"])));
    checks.push(Check::Exec(ExecCheck { contains: Some("ok".into()), ..exec(&["/bin/sh", "-c", "echo s3cret"]) }));
    let probes: Vec<ProbePlan> = checks.iter().map(|_| plan(100, 300)).collect();
    let found = samples(&probes, &checks, Duration::from_millis(400)).await;
    let text = format!("{found:?}");
    assert!(found.iter().filter(|s| s.outcome.is_bad()).count() >= checks.len(), "{text}");
    assert!(!text.contains(secret), "{text}");
}

#[tokio::test]
async fn a_check_that_can_never_work_is_refused_without_its_secrets() {
    let mut bad_header = http("http://127.0.0.1:1/".into());
    bad_header.headers.insert("authorization".into(), "s3cret\n".into());
    let mut bad_url = http("http://bob:s3cret@[::1/".into());
    bad_url.body = Some("s3cret".into());
    let missing = Tls { ca: Some("/nonexistent/ca.pem".into()), insecure: false };
    let checks = [
        (Check::Http(bad_header), "`authorization`"),
        (Check::Http(bad_url), "cannot be made"),
        (Check::Http(HttpCheck { tls: missing, ..http("https://127.0.0.1:1/".into()) }), "/nonexistent/ca.pem"),
        (Check::Exec(exec(&["no-such-program-anywhere", "s3cret"])), "there is no program `no-such-program-anywhere`"),
        (
            Check::Exec(ExecCheck { user: Some("no-such-user".into()), ..exec(&["true"]) }),
            "there is no user `no-such-user`",
        ),
        (
            Check::Dns(DnsCheck { name: "a".into(), record: "A".into(), server: Some("x:y".into()), expect: None }),
            "x:y",
        ),
    ];
    for (check, told) in checks {
        let (sink, _from) = async_mpsc::unbounded_channel();
        let error = Runner::start(&[plan(100, 100)], &[check], Instant::now(), sink).expect_err("it cannot work");
        let text = error.to_string();
        assert!(text.contains(told) && text.contains("front/probe") && !text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn tcp_checks_what_is_answered() {
    let address = serve(|mut stream| async move {
        let mut request = [0; 64];
        let n = stream.read(&mut request).await.unwrap_or(0);
        let _ = stream.write_all(if &request[..n] == b"PING\r\n" { b"+PONG\r\n" } else { b"-ERR\r\n" }).await;
    })
    .await;
    is_good(Check::Tcp(tcp(address))).await;
    let ask =
        |send: &str| Check::Tcp(TcpCheck { send: Some(send.into()), expect: Some("+PONG".into()), ..tcp(address) });
    is_good(ask("PING\r\n")).await;
    assert_eq!(why(ask("HELO\r\n")).await, "answer lacks \"+PONG\"");
    let named = format!("localhost:{}", address.port());
    is_good(Check::Tcp(TcpCheck { address: named, send: None, expect: None })).await;
}

/// A DNS server that knows one name, once truncated by UDP.
async fn dns_server() -> SocketAddr {
    use simple_dns::rdata::{A, RData, TXT};
    use simple_dns::{CLASS, Packet, PacketFlag, RCODE, ResourceRecord};
    let answer = |question: &[u8], udp: bool| -> Vec<u8> {
        let question = Packet::parse(question).expect("a question");
        let name = question.questions[0].qname.clone();
        let mut reply = question.clone().into_reply();
        match name.to_string().to_lowercase().as_str() {
            "shop.test" => {
                let a = RData::A(A { address: u32::from(std::net::Ipv4Addr::new(10, 0, 0, 7)) });
                reply.answers.push(ResourceRecord::new(name, CLASS::IN, 5, a));
            }
            "long.test" if udp => reply.set_flags(PacketFlag::TRUNCATION),
            "long.test" => {
                let txt = TXT::new().with_string("k=v w").expect("short");
                reply.answers.push(ResourceRecord::new(name, CLASS::IN, 5, RData::TXT(txt)));
            }
            "empty.test" => {}
            "down.test" => *reply.rcode_mut() = RCODE::ServerFailure,
            _ => *reply.rcode_mut() = RCODE::NameError,
        }
        reply.build_bytes_vec().expect("an answer")
    };
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a port");
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("an address")).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = udp.recv_from(&mut buffer).await {
            let reply = answer(&buffer[..n], true);
            let mut forged = reply.clone();
            forged[0] ^= 0xff;
            let _ = udp.send_to(&forged, from).await;
            let _ = udp.send_to(&reply, from).await;
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let length = stream.read_u16().await.expect("a length");
            let mut question = vec![0; usize::from(length)];
            stream.read_exact(&mut question).await.expect("a question");
            let reply = answer(&question, false);
            let length = u16::try_from(reply.len()).expect("short");
            let _ = stream.write_all(&[&length.to_be_bytes()[..], &reply].concat()).await;
        }
    });
    address
}

#[tokio::test]
async fn dns_checks_answers_errors_and_values() {
    let server = dns_server().await;
    let ask = |name: &str, record: &str, expect: Option<&str>| {
        let server = Some(server.to_string());
        Check::Dns(DnsCheck { name: name.into(), record: record.into(), server, expect: expect.map(str::to_owned) })
    };
    is_good(ask("shop.test", "A", None)).await;
    is_good(ask("Shop.Test.", "A", Some("10.0.0.7"))).await;
    is_good(ask("long.test", "TXT", Some("k=v w"))).await;
    assert_eq!(why(ask("shop.test", "A", Some("10.0.0.8"))).await, "no answer equals \"10.0.0.8\"");
    assert_eq!(why(ask("empty.test", "AAAA", None)).await, "no AAAA record");
    assert_eq!(why(ask("gone.test", "A", None)).await, "NXDOMAIN");
    assert_eq!(why(ask("down.test", "A", None)).await, "SERVFAIL");
}

#[tokio::test]
async fn exec_checks_status_and_output() {
    is_good(Check::Exec(ExecCheck { contains: Some("hello".into()), ..exec(&["echo", "hello"]) })).await;
    is_good(Check::Exec(ExecCheck { exit: 3, ..exec(&["/bin/sh", "-c", "exit 3"]) })).await;
    assert_eq!(why(Check::Exec(exec(&["false"]))).await, "exit status 1, not 0");
    assert_eq!(why(Check::Exec(exec(&["/bin/sh", "-c", "kill -9 $$"]))).await, "killed by signal 9");
    let much = exec(&["/bin/sh", "-c", "head -c 20000000 /dev/zero"]);
    assert_eq!(why(Check::Exec(ExecCheck { contains: Some("x".into()), ..much })).await, "output lacks \"x\"");
}

/// Processes whose command line holds a mark.
fn marked(mark: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(mark)))
        .collect()
}

#[tokio::test]
async fn a_command_that_is_too_slow_is_killed_with_all_its_children() {
    let mark = format!("99{}.25", std::process::id());
    let script = format!("sleep {mark} & sleep {mark}; true");
    let Outcome::Bad(bad) = outcome_of(Check::Exec(exec(&["/bin/sh", "-c", &script])), 300).await else {
        panic!("late")
    };
    assert_eq!(bad.why, "timed out after 300ms");
    let mut left = marked(&mark);
    for _ in 0..50 {
        if left.is_empty() {
            return;
        }
        // An orphan is reaped by its new parent in its own time.
        tokio::time::sleep(Duration::from_millis(20)).await;
        left = marked(&mark);
    }
    panic!("processes {left:?} are left");
}

#[tokio::test]
async fn a_command_runs_as_the_user_that_was_asked_for() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can run commands as another user");
        return;
    }
    let ids = exec(&["/bin/sh", "-c", "echo \"$(id -u):$(id -g):$(id -G)\""]);
    is_good(Check::Exec(ExecCheck { user: Some("4242".into()), contains: Some("4242:4242:4242\n".into()), ..ids }))
        .await;
}

/// A network namespace of our own, removed at the end.
struct Netns(String);

impl Netns {
    fn new() -> Option<Self> {
        let name = format!("fdprobe{}", std::process::id());
        let made = std::process::Command::new("ip").args(["netns", "add", &name]).output();
        if !nix::unistd::geteuid().is_root() || !made.is_ok_and(|o| o.status.success()) {
            eprintln!("SKIPPED: making a network namespace takes root and `ip`");
            return None;
        }
        let this = Self(name);
        let up = ["-n", &this.0, "link", "set", "lo", "up"];
        std::process::Command::new("ip").args(up).status().expect("ip runs");
        Some(this)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[tokio::test]
async fn probes_run_in_the_namespace_that_the_file_names() {
    let Some(netns) = Netns::new() else { return };
    let address = web(Duration::ZERO, "200 OK", "ok").await;
    let inside = std::fs::read_link("/proc/self/ns/net").expect("a namespace");
    let http = Check::Http(http(format!("http://{address}/")));
    let command = exec(&["/bin/sh", "-c", "readlink /proc/self/ns/net"]);
    let here = Check::Exec(ExecCheck { contains: Some(inside.to_string_lossy().into_owned()), ..command });
    let there = |plan: ProbePlan| ProbePlan { netns: Some(netns.0.clone()), ..plan };
    let probes = [plan(200, 1000), there(plan(200, 1000)), plan(200, 1000), there(plan(200, 1000))];
    let checks = [http.clone(), http, here.clone(), here];
    let mut good = [0, 0, 0, 0];
    let mut reasons = Vec::new();
    for sample in samples(&probes, &checks, Duration::from_millis(700)).await {
        match sample.outcome {
            Outcome::Good(_) => good[sample.probe] += 1,
            other => reasons.push((sample.probe, format!("{other:?}"))),
        }
    }
    assert!(good[0] > 0 && good[2] > 0, "the host's own: {good:?} {reasons:?}");
    assert_eq!((good[1], good[3]), (0, 0), "nobody listens in there, and it is another namespace");
    assert!(reasons.iter().any(|(i, why)| *i == 1 && why.contains("connection refused")), "{reasons:?}");
}

#[tokio::test]
async fn a_namespace_that_is_not_there_is_refused_by_name() {
    let (sink, _from) = async_mpsc::unbounded_channel();
    let plan = ProbePlan { netns: Some("no-such-netns".into()), ..plan(100, 100) };
    let check = Check::Tcp(tcp(nobody().await));
    let error = Runner::start(&[plan], &[check], Instant::now(), sink).expect_err("no such namespace");
    assert!(error.to_string().contains("network namespace no-such-netns"), "{error}");
}
