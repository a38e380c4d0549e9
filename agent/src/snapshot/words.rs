//! Attributes of netlink messages as words of a line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::netlink::{attributes, number, text};

/// How the value of an attribute is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A number of one, two, four or eight bytes.
    Number,
    /// An address of the network or link layer.
    Address,
    /// The name of the interface with this index.
    Interface,
    /// A name, or bytes.
    Plain,
    /// Left out: it changes by itself, or stands elsewhere in the line.
    Omitted,
}

/// An attribute: its number, its name in a line, how it is shown.
pub(super) type Known = (u16, &'static str, Form);

/// Names of interfaces by their index.
pub(super) type Names = BTreeMap<u32, String>;

/// All attributes as ` name value`, in the kernel's order; those that are not `known` by their number.
pub(super) fn words(bytes: &[u8], known: &[Known], names: &Names) -> String {
    let mut line = String::new();
    for (kind, value) in attributes(bytes) {
        match known.iter().find(|(number, ..)| *number == kind) {
            Some((_, _, Form::Omitted)) => {}
            Some((_, name, form)) => push(&mut line, name, &show(value, *form, names)),
            None => push(&mut line, &format!("attribute-{kind}"), &plain(value)),
        }
    }
    line
}

/// As [`words`], without those that are not known.
pub(super) fn known_words(bytes: &[u8], known: &[Known], names: &Names) -> String {
    let mut line = String::new();
    for (kind, value) in attributes(bytes) {
        if let Some((_, name, form)) = known.iter().find(|(number, _, form)| *number == kind && *form != Form::Omitted)
        {
            push(&mut line, name, &show(value, *form, names));
        }
    }
    line
}

fn push(line: &mut String, name: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = write!(line, " {name} {value}");
}

fn show(value: &[u8], form: Form, names: &Names) -> String {
    match form {
        Form::Number => match *value {
            [a] => a.to_string(),
            [a, b] => u16::from_ne_bytes([a, b]).to_string(),
            [_, _, _, _] => number(value, 0).to_string(),
            _ => plain(value),
        },
        Form::Address => address(value),
        Form::Interface => interface(number(value, 0), names),
        Form::Plain | Form::Omitted => plain(value),
    }
}

/// An address by its length: IPv4, IPv6, or of the link layer.
pub(super) fn address(value: &[u8]) -> String {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Ipv4Addr::from(v4).to_string();
    }
    if let Ok(v6) = <[u8; 16]>::try_from(value) {
        return Ipv6Addr::from(v6).to_string();
    }
    value.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The name of an interface; its index when it is in another namespace.
pub(super) fn interface(index: u32, names: &Names) -> String {
    names.get(&index).cloned().unwrap_or_else(|| format!("#{index}"))
}

/// A text if it is one that ends with NUL, else its bytes.
pub(super) fn plain(value: &[u8]) -> String {
    match value.split_last() {
        Some((0, text_only)) if text_only.len() > 1 && text_only.iter().all(u8::is_ascii_graphic) => text(value),
        _ => value.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::push_attribute;

    #[test]
    fn attributes_are_words_and_what_changes_by_itself_is_not_among_them() {
        let mut bytes = Vec::new();
        push_attribute(&mut bytes, 1, &[10, 0, 0, 1]);
        push_attribute(&mut bytes, 2, &7_u32.to_ne_bytes());
        push_attribute(&mut bytes, 3, &3_u32.to_ne_bytes());
        push_attribute(&mut bytes, 4, b"fq\0");
        push_attribute(&mut bytes, 5, &[1, 2]);
        push_attribute(&mut bytes, 6, &[9; 8]);
        let known = [
            (1, "to", Form::Address),
            (2, "metric", Form::Number),
            (3, "dev", Form::Interface),
            (6, "age", Form::Omitted),
        ];
        let names = Names::from([(3, "eth0".to_owned())]);
        assert_eq!(words(&bytes, &known, &names), " to 10.0.0.1 metric 7 dev eth0 attribute-4 fq attribute-5 0102");
        assert_eq!(known_words(&bytes, &known, &names), " to 10.0.0.1 metric 7 dev eth0");
    }
}
