//! `reset`: established TCP connections of the target are destroyed, at once or again and again. Both ends learn of it:
//! calls of the target on such a socket fail with ECONNABORTED, and its peer, which is sent a reset, sees ECONNRESET
//! (`tcp_abort` of the kernel, by SOCK_DESTROY of sock_diag(7)). Applications may connect again right away. There is no inverse.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FaultKind, PlanError, Reading, network, peers};
use crate::change::{Change, Filter, Plan, Protocol};
use crate::facts::{FactsSnapshot, TargetKind};
use crate::peer::Peer;
use crate::receipt::{Effect, Measured, ReceiptLine};
use crate::units::{Percent, Ports, Span};

/// The shortest time from one round to the next: each one walks the kernel's table of connections.
const SHORTEST: Span = Span::from_millis(100);

/// Parameters of `reset`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reset {
    /// Again and again, with this much time in between, such as 5s; once when left out
    #[serde(default)]
    pub every: Option<Span>,
    /// Only connections with these addresses, networks or hosts; in a file also {component: NAME}
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// Only these ports of the target itself
    #[serde(default)]
    pub local_ports: Vec<Ports>,
    /// Only these ports of the other side
    #[serde(default)]
    pub peer_ports: Vec<Ports>,
    /// Only this share of the connections, chosen by their addresses and ports
    #[serde(default)]
    pub flows: Option<Percent>,
}

impl Reset {
    fn filter(&self) -> Filter<Peer> {
        Filter {
            protocol: Some(Protocol::Tcp),
            peers: self.peers.clone(),
            local_ports: self.local_ports.clone(),
            peer_ports: self.peer_ports.clone(),
            flows: self.flows,
        }
    }
}

impl FaultKind for Reset {
    fn check(&self) -> Result<(), String> {
        if self.every.is_some_and(|every| every < SHORTEST) {
            return Err(format!("`every` is at least {SHORTEST}, for each time all connections are looked at"));
        }
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        let every = self.every.map_or_else(|| "once".to_owned(), |every| format!("every {every}"));
        format!("{every}{}", network::describe(&self.filter()))
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let network = network::of(NAME, facts)?;
        let interface = match facts.target.kind {
            TargetKind::Interface => network.interfaces.first().cloned(),
            _ => None,
        };
        let (filter, mut notes) = peers::looked_up(NAME, facts, self.filter())?;
        notes.push("connections do not come back: applications must connect again".to_owned());
        if let Some(interface) = &interface {
            notes.push(format!("its connections are those with an address of {} as their own", interface.name));
        }
        notes.extend(network::spared(&network.spare_ports));
        let change = Change::Reset {
            netns: network.netns.clone(),
            interface,
            sockets: network::owner(NAME, facts)?,
            filter,
            spare: network.spare_ports.clone(),
            every: self.every,
            allow: facts.target.lifted.clone(),
        };
        Ok(Plan { changes: vec![change], notes })
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(count) = measured.iter().find_map(|m| if let Measured::Reset(r) = m { Some(r) } else { None }) else {
            return network::unmeasured("connections");
        };
        let times = if count.rounds == 1 { String::new() } else { format!(", in {} rounds", count.rounds) };
        let (mut effect, mut says) = match (count.matched, count.destroyed) {
            (0, _) => (Effect::ArmedNoTraffic, format!("there was no connection{times}")),
            (matched, destroyed) if matched == destroyed => {
                (Effect::Effective, format!("all {destroyed} connections destroyed{times}"))
            }
            (matched, destroyed) => {
                (Effect::None, format!("only {destroyed} of {matched} connections destroyed{times}"))
            }
        };
        if let Some(why) = &count.failed {
            effect = Effect::None;
            says = format!("{says}; then it failed: {why}");
        }
        let mut lines =
            vec![ReceiptLine::new("connections", "all", format!("{} of {}", count.destroyed, count.matched))];
        if let Some(every) = self.every {
            lines.push(ReceiptLine::new("rounds", format!("every {every}"), count.rounds));
        }
        if count.spared > 0 {
            lines.push(ReceiptLine::new("protected, and left", "-", count.spared));
        }
        network::until(&count.lost, Reading { effect, says, lines })
    }
}

const NAME: &str = "reset";
