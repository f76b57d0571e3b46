//! The group of one rank, for an axis of size 1. It needs no memory and no peers.

use crate::{Buffer, Channel, Collective, MAX_SCALARS, ReduceOp, Result, Work};

/// A group whose only member is the caller: every operation is the identity and succeeds.
///
/// `send` and `recv` panic, because there is nobody else.
#[derive(Debug, Clone, Copy, Default)]
pub struct SoloGroup;

impl Collective for SoloGroup {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _buf: Buffer, _op: ReduceOp) -> Result<Work> {
        Ok(Work::done())
    }

    fn reduce_scatter(&self, _buf: Buffer, _op: ReduceOp) -> Result<Work> {
        Ok(Work::done())
    }

    fn all_gather(&self, _buf: Buffer) -> Result<Work> {
        Ok(Work::done())
    }

    fn all_to_all(&self, _buf: Buffer) -> Result<Work> {
        Ok(Work::done())
    }

    fn broadcast(&self, _buf: Buffer, root: usize) -> Result<Work> {
        assert_eq!(root, 0, "root {root} of a group of one");
        Ok(Work::done())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn send(&self, _buf: Buffer, to: usize, _channel: Channel) -> Result<Work> {
        panic!("send to {to} in a group of one");
    }

    fn recv(&self, _buf: Buffer, from: usize, _channel: Channel) -> Result<Work> {
        panic!("recv from {from} in a group of one");
    }

    fn all_reduce_scalars(&self, values: &mut [f64], _op: ReduceOp) -> Result<()> {
        assert!(values.len() <= MAX_SCALARS, "{} scalars", values.len());
        Ok(())
    }
}
