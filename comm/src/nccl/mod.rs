//! A thin binding of NCCL, NVIDIA's collectives between GPUs, loaded at run time: one program serves machines with and without it.
//!
//! ```text
//! world         a rank's place among ranks on a GPU each; `group` its operations, `lanes` which communicator carries which
//! streams       the GPU's streams and points of them, which whoever computes there gives
//! overseer      calls that are under way, and since when
//! library       the functions, by name, from whatever version is there
//! communicator  ranks that call together: made with a deadline, cut into smaller ones, aborted
//! watchdog      a thread that aborts communicators once a peer is known to have failed
//! error         what a call returned, and what NCCL last said
//! ```
//!
//! Communicators are non-blocking: each call returns at once and is asked about until it is done or its deadline has passed, so that
//! nobody hangs inside NCCL for a peer that is dead. NCCL wants no call under way in a communicator that is aborted, and takes none
//! before the one before it is enqueued: all calls of one take turns on a lock. A call that never returns keeps it from being
//! aborted; then the rank has to end.
//!
//! Sources: NCCL's documentation ("User Guide", sections on fault tolerance and on `ncclConfig_t`) and `nccl.h`, versions 2.18 to 2.29.

mod communicator;
mod error;
mod group;
mod lanes;
mod library;
mod overseer;
mod streams;
mod watchdog;
mod world;

pub use communicator::{Communicator, Patience, Stream};
pub use error::NcclError;
pub use lanes::communicators_of_messages;
pub use library::{LoadError, Nccl, UniqueId, Version};
pub use streams::{Point, Streams};
pub use watchdog::Watchdog;
pub use world::{NcclOptions, NcclWorld, SCRATCH_BYTES, ShareId};
