//! The groups of ranks that a rank belongs to: its lines through the mesh, and the neighbours that share a key/value head.

use std::rc::Rc;

use comm::{Collective, CommError, SoloGroup, UseOf, World};
use proto::layout::TensorSplit;
use proto::mesh::{Axis, Coord, GroupKind, Mesh};
use proto::plan::Plan;

use crate::observed::Observed;
use crate::progress::ProgressLine;
use crate::stalls::Stalls;

/// A group, shared by what uses it. `!Send`: the main thread alone communicates.
pub type Group = Rc<dyn Collective>;

/// This rank's groups. A group of one is the identity.
#[derive(Clone)]
pub struct Groups {
    /// All ranks.
    pub all: Group,
    /// Replicas of the same part of the model, on other rows.
    pub dp: Group,
    /// Parts of the same layers.
    pub tp: Group,
    /// Stages of the same model.
    pub pp: Group,
    /// Neighbours along tp that hold the same key/value head.
    pub key_value: Group,
    /// Where this rank waits for the others of its groups.
    pub stalls: Stalls,
    /// The mesh and this rank's place in it.
    pub mesh: Mesh,
    /// See `mesh`.
    pub coord: Coord,
}

impl Groups {
    /// Enters every group of this rank, whose exchanges `line` shows. Every rank of the job calls it; whether it blocks is
    /// the backend's affair ([`World::group`]).
    pub fn enter(plan: &Plan, world: &dyn World, line: &ProgressLine) -> Result<Self, CommError> {
        let arriving = line.clone();
        world.on_arrival(Box::new(move || arriving.arrive()));
        let stalls = Stalls::default();
        let (mesh, rank) = (plan.mesh, world.rank());
        let coord = mesh.coord(rank);
        let split = TensorSplit { size: mesh.tp, rank: coord.tp, sequence: plan.sequence_parallel };
        let groups = mesh.groups(split.key_value_replicas(plan.model.config.num_key_value_heads));
        let enter = |kind| -> Result<Group, CommError> {
            let mut of_kind = groups.iter().filter(|group| group.kind == kind);
            let own = of_kind.find(|group| group.ranks.contains(&rank)).expect("a rank is in a group of each kind");
            match own.ranks.len() {
                1 => Ok(Rc::new(SoloGroup)),
                _ => Ok(Rc::new(Observed::new(world.group(own.slot, &own.ranks, use_of(kind))?, line, &stalls))),
            }
        };
        Ok(Self {
            all: Rc::new(Observed::new(world.world(), line, &stalls)),
            dp: enter(GroupKind::Along(Axis::Dp))?,
            tp: enter(GroupKind::Along(Axis::Tp))?,
            pp: enter(GroupKind::Along(Axis::Pp))?,
            key_value: enter(GroupKind::KeyValue)?,
            stalls: stalls.clone(),
            mesh,
            coord,
        })
    }
}

/// Stages of a pipeline send each other messages.
fn use_of(kind: GroupKind) -> UseOf {
    match kind {
        GroupKind::Along(Axis::Pp) => UseOf::Messages,
        GroupKind::Along(_) | GroupKind::KeyValue => UseOf::Collectives,
    }
}
