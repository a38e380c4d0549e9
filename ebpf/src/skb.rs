//! Access to a packet. Context fields are read with volatile loads: the verifier wants each at its own offset and
//! size, and the optimiser would merge neighbours.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::bpf_skb_load_bytes,
};

/// A packet in a program.
pub type Skb = *mut __sk_buff;

/// Reads a field of the context.
macro_rules! field {
    ($skb:expr, $name:ident) => {
        // SAFETY: the verifier proves that the context is valid; the field has this type there.
        unsafe { core::ptr::read_volatile(&raw const (*$skb).$name) }
    };
}

/// Writes a field of the context.
macro_rules! set_field {
    ($skb:expr, $name:ident, $value:expr) => {
        // SAFETY: the verifier proves that the context is valid and the field writable.
        unsafe { core::ptr::write_volatile(&raw mut (*$skb).$name, $value) }
    };
}

pub(crate) use {field, set_field};

/// The socket that sent the packet, or null.
#[inline(always)]
pub fn socket(skb: Skb) -> *mut bpf_sock {
    // SAFETY: as `field`; the union has one member of this type.
    unsafe { ptr::read_volatile(&raw const (*skb).__bindgen_anon_2.sk) }
}

/// Copies `N` bytes at `offset` out of the packet, wherever they lie.
#[inline(always)]
pub fn load<const N: usize>(skb: Skb, offset: u32) -> Option<[u8; N]> {
    let mut bytes = MaybeUninit::<[u8; N]>::uninit();
    // SAFETY: the helper writes N bytes or fails.
    let failed = unsafe { bpf_skb_load_bytes(skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) };
    // SAFETY: written, since the helper did not fail.
    (failed == 0).then(|| unsafe { bytes.assume_init() })
}

/// Reads one word of the control buffer.
#[inline(always)]
pub fn cb(skb: Skb, word: usize) -> u32 {
    // SAFETY: as `field`; callers pass constants below 5.
    unsafe { ptr::read_volatile((&raw const (*skb).cb).cast::<u32>().add(word)) }
}

/// Writes one word of the control buffer.
#[inline(always)]
pub fn set_cb(skb: Skb, word: usize, value: u32) {
    // SAFETY: as `set_field`; callers pass constants below 5.
    unsafe { ptr::write_volatile((&raw mut (*skb).cb).cast::<u32>().add(word), value) }
}
