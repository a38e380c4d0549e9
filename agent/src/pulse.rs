//! The sign of life of the engine's thread, which its guardian listens for.
//!
//! Whatever that thread waits for with patience (a unit that is slow to stop, a user's command) calls [`beat`] while it
//! waits: slow is not hung. On any other thread a beat does nothing.

use std::cell::RefCell;

/// What a beat does.
type Beat = Box<dyn FnMut()>;

thread_local! {
    static BEAT: RefCell<Option<Beat>> = const { RefCell::new(None) };
}

/// What [`beat`] does on this thread from now on.
pub(crate) fn set(beat: impl FnMut() + 'static) {
    BEAT.with_borrow_mut(|slot| *slot = Some(Box::new(beat)));
}

/// Lets go of what [`set`] was given.
pub(crate) fn end() {
    BEAT.with_borrow_mut(|slot| *slot = None);
}

/// A sign of life. Cheap: call it as often as is convenient.
pub(crate) fn beat() {
    BEAT.with_borrow_mut(|slot| {
        if let Some(beat) = slot {
            beat();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    #[test]
    fn a_patient_wait_gives_signs_of_life_on_the_thread_that_was_asked_to_and_on_no_other() {
        let beats = Rc::new(Cell::new(0));
        let counted = Rc::clone(&beats);
        set(move || counted.set(counted.get() + 1));
        std::thread::spawn(|| crate::host::wait_until(Duration::from_millis(5), || false)).join().expect("it waits");
        assert_eq!(beats.get(), 0);
        crate::host::wait_until(Duration::from_millis(5), || false);
        assert!(beats.get() > 1, "{}", beats.get());
        end();
        let before = beats.get();
        beat();
        assert_eq!(beats.get(), before);
    }
}
