//! `tcp`: new TCP connections of the target are carried by a proxy inside the agent, which delays their bytes, slows them
//! down, passes their end on late, or closes them. Bytes are what applications send: there is no loss, and no packet is touched.
//! Names and meaning of the parameters are those of Toxiproxy's toxics of that name; `rate` is its `bandwidth`.

use super::calls::{self, call_fault};
use super::network::{self, Direction};
use super::{FaultKind, PlanError, Reading, peers};
use crate::change::{Change, Filter, Plan, Protocol, Toxics};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::receipt::{Effect, Measured, ProxyCount, ReceiptLine};
use crate::units::{Percent, Rate, Size, Span};

call_fault! {
    /// Parameters of `tcp`.
    pub struct Tcp {
        /// Hold bytes back so long, such as 50ms
        #[serde(default)]
        pub latency: Option<Span>,
        /// Let bytes pass no faster, such as 1mbit, each connection for itself
        #[serde(default)]
        pub rate: Option<Rate>,
        /// Pass the end of a connection on so much later, such as 2s
        #[serde(default)]
        pub slow_close: Option<Span>,
        /// Close a connection after so many bytes one way, such as 10KiB
        #[serde(default)]
        pub limit_data: Option<Size>,
        /// Which way: egress, ingress or both (default)
        #[serde(default = "network::both")]
        pub direction: Direction,
    }
}

impl Tcp {
    fn connections(&self) -> Filter<Peer> {
        self.filter(Some(Protocol::Tcp))
    }

    fn toxics(&self) -> Toxics {
        Toxics {
            sent: self.direction != Direction::Ingress,
            received: self.direction != Direction::Egress,
            latency: self.latency,
            rate: self.rate,
            slow_close: self.slow_close,
            limit_data: self.limit_data,
        }
    }
}

impl FaultKind for Tcp {
    fn check(&self) -> Result<(), String> {
        const LONGEST: u64 = 60;
        if self.latency.is_none() && self.rate.is_none() && self.slow_close.is_none() && self.limit_data.is_none() {
            return Err("it does nothing: give `latency`, `rate`, `slow_close` or `limit_data`".into());
        }
        let spans = [("latency", self.latency), ("slow_close", self.slow_close)];
        for (name, span) in spans.into_iter().filter_map(|(name, span)| Some((name, span?))) {
            if span.0.is_zero() || span.0.as_secs() > LONGEST {
                return Err(format!("`{name}` is more than 0 and at most {LONGEST}s: {span} is not"));
            }
        }
        if self.rate.is_some_and(|rate| rate.0 < 1000) {
            return Err("`rate` is at least 1kbit".into());
        }
        if self.percent.percent() == 0.0 {
            return Err("0% of the connections are none: give a share such as `30%`, or leave `percent` out".into());
        }
        network::check(&self.connections())
    }

    fn describe(&self) -> String {
        format!("{} of the connections {}, {}", self.percent, self.toxics(), self.connections())
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let (caller, netns) = calls::caller("tcp", facts)?;
        let (filter, mut notes) = peers::looked_up("tcp", facts, self.connections())?;
        notes.push(
            "only connections that are made from now on; what is still open at the end is reset, and so it is if the agent dies"
                .into(),
        );
        let change = Change::Proxy { netns, caller, filter, share: self.percent, toxics: self.toxics() };
        Ok(Plan { changes: vec![change], notes })
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let counts = measured.iter().filter_map(|m| if let Measured::Proxy(count) = m { Some(count) } else { None });
        let Some(count) = counts.reduce(|_, last| last) else { return network::unmeasured("connections") };
        let mut lines = vec![ReceiptLine::new(
            "connections",
            self.percent,
            format!("{} of {} carried", count.connections, count.matched),
        )];
        let mut acted = Vec::new();
        if let Some(latency) = self.latency {
            let mean = count.mean_delay();
            acted.push(mean.is_some_and(|mean| mean.0 >= latency.0));
            let applied = mean.map_or("-".into(), |mean| format!("mean {:.2} ms", mean.0.as_secs_f64() * 1e3));
            lines.push(ReceiptLine::new("latency", latency, applied));
        }
        if let Some(rate) = self.rate {
            acted.push(count.limited_bytes > 0);
            lines.push(ReceiptLine::new("rate", rate, count.rate().map_or("-".into(), |rate| rate.to_string())));
        }
        if let Some(slow_close) = self.slow_close {
            acted.push(count.late_ends > 0);
            lines.push(ReceiptLine::new("slow_close", slow_close, format!("{} ends passed on late", count.late_ends)));
        }
        if let Some(limit) = self.limit_data {
            acted.push(count.cut > 0);
            lines.push(ReceiptLine::new("limit_data", limit, format!("{} connections closed", count.cut)));
        }
        let (effect, says) = verdict(count, self.percent, acted.contains(&true));
        if count.removed {
            let says = format!("not in force to its end: somebody removed our programs; {says}");
            return Reading { effect: Effect::None, says, lines };
        }
        network::until(&count.lost, Reading { effect, says, lines })
    }
}

fn verdict(count: &ProxyCount, share: Percent, acted: bool) -> (Effect, String) {
    let mut says = format!("{} of {} new connections went through", count.connections, count.matched);
    if count.unreached > 0 {
        says.push_str(&format!(", {} of which did not reach their peer", count.unreached));
    }
    if count.reset > 0 {
        says.push_str(&format!(", {} were still open at the end and reset", count.reset));
    }
    match (count.matched, count.connections) {
        (0, _) => (Effect::ArmedNoTraffic, "in force, but no connection was made".into()),
        (matched, 0) if (1.0 - share.fraction()).powf(matched as f64) > 0.05 => {
            (Effect::ArmedNoTraffic, format!("{matched} connections were made, too few for one to be chosen"))
        }
        (_, 0) => (Effect::None, says),
        _ if acted => (Effect::Effective, says),
        _ => (Effect::ArmedNoTraffic, format!("{says}; none gave it anything to act on")),
    }
}
