//! In which slots whole buffers lie: one for each unit, or a few that units of a class take turns in.

use crate::layout::{ParamLayout, UnitKind, UnitLayout};
use crate::plan::Plan;
use crate::sharding::Sharding;

/// One unit's claim to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// A slot of its own.
    Own,
    /// One of `count` slots that units of its class take turns in.
    Shared {
        /// Slots of the class.
        count: usize,
    },
}

/// Whole parameters have a slot each. Gathered blocks take turns, as many as are gathered ahead and one that computes;
/// embedding and head are too different to share.
pub fn param_claims(plan: &Plan, layouts: &[UnitLayout]) -> Vec<Claim> {
    let sharding = Sharding::new(plan.zero.stage, plan.mesh.dp, 0);
    let claim = |layout: &UnitLayout| match (sharding.shards_parameters(layout.numel()), layout.kind) {
        (false, _) => Claim::Own,
        (true, UnitKind::Block) => Claim::Shared { count: 1 + plan.zero.prefetch_units },
        (true, UnitKind::Embedding | UnitKind::Head) => Claim::Shared { count: 1 },
    };
    layouts.iter().map(claim).collect()
}

/// Whole gradients have a slot each, empty where all of a unit is frozen; sharded ones, and those that leave unit by unit, are whole
/// only while a unit's backward pass runs.
pub fn grad_claims(plan: &Plan, layouts: &[UnitLayout]) -> Vec<Claim> {
    let sharding = Sharding::new(plan.zero.stage, plan.mesh.dp, 0);
    let claim = |layout: &UnitLayout| match layout.kind {
        // One unit's leave while another's come.
        UnitKind::Block if leave_beside(plan, sharding) => Claim::Shared { count: 2 },
        _ if sharding.shards_gradients() => Claim::Shared { count: 1 },
        _ if plan.goes_unit_by_unit() => Claim::Shared { count: 1 },
        _ => Claim::Own,
    };
    layouts.iter().map(claim).collect()
}

/// Whether a unit's gradients leave their slot while another's are computed.
fn leave_beside(plan: &Plan, sharding: Sharding) -> bool {
    match sharding.shards_gradients() {
        true => plan.zero.overlap_comm && !plan.goes_unit_by_unit(),
        false => plan.goes_unit_by_unit(),
    }
}

/// The class of each unit: units of one class have every parameter in the same place, so that they can take turns in a
/// slot. All blocks are of one class, unless another part of each is trained.
pub fn classes(layouts: &[UnitLayout]) -> Vec<usize> {
    let place = |param: &ParamLayout| (param.shape.clone(), param.offset, param.packed.clone(), param.is_trained);
    let looks: Vec<_> =
        layouts.iter().map(|layout| (layout.kind, layout.params.iter().map(place).collect::<Vec<_>>())).collect();
    let class = |look| looks.iter().position(|other| other == look).expect("it looks like itself");
    looks.iter().map(class).collect()
}

/// Which slot each unit computes on, and which unit's layout each slot has. Pure. `classes`: see [`classes`].
///
/// Units of a class have one layout, so they can take turns: the n-th of them takes slot `n % count`.
pub fn assign<C: Copy + PartialEq>(classes: &[C], claims: &[Claim]) -> (Vec<usize>, Vec<usize>) {
    let (mut of_unit, mut layout_of_slot) = (Vec::new(), Vec::new());
    let mut rings: Vec<(C, Vec<usize>, usize)> = Vec::new();
    for (unit, (&class, &claim)) in classes.iter().zip(claims).enumerate() {
        let Claim::Shared { count } = claim else {
            of_unit.push(layout_of_slot.len());
            layout_of_slot.push(unit);
            continue;
        };
        let idx = rings.iter().position(|ring| ring.0 == class).unwrap_or_else(|| {
            rings.push((class, Vec::new(), 0));
            rings.len() - 1
        });
        let (_, ring, taken) = &mut rings[idx];
        if ring.len() < count {
            ring.push(layout_of_slot.len());
            layout_of_slot.push(unit);
        }
        of_unit.push(ring[*taken % count]);
        *taken += 1;
    }
    (of_unit, layout_of_slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use UnitKind::{Block, Embedding, Head};

    const KINDS: [UnitKind; 6] = [Embedding, Block, Block, Block, Block, Head];

    #[test]
    fn resident_units_have_slots_of_their_own() {
        let (of_unit, layout_of_slot) = assign(&KINDS, &[Claim::Own; 6]);
        assert_eq!((of_unit, layout_of_slot), ((0..6).collect(), (0..6).collect()));
    }

    #[test]
    fn units_of_a_kind_take_turns() {
        let shared = |count| Claim::Shared { count };
        let claims = [shared(1), shared(3), shared(3), shared(3), shared(3), Claim::Own];
        let (of_unit, layout_of_slot) = assign(&KINDS, &claims);
        assert_eq!(of_unit, [0, 1, 2, 3, 1, 4]);
        assert_eq!(layout_of_slot, [0, 1, 2, 3, 5]);
    }

    #[test]
    fn more_slots_than_units_are_not_made() {
        let (of_unit, layout_of_slot) = assign(&KINDS, &[Claim::Shared { count: 9 }; 6]);
        assert_eq!((of_unit, layout_of_slot.len()), ((0..6).collect(), 6));
    }
}
