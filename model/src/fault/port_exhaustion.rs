//! `port_exhaustion`: the target finds no free local port, as if all ephemeral ones were taken: connect(2) of a socket
//! without one gives EADDRNOTAVAIL, and bind(2) to port 0 EADDRINUSE (`__inet_hash_connect`, `inet_csk_get_port`). Each call
//! by a draw of its own (Bernoulli).

use super::calls::{self, call_fault};
use super::{FaultKind, PlanError, Reading};
use crate::change::{Call, CallRule, Errno, Plan, Protocol};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::receipt::Measured;

call_fault! {
    /// Parameters of `port_exhaustion`. With `peers` or `peer_ports` it is about connections alone: a bind knows no peer.
    pub struct PortExhaustion {
        /// Only sockets of this protocol: tcp or udp
        #[serde(default)]
        pub protocol: Option<Protocol>,
    }
}

impl PortExhaustion {
    /// The kernel picks a port for each peer, so ports can be used up for one and not for another; a bind knows no peer.
    fn rules(&self) -> Vec<CallRule<Peer>> {
        let rule = |call, error| CallRule {
            calls: vec![call],
            filter: self.filter(self.protocol),
            without_port: true,
            share: self.percent,
            error,
        };
        let mut rules = vec![rule(Call::Connect, Errno::Eaddrnotavail)];
        if self.peers.is_empty() && self.peer_ports.is_empty() {
            rules.push(rule(Call::Bind, Errno::Eaddrinuse));
        }
        rules
    }
}

impl FaultKind for PortExhaustion {
    fn check(&self) -> Result<(), String> {
        self.rules().iter().try_for_each(calls::check)
    }

    fn describe(&self) -> String {
        self.rules().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        calls::plan("port_exhaustion", facts, self.rules())
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        calls::read(measured, self.percent)
    }
}
