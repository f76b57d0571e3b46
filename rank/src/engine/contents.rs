//! The values that a slot holds, or that are on their way into it. Knows nothing of buffers: a slot asks it before anything
//! touches its own.

use comm::{CommError, Work};

/// What a slot holds.
///
/// ```text
///             begin                   arrive
///  Nothing ─────────> Arriving(unit) ─────────> Unit(unit)
///     ^                      │                       │
///     ├─── arrive: failed ───┘                       │
///     └────── the slot is released or vacated ───────┘
/// ```
///
/// Nothing leads from `Arriving` but its gathers: whoever wants the slot for something else waits for them first.
#[derive(Debug)]
pub(super) enum Contents {
    /// Nobody's values.
    Nothing,
    /// A unit's values, of which some are here and some are not. Written by [`Contents::begin`], ended by the gathers.
    Arriving {
        /// Whose.
        unit: usize,
        /// The gathers that bring them, one for each part. The buffer belongs to them.
        gathers: Vec<Work>,
    },
    /// A unit's values, all of them.
    Unit(usize),
}

impl Contents {
    /// Whether all values of `unit` are here.
    pub fn holds(&self, unit: usize) -> bool {
        matches!(self, Self::Unit(held) if *held == unit)
    }

    /// Whether the values of `unit` are here or on their way.
    pub fn is_for(&self, unit: usize) -> bool {
        match self {
            Self::Nothing => false,
            Self::Arriving { unit: held, .. } | Self::Unit(held) => *held == unit,
        }
    }

    /// Panics while values are on their way: the buffer belongs to a gather.
    pub fn assert_settled(&self) {
        if let Self::Arriving { unit, gathers } = self {
            panic!("the slot of unit {unit} is touched while its values arrive: {gathers:?}");
        }
    }

    /// The values of `unit` are on their way, until `gathers` are done.
    ///
    /// # Panics
    /// If the slot is not empty.
    pub fn begin(&mut self, unit: usize, gathers: Vec<Work>) {
        assert!(matches!(self, Self::Nothing), "unit {unit} is gathered into a slot with {self:?}");
        *self = Self::Arriving { unit, gathers };
    }

    /// Waits until nothing is on its way. Blocks.
    ///
    /// # Errors
    /// A gather failed: nothing is here.
    pub fn arrive(&mut self) -> Result<(), CommError> {
        *self = match std::mem::replace(self, Self::Nothing) {
            Self::Arriving { unit, gathers } => {
                // All of them, whatever comes of the first: the buffer is theirs until they are done.
                gathers.into_iter().map(Work::wait).fold(Ok(()), Result::and)?;
                Self::Unit(unit)
            }
            settled => settled,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;

    use comm::Pending;

    use super::*;

    /// A gather that ends when it is waited for, and counts how often that happened.
    #[derive(Debug)]
    struct Gather {
        waits: Rc<Cell<u32>>,
        outcome: Result<(), CommError>,
    }

    impl Pending for Gather {
        fn is_done(&self) -> bool {
            false
        }

        fn wait(self: Box<Self>) -> Result<(), CommError> {
            self.waits.set(self.waits.get() + 1);
            self.outcome
        }
    }

    fn arriving(unit: usize, outcome: Result<(), CommError>) -> (Contents, Rc<Cell<u32>>) {
        let waits = Rc::new(Cell::new(0));
        let mut contents = Contents::Nothing;
        let gather = |outcome| Work::pending(Gather { waits: waits.clone(), outcome });
        contents.begin(unit, vec![gather(Ok(())), gather(outcome)]);
        (contents, waits)
    }

    fn panics(call: impl FnOnce()) -> bool {
        catch_unwind(AssertUnwindSafe(call)).is_err()
    }

    #[test]
    fn values_are_here_once_their_gather_was_waited_for() {
        let (mut contents, waits) = arriving(3, Ok(()));
        assert!(contents.is_for(3) && !contents.is_for(2) && !contents.holds(3));
        assert!(panics(|| contents.assert_settled()), "nobody reads or writes what arrives");
        for _ in 0..2 {
            contents.arrive().unwrap();
            assert!(contents.is_for(3) && contents.holds(3) && !contents.holds(2));
            contents.assert_settled();
        }
        assert_eq!(waits.get(), 2, "each gather was waited for, and once is enough");
    }

    #[test]
    fn a_slot_takes_nothing_before_it_is_empty() {
        let begin = |contents: &mut Contents| contents.begin(4, vec![Work::done()]);
        let (mut contents, waits) = arriving(3, Ok(()));
        assert!(panics(|| begin(&mut contents)));
        contents.arrive().unwrap();
        assert!(panics(|| begin(&mut contents)));
        assert!(contents.holds(3) && waits.get() == 2, "what is there stays");
        contents = Contents::Nothing;
        begin(&mut contents);
        assert!(contents.is_for(4) && !contents.holds(4), "a gather that is done is waited for too");
    }

    #[test]
    fn a_gather_that_failed_leaves_nothing() {
        let aborted = CommError::Aborted { rank: 1, reason: "enough".into() };
        let (mut contents, _) = arriving(3, Err(aborted.clone()));
        assert_eq!(contents.arrive(), Err(aborted));
        assert!(matches!(contents, Contents::Nothing));
        contents.assert_settled();
    }
}
