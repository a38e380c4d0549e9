//! Queueing disciplines, classes and filters of the calling thread's network namespace, by rtnetlink(7).
//!
//! Left out: counters, wherever a discipline or filter hides them, reference counts, and the times of actions.

use std::io;

use nix::sys::socket::SockProtocol;

use super::words::{Form, Known, Names, interface, plain, words};
use crate::netlink::{self, Request, attributes, number, push_attribute, text};

const RTM_GETQDISC: u16 = 38;
const RTM_GETTCLASS: u16 = 42;
const RTM_GETTFILTER: u16 = 46;
/// `tcmsg`.
const TC_LEN: usize = 20;
const TC_H_MIN_INGRESS: u32 = 0xffff_fff2;
const TC_H_MIN_EGRESS: u32 = 0xffff_fff3;

const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const COMMON: &[Known] = &[
    (KIND, "kind", Form::Omitted),
    (OPTIONS, "options", Form::Omitted),
    (3, "stats", Form::Omitted),
    (4, "xstats", Form::Omitted),
    (6, "fcnt", Form::Omitted),
    (7, "stats2", Form::Omitted),
    (9, "pad", Form::Omitted),
    (11, "chain", Form::Number),
    (12, "offload", Form::Number),
    (13, "ingress-block", Form::Number),
    (14, "egress-block", Form::Number),
];

/// Where HTB counts what it did not shape: the last number of its `tc_htb_glob`.
const TCA_HTB_INIT: u16 = 2;
const HTB_COUNTED_FROM: usize = 16;

/// Filters whose options are understood: where their actions are, and which options count.
const FILTERS: [(&str, u16, &[u16]); 5] =
    [("bpf", 1, &[]), ("u32", 7, &[9, 10]), ("matchall", 2, &[4]), ("flower", 3, &[]), ("basic", 3, &[5])];
/// `struct tcf_t`, the times of an action, under one of these numbers.
const ACTION_TIMES: ([u16; 3], usize) = ([1, 2, 6], 32);
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;

fn list(kind: u16, index: u32, parent: u32) -> io::Result<Vec<Vec<u8>>> {
    let mut fixed = Vec::with_capacity(TC_LEN);
    for word in [0, index, 0, parent, 0] {
        fixed.extend(word.to_ne_bytes());
    }
    let mut all = netlink::dump(SockProtocol::NetlinkRoute, Request::new(kind, 0, &fixed))?;
    all.retain(|message| message.len() >= TC_LEN);
    Ok(all)
}

fn value(message: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(&message[TC_LEN..]).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

fn kind_of(message: &[u8]) -> String {
    value(message, KIND).map(text).unwrap_or_default()
}

/// Number of a discipline or class as people write it.
fn handle(number: u32) -> String {
    const ROOT: u32 = u32::MAX;
    if number == ROOT {
        return "root".to_owned();
    }
    format!("{:x}:{:x}", number >> 16, number & 0xffff)
}

/// What is to be seen at the hooks and queues of all links.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub qdiscs: Vec<String>,
    pub classes: Vec<String>,
    pub filters: Vec<String>,
}

pub(super) fn traffic(names: &Names) -> io::Result<Traffic> {
    let mut found = Traffic::default();
    for qdisc in list(RTM_GETQDISC, 0, 0)? {
        let (index, own) = (number(&qdisc, 4), number(&qdisc, 8));
        let (dev, kind) = (interface(index, names), kind_of(&qdisc));
        found.qdiscs.push(line(&dev, &kind, &qdisc, names));
        match kind.as_str() {
            "noqueue" => {}
            "clsact" | "ingress" => {
                filters(&mut found.filters, index, TC_H_MIN_INGRESS, "ingress", names);
                filters(&mut found.filters, index, TC_H_MIN_EGRESS, "egress", names);
            }
            _ => {
                filters(&mut found.filters, index, own, &handle(own), names);
                // One that has no classes says so by an error.
                for class in list(RTM_GETTCLASS, index, 0).unwrap_or_default() {
                    let (id, text) = (number(&class, 8), line(&dev, &kind_of(&class), &class, names));
                    if !found.classes.contains(&text) {
                        filters(&mut found.filters, index, id, &handle(id), names);
                        found.classes.push(text);
                    }
                }
            }
        }
    }
    Ok(found)
}

fn line(dev: &str, kind: &str, message: &[u8], names: &Names) -> String {
    let (own, parent) = (handle(number(message, 8)), handle(number(message, 12)));
    let options = value(message, OPTIONS).map(|o| steady_options(kind, o)).unwrap_or_default();
    let common = words(&message[TC_LEN..], COMMON, names);
    format!("{dev} {kind} {own} parent {parent}{common} options {}", plain(&options))
}

/// The options of a discipline or class, without the counter in one of them.
fn steady_options(kind: &str, options: &[u8]) -> Vec<u8> {
    if kind != "htb" {
        return options.to_vec();
    }
    let mut steady = Vec::new();
    for (kind, value) in attributes(options) {
        let end = if kind == TCA_HTB_INIT { HTB_COUNTED_FROM.min(value.len()) } else { value.len() };
        push_attribute(&mut steady, kind, &value[..end]);
    }
    steady
}

/// Adds the filters at a hook. The error of one that is just going, or can have none, is no filter.
fn filters(lines: &mut Vec<String>, index: u32, parent: u32, place: &str, names: &Names) {
    let dev = interface(index, names);
    for filter in list(RTM_GETTFILTER, index, parent).unwrap_or_default() {
        let (kind, own, info) = (kind_of(&filter), number(&filter, 8), number(&filter, 16));
        let (priority, protocol) = (info >> 16, u16::from_be(info as u16));
        let options = value(&filter, OPTIONS).map(|o| filter_options(&kind, o)).unwrap_or_default();
        let common = words(&filter[TC_LEN..], COMMON, names);
        let line = format!("{dev} {place} {kind} {own:#x} priority {priority} protocol {protocol:#x}{common}{options}");
        lines.push(line);
    }
}

/// Options that do not count; none of a kind that is not understood, which may hide its counters anywhere.
fn filter_options(kind: &str, options: &[u8]) -> String {
    let Some((_, actions_at, counters)) = FILTERS.iter().find(|(known, ..)| *known == kind) else {
        return String::new();
    };
    let mut text = String::new();
    for (option, value) in attributes(options).filter(|(option, _)| !counters.contains(option)) {
        if option == *actions_at {
            attributes(value).for_each(|(_, action)| text.push_str(&action_words(action)));
        } else {
            text.push_str(&format!(" {option} {}", plain(value)));
        }
    }
    text
}

fn action_words(action: &[u8]) -> String {
    let of = |kind| attributes(action).find(|(k, _)| *k == kind).map(|(_, value)| value).unwrap_or_default();
    let (times, length) = ACTION_TIMES;
    let steady = attributes(of(ACTION_OPTIONS)).filter(|(k, v)| !(times.contains(k) && v.len() == length));
    let options: Vec<String> = steady.map(|(kind, value)| format!("{kind} {}", plain(value))).collect();
    format!(" action {} ({})", text(of(ACTION_KIND)), options.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_in_the_options_of_htb_is_left_out() {
        let options = |counter: u8| {
            let mut bytes = Vec::new();
            let mut init = vec![7; 16];
            init.extend([counter; 4]);
            push_attribute(&mut bytes, TCA_HTB_INIT, &init);
            bytes
        };
        assert_eq!(steady_options("htb", &options(1)), steady_options("htb", &options(2)));
        assert_ne!(steady_options("tbf", &options(1)), steady_options("tbf", &options(2)));
    }

    #[test]
    fn the_times_and_counters_of_a_filters_action_are_left_out_and_what_it_does_is_not() {
        let filter = |time: u8, count: u8, index: u8| {
            let (mut inner, mut action, mut list, mut options) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            push_attribute(&mut inner, 2, &[index; 28]);
            push_attribute(&mut inner, 1, &[time; 32]);
            push_attribute(&mut action, ACTION_KIND, b"mirred\0");
            push_attribute(&mut action, ACTION_OPTIONS, &inner);
            push_attribute(&mut list, 1, &action);
            push_attribute(&mut options, 9, &[count; 24]);
            push_attribute(&mut options, 7, &list);
            filter_options("u32", &options)
        };
        assert_eq!(filter(1, 1, 3), filter(2, 2, 3));
        assert_ne!(filter(1, 1, 3), filter(1, 1, 4));
        assert!(filter(1, 1, 3).starts_with(" action mirred (2 0303"));
    }
}
