//! `connect_fail`: connect(2) of the target, and sendto(2) of datagrams that name their receiver, give an error at once.
//! Each call by a draw of its own (Bernoulli). Nothing is sent.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FaultKind, PlanError, Reading, calls};
use crate::change::{Call, CallRule, Errno, Filter, Plan, Protocol};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::receipt::Measured;
use crate::units::{Percent, Ports};

/// Parameters of `connect_fail`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectFail {
    /// The error, by its name; ECONNREFUSED when left out
    #[serde(default)]
    pub error: Errno,
    /// Share of the calls that fails; all when left out
    #[serde(default = "all")]
    pub percent: Percent,
    /// Only sockets of this protocol: tcp or udp
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// Only calls to these addresses, networks or hosts; in a file also {component: NAME}
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// Only calls to these ports
    #[serde(default)]
    pub peer_ports: Vec<Ports>,
}

fn all() -> Percent {
    Percent::ALL
}

impl ConnectFail {
    fn rule(&self) -> CallRule<Peer> {
        CallRule {
            calls: vec![Call::Connect, Call::Send],
            filter: Filter {
                protocol: self.protocol,
                peers: self.peers.clone(),
                peer_ports: self.peer_ports.clone(),
                ..Filter::default()
            },
            without_port: false,
            share: self.percent,
            error: self.error,
        }
    }
}

impl FaultKind for ConnectFail {
    fn check(&self) -> Result<(), String> {
        calls::check(&self.rule())
    }

    fn describe(&self) -> String {
        self.rule().to_string()
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        calls::plan("connect_fail", facts, vec![self.rule()])
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        calls::read(measured, self.percent)
    }
}
