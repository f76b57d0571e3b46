//! A set of world ranks as one word, so that it fits the control page and costs nothing to compare.

/// The most ranks one world has room for.
pub const MAX_RANKS: usize = u64::BITS as usize;

/// Numbers of groups: 0 is the world, the others are for [`crate::World::group`]. A mesh of [`MAX_RANKS`] ranks has at most
/// 193 groups.
pub const MAX_SLOTS: usize = 256;

/// World ranks below [`MAX_RANKS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RankSet(pub u64);

impl RankSet {
    pub(crate) fn one(rank: usize) -> RankSet {
        RankSet(1 << rank)
    }

    pub(crate) fn contains(self, rank: usize) -> bool {
        self.0 >> rank & 1 == 1
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn intersection(self, other: RankSet) -> RankSet {
        RankSet(self.0 & other.0)
    }

    /// The ranks in ascending order.
    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let rank = rest.trailing_zeros() as usize;
            rest &= rest.wrapping_sub(1);
            (rank < MAX_RANKS).then_some(rank)
        })
    }

    pub(crate) fn to_vec(self) -> Vec<usize> {
        self.iter().collect()
    }
}

impl FromIterator<usize> for RankSet {
    fn from_iter<I: IntoIterator<Item = usize>>(ranks: I) -> RankSet {
        RankSet(ranks.into_iter().fold(0, |set, rank| set | 1 << rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_lists_its_ranks_in_ascending_order() {
        for ranks in [vec![], vec![0], vec![3, 5, 63], (0..64).collect()] {
            assert_eq!(ranks.iter().copied().collect::<RankSet>().to_vec(), ranks);
        }
    }
}
