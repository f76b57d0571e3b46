//! The ranks of one machine over one memfd.
//!
//! The launcher makes the memfd and every rank inherits it; there is no name to clash, to leak or to guess, and the
//! kernel frees the memory with the last process. The file holds a control page (`control.rs`) and one region of equal
//! size per rank. The regions are symmetric: ranks allocate in the same order, so a [`Buffer`](crate::Buffer) has the same
//! offset everywhere, and collectives read and write the peers' regions in place.
//!
//! Files: `world` this rank's place, `membership` joining and leaving, `group` and `mailbox` the operations, `kernels` the
//! arithmetic, `mapping` the memory, `control` its layout, `wait` and `futex` how to wait, `watcher` and `process` who is
//! alive, `shared` and `fault` the first fault. `enqueued` shows calls that devices make.

mod control;
mod enqueued;
mod fault;
mod futex;
mod group;
mod kernels;
mod mailbox;
mod mapping;
mod membership;
mod process;
mod shared;
mod wait;
mod watcher;
mod world;

pub(crate) use enqueued::{Collectively, Come, EnqueuedCalls, Lookout};
pub use world::{ShmOptions, ShmWorld};
