//! A proxy of the agent's that carries the connections of a target, and what it does to them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::{Rate, Size, Span};

/// What a proxy does to the bytes of each connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Toxics {
    /// On what the target sends.
    pub sent: bool,
    /// On what it receives.
    pub received: bool,
    /// Bytes are held back so long.
    pub latency: Option<Span>,
    /// They pass no faster; bits a second of what applications send.
    pub rate: Option<Rate>,
    /// The end of a connection is passed on so much later.
    pub slow_close: Option<Span>,
    /// A connection is closed after so many bytes one way.
    pub limit_data: Option<Size>,
}

impl fmt::Display for Toxics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.latency.map(|span| format!("{span} later")),
            self.rate.map(|rate| format!("at {rate}")),
            self.slow_close.map(|span| format!("closed {span} later")),
            self.limit_data.map(|size| format!("closed after {size}")),
        ];
        let way = match (self.sent, self.received) {
            (true, false) => "egress",
            (false, true) => "ingress",
            _ => "both ways",
        };
        write!(f, "{}, {way}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}
