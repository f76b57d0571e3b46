//! The layouts that tests compare: one training job, cut over ranks and kept in memory in many ways.

use std::fmt;
use std::path::Path;

use crate::job::Job;

/// A job's ranks, what they split, and what they keep: everything that must not change the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Number of ranks.
    pub nproc: usize,
    /// `parallel.tensor`.
    pub tensor: usize,
    /// `parallel.sequence`.
    pub sequence: bool,
    /// `parallel.pipeline`.
    pub pipeline: usize,
    /// `parallel.pipeline_schedule`.
    pub schedule: &'static str,
    /// `zero.stage`.
    pub zero_stage: u8,
    /// `zero.prefetch_units`.
    pub prefetch_units: usize,
    /// `zero.offload_params` (where stage 3 shards them) and `zero.offload_optimizer`.
    pub offload: &'static str,
    /// `zero.overlap_comm`.
    pub overlap_comm: bool,
    /// `train.activation_checkpointing`.
    pub checkpointing: &'static str,
    /// `train.micro_batch_size`: rows of a forward pass; the rest of the step is gradient accumulation.
    pub micro_batch_size: usize,
    /// `model.dtype`.
    pub dtype: &'static str,
}

impl Layout {
    /// One rank that keeps everything.
    pub const ONE: Self = Self {
        nproc: 1,
        tensor: 1,
        sequence: true,
        pipeline: 1,
        schedule: "1f1b",
        zero_stage: 0,
        prefetch_units: 1,
        offload: "none",
        overlap_comm: true,
        checkpointing: "none",
        micro_batch_size: 1,
        dtype: "fp32",
    };

    /// A job in `folder` with the sections of `toml`, laid out like this. A key that `toml` sets too is this layout's.
    pub fn job(&self, folder: &Path, toml: &str) -> Job {
        let job = Job::new(folder, toml).nproc(self.nproc);
        self.keys().iter().fold(job, |job, key| job.set(key))
    }

    /// The keys of train.toml that make it.
    fn keys(&self) -> Vec<String> {
        let offload_params = if self.zero_stage == 3 { self.offload } else { "none" };
        let mut keys = vec![
            format!("parallel.tensor={}", self.tensor),
            format!("parallel.sequence={}", self.sequence),
            format!("parallel.pipeline={}", self.pipeline),
            format!("parallel.pipeline_schedule={}", self.schedule),
            format!("zero.stage={}", self.zero_stage),
            format!("zero.prefetch_units={}", self.prefetch_units),
            format!("zero.offload_params={offload_params}"),
            format!("zero.offload_optimizer={}", self.offload),
            format!("train.activation_checkpointing={}", self.checkpointing),
            format!("train.micro_batch_size={}", self.micro_batch_size),
            format!("model.dtype={}", self.dtype),
        ];
        // Its default has no effect yet, and is noted where it is written down.
        keys.extend((!self.overlap_comm).then(|| "zero.overlap_comm=false".to_owned()));
        keys
    }
}

/// What is not as in [`Layout::ONE`]; short enough for a folder's name.
impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = Self::ONE.keys();
        let others: Vec<String> = self.keys().into_iter().filter(|key| !plain.contains(key)).collect();
        let values = others.iter().map(|key| key.split_once('.').map_or(key.as_str(), |(_, key)| key));
        write!(
            f,
            "{}",
            std::iter::once(format!("nproc={}", self.nproc).as_str()).chain(values).collect::<Vec<_>>().join(" ")
        )
    }
}
