//! What each rank does, as its peers see it: which operation of which group it entered last, and whether it is still there.
//!
//! A rank that has come to operation `seq` of a group says so before it waits for the others, so whoever is `Busy` there has
//! arrived, and a member that shows anything else has not, or has finished and gone on.

use std::fmt;

use crate::{DType, Op};

/// Whether a rank is in an operation, as published in its flight record.
///
/// ```text
/// Absent ─join─> Idle <─> Busy
///                  └─leave─> Left
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FlightState {
    /// It has not joined.
    Absent,
    /// It is in no operation: it computes, or it is stuck elsewhere.
    Idle,
    /// It is inside the operation shown.
    Busy,
    /// It left in good order.
    Left,
}

/// The latest call of a rank, read without stopping it: fields of two operations may mix. For people and error texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlightEntry {
    /// The process, or 0.
    pub pid: u32,
    /// Whether it is in the operation.
    pub state: FlightState,
    /// The operation it entered last; [`Op::Join`] before the first.
    pub op: Op,
    /// The group of that operation; 0 is the world.
    pub slot: usize,
    /// The number of that operation in its group, or of the message in its pair and channel.
    pub seq: u64,
    /// Element type, where data moves.
    pub dtype: Option<DType>,
    /// Number of elements.
    pub numel: usize,
}

impl fmt::Display for FlightEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FlightEntry { op, seq, .. } = self;
        match self.state {
            FlightState::Absent => f.write_str("has not joined"),
            FlightState::Idle if *op == Op::Join => f.write_str("has joined and called nothing yet"),
            FlightState::Idle => write!(f, "is outside any call, the last was {op} #{seq}"),
            FlightState::Busy => write!(f, "is at {op} #{seq}"),
            FlightState::Left => write!(f, "has left after {op} #{seq}"),
        }
    }
}
