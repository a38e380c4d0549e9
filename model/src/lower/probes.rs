//! Probes of a system file: exactly one check each, environment variables expanded, secrets kept out of the plan.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Choices, Site, needs};
use crate::file::{Check, Component, HttpCheck, Method, Place, Probe, Spanned, Steady, System, Tls};
use crate::run::ProbePlan;
use crate::units::Span;

pub(super) fn lower(
    site: &mut Site<'_>,
    system: &System,
    component: &Component,
    probe: &Spanned<Probe>,
    choices: &Choices<'_>,
) -> Option<(ProbePlan, Check)> {
    let place = Place::of(probe);
    let p = &probe.value;
    let mut given = Vec::new();
    given.extend(p.http.clone().map(Check::Http));
    given.extend(p.tcp.clone().map(Check::Tcp));
    given.extend(p.dns.clone().map(Check::Dns));
    given.extend(p.exec.clone().map(Check::Exec));
    let name = format!("{}/{}", component.name.value, p.name.value);
    if given.len() != 1 {
        let help = "for example `http: {url: \"http://127.0.0.1:8080/\"}`".to_owned();
        site.report(place, format!("probe `{name}` needs exactly one of `http`, `tcp`, `dns` or `exec`"), Some(help));
        return None;
    }
    let mut check = given.pop()?;
    if p.every.0.is_zero() {
        site.report(place, format!("probe `{name}` has `every: 0s`"), Some("for example `every: 100ms`".into()));
        return None;
    }
    if p.timeout.0.is_zero() {
        site.report(place, format!("probe `{name}` has `timeout: 0s`"), Some("for example `timeout: 1s`".into()));
        return None;
    }
    let Some(needs) = needs(&p.steady) else {
        let help = "no number of samples proves that nothing ever fails; write `bad: 1%` or `bad: 0.1%`".to_owned();
        site.report(place, format!("probe `{name}` tolerates nothing (`bad: 0%`)"), Some(help));
        return None;
    };
    // Before the variables are expanded: what they hold is secret, and where it stands is not known afterwards.
    let (kind, described) = (kind(&check).to_owned(), describe(&check));
    if let Err(why) = well_formed(&check) {
        site.report(place, format!("probe `{name}`: {why}"), None);
        return None;
    }
    if let Err(why) = expand(&mut check, choices.env) {
        site.report(place, format!("probe `{name}`: {why}"), None);
        return None;
    }
    let netns = p.netns.clone().or_else(|| component.netns.clone()).or_else(|| system.netns.clone());
    let plan = ProbePlan {
        name,
        component: component.name.value.clone(),
        kind,
        describe: described,
        every: p.every,
        timeout: p.timeout,
        steady: p.steady,
        netns,
        needs,
    };
    Some((plan, check))
}

/// The probe that `inject --watch URL` makes: a plain GET, ten times a second.
///
/// # Errors
/// When it is not an http or https URL.
pub fn watch(url: &str, netns: Option<String>) -> Result<(ProbePlan, Check), String> {
    let check = Check::Http(HttpCheck {
        url: url.to_owned(),
        method: Method::Get,
        headers: BTreeMap::new(),
        body: None,
        status: None,
        contains: None,
        json: BTreeMap::new(),
        tls: Tls::default(),
        keep_alive: false,
    });
    well_formed(&check)?;
    let steady = Steady::default();
    let plan = ProbePlan {
        name: "watched/url".into(),
        component: "watched".into(),
        kind: kind(&check).to_owned(),
        describe: describe(&check),
        every: Span::from_millis(100),
        timeout: Span::from_secs(2),
        steady,
        netns,
        needs: needs(&steady).unwrap_or(usize::MAX),
    };
    Ok((plan, check))
}

fn kind(check: &Check) -> &'static str {
    match check {
        Check::Http(_) => "http",
        Check::Tcp(_) => "tcp",
        Check::Dns(_) => "dns",
        Check::Exec(_) => "exec",
    }
}

/// Replaces `${NAME}` where secrets belong: URL, header values and body. Nowhere else, so that a name in a file
/// means the same on every machine.
fn expand(check: &mut Check, env: &dyn Fn(&str) -> Option<String>) -> Result<(), String> {
    if let Check::Http(http) = check {
        http.url = expanded(&http.url, env)?;
        for value in http.headers.values_mut() {
            *value = expanded(value, env)?;
        }
        if let Some(body) = &mut http.body {
            *body = expanded(body, env)?;
        }
    }
    Ok(())
}

fn expanded(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let Some(length) = rest[start..].find('}') else {
            return Err("a `${` has no closing brace".to_owned());
        };
        let name = &rest[start + 2..start + length];
        let value = env(name)
            .ok_or_else(|| format!("the environment variable {name} is not set; set it, or write the value"))?;
        out.push_str(&rest[..start]);
        out.push_str(&value);
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn well_formed(check: &Check) -> Result<(), String> {
    match check {
        Check::Http(http) if !is_url(&http.url) => {
            Err(format!("`{}` is not a URL: write it like `http://127.0.0.1:8080/health`", mask_url(&http.url)))
        }
        Check::Http(http) => match http.json.keys().find(|pointer| !pointer.is_empty() && !pointer.starts_with('/')) {
            Some(pointer) => Err(format!("`{pointer}` is not a JSON pointer: write it like `/status/ready`")),
            None => Ok(()),
        },
        Check::Tcp(tcp) => match tcp.address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
            _ => Err(format!("`{}` is not host:port", tcp.address)),
        },
        Check::Dns(dns) => {
            const RECORDS: &[&str] = &["A", "AAAA", "CNAME", "MX", "NS", "SRV", "TXT"];
            if !RECORDS.contains(&dns.record.as_str()) {
                return Err(format!("`{}` is not one of the records {}", dns.record, RECORDS.join(", ")));
            }
            match &dns.server {
                Some(server) if server.parse::<SocketAddr>().is_err() => {
                    Err(format!("`{server}` is not address:port: write it like `127.0.0.1:53`"))
                }
                _ => Ok(()),
            }
        }
        Check::Exec(exec) if exec.command.is_empty() => Err("`command` is empty".into()),
        Check::Exec(_) => Ok(()),
    }
}

/// Whether a text is an http or https URL with a host and, where given, a port. A variable may stand for any part.
fn is_url(url: &str) -> bool {
    if url.starts_with("${") {
        return true;
    }
    let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // The colons of an IPv6 address stand within brackets.
    let name = host.rfind(']').map_or(0, |end| end + 1);
    let (name, port) = match host[name..].split_once(':') {
        Some((more, port)) => (&host[..name + more.len()], Some(port)),
        None => (host, None),
    };
    let fit = port.is_none_or(|p| p.contains("${") || p.parse::<u16>().is_ok_and(|p| p > 0));
    !name.is_empty() && fit && !url.contains(char::is_whitespace)
}

/// What a check does, without anything that may be secret: no headers, no bodies, no URL passwords or queries.
fn describe(check: &Check) -> String {
    match check {
        Check::Http(http) => {
            let mut text = format!("{} {}", format!("{:?}", http.method).to_uppercase(), mask_url(&http.url));
            text.push_str(&http.status.map_or_else(|| " gives 2xx".to_owned(), |s| format!(" gives {s}")));
            if let Some(part) = &http.contains {
                text.push_str(&format!(" with \"{part}\""));
            }
            for (pointer, value) in &http.json {
                text.push_str(&format!(", {pointer} = {value}"));
            }
            text
        }
        Check::Tcp(tcp) => match &tcp.expect {
            Some(expect) => format!("connect to {}, answer contains {expect:?}", tcp.address),
            None => format!("connect to {}", tcp.address),
        },
        Check::Dns(dns) => {
            let server = dns.server.as_deref().map(|s| format!(" at {s}")).unwrap_or_default();
            format!("{} {}{server}", dns.record, dns.name)
        }
        // Arguments may hold passwords, and often do.
        Check::Exec(exec) => format!("run {}", exec.command.first().map_or("", String::as_str)),
    }
}

/// A URL without its password and without the values of its query, as logs and reports may show it.
pub fn mask_url(url: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, None), |(b, q)| (b, Some(q)));
    let mut masked = match base.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.find('/').map_or((rest, ""), |i| rest.split_at(i));
            match authority.rsplit_once('@') {
                Some((_, host)) => format!("{scheme}://***@{host}{path}"),
                None => format!("{scheme}://{authority}{path}"),
            }
        }
        None => base.to_owned(),
    };
    if let Some(query) = query {
        let keys: Vec<String> = query
            .split('&')
            .map(|pair| pair.split_once('=').map_or("***".to_owned(), |(k, _)| format!("{k}=***")))
            .collect();
        masked.push('?');
        masked.push_str(&keys.join("&"));
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_query_values_of_a_url_are_never_shown() {
        assert_eq!(
            mask_url("https://bob:s3cret@example.org/a?token=t0p&x=1"),
            "https://***@example.org/a?token=***&x=***"
        );
        assert_eq!(mask_url("http://127.0.0.1:8080/"), "http://127.0.0.1:8080/");
        assert_eq!(mask_url("http://h/?s3cret"), "http://h/?***");
    }

    #[test]
    fn a_url_has_a_scheme_a_host_and_a_numeric_port() {
        for good in [
            "http://h",
            "https://h:1/x",
            "http://[::1]:80/",
            "http://[::1]/",
            "http://u:p@h/",
            "${URL}",
            "http://h:${PORT}/",
        ] {
            assert!(is_url(good), "{good}");
        }
        for bad in [
            "h:80",
            "ftp://h",
            "http://",
            "http:///x",
            "http://h:x/",
            "http://h:99999",
            "http://a b/",
            "http://bob:s3/cret@h/",
        ] {
            assert!(!is_url(bad), "{bad}");
        }
    }

    #[test]
    fn environment_variables_are_expanded_and_a_missing_one_is_named() {
        let env = |name: &str| (name == "TOKEN").then(|| "abc".to_owned());
        assert_eq!(expanded("Bearer ${TOKEN}!", &env).expect("set"), "Bearer abc!");
        assert!(expanded("${NOPE}", &env).expect_err("not set").contains("NOPE"));
        assert!(expanded("${TOKEN", &env).is_err());
    }
}
