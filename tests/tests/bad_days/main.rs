//! Bad days of a job: it is stopped, frozen, killed with all that watches it, its disk is full, its limits are tight, its folder moves away.

use std::path::Path;

use tests::fixtures::{tiny_model, token_rows};
use tests::job::Job;

mod freezes;
mod full_disks;
mod left_behind;
mod limits;
mod stops;
mod ulimits;

/// A job of two ranks in a folder of its own in `folder`; each kind of bad day says how long it is.
fn job(folder: &Path, name: &str) -> Job {
    let model = tiny_model(&folder.join("model"));
    let data = token_rows(&folder.join("rows.jsonl"), 64, 32);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 40\n\
         [train]\nmicro_batch_size = 2\nglobal_batch_size = 8\n[optimizer]\nlearning_rate = 1e-3\n[log]\nevery_steps = 1\n"
    );
    Job::new(&folder.join(name), &toml).nproc(2)
}
