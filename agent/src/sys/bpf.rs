//! The shared types, as values of aya's maps.

use aya::Pod;
use firedrill_abi::{Counters, Interface, Line, Rule};

/// A type of `firedrill_abi` as a map value. (The trait and the types are both foreign, hence the wrapper.)
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub struct Shared<T>(pub T);

// SAFETY: `repr(C)` numbers without padding, as the tests of the crate show; any bytes are a value.
unsafe impl Pod for Shared<Rule> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Counters> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Interface> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Line> {}
