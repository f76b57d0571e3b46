//! `dslaunch plan` predicts what ranks use: resident memory above that of an empty rank, at its peak.

use proto::memory::PeakBytes;
use proto::plan::Plan;
use tests::fixtures::{token_rows_of, write_model};
use tests::job::Job;

/// Relative.
const TOLERANCE: f64 = 0.05;

const MIB: f64 = (1 << 20) as f64;

/// Ranks, and sections of train.toml that differ from those of the first.
const LAYOUTS: [(usize, &str); 16] = [
    (1, ""),
    (1, "train.activation_checkpointing=ffn"),
    (1, "train.activation_checkpointing=full"),
    (1, "train.micro_batch_size=2"),
    (1, "model.dtype=bf16"),
    (1, "zero.offload_optimizer=cpu"),
    (2, "zero.stage=0"),
    (2, "zero.stage=1"),
    (2, "zero.stage=2"),
    (2, "zero.stage=3"),
    (2, "zero.stage=3 model.dtype=bf16"),
    (2, "parallel.tensor=2"),
    (2, "parallel.tensor=2 parallel.sequence=false"),
    (2, "parallel.pipeline=2"),
    (2, "parallel.pipeline=2 parallel.pipeline_schedule=interleaved train.activation_checkpointing=full"),
    (4, "parallel.pipeline=2 parallel.tensor=2"),
];

#[test]
fn the_plan_knows_every_ranks_peak() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let model = write_model(&folder.path().join("model"), &[512, 1376, 8, 8, 4, 8000]);
    let data = token_rows_of(&folder.path().join("rows.jsonl"), 8, 512, 8000);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 512\npacking = false\n\
         [train]\nsteps = 1\nmicro_batch_size = 1\nglobal_batch_size = 4\n[comm]\ntimeout_seconds = 60\n"
    );
    let mut misses = Vec::new();
    for (idx, (nproc, sets)) in LAYOUTS.into_iter().enumerate() {
        let mut job = Job::new(&folder.path().join(idx.to_string()), &toml).nproc(nproc);
        for set in sets.split_whitespace() {
            job = job.set(set);
        }
        let run = job.succeed();
        let plan: Plan = serde_json::from_slice(&std::fs::read(run.path("plan.json")).unwrap()).unwrap();
        let events = run.events();
        let done = events.last().expect("it is done");
        for rank in 0..nproc {
            let bytes = |key: &str| done[key][rank].as_f64().unwrap();
            let measured = bytes("peak_memory_bytes") - bytes("baseline_memory_bytes");
            let peak = PeakBytes::of(&plan, plan.mesh.coord(rank));
            let predicted = peak.total() as f64;
            let error = predicted / measured - 1.0;
            let line = format!(
                "{nproc} {sets}: rank {rank}: predicted {:.0} MiB, measured {:.0} MiB: {:+.1} %",
                predicted / MIB,
                measured / MIB,
                100.0 * error
            );
            println!("{line}");
            if error.abs() > TOLERANCE {
                misses.push(format!("{line} {peak:?}"));
            }
        }
        std::fs::remove_dir_all(run.path("final")).unwrap();
    }
    assert!(misses.is_empty(), "{}", misses.join("\n"));
}
