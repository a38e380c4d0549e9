//! Servers' answers to probes: what must hold is in `tests/src/hostile.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| firedrill_tests::hostile::answer(bytes));
