//! HTTP probes: status, body and JSON values, over TLS or not.
//!
//! Nothing of the URL, the headers or a body gets into the reasons: they end up in the log.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Once;
use std::time::Duration;

use firedrill_model::file::{HttpCheck, Method};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, Request, Response};

use super::io_reason;
use super::names::{Names, NotResolved};
use super::tcp::contains;

/// Most bytes of a body that are looked at.
const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// Idle connections are kept this long where a probe reuses them.
const IDLE: Duration = Duration::from_secs(60);

pub(super) struct Asker {
    client: Client,
    request: Request,
    status: Option<u16>,
    contains: Option<String>,
    json: Vec<(String, serde_json::Value)>,
}

impl Asker {
    pub(super) fn new(check: &HttpCheck, netns: Option<&str>) -> Result<Self, String> {
        install_tls();
        let mut client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            // A proxy from the environment would be tested instead of the service.
            .no_proxy()
            .dns_resolver(Resolver(Names::of(netns)))
            .pool_idle_timeout(IDLE)
            .user_agent(concat!("firedrill/", env!("CARGO_PKG_VERSION")));
        if !check.keep_alive {
            client = client.pool_max_idle_per_host(0);
        }
        if !check.url.starts_with("https:") {
            // Reading the system's certificates takes time, and there may be none.
            client = client.tls_certs_only([]);
        } else if check.tls.insecure {
            client = client.tls_danger_accept_invalid_certs(true);
        } else if let Some(path) = &check.tls.ca {
            let pem = std::fs::read(path).map_err(|error| format!("the certificate {path} cannot be read: {error}"))?;
            let bundle = Certificate::from_pem_bundle(&pem).ok().filter(|certificates| !certificates.is_empty());
            let certificates = bundle.ok_or_else(|| format!("{path} holds no PEM certificate"))?;
            client = client.tls_certs_merge(certificates);
        }
        let client = client.build().map_err(|error| format!("no HTTP client could be made: {}", bare(error)))?;
        let mut request = client.request(method(check.method), &check.url);
        for (name, value) in &check.headers {
            let header = reqwest::header::HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("`{name}` is not a header's name"))?;
            let mut value = reqwest::header::HeaderValue::from_str(value)
                .map_err(|_| format!("the value of the header `{name}` has characters that headers cannot have"))?;
            value.set_sensitive(true);
            request = request.header(header, value);
        }
        if let Some(body) = &check.body {
            request = request.body(body.clone());
        }
        let request = request.build().map_err(|error| format!("the request cannot be made: {}", bare(error)))?;
        let json = check.json.iter().map(|(pointer, value)| (pointer.clone(), value.clone())).collect();
        Ok(Self { client, request, status: check.status, contains: check.contains.clone(), json })
    }

    pub(super) async fn ask(&self) -> Result<(), String> {
        let request = self.request.try_clone().ok_or("the request cannot be repeated")?;
        let response = self.client.execute(request).await.map_err(reason)?;
        let status = response.status();
        match self.status {
            Some(wanted) if status.as_u16() != wanted => {
                return Err(format!("status {}, not {wanted}", status.as_u16()));
            }
            None if !status.is_success() => return Err(format!("status {}, not 2xx", status.as_u16())),
            _ => {}
        }
        // To the end even when nothing is looked for in it: users want whole pages.
        let body = read(response).await?;
        if let Some(text) = &self.contains
            && !contains(&body, text)
        {
            return Err(format!("body lacks {text:?}"));
        }
        if self.json.is_empty() {
            return Ok(());
        }
        let value: serde_json::Value = serde_json::from_slice(&body).map_err(|_| "body is not JSON")?;
        match self.json.iter().find(|(pointer, wanted)| value.pointer(pointer) != Some(wanted)) {
            Some((pointer, wanted)) => Err(format!("body: {pointer} is not {wanted}")),
            None => Ok(()),
        }
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(reason)? {
        body.extend_from_slice(&part);
        if body.len() > BODY_LIMIT {
            return Err(format!("body is larger than {} MiB", BODY_LIMIT >> 20));
        }
    }
    Ok(body)
}

fn method(method: Method) -> reqwest::Method {
    match method {
        Method::Get => reqwest::Method::GET,
        Method::Head => reqwest::Method::HEAD,
        Method::Post => reqwest::Method::POST,
        Method::Put => reqwest::Method::PUT,
        Method::Delete => reqwest::Method::DELETE,
        Method::Patch => reqwest::Method::PATCH,
        Method::Options => reqwest::Method::OPTIONS,
    }
}

/// The TLS library needs one provider of ciphers for the whole process.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that the process has one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// An error of a set-up step with its causes, without the URL.
fn bare(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// What went wrong in a few words: the kind of error, never its text, which may quote what must not be logged.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut source: Option<&(dyn Error + 'static)> = error.source();
    let mut cut = false;
    while let Some(cause) = source {
        if cause.downcast_ref::<NotResolved>().is_some() {
            return NotResolved.to_string();
        }
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return tls_reason(tls);
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return inner_reason(io);
        }
        cut |= cause.to_string().contains("before message completed");
        source = cause.source();
    }
    let text = if cut {
        "connection closed before an answer"
    } else if error.is_body() || error.is_decode() {
        "answer was cut short"
    } else if error.is_connect() {
        "could not connect"
    } else {
        "not a valid HTTP answer"
    };
    text.into()
}

/// The reason of an I/O error; TLS errors travel inside them, one in another.
fn inner_reason(error: &std::io::Error) -> String {
    let Some(inner) = error.get_ref() else { return io_reason(error) };
    if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
        tls_reason(tls)
    } else if let Some(io) = inner.downcast_ref::<std::io::Error>() {
        inner_reason(io)
    } else {
        io_reason(error)
    }
}

fn tls_reason(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => {
            // Only the kind: some of these quote names at length.
            let kind = format!("{why:?}");
            let kind = kind.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            format!("certificate not accepted ({kind})")
        }
        rustls::Error::AlertReceived(alert) => format!("TLS refused by the server ({alert:?})"),
        _ => "TLS failed".into(),
    }
}

struct Resolver(Names);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.0.clone();
        Box::pin(async move {
            let found = names.resolve(name.as_str()).await?;
            // Port 0 stands for the URL's.
            let addresses: Addrs = Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}
