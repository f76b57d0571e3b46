//! Holds facts together that `proto` plans by and `comm` lives by: neither knows the other, so this crate, which knows both,
//! does not compile where they differ.

use proto::memory::{ARENA_ALIGN_BYTES, communicators_of_messages};
use proto::mesh::{MAX_GROUPS, MAX_RANKS};
use proto::pipeline::MESSAGES_UNDER_WAY;

// The plan says how large an arena is; `comm` allocates in it.
const _: () = assert!(ARENA_ALIGN_BYTES == comm::ALIGN_BYTES);
const _: () = assert!(MAX_RANKS == comm::MAX_RANKS);
const _: () = assert!(MAX_GROUPS < comm::MAX_SLOTS);
// The plan knows what communicators need.
const _: () = {
    let mut stages = 2;
    while stages <= MAX_RANKS {
        assert!(communicators_of_messages(stages) == comm::nccl::communicators_of_messages(stages));
        stages += 1;
    }
};
// A pipeline stage sends without waiting for the messages that are under way.
const _: () = assert!(MESSAGES_UNDER_WAY <= comm::CHANNEL_CAPACITY);
