//! Just enough HTTP/1.1 for the shop: one request a connection, bounded in size and time.
//!
//! A new connection for every request is deliberate: a drill then acts on the very next request, and no pool hides
//! a replica that went away.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Longest request head or answer that is read.
const MOST_BYTES: usize = 16 * 1024;
/// How long a client may take to send its request.
const REQUEST_WITHIN: Duration = Duration::from_secs(2);
/// Requests that are served at the same time; more wait in the kernel's backlog.
const MOST_AT_ONCE: usize = 512;

/// An answer: status and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Plain text.
    pub body: String,
}

impl Reply {
    /// An answer with status 200.
    pub fn ok(body: impl Into<String>) -> Self {
        Self { status: 200, body: body.into() }
    }

    /// An answer with another status.
    pub fn of(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into() }
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// No connection in time.
    #[error("no connection to {0} within {1:?}")]
    ConnectTimeout(SocketAddr, Duration),
    /// No complete answer in time.
    #[error("no answer from {0} within {1:?}")]
    AnswerTimeout(SocketAddr, Duration),
    /// The connection was refused, or broke.
    #[error("{0}: {1}")]
    Io(SocketAddr, std::io::Error),
    /// The answer is not HTTP.
    #[error("{0} did not answer in HTTP")]
    NotHttp(SocketAddr),
}

/// How long one request may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until the connection stands.
    pub connect: Duration,
    /// From then until the whole answer is read.
    pub answer: Duration,
}

/// Serves requests for ever; `handle` gets the path.
pub async fn serve<H, F>(listener: TcpListener, handle: H)
where
    H: Fn(String) -> F + Send + Sync + 'static,
    F: Future<Output = Reply> + Send,
{
    let handle = Arc::new(handle);
    let places = Arc::new(Semaphore::new(MOST_AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: let requests under way give some back.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let handle = Arc::clone(&handle);
        tokio::spawn(async move {
            // A client that went away is no concern of the shop's.
            let _ = answer(stream, &*handle).await;
            drop(place);
        });
    }
}

async fn answer<H, F>(mut stream: TcpStream, handle: &H) -> std::io::Result<()>
where
    H: Fn(String) -> F,
    F: Future<Output = Reply>,
{
    let reply = match timeout(REQUEST_WITHIN, read_path(&mut stream)).await {
        Ok(Ok(Some(path))) => handle(path).await,
        Ok(Ok(None)) => Reply::of(400, "this is not a GET request\n"),
        Ok(Err(error)) => return Err(error),
        Err(_) => Reply::of(408, "the request did not come in time\n"),
    };
    let Reply { status, body } = reply;
    let reason = if status < 400 { "OK" } else { "Error" };
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// The path of a GET request; `None` when it is something else.
async fn read_path(stream: &mut TcpStream) -> std::io::Result<Option<String>> {
    let mut head = Vec::with_capacity(512);
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() > MOST_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    let text = String::from_utf8_lossy(&head);
    let mut words = text.split_ascii_whitespace();
    Ok(match (words.next(), words.next()) {
        (Some("GET"), Some(path)) => Some(path.to_owned()),
        _ => None,
    })
}

/// Asks `address` for `path`.
///
/// # Errors
/// When there is no answer in time, or none that is HTTP. An answer with an error status is an answer.
pub async fn get(address: SocketAddr, path: &str, patience: Patience) -> Result<Reply, GetError> {
    let mut stream = timeout(patience.connect, TcpStream::connect(address))
        .await
        .map_err(|_| GetError::ConnectTimeout(address, patience.connect))?
        .map_err(|error| GetError::Io(address, error))?;
    let exchange = async {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(512);
        stream.take(MOST_BYTES as u64).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    let answer = timeout(patience.answer, exchange)
        .await
        .map_err(|_| GetError::AnswerTimeout(address, patience.answer))?
        .map_err(|error| GetError::Io(address, error))?;
    parse(&answer).ok_or(GetError::NotHttp(address))
}

/// Reads a whole answer. A body that is shorter than announced was cut, and is no answer.
pub fn parse(answer: &[u8]) -> Option<Reply> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    let announced = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")?.parse::<usize>().ok())?;
    (body.len() == announced).then(|| Reply::of(status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Patience = Patience { connect: Duration::from_millis(500), answer: Duration::from_millis(500) };

    #[tokio::test]
    async fn a_path_goes_in_and_an_answer_comes_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(serve(listener, |path| async move { Reply::of(418, format!("you asked for {path}")) }));
        let reply = get(address, "/tea?x=1", SOON).await.expect("an answer");
        assert_eq!(reply, Reply::of(418, "you asked for /tea?x=1"));
    }

    #[tokio::test]
    async fn a_server_that_accepts_and_says_nothing_is_given_up_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let before = std::time::Instant::now();
        let error =
            get(address, "/", Patience { answer: Duration::from_millis(80), ..SOON }).await.expect_err("silent");
        assert!(matches!(error, GetError::AnswerTimeout(..)), "{error}");
        assert!(before.elapsed() < Duration::from_millis(450), "{:?}", before.elapsed());
        drop(listener);
    }

    #[test]
    fn an_answer_that_was_cut_is_no_answer() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(parse(whole), Some(Reply::ok("hello")));
        assert_eq!(parse(&whole[..whole.len() - 1]), None);
        assert_eq!(parse(b"SSH-2.0-OpenSSH"), None);
    }
}
