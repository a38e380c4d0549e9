//! Queries of DNS over UDP, and answers in place of their server (RFC 1035, 4.1). Pure.
//!
//! What is not a plain query of one question passes: it is not for us to say what a server makes of it.

use std::net::IpAddr;

use firedrill_model::change::{DnsAnswer, DnsQueries};
use rand::Rng;

use super::{
    answer::{self, Answer, Kind},
    chance,
    shape::Fate,
    wire::{self, Layout, UDP, VNET_LEN},
};

const HEADER: usize = 12;
/// The first two bytes of flags: a response; what kind of query, of which 0 is the plain one; recursion is desired.
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const RECURSION_DESIRED: u8 = 0x01;
/// The second: recursion is available; no checking of signatures, which an answer repeats (RFC 4035, 3.2.2).
const RECURSION_AVAILABLE: u8 = 0x80;
const CHECKING_DISABLED: u8 = 0x10;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
const REFUSED: u8 = 5;
const A: u16 = 1;
const AAAA: u16 = 28;
const IN: u16 = 1;
/// The longest name, in bytes with the lengths of its labels.
const LONGEST_NAME: usize = 255;
/// How long wrong addresses may be remembered, in seconds: they must not outlive the fault.
const TTL: u32 = 0;

/// A query of one question.
struct Query<'a> {
    /// Where its datagram lies in the frame.
    layout: Layout,
    /// Its header.
    header: &'a [u8],
    /// The question as it was written.
    question: &'a [u8],
    /// The labels of its name, joined by dots.
    name: Vec<u8>,
    /// Type and class.
    wanted: (u16, u16),
}

/// What becomes of a frame under such a rule.
pub(super) fn fate(frame: &[u8], queries: &DnsQueries, chance: &mut impl Rng) -> Fate {
    let untouched = Fate { untouched: true, ..Fate::default() };
    let Some(query) = query(frame) else { return untouched };
    if !queries.is_about(&query.name) || !chance::happens(queries.share.fraction(), chance) {
        return untouched;
    }
    // A query that waits holds up none of its flow: many resolvers ask for several names from one port.
    let late = Fate { wait_ns: queries.delay.as_nanos(), out_of_order: true, ..Fate::default() };
    match &queries.answer {
        None => late,
        Some(DnsAnswer::Timeout) => Fate { dropped: true, ..Fate::default() },
        Some(wrong) => Fate { answer: Some(reply(frame, &query, wrong)), ..late },
    }
}

fn query(frame: &[u8]) -> Option<Query<'_>> {
    let ethernet = frame.get(VNET_LEN..)?;
    let layout = wire::layout(ethernet).filter(|layout| layout.protocol == UDP)?;
    let message = &ethernet[layout.payload..layout.end];
    let (header, body) = message.split_at_checked(HEADER)?;
    if header[2] & (RESPONSE | OPCODE) != 0 || header[4..6] != [0, 1] {
        return None;
    }
    let (mut name, mut at) = (Vec::new(), 0);
    loop {
        let length = usize::from(*body.get(at)?);
        at += 1;
        match length {
            0 => break,
            // A pointer, or what nobody uses.
            64.. => return None,
            _ => {
                if !name.is_empty() {
                    name.push(b'.');
                }
                name.extend_from_slice(body.get(at..at + length)?);
                at += length;
            }
        }
        if at > LONGEST_NAME {
            return None;
        }
    }
    let &[kind_high, kind_low, class_high, class_low] = body.get(at..at + 4)? else { return None };
    let wanted = (u16::from_be_bytes([kind_high, kind_low]), u16::from_be_bytes([class_high, class_low]));
    Some(Query { layout, header, question: &body[..at + 4], name, wanted })
}

fn reply(frame: &[u8], query: &Query<'_>, wrong: &DnsAnswer) -> Answer {
    let (code, addresses): (u8, &[IpAddr]) = match wrong {
        DnsAnswer::NxDomain => (NXDOMAIN, &[]),
        DnsAnswer::ServFail | DnsAnswer::Timeout => (SERVFAIL, &[]),
        DnsAnswer::Refused => (REFUSED, &[]),
        DnsAnswer::Addresses(addresses) => (0, addresses),
    };
    let records: Vec<Vec<u8>> = addresses.iter().filter_map(|address| record(*address, query.wanted)).collect();
    let flags = [
        RESPONSE | query.header[2] & RECURSION_DESIRED,
        RECURSION_AVAILABLE | query.header[3] & CHECKING_DISABLED | code,
    ];
    let count = (records.len() as u16).to_be_bytes();
    let message = [&query.header[..2], &flags, &[0, 1], &count, &[0; 4], query.question, &records.concat()].concat();
    let ethernet = &frame[VNET_LEN..];
    let (at, length) = (query.layout.transport, 8 + message.len());
    let mut answer = answer::envelope(ethernet, query.layout.v6, UDP, length);
    answer.extend_from_slice(&ethernet[at + 2..at + 4]);
    answer.extend_from_slice(&ethernet[at..at + 2]);
    answer.extend_from_slice(&(length as u16).to_be_bytes());
    answer.extend_from_slice(&[0, 0]);
    answer.extend_from_slice(&message);
    wire::complete(&mut answer[VNET_LEN..]);
    Answer { kind: Kind::Dns, frame: answer.into() }
}

/// The record of an address, if it is of the type that is wanted. Its name is that of the question, which begins at byte 12.
fn record(address: IpAddr, wanted: (u16, u16)) -> Option<Vec<u8>> {
    let (kind, data) = match address {
        IpAddr::V4(v4) => (A, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AAAA, v6.octets().to_vec()),
    };
    let mut record = vec![0xc0, HEADER as u8];
    for number in [kind, IN] {
        record.extend(number.to_be_bytes());
    }
    record.extend(TTL.to_be_bytes());
    record.extend((data.len() as u16).to_be_bytes());
    record.extend(data);
    (wanted == (kind, IN)).then_some(record)
}

#[cfg(test)]
mod tests;
