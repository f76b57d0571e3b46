//! Errors between ranks. A rank in an error is always a rank of the world, not an index in a group.

use std::time::Duration;

use crate::{Op, OpDesc};

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, CommError>;

/// The error of a failed call.
///
/// Those up to `GroupMismatch` are *faults*: the first one poisons the world, every rank that waits is woken with it,
/// and every later call on any rank returns it. The others concern the caller alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// A process ended without leaving the world.
    #[error("rank {rank} died (last seen in {op} #{seq})")]
    PeerDied {
        /// The rank that died.
        rank: usize,
        /// The operation it entered last.
        op: Op,
        /// The number of that operation in its group.
        seq: u64,
    },
    /// A rank left the world in good order while another still needed it: they disagree on the number of calls.
    #[error("rank {rank} left the job, but {op} #{seq} needs it")]
    PeerLeft {
        /// The rank that left.
        rank: usize,
        /// The operation that waited for it.
        op: Op,
        /// The number of that operation in its group.
        seq: u64,
    },
    /// A rank gave up and said why.
    #[error("rank {rank} aborted: {reason}")]
    Aborted {
        /// The rank that gave up.
        rank: usize,
        /// Its reason, cut to 256 bytes.
        reason: String,
    },
    /// The deadline passed while ranks were missing.
    #[error("{op} #{seq} timed out after {timeout:?}, missing ranks {missing:?}: {last_seen}")]
    Timeout {
        /// The operation that waited.
        op: Op,
        /// Its number in its group.
        seq: u64,
        /// The ranks that had not arrived.
        missing: Vec<usize>,
        /// How long the wait was allowed to take.
        timeout: Duration,
        /// The last known calls of the missing ranks, in words, cut to 256 bytes.
        last_seen: String,
    },
    /// Members of a group made different calls.
    #[error("ranks disagree: rank {rank} called {theirs}, rank {reference_rank} called {reference}")]
    Mismatch {
        /// The rank that differs from most others; of two, the higher one.
        rank: usize,
        /// Its call.
        theirs: Box<OpDesc>,
        /// A rank of the majority.
        reference_rank: usize,
        /// The majority's call.
        reference: Box<OpDesc>,
    },
    /// Ranks joined with different options.
    #[error("ranks disagree on {setting}: rank {rank} has {theirs}, rank {reference_rank} has {reference}")]
    WorldMismatch {
        /// The option.
        setting: Setting,
        /// The rank that came later.
        rank: usize,
        /// Its value.
        theirs: u64,
        /// The rank that came first.
        reference_rank: usize,
        /// The value of the first.
        reference: u64,
    },
    /// A group slot was asked for with two different lists of ranks.
    #[error("rank {rank} asked for group {slot} of ranks {theirs:?}, but it has ranks {members:?}")]
    GroupMismatch {
        /// The slot.
        slot: usize,
        /// The rank that asked.
        rank: usize,
        /// Its list.
        theirs: Vec<usize>,
        /// The list that came first.
        members: Vec<usize>,
    },
    /// A group's slot or list cannot be.
    #[error("group {slot} of ranks {ranks:?} in a world of {world_size}, asked for by rank {rank}: {rule}")]
    InvalidGroup {
        /// The slot.
        slot: usize,
        /// The list.
        ranks: Vec<usize>,
        /// The rank that asked.
        rank: usize,
        /// Ranks in the world.
        world_size: usize,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// `rank` or `world_size` cannot be.
    #[error(
        "rank {rank} of world_size {world_size}: rank must be below world_size, and world_size 1 to {max_world_size}"
    )]
    InvalidWorld {
        /// The rank given.
        rank: usize,
        /// The size given.
        world_size: usize,
        /// The largest size there is room for.
        max_world_size: usize,
    },
    /// Another process took this rank: the launcher gave one rank to two.
    #[error("rank {rank} is already taken by process {pid}")]
    RankTaken {
        /// The rank's number.
        rank: usize,
        /// The process that has it.
        pid: u32,
    },
    /// The arena is too small for the buffers asked of it.
    #[error("arena: {needed_bytes} bytes needed, {available_bytes} left of {arena_bytes}")]
    ArenaExhausted {
        /// Size of the buffer asked for.
        needed_bytes: usize,
        /// The bytes that are left.
        available_bytes: usize,
        /// The whole region of one rank.
        arena_bytes: usize,
    },
    /// The backend has no such operation.
    #[error("{op} is not supported over {backend}")]
    Unsupported {
        /// The operation.
        op: Op,
        /// The backend.
        backend: &'static str,
    },
    /// The operating system refused.
    #[error("{call} failed: {errno}")]
    System {
        /// The call.
        call: &'static str,
        /// The reason it gave.
        errno: nix::errno::Errno,
    },
}

/// The options that must be equal on every rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// The layout of the control page: the ranks run different builds.
    Layout,
    /// Number of ranks.
    WorldSize,
    /// Bytes of one rank's region.
    ArenaBytes,
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Setting::Layout => "the control page layout (different builds)",
            Setting::WorldSize => "world_size",
            Setting::ArenaBytes => "arena_bytes",
        })
    }
}

impl CommError {
    pub(crate) fn system(call: &'static str) -> impl FnOnce(std::io::Error) -> CommError {
        move |error| CommError::System { call, errno: nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)) }
    }
}
