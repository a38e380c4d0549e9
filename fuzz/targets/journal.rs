//! Journals, as they are found and as they were damaged: what must hold is in `tests/src/hostile.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| firedrill_tests::hostile::journal(bytes));
