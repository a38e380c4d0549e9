//! `dns`: the target's queries for certain names get a wrong answer, none, or a late one. Other names are looked up as ever.
//!
//! Queries over UDP are answered in place of their server (RFC 1035, 4.1). Over TCP a name may lie anywhere in a stream, so it is not
//! seen there: connections to the port pass, or are reset when the fault is about every name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::latency::LONGEST;
use super::network::{self, Direction};
use super::{FaultKind, PlanError, Reading};
use crate::change::{Action, Change, DnsAnswer, DnsQueries, Filter, Plan, Protocol, Rule};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::receipt::{Effect, Measured, ReceiptLine};
use crate::units::{NameGlob, Percent, Ports, Span};

const NAME: &str = "dns";
/// Addresses that fit into an answer of 512 bytes behind the longest name (RFC 1035, 4.2.1).
const MOST_ADDRESSES: usize = 8;

/// What becomes of queries over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OverTcp {
    /// Connections to the port are reset
    Reset,
    /// They pass
    Pass,
}

/// Parameters of `dns`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// Names whose queries are acted upon, such as db.example.org; * stands for any part
    pub names: Vec<NameGlob>,
    /// What they are answered: nxdomain, servfail, refused, timeout (nothing), or addresses that are wrong; the truth when left out
    #[serde(default)]
    pub answer: Option<DnsAnswer>,
    /// How much longer an answer takes, such as 2s
    #[serde(default)]
    pub delay: Span,
    /// Share of the queries for these names (100% by default), each by a draw of its own
    #[serde(default = "all")]
    pub probability: Percent,
    /// Port of the servers (53 by default)
    #[serde(default = "domain")]
    pub port: u16,
    /// Only queries to servers with these addresses, networks or hosts; in a file also {component: NAME}
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// Queries over TCP, whose names are not seen: reset (only for names of *, where it is the default of an answer) or pass
    #[serde(default)]
    pub tcp: Option<OverTcp>,
}

fn all() -> Percent {
    Percent::ALL
}

fn domain() -> u16 {
    53
}

impl Dns {
    fn filter(&self, protocol: Protocol) -> Filter<Peer> {
        let peer_ports = vec![Ports { first: self.port, last: self.port }];
        Filter { protocol: Some(protocol), peers: self.peers.clone(), peer_ports, ..Filter::default() }
    }

    fn is_about_every_name(&self) -> bool {
        self.names.iter().any(NameGlob::is_every)
    }

    fn resets(&self) -> bool {
        let otherwise = self.is_about_every_name() && self.answer.is_some();
        self.tcp.map_or(otherwise, |tcp| tcp == OverTcp::Reset)
    }

    fn queries(&self) -> DnsQueries {
        let (names, answer) = (self.names.clone(), self.answer.clone());
        DnsQueries { names, answer, share: self.probability, delay: self.delay }
    }
}

impl FaultKind for Dns {
    fn check(&self) -> Result<(), String> {
        if self.names.is_empty() {
            return Err("`names` says whose queries are meant: name some, or every one with `*`".into());
        }
        if self.answer.is_none() && self.delay.0.is_zero() {
            return Err("there is nothing to do: give an `answer`, a `delay` or both".into());
        }
        if self.answer == Some(DnsAnswer::Timeout) && !self.delay.0.is_zero() {
            return Err("an answer that never comes cannot be late: leave `delay` or `answer` out".into());
        }
        if self.delay.0 > LONGEST.0 {
            return Err(format!("packets are held for at most {LONGEST}: for longer, use `answer: timeout`"));
        }
        if let Some(DnsAnswer::Addresses(addresses)) = &self.answer
            && !(1..=MOST_ADDRESSES).contains(&addresses.len())
        {
            return Err(format!("{} addresses: an answer has one to {MOST_ADDRESSES}", addresses.len()));
        }
        if self.probability.percent() == 0.0 {
            return Err("0% of the queries are none: give a share such as `30%`".into());
        }
        if self.port == 0 {
            return Err("there is no port 0: leave `port` out for 53".into());
        }
        if self.tcp == Some(OverTcp::Reset) && !self.is_about_every_name() {
            return Err("names are not seen over TCP: `tcp: reset` needs `names: [\"*\"]`".into());
        }
        network::check(&self.filter(Protocol::Udp))
    }

    fn describe(&self) -> String {
        let port = if self.port == domain() { String::new() } else { format!(", port {}", self.port) };
        format!("{}{port}", self.queries())
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let action = Action::Answer(self.queries());
        let mut plan = network::plan(NAME, facts, Direction::Egress, self.filter(Protocol::Udp), action)?;
        if self.resets() {
            let flows = (self.probability != Percent::ALL).then_some(self.probability);
            let over_tcp = plan.changes.iter().filter_map(|change| match change {
                Change::Rule { netns, rule } => {
                    let filter = Filter { protocol: Some(Protocol::Tcp), flows, ..rule.filter.clone() };
                    let rule = Rule { filter, action: Action::Reject, ..rule.clone() };
                    Some(Change::Rule { netns: netns.clone(), rule })
                }
                _ => None,
            });
            plan.changes.extend(over_tcp.collect::<Vec<_>>());
            plan.notes.push(format!("connections over TCP to port {} are reset, whatever they ask", self.port));
        } else {
            plan.notes.push(format!("queries over TCP pass: names are not seen in connections to port {}", self.port));
        }
        Ok(plan)
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("queries") };
        let answered = sum.acted.saturating_sub(sum.resets);
        let matched = sum.matched;
        let done = match &self.answer {
            None => format!("{answered} of {matched} queries delayed"),
            Some(DnsAnswer::Timeout) => format!("{} of {matched} queries swallowed", sum.dropped),
            Some(answer) => format!("{answered} of {matched} queries answered {answer}"),
        };
        let done = if sum.resets > 0 { format!("{done}, {} packets over TCP reset", sum.resets) } else { done };
        let (effect, says) = match (matched, sum.acted + sum.dropped) {
            (0, _) => (Effect::ArmedNoTraffic, "in force, but no query came by".to_owned()),
            (matched, _) if sum.bypassed > matched / 2 => {
                (Effect::None, format!("{} of {matched} queries were let through unread", sum.bypassed))
            }
            (matched, 0) => (Effect::ArmedNoTraffic, format!("{matched} queries came by, none of them acted upon")),
            _ => (Effect::Effective, done.clone()),
        };
        let mut lines = vec![ReceiptLine::new("queries", self.queries(), done)];
        if let Some(mean) = sum.applied.mean().filter(|_| !self.delay.0.is_zero()) {
            lines.push(ReceiptLine::new("delay", self.delay, format!("mean {:.2} ms", mean.as_secs_f64() * 1e3)));
        }
        if sum.bypassed > 0 {
            lines.push(ReceiptLine::new("let through unread", 0, sum.bypassed));
        }
        network::reading(&sum, Reading { effect, says, lines })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fault::{Fault, samples};

    fn dns(parameters: Value) -> Fault {
        serde_json::from_value(json!({ "dns": parameters })).expect("a fault")
    }

    fn rules(fault: &Fault) -> (Vec<String>, Vec<String>) {
        let plan = fault.plan(&samples::unit()).expect("planned");
        let rules = plan.changes.iter().filter(|change| matches!(change, Change::Rule { .. }));
        (rules.map(ToString::to_string).collect(), plan.notes)
    }

    #[test]
    fn connections_are_reset_only_where_every_name_is_meant_and_the_plan_tells() {
        let (one, notes) = rules(&dns(json!({ "names": ["db.example.org"], "answer": "nxdomain" })));
        assert_eq!(one.len(), 1);
        assert!(notes.iter().any(|note| note.contains("TCP pass")), "{notes:?}");
        let (every, notes) = rules(&dns(json!({ "names": ["*"], "answer": "nxdomain" })));
        assert!(every.len() == 2 && every[1].contains("tcp"), "{every:?}");
        assert!(notes.iter().any(|note| note.contains("are reset")), "{notes:?}");
        assert_eq!(rules(&dns(json!({ "names": ["*"], "answer": "nxdomain", "tcp": "pass" }))).0.len(), 1);
        assert_eq!(rules(&dns(json!({ "names": ["*"], "delay": "1s" }))).0.len(), 1, "late is not broken");
    }

    #[test]
    fn what_means_nothing_is_refused_with_what_would() {
        for (parameters, says) in [
            (json!({ "names": [], "answer": "nxdomain" }), "`*`"),
            (json!({ "names": ["a"] }), "`answer`"),
            (json!({ "names": ["a"], "answer": "timeout", "delay": "1s" }), "never comes"),
            (json!({ "names": ["a"], "delay": "2m" }), "timeout"),
            (json!({ "names": ["a"], "answer": { "addresses": [] } }), "one to 8"),
            (json!({ "names": ["a"], "delay": "1s", "probability": "0%" }), "30%"),
            (json!({ "names": ["a"], "delay": "1s", "port": 0 }), "53"),
            (json!({ "names": ["a"], "answer": "refused", "tcp": "reset" }), "[\"*\"]"),
        ] {
            let why = dns(parameters.clone()).check().expect_err(&parameters.to_string());
            assert!(why.contains(says), "{parameters}: {why}");
        }
    }
}
