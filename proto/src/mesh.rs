//! The mesh: which rank sits at which coordinate, and which ranks form a group along an axis. Pure arithmetic.
//!
//! - `MESH-1` every rank maps to a coordinate and back.
//! - `MESH-2` the groups of an axis partition all ranks.

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

/// Where one rank sits: an index along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Coord {
    /// Pipeline stage, `0..mesh.pp`.
    pub pp: usize,
    /// Data-parallel replica, `0..mesh.dp`.
    pub dp: usize,
    /// Tensor-parallel index, `0..mesh.tp`.
    pub tp: usize,
}

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

    #[test]
    fn tensor_neighbours_are_adjacent_ranks() {
        let mesh = Mesh { pp: 2, dp: 2, tp: 2 };
        assert_eq!(mesh.group(Axis::Tp, 5), [4, 5]);
        assert_eq!(mesh.group(Axis::Dp, 5), [5, 7]);
        assert_eq!(mesh.group(Axis::Pp, 5), [1, 5]);
    }
}
