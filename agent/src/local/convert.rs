//! From the model's words to the data plane's.

use std::sync::Arc;
use std::time::Instant;

use firedrill_model::change::{Action, Checksum, Filter, Losses, Per, Protocol, Rule, Way};
use firedrill_model::receipt::{CallCount, DelayHistogram, PacketCount, ProxyCount};

use firedrill_model::units::Percent;

use crate::dataplane::{self, Counters, Direction, Loss, RuleSpec, Shape, Tag};

pub fn direction(way: Way) -> Direction {
    way.into()
}

/// A monotonic instant as the kernel's `bpf_ktime_get_ns` counts it: both read CLOCK_MONOTONIC.
pub fn kernel_time(at: Instant) -> u64 {
    let now = Instant::now();
    let ns = |d: std::time::Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    match at.checked_duration_since(now) {
        Some(ahead) => dataplane::monotonic_ns().saturating_add(ns(ahead)),
        None => dataplane::monotonic_ns().saturating_sub(ns(now - at)),
    }
}

pub fn rule(rule: &Rule, tag: Option<Tag>, expires: Instant) -> RuleSpec {
    let Filter { protocol, peers, local_ports, peer_ports, flows } = &rule.filter;
    RuleSpec {
        ifindex: rule.interface.as_ref().map(|i| i.index),
        not_loopback: rule.interface.is_none() && rule.sockets.is_none(),
        egress: rule.ways.contains(&Way::Egress),
        ingress: rule.ways.contains(&Way::Ingress),
        protocol: match protocol {
            None => dataplane::Protocol::Any,
            Some(Protocol::Tcp) => dataplane::Protocol::Tcp,
            Some(Protocol::Udp) => dataplane::Protocol::Udp,
            Some(Protocol::Icmp) => dataplane::Protocol::Icmp,
        },
        peers: peers.iter().map(|p| dataplane::Cidr { address: p.address, prefix: p.prefix }).collect(),
        local_ports: local_ports.iter().map(|p| p.first..=p.last).collect(),
        peer_ports: peer_ports.iter().map(|p| p.first..=p.last).collect(),
        tag,
        flows: flows.map_or(1.0, Percent::fraction),
        spare_ports: rule.spare.clone(),
        action: action(&rule.action),
        expires_ns: kernel_time(expires),
    }
}

pub fn action(action: &Action) -> dataplane::Action {
    use dataplane::Action::{Drop, Hold};
    match *action {
        Action::Drop(losses) => Drop(match losses {
            Losses::Share(share) => Loss::Independent { probability: share.fraction() },
            Losses::Every(n) => Loss::EveryNth(n),
            Losses::GilbertElliott { worsens, recovers, in_good, in_bad } => Loss::GilbertElliott {
                worsens: worsens.fraction(),
                recovers: recovers.fraction(),
                in_good: in_good.fraction(),
                in_bad: in_bad.fraction(),
            },
        }),
        Action::Delay { delay, jitter, distribution, correlation, reorder } => Hold(Shape::Delay {
            delay: delay.0,
            jitter: jitter.0,
            distribution,
            correlation: correlation.fraction(),
            reorder,
        }),
        Action::Reorder { share, by } => Hold(Shape::Reorder { share: share.fraction(), by: by.0 }),
        Action::Reject => Hold(Shape::Reject),
        Action::Answer(ref queries) => Hold(Shape::Answer(Arc::new(queries.clone()))),
        Action::Duplicate { share } => Hold(Shape::Duplicate { share: share.fraction() }),
        Action::Corrupt { share, bits, checksum } => {
            Hold(Shape::Corrupt { share: share.fraction(), bits, fix: checksum == Checksum::Fixed })
        }
        Action::Limit { rate, burst, queue, per } => {
            Hold(Shape::Limit { rate: rate.0, burst: burst.0, queue: queue.0, per_flow: per == Per::Flow })
        }
    }
}

pub fn count(counters: &Counters) -> PacketCount {
    let delays = &counters.delays;
    let ns = |d: Option<std::time::Duration>| d.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
    let buckets = delays.by_power_of_two();
    PacketCount {
        matched: counters.matched,
        dropped: counters.dropped,
        delayed: counters.diverted,
        bypassed: counters.passed + counters.overflowed,
        bytes: counters.bytes,
        acted: counters.acted,
        resets: counters.resets,
        limited_bytes: counters.limited_bytes,
        limited_ns: counters.limited_ns,
        lost: Vec::new(),
        steps: Vec::new(),
        applied: DelayHistogram {
            count: delays.count(),
            sum_ns: ns(delays.mean()).saturating_mul(delays.count()),
            min_ns: ns(delays.min()),
            max_ns: ns(delays.max()),
            buckets: buckets.iter().enumerate().filter(|(_, n)| **n > 0).map(|(i, n)| (lower_edge(i), *n)).collect(),
        },
    }
}

/// What a proxy did, with what the rule did by which connections come to it.
pub fn proxied(rule: CallCount, proxy: ProxyCount) -> ProxyCount {
    ProxyCount { matched: rule.matched, removed: rule.removed, lost: rule.lost, ..proxy }
}

/// Lower edge of a power-of-two bucket: bucket i holds [2^i, 2^(i+1)) nanoseconds.
fn lower_edge(bucket: usize) -> u64 {
    1_u64.checked_shl(u32::try_from(bucket).unwrap_or(63)).unwrap_or(u64::MAX)
}
