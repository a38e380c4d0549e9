//! Names to addresses: the hosts file, then DNS as `resolv.conf` says.
//!
//! Not by the C library: in a static binary its resolver needs the very C library of the build machine at run time.
//! What it knows beyond files and DNS (mDNS, LDAP) does not work here. A named network namespace has its own files
//! under `/etc/netns/NAME`, as for `ip netns exec`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use simple_dns::TYPE;

use super::dns;

/// What is waited for one server before the next is asked.
const PATIENCE: Duration = Duration::from_secs(1);

/// Rounds through all servers, as many as the C library makes.
const ROUNDS: usize = 2;

/// Where names are looked up.
#[derive(Clone, Debug)]
pub(super) struct Names {
    hosts: PathBuf,
    resolv_conf: PathBuf,
}

/// A name without an address. Kept without a reason: what matters is that users cannot resolve it either.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("could not resolve")]
pub(super) struct NotResolved;

/// What `resolv.conf` says.
#[derive(Debug, Default, PartialEq)]
struct Config {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl Names {
    /// The names of a namespace, given as the file names it; `None` is the host's own.
    pub(super) fn of(netns: Option<&str>) -> Self {
        let file = |name: &str| {
            let own = netns.filter(|n| !n.contains('/')).map(|n| PathBuf::from("/etc/netns").join(n).join(name));
            own.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from("/etc").join(name))
        };
        Self { hosts: file("hosts"), resolv_conf: file("resolv.conf") }
    }

    /// Addresses of a host, IPv4 and IPv6. Addresses in text are taken as they are.
    pub(super) async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, NotResolved> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        // The files are read each time: they change, and they are small.
        let known = in_hosts(&std::fs::read_to_string(&self.hosts).unwrap_or_default(), host);
        if !known.is_empty() {
            return Ok(known);
        }
        // RFC 6761: never asked for, whatever the files say.
        if host.eq_ignore_ascii_case("localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let config = Config::parse(&std::fs::read_to_string(&self.resolv_conf).unwrap_or_default());
        for name in config.candidates(host) {
            let (v4, v6) =
                tokio::join!(ask_all(&config.servers, &name, TYPE::A), ask_all(&config.servers, &name, TYPE::AAAA));
            let found: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Err(NotResolved)
    }

    /// The first DNS server of the system.
    pub(super) fn server(&self) -> Option<SocketAddr> {
        Config::parse(&std::fs::read_to_string(&self.resolv_conf).ok()?).servers.first().copied()
    }
}

async fn ask_all(servers: &[SocketAddr], name: &str, kind: TYPE) -> Vec<IpAddr> {
    for server in std::iter::repeat_n(servers, ROUNDS).flatten() {
        if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, dns::query(*server, name, kind)).await {
            return answer.iter().filter_map(|text| text.parse().ok()).collect();
        }
    }
    Vec::new()
}

/// Addresses that a hosts file gives a name.
fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or(""));
    let hit = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    };
    lines.filter_map(hit).collect()
}

impl Config {
    /// See resolv.conf(5); what is not understood is passed over.
    fn parse(text: &str) -> Self {
        let mut config = Self { ndots: 1, ..Self::default() };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // An IPv6 address may name its interface, which a socket address in text cannot.
                    let address = words.next().and_then(|w| w.split('%').next()).and_then(|w| w.parse().ok());
                    config.servers.extend(address.map(|ip| SocketAddr::new(ip, 53)));
                }
                Some("search" | "domain") => config.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let ndots = words.find_map(|w| w.strip_prefix("ndots:")).and_then(|n| n.parse().ok());
                    config.ndots = ndots.unwrap_or(config.ndots);
                }
                _ => {}
            }
        }
        config.servers.truncate(3);
        config.search.truncate(6);
        config
    }

    /// The names to try for a host, in order.
    fn candidates(&self, host: &str) -> Vec<String> {
        if host.ends_with('.') {
            return vec![host.to_owned()];
        }
        let mut names: Vec<String> = self.search.iter().map(|domain| format!("{host}.{domain}")).collect();
        let dots = host.matches('.').count();
        let place = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(place, host.to_owned());
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_is_read_as_the_system_reads_it() {
        let text = "127.0.0.1 localhost # front\n10.0.0.1\tfront front.shop\n::1 Front\nbad front\n";
        let found = in_hosts(text, "front");
        assert_eq!(found, ["10.0.0.1".parse::<IpAddr>().expect("v4"), "::1".parse().expect("v6")]);
        assert!(in_hosts(text, "fron").is_empty());
    }

    #[test]
    fn resolv_conf_is_read_as_the_system_reads_it() {
        let config =
            Config::parse("# x\nnameserver 10.0.0.53\nnameserver fe80::1%eth0\nsearch a.b c\noptions rotate ndots:2\n");
        assert_eq!(config.servers, ["10.0.0.53:53".parse().expect("v4"), "[fe80::1]:53".parse().expect("v6")]);
        assert_eq!(config.candidates("web.x"), ["web.x.a.b", "web.x.c", "web.x"]);
        assert_eq!(config.candidates("web.x.y")[0], "web.x.y");
        assert_eq!(config.candidates("web."), ["web."]);
    }
}
