//! Reports: pure functions of a run, read back from its log.
