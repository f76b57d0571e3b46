//! `dslaunch plan` predicts the peak of a rank's resident memory, above that of an empty rank. A resume needs no more,
//! and a rank that runs out of memory says where.

#![allow(clippy::print_stdout, reason = "tests tell how they go")]

use std::path::Path;
use std::process::Command;

use proto::memory::PeakBytes;
use proto::plan::Plan;
use tests::fixtures::{token_rows_of, write_model};
use tests::job::Job;
use tests::program;
use tests::run::RunDir;

/// Relative.
const TOLERANCE: f64 = 0.05;

/// Of a tiny model: which pages of libraries are touched is not the plan's to know.
const TOLERANCE_MIB: f64 = 2.0;

/// What further folders of a job have at the end of their names. Between folders with names of five lengths, one job varied by 8 %
/// (nf4, 256.7 to 276.2 MiB).
const OTHER_FOLDERS: [&str; 4] = ["-a", "-again", "-once-more-to-see", "-in-a-folder-of-quite-a-long-name"];

const MIB: f64 = (1 << 20) as f64;

/// Ranks, and sections of train.toml that differ from those of the first.
const LAYOUTS: [(usize, &str); 29] = [
    (1, ""),
    (1, "train.activation_checkpointing=pointwise"),
    (1, "train.activation_checkpointing=ffn"),
    (1, "train.activation_checkpointing=full"),
    (1, "train.micro_batch_size=2"),
    (1, "model.dtype=bf16"),
    (1, "model.dtype=bf16 optimizer.state=bf16 optimizer.masters=false"),
    (1, "zero.offload_optimizer=cpu"),
    (1, "zero.offload_optimizer=cpu train.activation_checkpointing=full"),
    (1, "zero.offload_optimizer=cpu zero.offload_params=cpu zero.stage=3 model.dtype=bf16"),
    (2, "zero.offload_optimizer=cpu zero.offload_params=cpu zero.stage=3 train.activation_checkpointing=full"),
    (2, "zero.stage=0"),
    (2, "zero.stage=1"),
    (2, "zero.stage=2"),
    (2, "zero.stage=3"),
    (2, "zero.stage=3 model.dtype=bf16"),
    (2, "zero.stage=3 model.dtype=bf16 optimizer.state=bf16 optimizer.masters=false"),
    (2, "parallel.tensor=2"),
    (2, "parallel.tensor=2 parallel.sequence=false"),
    (2, "parallel.pipeline=2"),
    (2, "parallel.pipeline=2 parallel.pipeline_schedule=interleaved train.activation_checkpointing=full"),
    (4, "parallel.pipeline=2 parallel.tensor=2"),
    (1, "lora.rank=16"),
    (1, "lora.rank=16 lora.dropout=0.1"),
    (1, "lora.rank=16 lora.dora=true"),
    (1, "lora.rank=16 lora.quantize=nf4"),
    (1, "lora.rank=16 lora.quantize=int8 lora.dora=true train.activation_checkpointing=full"),
    (2, "lora.rank=16 lora.quantize=nf4 zero.stage=3 model.dtype=bf16"),
    (2, "lora.rank=16 lora.dropout=0.1 parallel.tensor=2"),
];

/// Models that are tiny or all vocabulary: sizes as `write_model` takes them, tokens of a row, rows of a micro-batch.
const SHAPES: [([usize; 6], usize, usize); 5] = [
    ([64, 172, 4, 2, 2, 256], 64, 1),
    ([128, 344, 4, 4, 4, 1000], 256, 2),
    ([256, 688, 8, 4, 4, 4000], 256, 8),
    ([64, 172, 4, 2, 2, 64_000], 128, 2),
    ([256, 688, 8, 2, 2, 32_000], 64, 2),
];

/// A job that trains a model of this shape for one step.
fn train_toml(folder: &Path, shape: &[usize; 6], seq_len: usize, micro_batch_size: usize) -> String {
    let model = write_model(&folder.join("model"), shape);
    let data = token_rows_of(&folder.join("rows.jsonl"), 4 * micro_batch_size, seq_len, shape[5]);
    format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = {seq_len}\npacking = false\n\
         [train]\nsteps = 1\nmicro_batch_size = {micro_batch_size}\nglobal_batch_size = {}\n\
         [comm]\ntimeout_seconds = 60\n",
        4 * micro_batch_size
    )
}

#[test]
fn the_plan_knows_every_ranks_peak() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let toml = train_toml(folder.path(), &[512, 1376, 8, 8, 4, 8000], 512, 1);
    let jobs = LAYOUTS.into_iter().enumerate().map(|(idx, (nproc, sets))| {
        let job = Job::new(&folder.path().join(idx.to_string()), &toml).nproc(nproc);
        (format!("{nproc} {sets}"), nproc, sets.split_whitespace().fold(job, Job::set))
    });
    compare(jobs);
}

#[test]
fn the_plan_knows_the_peak_of_tiny_models_and_of_large_vocabularies() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let shapes = SHAPES.into_iter().enumerate().map(|(idx, (shape, seq_len, micro_batch_size))| {
        let folder = folder.path().join(idx.to_string());
        std::fs::create_dir(&folder).expect("a folder of its own");
        (shape, train_toml(&folder, &shape, seq_len, micro_batch_size), folder)
    });
    let jobs = shapes.flat_map(|(shape, toml, folder)| {
        ["fp32", "bf16"].map(|dtype| {
            let job = Job::new(&folder.join(dtype), &toml).nproc(1).set(&format!("model.dtype={dtype}"));
            (format!("{shape:?} {dtype}"), 1, job)
        })
    });
    compare(jobs);
}

/// Runs jobs, each with what it is and how many ranks it has, and compares the peak of each rank with the plan's.
fn compare(jobs: impl Iterator<Item = (String, usize, Job)>) {
    let mut misses = Vec::new();
    for (what, nproc, job) in jobs {
        let (plan, first) = measure(&job);
        let peaks: Vec<PeakBytes> = (0..nproc).map(|rank| PeakBytes::of(&plan, plan.mesh.coord(rank))).collect();
        let error = |rank: usize, measured: f64| peaks[rank].total() as f64 / measured - 1.0;
        let is_out =
            |rank: usize, measured: f64| error(rank, measured).abs() > TOLERANCE.max(TOLERANCE_MIB * MIB / measured);
        let is_near = !(0..nproc).any(|rank| is_out(rank, first[rank]));
        // Which freed blocks the next ones fit in depends on the lengths of paths: what is out is measured in four more folders, and
        // the median counts.
        let again = if is_near { vec![] } else { OTHER_FOLDERS.map(|suffix| measure(&job.sibling(suffix)).1).into() };
        for (rank, peak) in peaks.iter().enumerate() {
            let mut measured: Vec<f64> = again.iter().chain([&first]).map(|run| run[rank]).collect();
            measured.sort_by(f64::total_cmp);
            let (median, runs) = (measured[measured.len() / 2], measured.len());
            let line = format!(
                "{what}: rank {rank}: predicted {:.1} MiB, measured {:.1} MiB ({runs}): {:+.1} %",
                peak.total() as f64 / MIB,
                median / MIB,
                100.0 * error(rank, median)
            );
            println!("{line} {peak:?}");
            if is_out(rank, median) {
                misses.push(format!("{line} {peak:?}"));
            }
        }
    }
    assert!(misses.is_empty(), "{}", misses.join("\n"));
}

/// Runs a job. Its plan, and what the peak of each rank's resident memory was above an empty rank's.
fn measure(job: &Job) -> (Plan, Vec<f64>) {
    std::fs::remove_dir_all(job.run_dir().path("")).ok();
    let run = job.succeed();
    let plan: Plan = serde_json::from_slice(&std::fs::read(run.path("plan.json")).unwrap()).unwrap();
    let events = run.events();
    let done = events.last().expect("it is done");
    let bytes = |rank: usize, key: &str| done[key][rank].as_f64().unwrap();
    let measured = |rank| bytes(rank, "peak_memory_bytes") - bytes(rank, "baseline_memory_bytes");
    let measured = (0..plan.mesh.world_size()).map(measured).collect();
    std::fs::remove_dir_all(run.path("final")).unwrap();
    (plan, measured)
}

/// Resident memory of every rank at its peak, in bytes.
fn peaks(run: &RunDir) -> Vec<f64> {
    let done = run.events().pop().expect("it is done");
    let peaks = done["peak_memory_bytes"].as_array().expect("one of each rank");
    peaks.iter().map(|peak| peak.as_f64().expect("a number")).collect()
}

#[test]
fn a_resume_needs_no_more_memory_than_training() {
    // Relative: the allocator's luck between two runs.
    const NOISE: f64 = 0.03;
    let folder = tempfile::tempdir().expect("a scratch folder");
    let model = write_model(&folder.path().join("model"), &[512, 1376, 8, 8, 4, 8000]);
    let data = token_rows_of(&folder.path().join("rows.jsonl"), 8, 512, 8000);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 512\npacking = false\n\
         [train]\nsteps = 2\nmicro_batch_size = 1\nglobal_batch_size = 4\n[checkpoint]\nevery_steps = 1\n\
         [comm]\ntimeout_seconds = 60\n"
    );
    let layouts = [(1, ""), (2, "zero.stage=3"), (2, "parallel.tensor=2")];
    let run = |name: String, (nproc, sets): (usize, &str), resume: &str| {
        let mut job =
            Job::new(&folder.path().join(name), &toml).nproc(nproc).set(&format!("checkpoint.resume={resume}"));
        for set in sets.split_whitespace() {
            job = job.set(set);
        }
        job.succeed()
    };
    let trained: Vec<RunDir> =
        layouts.iter().enumerate().map(|(idx, &layout)| run(format!("trained-{idx}"), layout, "never")).collect();
    for (idx, &layout) in layouts.iter().enumerate() {
        // From itself, and from the next one.
        for from in [idx, (idx + 1) % layouts.len()] {
            let checkpoint = trained[from].path("checkpoints/step-00000001");
            let resumed = run(format!("{idx}-from-{from}"), layout, checkpoint.to_str().expect("UTF-8"));
            for (rank, (got, most)) in peaks(&resumed).into_iter().zip(peaks(&trained[idx])).enumerate() {
                let what = format!("{layout:?} from {:?}, rank {rank}", layouts[from]);
                assert!(got <= most * (1.0 + NOISE), "{what}: {:.0} MiB, training {:.0}", got / MIB, most / MIB);
            }
        }
    }
}

/// Where the second step's rows are long and the first one's are not, they are tried before the first step.
#[test]
fn a_rank_that_runs_out_of_memory_names_unit_phase_and_keys() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let model = write_model(&folder.path().join("model"), &[64, 4096, 4, 2, 2, 97]);
    for (first_step, place) in [(512, "at step 1 of attempt 0"), (8, "before the first step of attempt 0")] {
        let rows = [(first_step, "first.jsonl"), (512, "second.jsonl")]
            .map(|(seq_len, name)| token_rows_of(&folder.path().join(name), 16, seq_len, 97));
        let toml = format!(
            "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {rows:?}\nseq_len = 512\npacking = false\n\
             shuffle = false\n[train]\nsteps = 2\nmicro_batch_size = 16\nglobal_batch_size = 16\n\
             [comm]\ntimeout_seconds = 60\n"
        );
        // The plan needs 1.7 GiB, libtorch's own address space about 1 GiB.
        let job = Job::new(&folder.path().join(format!("job-{first_step}")), &toml);
        let finished = job.finish_under(&["sh", "-c", "ulimit -v 2000000; exec \"$0\" \"$@\""]);
        assert_eq!(finished.status.code(), Some(3), "{}{}", finished.stdout, finished.stderr);
        for text in [
            &format!("rank 0 failed {place}, forward pass of layers."),
            "out of memory: DefaultCPUAllocator: can't allocate memory",
            "planned: parameters",
            "what would help: train.activation_checkpointing = \"full\", a smaller train.micro_batch_size",
        ] {
            assert!(finished.stderr.contains(text), "{text}: {}", finished.stderr);
        }
    }
}

/// `| \`file\` | GPUs | layout | predicted memory of a GPU | passes | predicted memory of the host |`
#[test]
#[allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]
fn the_examples_need_what_their_page_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let folder = root.join("examples/deepseek-llm-7b");
    let page = std::fs::read_to_string(folder.join("README.md")).expect("the page");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")).collect::<Vec<_>>();
    assert_eq!(rows.len(), 9, "{rows:?}");
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [file, nproc, _, gpu, passes, host, _] = cells[..] else { panic!("{row}") };
        let room = passes.split([',', '(']).next().expect("a size").trim().replace(' ', "");
        let mut command = Command::new(program("dslaunch"));
        command.current_dir(root).args(["plan", "--nproc", nproc, "--gpu-memory", &room]);
        if file == "one-gpu-28gb.toml" {
            command.args(["--host-memory", "128GiB"]);
        }
        let planned = command.arg(folder.join(file)).output().expect("it runs");
        let text = String::from_utf8(planned.stdout).expect("UTF-8");
        assert!(planned.status.success(), "{file}: {}", String::from_utf8_lossy(&planned.stderr));
        let says = |start: &str, size: &str| text.lines().any(|line| line.starts_with(&format!("{start}{size} ")));
        assert!(says("memory    ", gpu) && says("host      ", host), "{file}: not {gpu} and {host}: {text}");
    }
}
