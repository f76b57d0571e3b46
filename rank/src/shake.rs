//! A mode that shakes a job to find races: random delays before data moves between ranks, NaN in every buffer whose
//! values nobody may read any more, and a step's results read a step late, as of a device that is still computing them. A job
//! must compute the same bits with and without it (`ENG-2`). Its speeds mean nothing.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tch::Kind;

/// The longest delay: many times what a unit of a small model computes.
const DELAY_MAX: Duration = Duration::from_millis(2);

/// Shakes this rank, or does nothing.
#[derive(Clone, Default)]
pub struct Shake(Option<Rc<Cell<u64>>>);

impl Shake {
    /// `seed`: `None` does nothing. Every rank has delays of its own.
    pub fn new(seed: Option<u64>, rank: usize) -> Self {
        Self(seed.map(|seed| Rc::new(Cell::new(seed ^ (rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))))
    }

    /// Whether a step's results are read a step late.
    pub fn reads_late(&self) -> bool {
        self.0.is_some()
    }

    /// Whether released buffers hold NaN.
    pub fn poisons(&self) -> bool {
        self.0.is_some()
    }

    /// Before data moves.
    pub fn delay(&self) {
        let Some(state) = &self.0 else { return };
        // Xorshift (Marsaglia, 2003); it must not be 0.
        let mut x = state.get().max(1);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        std::thread::sleep(DELAY_MAX.mul_f64((x >> 11) as f64 / (1u64 << 53) as f64));
    }

    /// After the last use of a buffer's values.
    pub fn release(&self, buffer: &mut crate::device::Buffer) {
        if self.0.is_some() {
            let mut values = buffer.range(0..buffer.numel());
            let _ = match buffer.kind() {
                Kind::Int => values.fill_(-1),
                _ => values.fill_(f64::NAN),
            };
        }
    }
}
