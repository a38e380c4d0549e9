//! Probes: periodic checks, and what counts as steady.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

use crate::units::{Percent, Span};

/// A periodic check of a component. Exactly one of `http`, `tcp`, `dns` and `exec` is given.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Its name within the component
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// An HTTP request
    #[serde(default)]
    pub http: Option<HttpCheck>,
    /// A TCP connection
    #[serde(default)]
    pub tcp: Option<TcpCheck>,
    /// A DNS query
    #[serde(default)]
    pub dns: Option<DnsCheck>,
    /// A command
    #[serde(default)]
    pub exec: Option<ExecCheck>,
    /// Time from one probe to the next; a slow answer never delays the next
    #[serde(default = "default_every")]
    pub every: Span,
    /// An answer later than this is bad
    #[serde(default = "default_timeout")]
    pub timeout: Span,
    /// What counts as steady
    #[serde(default)]
    pub steady: Steady,
    /// Network namespace in which it runs
    #[serde(default)]
    pub netns: Option<String>,
}

fn default_every() -> Span {
    Span::from_millis(100)
}

fn default_timeout() -> Span {
    Span::from_secs(1)
}

/// The tolerance that a probe must hold before, during and after a fault: at most these.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Steady {
    /// Share of bad answers
    #[serde(default = "default_bad")]
    pub bad: Percent,
    /// Median latency of good answers
    #[serde(default)]
    pub p50: Option<Span>,
    /// 95th percentile of the latency of good answers
    #[serde(default)]
    pub p95: Option<Span>,
    /// 99th percentile of the latency of good answers
    #[serde(default)]
    pub p99: Option<Span>,
}

fn default_bad() -> Percent {
    Percent::new(1.0).unwrap_or_default()
}

impl Default for Steady {
    fn default() -> Self {
        Self { bad: default_bad(), p50: None, p95: None, p99: None }
    }
}

/// The check of a probe. Not serialised anywhere: it may hold secrets.
#[derive(Clone, Debug)]
pub enum Check {
    /// An HTTP request.
    Http(HttpCheck),
    /// A TCP connection.
    Tcp(TcpCheck),
    /// A DNS query.
    Dns(DnsCheck),
    /// A command.
    Exec(ExecCheck),
}

/// An HTTP request, good when every condition holds.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpCheck {
    /// http:// or https://; ${NAME} takes an environment variable
    pub url: String,
    /// Request method
    #[serde(default)]
    pub method: Method,
    /// Request headers; ${NAME} takes an environment variable
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Request body; ${NAME} takes an environment variable
    #[serde(default)]
    pub body: Option<String>,
    /// The status that is good; any 2xx when left out
    #[serde(default)]
    pub status: Option<u16>,
    /// Text that the body must contain
    #[serde(default)]
    pub contains: Option<String>,
    /// JSON pointers (RFC 6901) into the body, and the value each must have
    #[serde(default)]
    pub json: BTreeMap<String, serde_json::Value>,
    /// How TLS is verified
    #[serde(default)]
    pub tls: Tls,
    /// Reuse connections between probes; by default every probe opens its own, as a new user would
    #[serde(default)]
    pub keep_alive: bool,
}

/// HTTP request methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names are HTTP's own")]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Delete,
    Patch,
    Options,
}

/// How TLS is verified.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// File of a PEM certificate to trust besides the system's
    #[serde(default)]
    pub ca: Option<String>,
    /// Accept any certificate; for test systems only
    #[serde(default)]
    pub insecure: bool,
}

/// A TCP connection, good when it opens and, where given, answers as expected.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpCheck {
    /// host:port
    pub address: String,
    /// Text to send after connecting; \r\n and \n as in any YAML double-quoted text
    #[serde(default)]
    pub send: Option<String>,
    /// Text that the answer must contain
    #[serde(default)]
    pub expect: Option<String>,
}

/// A DNS query, good when it is answered without error and, where given, with the expected value.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsCheck {
    /// The name to ask for
    pub name: String,
    /// A (default), AAAA, CNAME, MX, NS, SRV or TXT
    #[serde(default = "default_record")]
    pub record: String,
    /// address:port of the server; the system's resolver when left out
    #[serde(default)]
    pub server: Option<String>,
    /// Text that one of the answers must equal
    #[serde(default)]
    pub expect: Option<String>,
}

fn default_record() -> String {
    "A".into()
}

/// A command, good when its exit status and output are as expected.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecCheck {
    /// Program and arguments; no shell is involved
    pub command: Vec<String>,
    /// Name or number of the user to run as; the user of firedrill when left out
    #[serde(default)]
    pub user: Option<String>,
    /// The exit status that is good
    #[serde(default)]
    pub exit: i32,
    /// Text that its standard output must contain
    #[serde(default)]
    pub contains: Option<String>,
}
