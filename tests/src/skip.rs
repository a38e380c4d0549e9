//! How a test says that it could not run. `cargo xtask test` counts these lines; a test that merely returned would
//! count as passed.

/// Ends a test that lacks something which this machine should have (root, a tool), saying what and how to get it.
/// In CI this is a failure.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("SKIPPED: {}", format_args!($($reason)*));
        return;
    }};
}

/// Ends a test that this kernel or this machine can never run, saying why.
#[macro_export]
macro_rules! unsupported {
    ($($reason:tt)*) => {{
        println!("UNSUPPORTED: {}", format_args!($($reason)*));
        return;
    }};
}

/// Ends a test that would harm a host, unless this is a guest.
#[macro_export]
macro_rules! needs_guest {
    () => {
        if !$crate::needs::is_guest() {
            $crate::unsupported!("it would harm this host; cargo xtask vm-test runs it in a guest");
        }
    };
}
