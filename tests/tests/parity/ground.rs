//! Models and data that jobs of some tests share.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Rows of a step, for the oracle as for jobs.
pub const ROWS_PER_STEP: usize = 4;

/// Models and their data in one folder, made once for a test.
pub struct Ground {
    folder: TempDir,
}

impl Ground {
    /// Makes the models of these names, with 22 uneven rows for each.
    pub fn new(models: &[&str]) -> Self {
        let ground = Self { folder: tempfile::tempdir().expect("a scratch folder") };
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        for &name in models {
            tests::python("make_model.py", &[&text(&ground.model(name)), "--variant", name]);
            let data = text(&ground.data(name));
            tests::python("make_tokens.py", &[&data, "--rows", "22", "--vocab", "200", "--seq-len", "32", "--uneven"]);
        }
        ground
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn model(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}-model"))
    }

    pub fn data(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}-rows.jsonl"))
    }

    /// A job of so many steps on a model, in the order of its rows. `of_model`: further keys of `[model]`, and sections behind it.
    pub fn toml(&self, model: &str, of_model: &str, steps: u64) -> String {
        let (path, data) = (self.model(model), self.data(model));
        format!(
            "[model]\npath = {path:?}\n{of_model}\n\
             [data]\ntrain = {data:?}\nvalidation = {data:?}\nseq_len = 32\npacking = false\nshuffle = false\n\
             [train]\nsteps = {steps}\nglobal_batch_size = {ROWS_PER_STEP}\n\
             [optimizer]\nlearning_rate = 1e-3\nweight_decay = 0.1\n[schedule]\nwarmup_steps = 2\nmin_lr_ratio = 0.1\n\
             [validation]\nevery_steps = 100\n[log]\nevery_steps = 1\n"
        )
    }
}
