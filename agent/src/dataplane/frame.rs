//! A frame as it comes out of the TAP and as it goes back. Pure.
//!
//! ```text
//! read:   virtio_net_hdr (10) | Meta (64) | Ethernet frame
//! write:                        virtio_net_hdr (10) | Ethernet frame
//! ```
//! The offsets in the header count from the start of the data, and must forget the `Meta`.

use firedrill_abi::{MAX_HOLDERS, META_LEN, Meta};

use super::wire::{NEEDS_CSUM, VNET_LEN};

const META: usize = META_LEN as usize;
const ETHERNET_LEN: usize = 14;

/// The largest read: a frame of 64 KiB, a GSO burst included, and the headers.
pub(super) const READ_LEN: usize = VNET_LEN + META + (1 << 16) + 256;

/// What the kernel says about a packet that was read, and the frame to write back; `None` when it is not one that our
/// program sent. The bytes are overwritten.
pub(super) fn decode(read: &mut [u8], nonce: u64) -> Option<(Meta, &mut [u8])> {
    if read.len() < VNET_LEN + META + ETHERNET_LEN {
        return None;
    }
    let meta = meta(&read[VNET_LEN..VNET_LEN + META]);
    if meta.nonce != nonce {
        return None;
    }
    read.copy_within(..VNET_LEN, META);
    let frame = &mut read[META..];
    // flags 0, gso_type 1, hdr_len 2..4, gso_size 4..6, csum_start 6..8, csum_offset 8..10; native byte order.
    shorten(frame, 2);
    if frame[0] & NEEDS_CSUM != 0 {
        shorten(frame, 6);
    }
    Some((meta, frame))
}

/// Takes the length of the `Meta` off a number of the header.
fn shorten(header: &mut [u8], at: usize) {
    let number = u16::from_ne_bytes([header[at], header[at + 1]]);
    let number = number.saturating_sub(META as u16);
    header[at..at + 2].copy_from_slice(&number.to_ne_bytes());
}

fn meta(bytes: &[u8]) -> Meta {
    let long = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    let short = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[at..at + 4]);
        u32::from_ne_bytes(word)
    };
    Meta {
        nonce: long(0),
        taken_ns: long(8),
        flow: short(16),
        mark: short(20),
        priority: short(24),
        held: short(28),
        holders: std::array::from_fn::<_, MAX_HOLDERS, _>(|i| short(32 + 4 * i)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(nonce: u64, vnet: [u8; VNET_LEN], frame: &[u8]) -> Vec<u8> {
        let mut bytes = vnet.to_vec();
        for word in [nonce, 1000] {
            bytes.extend(word.to_ne_bytes());
        }
        for word in [7u32, 0xdead_beef, 6, 2, 65, 66, 0, 0, 0, 0, 0, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(frame);
        bytes
    }

    fn vnet(flags: u8, header_len: u16, checksum_start: u16) -> [u8; VNET_LEN] {
        let mut header = [0; VNET_LEN];
        header[0] = flags;
        header[1] = 1;
        header[2..4].copy_from_slice(&header_len.to_ne_bytes());
        header[4..6].copy_from_slice(&1448u16.to_ne_bytes());
        header[6..8].copy_from_slice(&checksum_start.to_ne_bytes());
        header[8..10].copy_from_slice(&16u16.to_ne_bytes());
        header
    }

    #[test]
    fn a_frame_goes_back_as_it_was_before_the_program_put_its_header_in_front() {
        let frame: Vec<u8> = (0..60).collect();
        let before = vnet(NEEDS_CSUM, 66, 34);
        let mut bytes = read(42, vnet(NEEDS_CSUM, 66 + META_LEN as u16, 34 + META_LEN as u16), &frame);
        let (meta, back) = decode(&mut bytes, 42).unwrap();
        assert_eq!(&back[..VNET_LEN], before);
        assert_eq!(&back[VNET_LEN..], frame);
        assert_eq!((meta.taken_ns, meta.held, &meta.holders[..3]), (1000, 2, &[65, 66, 0][..]));
        assert_eq!((meta.flow, meta.mark, meta.priority), (7, 0xdead_beef, 6));
    }

    #[test]
    fn a_complete_checksum_has_no_offset_to_move() {
        let mut bytes = read(42, vnet(0, 0, 3), &[0; 60]);
        let (_, back) = decode(&mut bytes, 42).unwrap();
        assert_eq!(&back[..VNET_LEN], vnet(0, 0, 3));
    }

    #[test]
    fn what_our_program_did_not_send_is_not_a_packet() {
        assert!(decode(&mut read(1, vnet(0, 0, 0), &[0; 60]), 42).is_none(), "another nonce");
        assert!(decode(&mut read(42, vnet(0, 0, 0), &[0; 13]), 42).is_none(), "too short for a frame");
        assert!(decode(&mut [0; 9], 0).is_none());
    }
}
