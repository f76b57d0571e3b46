//! The layouts that are tried, from the one that changes nothing to those that pay for memory with time, then with accuracy, then
//! with the length of rows. Pure.

use super::Job;

/// What a layout sets, beside what every job has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// `section`, `key`, value in TOML and what is said of it.
    pub settings: Vec<(&'static str, &'static str, &'static str, &'static str)>,
    /// Rows have this many tokens at most; none: what the model and the default allow.
    pub seq_len: Option<u64>,
}

type Setting = (&'static str, &'static str, &'static str, &'static str);

const STAGE_2: Setting = ("zero", "stage", "2", "gradients are sharded too: stage 1 does not fit");
const STAGE_3: Setting = ("zero", "stage", "3", "parameters are sharded too: less does not fit");
const HOST_OPTIMIZER: Setting =
    ("zero", "offload_optimizer", "\"cpu\"", "masters and moments are in the host's memory: the GPU's is too small");
const HOST_PARAMS: Setting = ("zero", "offload_params", "\"cpu\"", "parameters too");
const SMALL_STATE: Setting = ("optimizer", "state", "\"bf16\"", "moments in bf16: fp32 does not fit");
const NO_MASTERS: Setting = ("optimizer", "masters", "false", "weights in bf16 only: fp32 masters do not fit");
const NO_SNAPSHOTS: Setting =
    ("restart", "snapshot_every_steps", "0", "restarts go on from checkpoints: snapshots do not fit into memory");
const BF16: Setting = ("model", "dtype", "\"bf16\"", "fp32 does not fit");

/// Shorter rows, tried with the smallest layout.
const SHORTER: [u64; 3] = [2048, 1024, 512];

/// In the order in which they are tried.
pub(super) fn in_order(on_gpus: bool, job: &Job) -> Vec<Layout> {
    let is_shared = job.world_size > 1;
    let layouts: Vec<Vec<Setting>> = match (on_gpus, is_shared) {
        (true, true) => vec![
            vec![],
            vec![STAGE_2],
            vec![STAGE_3],
            vec![STAGE_3, HOST_OPTIMIZER],
            vec![STAGE_3, HOST_OPTIMIZER, HOST_PARAMS],
            vec![STAGE_3, SMALL_STATE],
            vec![STAGE_3, SMALL_STATE, NO_MASTERS],
        ],
        (true, false) => vec![vec![], vec![HOST_OPTIMIZER], vec![SMALL_STATE], vec![SMALL_STATE, NO_MASTERS]],
        (false, true) => {
            vec![vec![], vec![NO_SNAPSHOTS], vec![STAGE_3, NO_SNAPSHOTS], vec![BF16, STAGE_3, NO_SNAPSHOTS]]
        }
        (false, false) => vec![vec![], vec![NO_SNAPSHOTS], vec![BF16], vec![BF16, NO_SNAPSHOTS]],
    };
    let smallest = layouts.last().cloned().unwrap_or_default();
    let shorter = SHORTER.into_iter().filter(|seq_len| *seq_len < job.seq_len());
    let shorter: Vec<Layout> =
        shorter.map(|seq_len| Layout { settings: smallest.clone(), seq_len: Some(seq_len) }).collect();
    layouts.into_iter().map(|settings| Layout { settings, seq_len: None }).chain(shorter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_nothing_comes_first_and_shorter_rows_last() {
        for (on_gpus, world_size) in [(true, 1), (true, 8), (false, 1), (false, 2)] {
            let job = Job { world_size, most_positions: 1500, ..Job::default() };
            let layouts = in_order(on_gpus, &job);
            assert_eq!(layouts[0], Layout::default());
            let lengths: Vec<_> = layouts.iter().filter_map(|layout| layout.seq_len).collect();
            assert_eq!(lengths, [1024, 512]);
            for (idx, layout) in layouts.iter().enumerate() {
                assert!(!layouts[..idx].contains(layout), "twice: {layout:?}");
                assert!(layout.settings.iter().all(|(_, key, ..)| world_size > 1 || *key != "stage"), "{layout:?}");
            }
        }
    }
}
