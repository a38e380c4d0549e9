use firedrill_model::units::{Percent, Span};
use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};

use super::{
    super::answer::tests::{V4, V6, assert_sound, frame},
    *,
};

fn queries(names: &[&str], answer: Option<DnsAnswer>) -> DnsQueries {
    let names = names.iter().map(|name| name.parse().unwrap()).collect();
    DnsQueries { names, share: Percent::ALL, answer, delay: Span::default() }
}

/// A datagram with a query, as a resolver writes it: recursion desired, and with an option of EDNS.
fn datagram(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd, 0x01, 0x20, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    let length = (8 + message.len()) as u16;
    [&[0x9c, 0x40, 0, 53][..], &length.to_be_bytes(), &[0, 0], &message].concat()
}

fn under(queries: &DnsQueries, frame: &[u8]) -> Fate {
    fate(frame, queries, &mut StdRng::seed_from_u64(1))
}

/// The message of the answer to a query, all of whose headers are right.
fn message(question: &[u8], queries: &DnsQueries) -> Vec<u8> {
    let answer = under(queries, question).answer.expect("an answer");
    assert_sound(question, &answer);
    let headers = VNET_LEN + 14 + if question[VNET_LEN + 12] == 0x08 { 20 } else { 40 };
    let (udp, message) = answer.frame[headers..].split_at(8);
    assert_eq!(udp[..4], [0, 53, 0x9c, 0x40], "ports");
    assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), 8 + message.len());
    message.into()
}

#[test]
fn an_answer_has_the_id_the_question_as_it_was_written_and_the_code_that_was_asked_for() {
    for addresses in [V4, V6] {
        for (wrong, code) in [(DnsAnswer::NxDomain, 3), (DnsAnswer::ServFail, 2), (DnsAnswer::Refused, 5)] {
            let question = frame(addresses, UDP, &datagram("DB.example.org", A));
            let got = message(&question, &queries(&["db.example.org"], Some(wrong)));
            assert_eq!(got[..4], [0xab, 0xcd, 0x81, 0x80 | code], "recursion was desired, and is there");
            assert_eq!(got[4..12], [0, 1, 0, 0, 0, 0, 0, 0], "one question, nothing else");
            assert_eq!(got[12..], datagram("DB.example.org", A)[20..40], "case and all");
        }
    }
}

#[test]
fn wrong_addresses_are_of_the_family_that_was_asked_for_and_other_types_have_none() {
    let wrong = DnsAnswer::Addresses(vec![
        "10.6.6.6".parse().unwrap(),
        "fd00::66".parse().unwrap(),
        "10.6.6.7".parse().unwrap(),
    ]);
    let rule = queries(&["*"], Some(wrong));
    let answers = |kind| message(&frame(V4, UDP, &datagram("a.b", kind)), &rule);
    let four = answers(A);
    assert_eq!(four[6..8], [0, 2]);
    let question = 12 + 5 + 4;
    let first = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 6, 6, 6];
    assert_eq!(four[question..question + 16], first);
    let six = answers(AAAA);
    assert_eq!((&six[6..8], six.len()), (&[0, 1][..], question + 28));
    let mail = answers(15);
    assert_eq!((mail[3] & 0x0f, &mail[6..8], mail.len()), (0, &[0, 0][..], question));
}

#[test]
fn other_names_other_messages_and_other_protocols_are_not_touched() {
    let rule = queries(&["db.example.org", "*.internal"], Some(DnsAnswer::NxDomain));
    let untouched = |question: &[u8], what: &str| assert!(under(&rule, question).untouched, "{what}");
    for name in ["www.example.org", "example.org", "internal", "db.example.org.x"] {
        untouched(&frame(V4, UDP, &datagram(name, A)), name);
    }
    let matching = datagram("x.y.internal", A);
    assert!(!under(&rule, &frame(V4, UDP, &matching)).untouched);
    let with = |at: usize, byte: u8| {
        let mut changed = matching.clone();
        changed[8 + at] = byte;
        frame(V4, UDP, &changed)
    };
    untouched(&with(2, 0x81), "a response");
    untouched(&with(2, 0x29), "an update");
    untouched(&with(5, 2), "two questions");
    untouched(&with(12, 0xc0), "a pointer in the question");
    untouched(&frame(V4, 6, &[0; 40]), "TCP");
    untouched(&frame(V4, UDP, &matching[..30]), "cut off");
}

#[test]
fn late_queries_wait_and_hold_up_no_others_and_lost_ones_are_dropped() {
    let question = frame(V6, UDP, &datagram("a.b", A));
    let late = DnsQueries { delay: Span::from_secs(2), ..queries(&["*"], None) };
    let expected = Fate { wait_ns: 2_000_000_000, out_of_order: true, ..Fate::default() };
    assert_eq!(under(&late, &question), expected);
    let both = DnsQueries { answer: Some(DnsAnswer::NxDomain), ..late };
    let fate = under(&both, &question);
    assert!(fate.answer.is_some() && fate.wait_ns == 2_000_000_000);
    assert!(under(&queries(&["*"], Some(DnsAnswer::Timeout)), &question).dropped);
}

#[test]
fn a_share_of_the_queries_is_chosen() {
    let rule = DnsQueries { share: Percent::new(30.0).unwrap(), ..queries(&["*"], Some(DnsAnswer::NxDomain)) };
    let question = frame(V4, UDP, &datagram("a.b", A));
    let mut chance = StdRng::seed_from_u64(2);
    let chosen = (0..10_000).filter(|_| !fate(&question, &rule, &mut chance).untouched).count();
    assert!((2800..3200).contains(&chosen), "{chosen}");
}

proptest! {
    #[test]
    fn hostile_messages_get_a_sound_answer_or_none(
        v6 in any::<bool>(),
        message in prop::collection::vec(any::<u8>(), 0..120),
        change in prop::option::of((0_usize..120, any::<u8>())),
        begins_well in any::<bool>(),
    ) {
        let mut transport = datagram("some.name.org", A);
        if !begins_well {
            transport.truncate(8);
            transport.extend(&message);
        }
        let mut question = frame(if v6 { V6 } else { V4 }, UDP, &transport);
        if let Some((at, byte)) = change && let Some(place) = question.get_mut(VNET_LEN + at) {
            *place = byte;
        }
        let wrong = DnsAnswer::Addresses(vec!["10.6.6.6".parse().unwrap(), "fd00::66".parse().unwrap()]);
        if let Some(answer) = under(&queries(&["*"], Some(wrong)), &question).answer {
            assert_sound(&question, &answer);
        }
    }
}
