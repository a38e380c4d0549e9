//! The packets that a delay line holds, by the time at which each is due. Pure: the caller brings the clock.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap},
    mem,
    sync::Arc,
};

use firedrill_abi::Meta;

use super::record::Record;

/// Flows are told apart by so many buckets; two in one bucket share their order, which does no harm.
const FLOW_BUCKETS: usize = 1 << 16;

/// What a held packet costs beside its bytes: allocator, heap entry.
const OVERHEAD_BYTES: usize = 128;

/// A packet that waits.
#[derive(Debug)]
pub(super) struct Held {
    /// When it is due, `CLOCK_MONOTONIC` nanoseconds.
    pub due_ns: u64,
    /// When the kernel took it.
    pub taken_ns: u64,
    /// The rules that hold it.
    pub holders: Vec<Arc<Record>>,
    /// Whether it need not stay behind others of its flow.
    pub out_of_order: bool,
    /// Whether it has to wait for others of the same rate.
    pub queued: bool,
    /// Whether it goes where the packets of this line come from: it is an answer.
    pub back: bool,
    /// Its flow.
    pub flow: u32,
    /// To be restored.
    pub mark: u32,
    /// To be restored.
    pub priority: u32,
    /// What to write to the TAP.
    pub frame: Box<[u8]>,
    sequence: u64,
}

impl Held {
    /// The packet that the kernel described by `meta`, due at once.
    pub(super) fn new(meta: &Meta, holders: Vec<Arc<Record>>, frame: &[u8]) -> Self {
        Self {
            due_ns: meta.taken_ns,
            taken_ns: meta.taken_ns,
            holders,
            out_of_order: false,
            queued: false,
            back: false,
            flow: meta.flow,
            mark: meta.mark,
            priority: meta.priority,
            frame: frame.into(),
            sequence: 0,
        }
    }

    /// An answer to that packet: it has no mark or priority of its own.
    pub(super) fn answer(meta: &Meta, holders: Vec<Arc<Record>>, frame: &[u8]) -> Self {
        Self { mark: 0, priority: 0, back: true, ..Self::new(meta, holders, frame) }
    }

    fn cost(&self) -> usize {
        self.frame.len() + OVERHEAD_BYTES
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Held {}

impl Ord for Held {
    /// The earliest is the greatest: what `BinaryHeap` gives first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due_ns, other.sequence).cmp(&(self.due_ns, self.sequence))
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Packets by due time; those of one flow leave in the order in which they came, whatever their jitter.
#[derive(Debug)]
pub(super) struct Queue {
    heap: BinaryHeap<Held>,
    last_due_ns: Box<[u64]>,
    bytes: usize,
    limit_bytes: usize,
    next_sequence: u64,
    /// How many packets each rule holds here.
    rules: BTreeMap<u32, (Arc<Record>, usize)>,
}

impl Queue {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self {
            heap: BinaryHeap::new(),
            last_due_ns: vec![0; FLOW_BUCKETS].into(),
            bytes: 0,
            limit_bytes,
            next_sequence: 0,
            rules: BTreeMap::new(),
        }
    }

    /// Takes a packet, or gives it back when the queue is full.
    pub(super) fn push(&mut self, mut packet: Held) -> Result<(), Held> {
        if self.bytes + packet.cost() > self.limit_bytes {
            return Err(packet);
        }
        if !packet.out_of_order {
            let last = &mut self.last_due_ns[packet.flow as usize % FLOW_BUCKETS];
            packet.due_ns = packet.due_ns.max(*last);
            *last = packet.due_ns;
        }
        packet.sequence = self.next_sequence;
        self.next_sequence += 1;
        self.bytes += packet.cost();
        self.count_in(&packet);
        self.heap.push(packet);
        Ok(())
    }

    /// When the next packet is due.
    pub(super) fn next_due_ns(&self) -> Option<u64> {
        self.heap.peek().map(|packet| packet.due_ns)
    }

    /// The next packet, when it is due.
    pub(super) fn pop_due(&mut self, now_ns: u64) -> Option<Held> {
        if self.next_due_ns()? > now_ns {
            return None;
        }
        let packet = self.heap.pop()?;
        self.bytes -= packet.cost();
        for holder in &packet.holders {
            if let Some((_, count)) = self.rules.get_mut(&holder.number) {
                *count -= 1;
                if *count == 0 {
                    self.rules.remove(&holder.number);
                }
            }
        }
        Some(packet)
    }

    fn count_in(&mut self, packet: &Held) {
        for holder in &packet.holders {
            self.rules.entry(holder.number).or_insert_with(|| (Arc::clone(holder), 0)).1 += 1;
        }
    }

    /// The rules that hold a packet here.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Record> {
        self.rules.values().map(|(record, _)| record.as_ref())
    }

    /// Takes out the packets of which one of the holders is `wanted`, in the order in which they would have left.
    pub(super) fn release(&mut self, wanted: impl Fn(&Record) -> bool) -> Vec<Held> {
        let all = mem::take(&mut self.heap).into_vec();
        let (mut released, kept): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|packet| packet.holders.iter().any(|holder| wanted(holder)));
        released.sort_unstable_by_key(|packet| (packet.due_ns, packet.sequence));
        self.bytes = kept.iter().map(Held::cost).sum();
        // New packets need only queue behind those of their flow that are still here.
        self.last_due_ns.fill(0);
        self.rules.clear();
        for packet in &kept {
            self.count_in(packet);
            if packet.out_of_order {
                continue;
            }
            let last = &mut self.last_due_ns[packet.flow as usize % FLOW_BUCKETS];
            *last = packet.due_ns.max(*last);
        }
        self.heap = kept.into();
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rules`: the numbers of its holders, as bits.
    fn packet(taken_ns: u64, delay_ns: u64, rules: u32, flow: u32) -> Held {
        let holders = (0..4).filter(|n| rules & (1 << n) != 0).map(|n| Arc::new(Record::new(n, u64::MAX))).collect();
        let mut held = Held::new(&Meta { taken_ns, flow, ..Meta::default() }, holders, &[0; 100]);
        held.due_ns += delay_ns;
        held
    }

    fn drain(queue: &mut Queue) -> Vec<(u64, u32)> {
        std::iter::from_fn(|| queue.pop_due(u64::MAX)).map(|held| (held.taken_ns, held.flow)).collect()
    }

    #[test]
    fn a_packet_leaves_when_it_is_due_and_not_before() {
        let mut queue = Queue::new(10_000);
        queue.push(packet(100, 50, 1, 1)).unwrap();
        assert_eq!(queue.next_due_ns(), Some(150));
        assert!(queue.pop_due(149).is_none());
        assert_eq!(queue.pop_due(150).map(|held| held.taken_ns), Some(100));
        assert_eq!(queue.next_due_ns(), None);
    }

    #[test]
    fn jitter_never_reorders_a_flow_but_flows_overtake_each_other() {
        let mut queue = Queue::new(10_000);
        queue.push(packet(1, 90, 1, 7)).unwrap();
        queue.push(packet(2, 10, 1, 7)).unwrap();
        queue.push(packet(3, 10, 1, 8)).unwrap();
        assert_eq!(drain(&mut queue), [(3, 8), (1, 7), (2, 7)]);
    }

    #[test]
    fn a_full_queue_gives_the_packet_back() {
        let mut queue = Queue::new(2 * (100 + OVERHEAD_BYTES));
        queue.push(packet(1, 9, 1, 1)).unwrap();
        queue.push(packet(2, 9, 1, 1)).unwrap();
        assert_eq!(queue.push(packet(3, 9, 1, 1)).unwrap_err().taken_ns, 3);
        queue.pop_due(u64::MAX).unwrap();
        queue.push(packet(4, 9, 1, 1)).unwrap();
    }

    #[test]
    fn releasing_a_rule_takes_its_packets_in_order_and_leaves_the_others() {
        let mut queue = Queue::new(10_000);
        queue.push(packet(1, 90, 0b01, 1)).unwrap();
        queue.push(packet(2, 10, 0b01, 2)).unwrap();
        queue.push(packet(3, 500, 0b10, 3)).unwrap();
        queue.push(packet(4, 50, 0b11, 1)).unwrap();
        let released: Vec<_> = queue.release(|rule| rule.number == 0).iter().map(|held| held.taken_ns).collect();
        assert_eq!(released, [2, 1, 4]);
        assert_eq!(queue.rules().map(|rule| rule.number).collect::<Vec<_>>(), [1]);
        // Nothing of flow 1 is left to wait for.
        queue.push(packet(5, 1, 0b10, 1)).unwrap();
        assert_eq!(drain(&mut queue), [(5, 1), (3, 3)]);
    }

    #[test]
    fn a_packet_queues_behind_what_its_flow_still_holds_after_a_release() {
        let mut queue = Queue::new(10_000);
        queue.push(packet(1, 500, 0b10, 1)).unwrap();
        queue.push(packet(2, 900, 0b01, 1)).unwrap();
        queue.release(|rule| rule.number == 0);
        queue.push(packet(3, 1, 0b10, 1)).unwrap();
        assert_eq!(drain(&mut queue), [(1, 1), (3, 1)]);
    }
}
