//! The groups of ranks that a rank belongs to: its lines through the mesh, and the neighbours that share a key/value head.

use std::rc::Rc;

use comm::{Collective, CommError, ShmWorld, SoloGroup};
use proto::layout::TensorSplit;
use proto::mesh::{Axis, Coord, Mesh};
use proto::plan::Plan;

use crate::observed::Observed;
use crate::progress::ProgressLine;

/// A group, shared by what uses it. `!Send`: the main thread alone communicates.
pub type Group = Rc<dyn Collective>;

/// This rank's groups. A group of one is the identity.
#[derive(Clone)]
pub struct Groups {
    /// All ranks.
    pub world: Group,
    /// Replicas of the same part of the model, on other rows.
    pub dp: Group,
    /// Parts of the same layers.
    pub tp: Group,
    /// Stages of the same model.
    pub pp: Group,
    /// Neighbours along tp that hold the same key/value head.
    pub key_value: Group,
    /// The mesh and this rank's place in it.
    pub mesh: Mesh,
    /// See `mesh`.
    pub coord: Coord,
}

impl Groups {
    /// Enters every group of this rank, whose exchanges `progress` shows. Does not block.
    pub fn enter(plan: &Plan, world: &ShmWorld, progress: &ProgressLine) -> Result<Self, CommError> {
        let (mesh, rank) = (plan.mesh, world.rank());
        let coord = mesh.coord(rank);
        let split = TensorSplit { size: mesh.tp, rank: coord.tp, sequence: plan.sequence_parallel };
        let replicas = split.key_value_replicas(plan.model.config.num_key_value_heads);
        let tensor = mesh.group(Axis::Tp, rank);
        let neighbours = &tensor[coord.tp / replicas * replicas..][..replicas];
        // Every group of the job has a number of its own; 0 is the world.
        let first_dp = 1;
        let first_tp = first_dp + mesh.pp * mesh.tp;
        let first_pp = first_tp + mesh.pp * mesh.dp;
        let first_key_value = first_pp + mesh.dp * mesh.tp;
        let line = coord.pp * mesh.dp + coord.dp;
        let group = |slot: usize, ranks: &[usize]| -> Result<Group, CommError> {
            match ranks.len() {
                1 => Ok(Rc::new(SoloGroup)),
                _ => Ok(Rc::new(Observed::new(world.group(slot, ranks)?, progress))),
            }
        };
        Ok(Self {
            world: Rc::new(Observed::new(world.world(), progress)),
            dp: group(first_dp + coord.pp * mesh.tp + coord.tp, &mesh.group(Axis::Dp, rank))?,
            tp: group(first_tp + line, &tensor)?,
            pp: group(first_pp + coord.dp * mesh.tp + coord.tp, &mesh.group(Axis::Pp, rank))?,
            key_value: group(first_key_value + line * (mesh.tp / replicas) + coord.tp / replicas, neighbours)?,
            mesh,
            coord,
        })
    }
}
