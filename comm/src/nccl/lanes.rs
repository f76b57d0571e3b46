//! Which communicator carries what of a group. Pure.
//!
//! A communicator is one order: a send in it holds up whatever comes after until its receiver has come, and so does a receive. A stage
//! of a pipeline that sends to the next one and receives from the one before must have neither wait for the other, or stages in a ring
//! wait for each other for ever. So a message goes by the *lane* of its sender, neighbours have different lanes, and each channel has
//! lanes of its own: what a rank sends to neighbours and what it receives from them is in different communicators.
//!
//! Two ranks are connected by their first message in a communicator, and the hosts of both wait for that. So a group connects neighbours
//! when it is made ([`links`]); whoever sends to others than neighbours has its receiver come to that first.

use crate::Channel;

/// How many communicators a group of `size` passes messages through.
pub const fn communicators_of_messages(size: usize) -> usize {
    Channel::ALL.len() * Lane::numbers(size)
}

/// The messages that a pipeline in a ring passes: its channel, from whom, and to whom. In one order for all members, who connect in it.
pub(super) fn links(size: usize) -> Vec<(Channel, [usize; 2])> {
    let next = |from: usize| (Channel::Forward, [from, (from + 1) % size]);
    let before = |from: usize| (Channel::Backward, [from, (from + size - 1) % size]);
    (0..size).map(next).chain((0..size).map(before)).collect()
}

/// A communicator of a group that passes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lane {
    pub channel: Channel,
    /// Which of the channel's.
    pub number: usize,
}

impl Lane {
    /// That of a message from member `from` of a group of `size`.
    pub fn of(channel: Channel, from: usize, size: usize) -> Self {
        // The last of a ring of odd length has neighbours of both other numbers.
        let is_odd_end = size % 2 == 1 && from + 1 == size && size > 1;
        Self { channel, number: if is_odd_end { 2 } else { from % 2 } }
    }

    /// All lanes of a group of `size`, in the order of [`Lane::index`].
    pub fn all(size: usize) -> Vec<Self> {
        let numbers = Self::numbers(size);
        Channel::ALL.into_iter().flat_map(|channel| (0..numbers).map(move |number| Self { channel, number })).collect()
    }

    /// Its place among all of a group of `size`.
    pub fn index(self, size: usize) -> usize {
        self.channel as usize * Self::numbers(size) + self.number
    }

    const fn numbers(size: usize) -> usize {
        if size > 1 && size % 2 == 1 { 3 } else { 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_a_ring_have_different_lanes() {
        for size in 2..12 {
            for channel in Channel::ALL {
                for from in 0..size {
                    let next = (from + 1) % size;
                    assert_ne!(Lane::of(channel, from, size), Lane::of(channel, next, size), "{from} of {size}");
                }
            }
            let ends = [0, size - 1].map(|from| Lane::of(Channel::Forward, from, size));
            assert_ne!(ends[0], ends[1], "a tied embedding is at both ends");
        }
    }

    #[test]
    fn every_neighbour_is_linked_both_ways() {
        for size in 2..8 {
            let links = links(size);
            assert_eq!(links.len(), 2 * size);
            for (channel, [from, to]) in links {
                let is_next = (from + 1) % size == to;
                let is_before = (to + 1) % size == from;
                assert!(if channel == Channel::Forward { is_next } else { is_before });
            }
        }
    }

    #[test]
    fn every_lane_has_a_place() {
        for size in 1..12 {
            let all = Lane::all(size);
            for (place, lane) in all.iter().enumerate() {
                assert_eq!(lane.index(size), place);
            }
            let of = |from, channel| Lane::of(channel, from, size);
            let used = (0..size).flat_map(|from| Channel::ALL.map(|channel| of(from, channel)));
            assert_eq!(all.len(), communicators_of_messages(size));
            assert!(used.into_iter().all(|lane| all[lane.index(size)] == lane));
        }
    }
}
