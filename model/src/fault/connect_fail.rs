//! `connect_fail`: connect(2) of the target, and sendto(2) of datagrams that name their receiver, give an error at once.
//! Each call by a draw of its own (Bernoulli). Nothing is sent.

use super::calls::{self, call_fault};
use super::{FaultKind, PlanError, Reading};
use crate::change::{Call, CallRule, Errno, Plan, Protocol};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::receipt::Measured;

call_fault! {
    /// Parameters of `connect_fail`.
    pub struct ConnectFail {
        /// The error, by its name; ECONNREFUSED when left out
        #[serde(default)]
        pub error: Errno,
        /// Only sockets of this protocol: tcp or udp
        #[serde(default)]
        pub protocol: Option<Protocol>,
    }
}

impl ConnectFail {
    fn rule(&self) -> CallRule<Peer> {
        CallRule {
            calls: vec![Call::Connect, Call::Send],
            filter: self.filter(self.protocol),
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
