//! What the allocator keeps.

/// From now on the allocator gives blocks of 1 MiB and more back to the kernel as soon as they are free. By itself the GNU C
/// library does so only until the first such block is freed (mallopt(3), `M_MMAP_THRESHOLD`), and then keeps several.
pub fn give_back_large_blocks() {
    // SAFETY: takes numbers, and may be called at any time by any thread.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20) };
}
