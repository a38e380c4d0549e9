//! Rules on calls as the kernel reads them. Pure.

use firedrill_abi::{CALL_BIND, CALL_CONNECT, CALL_SEND, CallRule as Encoded};
use firedrill_model::change::{Call, CallRule, Errno, Filter, Protocol};
use firedrill_model::units::Percent;
use nix::libc;

use crate::dataplane::{Cidr, RuleError, encoding};

/// A rule as the kernel reads it.
///
/// # Errors
/// It has too many conditions or impossible ones.
pub(super) fn encode(rule: &CallRule, expires_ns: u64) -> Result<Encoded, RuleError> {
    Ok(Encoded {
        errno: number(rule.error).cast_unsigned(),
        calls: rule.calls.iter().fold(0, |bits, call| bits | bit(*call)),
        without_port: u32::from(rule.without_port),
        ..conditions(&rule.filter, rule.share, expires_ns)?
    })
}

/// A rule that has connections go elsewhere, which the caller fills in.
///
/// # Errors
/// As [`encode`].
pub(super) fn detour(filter: &Filter, share: Percent, expires_ns: u64) -> Result<Encoded, RuleError> {
    Ok(Encoded { calls: CALL_CONNECT, ..conditions(filter, share, expires_ns)? })
}

fn conditions(filter: &Filter, share: Percent, expires_ns: u64) -> Result<Encoded, RuleError> {
    let peers: Vec<Cidr> = filter.peers.iter().map(|p| Cidr { address: p.address, prefix: p.prefix }).collect();
    let ports: Vec<_> = filter.peer_ports.iter().map(|p| p.first..=p.last).collect();
    Ok(Encoded {
        expires_ns,
        threshold: encoding::threshold(share.fraction())?,
        protocol: match filter.protocol {
            None => 0,
            Some(Protocol::Icmp) => 1,
            Some(Protocol::Tcp) => 6,
            Some(Protocol::Udp) => 17,
        },
        peers: encoding::networks(&peers)?,
        peer_ports: encoding::ports(&ports)?,
        ..Encoded::default()
    })
}

fn bit(call: Call) -> u32 {
    match call {
        Call::Connect => CALL_CONNECT,
        Call::Send => CALL_SEND,
        Call::Bind => CALL_BIND,
    }
}

fn number(error: Errno) -> i32 {
    match error {
        Errno::Econnrefused => libc::ECONNREFUSED,
        Errno::Etimedout => libc::ETIMEDOUT,
        Errno::Enetunreach => libc::ENETUNREACH,
        Errno::Ehostunreach => libc::EHOSTUNREACH,
        Errno::Enetdown => libc::ENETDOWN,
        Errno::Eacces => libc::EACCES,
        Errno::Eperm => libc::EPERM,
        Errno::Eaddrnotavail => libc::EADDRNOTAVAIL,
        Errno::Eaddrinuse => libc::EADDRINUSE,
        Errno::Enobufs => libc::ENOBUFS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_has_its_calls_as_bits_its_error_as_a_number_and_its_share_as_a_threshold() {
        let rule = CallRule {
            calls: vec![Call::Connect, Call::Bind],
            filter: Filter { protocol: Some(Protocol::Tcp), ..Filter::default() },
            without_port: true,
            share: Percent::ALL,
            error: Errno::Etimedout,
        };
        let encoded = encode(&rule, 7).unwrap();
        assert_eq!((encoded.calls, encoded.protocol, encoded.without_port), (CALL_CONNECT | CALL_BIND, 6, 1));
        assert_eq!((encoded.errno, encoded.threshold, encoded.expires_ns), (110, firedrill_abi::ALWAYS, 7));
        let half = CallRule { share: "50%".parse().unwrap(), ..rule };
        assert_eq!(encode(&half, 7).unwrap().threshold, 1 << 31);
    }
}
