//! TCP probes: does it connect, and does it answer as expected?

use std::net::SocketAddr;

use firedrill_model::file::TcpCheck;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::io_reason;
use super::names::Names;

/// Most bytes of an answer that are looked at.
const ANSWER_LIMIT: usize = 64 * 1024;

pub(super) struct Asker {
    host: String,
    port: u16,
    names: Names,
    send: Option<String>,
    expect: Option<String>,
}

impl Asker {
    pub(super) fn new(check: &TcpCheck, netns: Option<&str>) -> Result<Self, String> {
        let (host, port) = split(&check.address).ok_or_else(|| format!("`{}` is not host:port", check.address))?;
        Ok(Self { host, port, names: Names::of(netns), send: check.send.clone(), expect: check.expect.clone() })
    }

    pub(super) async fn ask(&self) -> Result<(), String> {
        let addresses = self.names.resolve(&self.host).await.map_err(|error| error.to_string())?;
        let mut stream = connect(addresses.iter().map(|ip| SocketAddr::new(*ip, self.port))).await?;
        if let Some(text) = &self.send {
            stream.write_all(text.as_bytes()).await.map_err(|error| io_reason(&error))?;
        }
        let Some(expected) = &self.expect else { return Ok(()) };
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        loop {
            let n = stream.read(&mut part).await.map_err(|error| io_reason(&error))?;
            answer.extend_from_slice(&part[..n]);
            if contains(&answer, expected) {
                return Ok(());
            }
            if n == 0 || answer.len() >= ANSWER_LIMIT {
                return Err(format!("answer lacks {expected:?}"));
            }
        }
    }
}

/// Connects to the first address that lets itself be connected to; the reason is the first one's.
async fn connect(addresses: impl Iterator<Item = SocketAddr>) -> Result<TcpStream, String> {
    let mut why = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                why.get_or_insert_with(|| io_reason(&error));
            }
        }
    }
    Err(why.unwrap_or_else(|| "could not resolve".into()))
}

/// Host and port of `host:port` or `[::1]:port`.
pub(super) fn split(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let port = port.parse().ok()?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// Whether bytes contain a text.
pub(super) fn contains(bytes: &[u8], text: &str) -> bool {
    text.is_empty() || bytes.windows(text.len()).any(|part| part == text.as_bytes())
}
