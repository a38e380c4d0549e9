//! Judging as laws over made-up runs. The times of a [`Drill`]: baseline from 0, fault from 10 to 30, and recovery
//! until 40 seconds.

mod drill;
mod findings;
mod gates;
mod laws;
mod verdicts;
