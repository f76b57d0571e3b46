//! The mesh: which rank sits at which coordinate, and which ranks form which group. Pure arithmetic.
//!
//! - `MESH-1` every rank maps to a coordinate and back.
//! - `MESH-2` the groups of an axis partition all ranks.
//! - `MESH-3` every group of a job has a number of its own, the same on all ranks.

use serde::{Deserialize, Serialize};

/// Sizes of the three axes. `world_size = pp * dp * tp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Pipeline stages.
    pub pp: usize,
    /// Data-parallel replicas.
    pub dp: usize,
    /// Tensor-parallel ranks of one stage.
    pub tp: usize,
}

/// The coordinate of one rank: an index along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Coord {
    /// Pipeline stage, `0..mesh.pp`.
    pub pp: usize,
    /// Data-parallel replica, `0..mesh.dp`.
    pub dp: usize,
    /// Tensor-parallel index, `0..mesh.tp`.
    pub tp: usize,
}

/// Ranks of one machine: as many as `comm`'s control page has room for.
pub const MAX_RANKS: usize = 64;

/// The highest number a group may have. 0 is the group of all ranks.
pub const MAX_GROUPS: usize = 255;

/// One axis of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Pipeline.
    Pp,
    /// Data.
    Dp,
    /// Tensor.
    Tp,
}

/// What the members of a group have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupKind {
    /// All coordinates but that along the axis: a line through the mesh.
    Along(Axis),
    /// A key/value head, which each of them holds: neighbours along [`Axis::Tp`].
    KeyValue,
}

/// One group of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    /// Its number, from 1.
    pub slot: usize,
    /// Why its members form a group.
    pub kind: GroupKind,
    /// Its members, ascending.
    pub ranks: Vec<usize>,
}

impl Mesh {
    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.pp * self.dp * self.tp
    }

    /// The coordinate of `rank`: `rank = (pp * dp_size + dp) * tp_size + tp`. Panics when `rank` is not in the mesh.
    pub fn coord(&self, rank: usize) -> Coord {
        assert!(rank < self.world_size(), "rank {rank} is outside {self:?}");
        Coord { pp: rank / (self.dp * self.tp), dp: rank / self.tp % self.dp, tp: rank % self.tp }
    }

    /// The rank at `coord`, the inverse of [`Mesh::coord`].
    pub fn rank(&self, coord: Coord) -> usize {
        (coord.pp * self.dp + coord.dp) * self.tp + coord.tp
    }

    /// All groups of a job, in the order of their numbers; groups of one have numbers too. `key_value_replicas`: ranks along
    /// tp that hold the same key/value head, a divisor of `tp`.
    pub fn groups(&self, key_value_replicas: usize) -> Vec<GroupSpec> {
        assert!(
            self.tp.is_multiple_of(key_value_replicas),
            "{key_value_replicas} ranks share a key/value head in {self:?}"
        );
        let lines = |axis| self.lines(axis).map(move |ranks| (GroupKind::Along(axis), ranks));
        let sharing = self.lines(Axis::Tp).flat_map(|line| {
            let neighbours = line.chunks(key_value_replicas).map(|ranks| (GroupKind::KeyValue, ranks.to_vec()));
            neighbours.collect::<Vec<_>>()
        });
        let groups = lines(Axis::Dp).chain(lines(Axis::Tp)).chain(lines(Axis::Pp)).chain(sharing);
        groups.zip(1..).map(|((kind, ranks), slot)| GroupSpec { slot, kind, ranks }).collect()
    }

    /// The groups along an axis, in the order of their first members.
    fn lines(&self, axis: Axis) -> impl Iterator<Item = Vec<usize>> {
        let groups = (0..self.world_size()).map(move |rank| (rank, self.group(axis, rank)));
        groups.filter(|(rank, group)| group[0] == *rank).map(|(_, group)| group)
    }

    /// The ranks that share every coordinate with `rank` except that along `axis`, in order of that coordinate.
    pub fn group(&self, axis: Axis, rank: usize) -> Vec<usize> {
        let at = self.coord(rank);
        let size = match axis {
            Axis::Pp => self.pp,
            Axis::Dp => self.dp,
            Axis::Tp => self.tp,
        };
        (0..size)
            .map(|idx| {
                self.rank(match axis {
                    Axis::Pp => Coord { pp: idx, ..at },
                    Axis::Dp => Coord { dp: idx, ..at },
                    Axis::Tp => Coord { tp: idx, ..at },
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn meshes() -> impl Iterator<Item = Mesh> {
        (1..5).flat_map(|pp| (1..5).flat_map(move |dp| (1..5).map(move |tp| Mesh { pp, dp, tp })))
    }

    #[test]
    fn every_rank_maps_back_to_its_coord() {
        // MESH-1
        for mesh in meshes() {
            for rank in 0..mesh.world_size() {
                assert_eq!(mesh.rank(mesh.coord(rank)), rank, "{mesh:?}");
            }
        }
    }

    #[test]
    fn groups_of_an_axis_partition_the_world() {
        // MESH-2
        for mesh in meshes() {
            for axis in [Axis::Pp, Axis::Dp, Axis::Tp] {
                let groups: BTreeSet<Vec<usize>> = (0..mesh.world_size()).map(|rank| mesh.group(axis, rank)).collect();
                let members: Vec<usize> = groups.iter().flatten().copied().collect();
                assert_eq!(members.len(), mesh.world_size(), "{mesh:?} {axis:?}");
                assert_eq!(members.iter().collect::<BTreeSet<_>>().len(), mesh.world_size());
                for rank in 0..mesh.world_size() {
                    assert!(mesh.group(axis, rank).contains(&rank));
                }
            }
        }
    }

    /// Every mesh that one machine has room for, with every number of ranks that may share a key/value head.
    fn jobs() -> impl Iterator<Item = (Mesh, usize)> {
        let sizes = || 1..=MAX_RANKS;
        let meshes = sizes().flat_map(move |pp| sizes().flat_map(move |dp| sizes().map(move |tp| Mesh { pp, dp, tp })));
        let fits = |mesh: &Mesh| mesh.world_size() <= MAX_RANKS;
        let divisors = |mesh: Mesh| (1..=mesh.tp).filter(move |replicas| mesh.tp.is_multiple_of(*replicas));
        meshes.filter(fits).flat_map(move |mesh| divisors(mesh).map(move |replicas| (mesh, replicas)))
    }

    #[test]
    fn every_group_of_a_job_that_fits_one_machine_has_a_number() {
        // MESH-3
        let mut most = 0;
        for (mesh, replicas) in jobs() {
            let groups = mesh.groups(replicas);
            assert!(groups.iter().map(|group| group.slot).eq(1..=groups.len()), "{mesh:?}");
            most = most.max(groups.len());
        }
        assert!(most <= MAX_GROUPS, "{most} groups");
        // What the doc of `comm::MAX_SLOTS` says.
        assert_eq!(most, 193);
    }

    #[test]
    fn every_rank_is_in_one_group_of_each_kind() {
        // MESH-2
        for (mesh, replicas) in jobs().filter(|(mesh, _)| mesh.world_size() <= 24) {
            let groups = mesh.groups(replicas);
            for kind in [Axis::Pp, Axis::Dp, Axis::Tp].map(GroupKind::Along).into_iter().chain([GroupKind::KeyValue]) {
                let of_kind = || groups.iter().filter(move |group| group.kind == kind);
                assert!(of_kind().all(|group| group.ranks.is_sorted_by(|a, b| a < b)), "{mesh:?} {kind:?}");
                let mut members: Vec<usize> = of_kind().flat_map(|group| group.ranks.clone()).collect();
                members.sort_unstable();
                assert!(members.into_iter().eq(0..mesh.world_size()), "{mesh:?} {kind:?}");
                for group in of_kind() {
                    let rank = group.ranks[0];
                    match kind {
                        GroupKind::Along(axis) => assert_eq!(group.ranks, mesh.group(axis, rank)),
                        GroupKind::KeyValue => assert!(group.ranks.iter().copied().eq(rank..rank + replicas)),
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_count_dp_then_tp_then_pp_then_key_value_groups() {
        // MESH-3
        for (mesh, replicas) in jobs().filter(|(mesh, _)| mesh.world_size() <= 24) {
            let groups = mesh.groups(replicas);
            let number = |kind, rank| {
                let holds = |group: &&GroupSpec| group.kind == kind && group.ranks.contains(&rank);
                groups.iter().find(holds).expect("every rank is in one").slot
            };
            for rank in 0..mesh.world_size() {
                let Coord { pp, dp, tp } = mesh.coord(rank);
                let first_tp = 1 + mesh.pp * mesh.tp;
                let first_pp = first_tp + mesh.pp * mesh.dp;
                let first_key_value = first_pp + mesh.dp * mesh.tp;
                let line = pp * mesh.dp + dp;
                assert_eq!(number(GroupKind::Along(Axis::Dp), rank), 1 + pp * mesh.tp + tp);
                assert_eq!(number(GroupKind::Along(Axis::Tp), rank), first_tp + line);
                assert_eq!(number(GroupKind::Along(Axis::Pp), rank), first_pp + dp * mesh.tp + tp);
                let neighbours = first_key_value + line * (mesh.tp / replicas) + tp / replicas;
                assert_eq!(number(GroupKind::KeyValue, rank), neighbours);
            }
        }
    }

    #[test]
    #[should_panic(expected = "3 ranks share a key/value head in Mesh { pp: 1, dp: 1, tp: 4 }")]
    fn a_key_value_head_is_shared_by_a_part_of_the_tensor_ranks() {
        let _ = Mesh { pp: 1, dp: 1, tp: 4 }.groups(3);
    }

    #[test]
    fn tensor_neighbours_are_adjacent_ranks() {
        let mesh = Mesh { pp: 2, dp: 2, tp: 2 };
        assert_eq!(mesh.group(Axis::Tp, 5), [4, 5]);
        assert_eq!(mesh.group(Axis::Dp, 5), [5, 7]);
        assert_eq!(mesh.group(Axis::Pp, 5), [1, 5]);
    }
}
