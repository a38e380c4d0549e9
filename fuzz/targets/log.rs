//! Logs of runs, judged and reported: what must hold is in `tests/src/hostile.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| firedrill_tests::hostile::log(bytes));
