//! DNS probes: one query, one answer. No cache, no retry: a lost packet is a bad sample.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use firedrill_model::file::DnsCheck;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::io_reason;
use super::names::Names;
use super::tcp::split;

pub(super) struct Asker {
    name: String,
    record: String,
    kind: TYPE,
    server: Option<SocketAddr>,
    names: Names,
    expect: Option<String>,
}

impl Asker {
    pub(super) fn new(check: &DnsCheck, netns: Option<&str>) -> Result<Self, String> {
        let kind = match check.record.as_str() {
            "A" => TYPE::A,
            "AAAA" => TYPE::AAAA,
            "CNAME" => TYPE::CNAME,
            "MX" => TYPE::MX,
            "NS" => TYPE::NS,
            "SRV" => TYPE::SRV,
            "TXT" => TYPE::TXT,
            other => return Err(format!("the record `{other}` is not known; use A, AAAA, CNAME, MX, NS, SRV or TXT")),
        };
        if Name::new(&check.name).is_err() {
            return Err(format!("`{}` is not a DNS name", check.name));
        }
        let server = match &check.server {
            Some(text) => Some(server(text).ok_or_else(|| {
                format!("the server `{text}` is not address:port, such as 10.0.0.53:53 or [fd00::53]:53")
            })?),
            None => None,
        };
        let (name, record, expect) = (check.name.clone(), check.record.clone(), check.expect.clone());
        Ok(Self { name, record, kind, server, names: Names::of(netns), expect })
    }

    pub(super) async fn ask(&self) -> Result<(), String> {
        let server = self.server.or_else(|| self.names.server()).ok_or("no DNS server is configured")?;
        let answers = query(server, &self.name, self.kind).await?;
        match &self.expect {
            None if answers.is_empty() => Err(format!("no {} record", self.record)),
            None => Ok(()),
            Some(expected) if answers.iter().any(|answer| same(answer, expected)) => Ok(()),
            Some(expected) => Err(format!("no answer equals {expected:?}")),
        }
    }
}

/// Answers are compared without the root's dot, and as DNS does without regard to case.
fn same(answer: &str, expected: &str) -> bool {
    let bare = |text: &str| text.trim_end_matches('.').to_ascii_lowercase();
    bare(answer) == bare(expected) || answer.parse::<IpAddr>().ok().is_some_and(|ip| expected.parse() == Ok(ip))
}

fn server(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, 53));
    }
    let (host, port) = split(text)?;
    Some(SocketAddr::new(host.parse().ok()?, port))
}

/// Asks a server once, by UDP and, where the answer does not fit, by TCP. Gives the records of the wanted type in
/// text: `10.0.0.1`, `10 mail.example.org`.
///
/// # Errors
/// In a few words: an I/O error, or the server's own (`SERVFAIL`, `NXDOMAIN`).
pub(super) async fn query(server: SocketAddr, name: &str, kind: TYPE) -> Result<Vec<String>, String> {
    // Unpredictable enough together with the port: the standard library seeds its hashers at random.
    let id = RandomState::new().build_hasher().finish() as u16;
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let asked = Name::new(name.trim_end_matches('.')).map_err(|_| "not a DNS name")?;
    packet.questions.push(Question::new(asked, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    let question = packet.build_bytes_vec().map_err(|_| "not a DNS name")?;

    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let io = |error: std::io::Error| io_reason(&error);
    let socket = UdpSocket::bind((any, 0)).await.map_err(io)?;
    // Connected, so that only this server's answers arrive, and its refusal by ICMP too.
    socket.connect(server).await.map_err(io)?;
    socket.send(&question).await.map_err(io)?;
    let mut buffer = vec![0; 4096];
    loop {
        let n = socket.recv(&mut buffer).await.map_err(io)?;
        match read(&buffer[..n], id, &packet, kind) {
            Read::NotOurs => {}
            Read::Truncated => break,
            Read::Answer(answer) => return answer,
        }
    }
    match read(&by_tcp(server, &question).await.map_err(io)?, id, &packet, kind) {
        Read::Answer(answer) => answer,
        Read::NotOurs | Read::Truncated => Err("the answer is not to this question".into()),
    }
}

async fn by_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

enum Read {
    /// Another's answer, or a late one.
    NotOurs,
    /// It did not fit.
    Truncated,
    Answer(Result<Vec<String>, String>),
}

fn read(bytes: &[u8], id: u16, asked: &Packet<'_>, kind: TYPE) -> Read {
    let Ok(packet) = Packet::parse(bytes) else { return Read::NotOurs };
    let named = |packet: &Packet<'_>| packet.questions.first().map(|q| q.qname.to_string().to_ascii_lowercase());
    // A server that cannot even read the question may leave it out.
    let other = !packet.questions.is_empty() && named(&packet) != named(asked);
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) || other {
        return Read::NotOurs;
    }
    match packet.rcode() {
        RCODE::NoError if packet.has_flags(PacketFlag::TRUNCATION) => Read::Truncated,
        RCODE::NoError => {
            let records = packet.answers.iter().filter(|r| r.rdata.type_code() == kind);
            Read::Answer(Ok(records.filter_map(|r| text(&r.rdata)).collect()))
        }
        RCODE::NameError => Read::Answer(Err("NXDOMAIN".into())),
        RCODE::ServerFailure => Read::Answer(Err("SERVFAIL".into())),
        RCODE::Refused => Read::Answer(Err("REFUSED".into())),
        RCODE::FormatError => Read::Answer(Err("FORMERR".into())),
        RCODE::NotImplemented => Read::Answer(Err("NOTIMP".into())),
        other => Read::Answer(Err(format!("DNS error {other:?}"))),
    }
}

fn text(data: &RData<'_>) -> Option<String> {
    Some(match data {
        RData::A(a) => Ipv4Addr::from(a.address).to_string(),
        RData::AAAA(a) => Ipv6Addr::from(a.address).to_string(),
        RData::CNAME(name) => name.0.to_string(),
        RData::NS(name) => name.0.to_string(),
        RData::MX(mx) => format!("{} {}", mx.preference, mx.exchange),
        RData::SRV(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target),
        RData::TXT(txt) => {
            let part = |(key, value): (&[u8], Option<&[u8]>)| {
                let mut bytes = key.to_vec();
                if let Some(value) = value {
                    bytes.push(b'=');
                    bytes.extend_from_slice(value);
                }
                String::from_utf8_lossy(&bytes).into_owned()
            };
            txt.iter_raw().map(part).collect()
        }
        _ => return None,
    })
}
