//! The run directory: the paths of all files of a run. Launcher and ranks ask here, so that no path is spelled twice.

use std::path::{Path, PathBuf};

/// Name of the file in which Hugging Face's Trainer tells of a run.
const TRAINER_STATE: &str = "trainer_state.json";

/// `<output_dir>` of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

/// The file of window `number`, from 0, in the folder of streamed training rows.
pub fn window_file(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("window-{number:06}.rows"))
}

impl RunDir {
    /// The run directory at `root`; nothing is created.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// `<output_dir>` itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved plan. Ranks read this, never train.toml.
    pub fn plan(&self) -> PathBuf {
        self.root.join("plan.json")
    }

    /// Whose the run directory is: the model that is trained in it, and the settings.
    pub fn identity(&self) -> PathBuf {
        self.root.join("job.json")
    }

    /// One JSON object per logged step.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// One JSON object for each text that was written at a validation.
    pub fn samples(&self) -> PathBuf {
        self.root.join("samples.jsonl")
    }

    /// What Hugging Face's Trainer tells of a run, made of the metrics.
    pub fn trainer_state(&self) -> PathBuf {
        self.root.join(TRAINER_STATE)
    }

    /// The same beside the trained model.
    pub fn final_trainer_state(&self) -> PathBuf {
        self.final_model().join(TRAINER_STATE)
    }

    /// TensorBoard's event files.
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// A folder for each run of Weights & Biases.
    pub fn wandb(&self) -> PathBuf {
        self.root.join("wandb")
    }

    /// The launcher's timeline.
    pub fn events(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// The Unix socket at which a running launcher can be asked and stopped.
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// The console of a job in the background.
    pub fn console_log(&self) -> PathBuf {
        self.root.join("logs").join("console.log")
    }

    /// Prepared training data (see [`crate::dataset`]); safe to delete between runs.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Kernels, compiled for the GPUs that ranks have had, where the user has no folder for them; safe to delete between runs.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Output of the ranks of one attempt: `rank-R.out` and `rank-R.err`.
    pub fn attempt_logs(&self, attempt: u32) -> PathBuf {
        self.root.join("logs").join(format!("attempt-{attempt}"))
    }

    /// All checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The checkpoint made after `step` steps. It exists only when complete.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step:08}"))
    }

    /// A link to the checkpoint with the lowest validation loss.
    pub fn best(&self) -> PathBuf {
        self.root.join("best")
    }

    /// What it leads to, as the checkpoint of `step`: from the folder that it lies in, so that a run directory can be moved.
    pub fn best_target(&self, step: u64) -> PathBuf {
        Path::new("checkpoints").join(format!("step-{step:08}"))
    }

    /// The trained model.
    pub fn final_model(&self) -> PathBuf {
        self.root.join("final")
    }

    /// The step of a checkpoint folder's name, or `None` for any other name (a half-written one, say).
    pub fn checkpoint_step(name: &str) -> Option<u64> {
        let digits = name.strip_prefix("step-")?;
        (digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_name_gives_its_step_back() {
        for step in [0, 1, 500, 99_999_999, 123_456_789_012] {
            let path = RunDir::new("runs/x").checkpoint(step);
            assert_eq!(RunDir::checkpoint_step(path.file_name().unwrap().to_str().unwrap()), Some(step));
        }
    }

    #[test]
    fn other_names_are_no_checkpoints() {
        for name in ["step-1", "step-0000000x", ".step-00000500.tmp", "final", "step-"] {
            assert_eq!(RunDir::checkpoint_step(name), None, "{name}");
        }
    }
}
