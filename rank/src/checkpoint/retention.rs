//! Which checkpoints of a run stay on disk: the newest, and those with the lowest validation loss. [`superfluous`] and [`best`]
//! decide, and are pure; the rest reads.
//!
//! What a checkpoint's loss is, its own manifest says: so nothing has to be remembered beside the checkpoints, and a kill between
//! the writing of one and the removal of another leaves nothing that is wrong.

use std::fs;
use std::io::ErrorKind;

use proto::manifest::Manifest;
use proto::plan::CheckpointPlan;
use proto::run_dir::RunDir;

use super::error::{Result, writing};

/// A complete checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Complete {
    /// Of its step.
    pub step: u64,
    /// Its loss, if it was validated after this step, on the job's data.
    pub loss: Option<f64>,
}

/// The complete checkpoints of the run up to that of `step`, ascending. A folder without a manifest is none of them, whatever
/// its name; of one whose manifest cannot be read no loss is known. `validation_data`: what the job scores.
pub(super) fn complete(run_dir: &RunDir, step: u64, validation_data: &[String]) -> Result<Vec<Complete>> {
    let folder = run_dir.checkpoints();
    let entries = match fs::read_dir(&folder) {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(writing(&folder))?,
    };
    let steps = entries.filter_map(|entry| RunDir::checkpoint_step(entry.ok()?.file_name().to_str()?));
    let steps = steps.filter(|&other| other <= step && run_dir.checkpoint(other).join(Manifest::FILE).exists());
    let mut complete: Vec<Complete> = steps
        .map(|step| {
            let manifest = Manifest::read(&run_dir.checkpoint(step)).ok();
            let scored = manifest.and_then(|manifest| manifest.progress_on(validation_data).validations.at(step));
            Complete { step, loss: scored.map(|scored| scored.loss) }
        })
        .collect();
    complete.sort_by_key(|checkpoint| checkpoint.step);
    Ok(complete)
}

/// The steps of those that go. `complete` ascends.
pub(super) fn superfluous(complete: &[Complete], plan: CheckpointPlan) -> Vec<u64> {
    let older = &complete[..complete.len().saturating_sub(plan.keep_last as usize)];
    let mut scored: Vec<&Complete> = complete.iter().filter(|checkpoint| checkpoint.loss.is_some()).collect();
    // Stable: of equal ones the first is the best.
    scored.sort_by(|one, other| one.loss.partial_cmp(&other.loss).expect("they are numbers"));
    let is_best = |step: u64| scored.iter().take(plan.keep_best as usize).any(|best| best.step == step);
    older.iter().map(|checkpoint| checkpoint.step).filter(|&step| !is_best(step)).collect()
}

/// The one with the lowest loss; of equal ones the first.
pub(super) fn best(complete: &[Complete]) -> Option<Complete> {
    let scored = complete.iter().filter(|checkpoint| checkpoint.loss.is_some());
    scored.copied().reduce(|best, other| if other.loss < best.loss { other } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(losses: &[(u64, f64)]) -> Vec<Complete> {
        let one = |&(step, loss): &(u64, f64)| Complete { step, loss: Some(loss).filter(|loss: &f64| !loss.is_nan()) };
        losses.iter().map(one).collect()
    }

    #[test]
    fn the_newest_and_the_best_stay() {
        const NONE: f64 = f64::NAN;
        let all = complete(&[(10, 3.0), (20, 1.0), (25, NONE), (30, 2.0), (40, 1.0), (50, 2.5)]);
        for (keep_last, keep_best, gone) in [
            (1, 0, vec![10, 20, 25, 30, 40]),
            (2, 0, vec![10, 20, 25, 30]),
            (1, 1, vec![10, 25, 30, 40]),
            (1, 2, vec![10, 25, 30]),
            (2, 2, vec![10, 25, 30]),
            (1, 3, vec![10, 25]),
            (6, 1, vec![]),
            (9, 0, vec![]),
            (1, 9, vec![25]),
        ] {
            let plan = CheckpointPlan { every_steps: 1, keep_last, keep_best };
            assert_eq!(superfluous(&all, plan), gone, "{keep_last} {keep_best}");
        }
        assert_eq!(best(&all), Some(all[1]), "of equal ones the first");
        assert_eq!(best(&complete(&[(5, NONE)])), None);
        assert_eq!(superfluous(&[], CheckpointPlan { every_steps: 1, keep_last: 1, keep_best: 1 }), [0; 0]);
    }
}
