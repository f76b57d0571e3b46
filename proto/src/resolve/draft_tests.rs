use super::*;
use crate::plan::Backend;
use std::path::Path;

const MINIMAL: &str = "[model]\npath = \"m\"\n[data]\ntrain = \"d.jsonl\"\n";

fn model() -> ModelConfig {
    let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 172,
                   "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 211, "torch_dtype": "bfloat16"}"#;
    ModelConfig::parse(Path::new("config.json"), text).unwrap()
}

fn draft(extra: &str, world_size: usize) -> Result<Draft, Vec<String>> {
    draft_for(Machine::This { gpus: Ok(0) }, extra, &[], world_size)
}

fn draft_for(machine: Machine, extra: &str, sets: &[&str], world_size: usize) -> Result<Draft, Vec<String>> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    let config = TrainConfig::parse(Path::new("train.toml"), &format!("{MINIMAL}{extra}"), &sets).unwrap();
    let world = World {
        world_size,
        cores: 4,
        omp_num_threads: None,
        current_dir: "/home/u".into(),
        machine,
        room: Room::default(),
    };
    let texts = |errors: ConfigErrors| errors.problems().iter().map(|p| format!("{}: {}", p.key, p.rule)).collect();
    Draft::new(&config, world, model()).map_err(texts)
}

fn plan(extra: &str, world_size: usize, rows: u64) -> Plan {
    let data = PreparedData {
        path: "/home/u/runs/train/data/train.rows".into(),
        rows,
        tokens: 10 * rows,
        longest_row: 64,
        classes: vec![],
    };
    draft(extra, world_size)
        .unwrap()
        .with_data(data.clone(), &[("validation".into(), data)], Progress::default())
        .unwrap()
}

fn check_refused(extra: &str, world_size: usize, problems: &[&str]) {
    assert_eq!(draft(extra, world_size).unwrap_err(), problems, "{extra}");
}

#[test]
fn defaults_are_filled_in() {
    let plan = plan("", 2, 100);
    assert_eq!(plan.mesh, Mesh { pp: 1, dp: 2, tp: 1 });
    assert_eq!(plan.output_dir, Path::new("/home/u/runs/train"));
    assert_eq!(plan.model.path, Path::new("/home/u/m"));
    assert_eq!((plan.threads_per_rank, plan.model.disk_dtype), (2, DiskDType::Bf16));
    assert_eq!((plan.batch.num_micro_batches, plan.batch.global_batch_size), (8, 16));
}

#[test]
fn what_has_to_know_all_of_the_data_is_refused_where_it_is_streamed() {
    let check = |extra: &str, sets: &[&str], expected: &[&str]| {
        let sets = [&["data.streaming=true"][..], sets].concat();
        let found = draft_for(Machine::This { gpus: Ok(0) }, extra, &sets, 2);
        assert_eq!(found.err().unwrap_or_default(), expected, "{extra} {sets:?}");
    };
    let steps = "[train]\nsteps = 4\n";
    check(steps, &[], &[]);
    check(steps, &["data.validation=v", "validation.every_steps=2"], &[]);
    let epochs = "data.streaming needs train.steps: where an epoch of it ends is known only once all of it was read";
    check("", &[], &[&format!("data.streaming: {epochs}")]);
    check("[train]\nepochs = 2\n", &[], &[&format!("train.epochs: {epochs}")]);
    let validation = "validation.every_steps: 0 is the end of each epoch, and data.streaming knows no epochs";
    check(steps, &["data.validation=v"], &[validation]);
    let window = "data.shuffle_window: 15 rows are fewer than the 16 of a step";
    check(steps, &["data.shuffle_window=15"], &[window]);
    for (kind, key) in [("class_balanced", "kind"), ("temperature", "kind")] {
        let sampler = format!(
            "data.sampler.{key}: the sampler {kind} has to know how many samples each class has, and data.streaming does not"
        );
        check(steps, &[&format!("data.sampler.kind={kind}"), "data.sampler.class_key=topic"], &[&sampler]);
    }
    let weights = "data.sampler.weights: the sampler weighted has to know how many samples each class has, and data.streaming does not";
    check(steps, &["data.sampler.weights={a = 1}", "data.sampler.class_key=topic"], &[weights]);
}

#[test]
fn a_plan_survives_its_file() {
    let plan = plan("[zero]\nstage = 0\n", 3, 100);
    assert_eq!(serde_json::from_str::<Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(), plan);
}

#[test]
fn epochs_become_steps_that_cover_every_row() {
    let steps =
        |epochs: u64, rows| plan(&format!("[train]\nepochs = {epochs}\nglobal_batch_size = 16\n"), 2, rows).steps;
    assert_eq!((steps(1, 16), steps(1, 17), steps(3, 100), steps(1, 1)), (1, 2, 19, 1));
}

#[test]
fn a_run_by_epochs_that_goes_on_with_another_batch_takes_the_rows_that_are_left() {
    let data = PreparedData { path: "/d".into(), rows: 64, tokens: 640, longest_row: 64, classes: vec![] };
    let start = Progress { step: 12, rows: 48, label_tokens: 400, ..Progress::default() };
    let steps = |world_size: usize, start: Progress| {
        let draft = draft("[train]\nepochs = 2\ngradient_accumulation_steps = 4\n", world_size).unwrap();
        let plan = draft.with_data(data.clone(), &[("validation".into(), data.clone())], start).unwrap();
        (plan.steps, (start.step + 1..=plan.steps).filter(|&step| plan.validates_after(step)).collect::<Vec<_>>())
    };
    assert_eq!(steps(1, start), (32, vec![16, 32]));
    assert_eq!(steps(2, start), (22, vec![14, 22]));
    assert_eq!(steps(4, start), (17, vec![13, 17]));
    assert_eq!(steps(4, Progress { step: 40, rows: 128, ..Progress::default() }), (40, vec![]));
}

#[test]
fn more_ranks_than_one_machine_takes_are_refused() {
    check_refused("", 65, &["parallel.data: there are 65 ranks, and one machine takes at most 64"]);
    assert!(draft("", 64).is_ok());
}

#[test]
fn a_global_batch_is_split_into_micro_batches() {
    let batch = plan("[train]\nglobal_batch_size = 24\nmicro_batch_size = 2\n", 3, 100).batch;
    assert_eq!((batch.micro_batch_size, batch.num_micro_batches, batch.global_batch_size), (2, 4, 24));
    check_refused(
        "[train]\nglobal_batch_size = 25\nmicro_batch_size = 2\n",
        3,
        &["train.global_batch_size: must be a multiple of micro_batch_size 2 * data-parallel ranks 3 = 6"],
    );
}

#[test]
fn ranks_that_do_not_multiply_out_are_refused() {
    check_refused(
        "[parallel]\ndata = 3\n",
        2,
        &["parallel.data: pipeline 1 * data 3 * tensor 1 needs 3 ranks, but there are 2"],
    );
}

#[test]
fn what_is_not_supported_yet_is_refused_all_at_once() {
    check_refused(
        "[comm]\nbackend = \"tcp\"\ncompression = \"int8\"\n",
        2,
        &["comm.backend: not supported yet: use \"auto\"", "comm.compression: not supported yet: use \"none\""],
    );
}

#[test]
fn validation_sets_have_names_of_their_own_and_are_given_once() {
    let set = |name: &str| format!("[[validation.source]]\nname = \"{name}\"\npath = \"v.jsonl\"\n");
    let draft = |sets: &[&str], text: &str| draft_for(Machine::This { gpus: Ok(0) }, text, sets, 1);
    assert!(draft(&[], &(set("a") + &set("b"))).is_ok());
    let twice = "validation.source[1].name: \"a\" is the name of another [[validation.source]] already";
    assert_eq!(draft(&[], &(set("a") + &set("a"))).unwrap_err(), [twice]);
    let both = "data.validation: give only one of data.validation and [[validation.source]]";
    assert_eq!(draft(&["data.validation=v.jsonl"], &set("a")).unwrap_err(), [both]);
}

#[test]
fn ranks_on_gpus_that_are_not_there_are_refused() {
    let problems = |gpus: usize, sets: &[&str]| draft_for(Machine::This { gpus: Ok(gpus) }, "", sets, 2).unwrap_err();
    let backend = "comm.backend: not supported yet: use \"auto\"";
    let own = "model.device: each rank trains on a GPU of its own: 2 ranks, and 1 GPU; --share-gpu lets them share, to try a layout";
    assert_eq!(problems(1, &[]), [own]);
    let for_cpus = "comm.backend: is for CPUs, and ranks compute on GPUs";
    assert_eq!(problems(8, &["model.device=cuda", "comm.backend=shm"]), [for_cpus]);
    assert_eq!(problems(8, &["model.device=cpu", "comm.backend=tcp"]), [backend]);
    let none = draft_for(Machine::This { gpus: Err("no driver".into()) }, "", &["model.device=cuda"], 1).unwrap_err();
    assert_eq!(none, ["model.device: there is no GPU to train on here: no driver"]);
}

#[test]
fn a_machine_with_gpus_trains_on_them_and_says_which_are_idle() {
    let ground_of = |gpus: usize, sets: &[&str], world_size: usize| {
        let draft = draft_for(Machine::This { gpus: Ok(gpus) }, "", sets, world_size).unwrap();
        let plan = draft.without_data().unwrap();
        (plan.device, plan.backend, plan.model.compute_dtype, draft.notes())
    };
    let ground = |gpus, sets: &[&str]| ground_of(gpus, sets, 1);
    let note = "7 of 8 GPUs stay idle: --nproc 8 trains on all".to_owned();
    assert_eq!(ground_of(8, &[], 8), (Device::Cuda, Backend::Nccl, Dtype::Bf16, vec![]));
    assert_eq!(ground(1, &["comm.backend=nccl"]), (Device::Cuda, Backend::Nccl, Dtype::Bf16, vec![]));
    assert_eq!(ground(8, &[]), (Device::Cuda, Backend::Solo, Dtype::Bf16, vec![note]));
    assert_eq!(ground(1, &[]), (Device::Cuda, Backend::Solo, Dtype::Bf16, vec![]));
    assert_eq!(ground(8, &["model.device=cpu"]), (Device::Cpu, Backend::Shm, Dtype::Fp32, vec![]));
}

#[test]
fn as_little_is_computed_again_as_fits_into_memory() {
    let checkpointing = |gpu: Option<u64>, sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let config = TrainConfig::parse(Path::new("train.toml"), MINIMAL, &sets).unwrap();
        let room = Room { gpu, host: Some(1) };
        let machine = Machine::Imagined;
        let world =
            World { world_size: 1, cores: 4, omp_num_threads: None, current_dir: "/home/u".into(), machine, room };
        Draft::new(&config, world, model()).unwrap().without_data().unwrap()
    };
    let needed = |plan: &Plan| memory::needs(plan)[0].bytes;
    let of_all = Checkpointing::of_all;
    let [none, full] = ["none", "full"]
        .map(|level| needed(&checkpointing(None, &[&format!("train.activation_checkpointing={level}")])));
    assert!(full < none);
    let chosen = |gpu| checkpointing(gpu, &[]).activation_checkpointing;
    assert_eq!(chosen(None), of_all(ActivationCheckpointing::None), "nothing is known");
    let ample = none + none / 20;
    assert_eq!(chosen(Some(ample)), of_all(ActivationCheckpointing::None), "the host's memory does not matter to it");
    assert_ne!(chosen(Some(none)), of_all(ActivationCheckpointing::None), "it has some to spare");
    assert_eq!(chosen(Some(full)), of_all(ActivationCheckpointing::Full));
    assert_eq!(chosen(Some(1)), of_all(ActivationCheckpointing::Full), "nothing fits, and the shortage says so");
    let between = checkpointing(Some(none - 1), &[]);
    assert_ne!(between.activation_checkpointing, of_all(ActivationCheckpointing::None));
    assert!(needed(&between) < none);
    let given = checkpointing(Some(full), &["train.activation_checkpointing=ffn"]).activation_checkpointing;
    assert_eq!(given, of_all(ActivationCheckpointing::Ffn), "who asks for it gets it");
}

#[test]
fn an_imagined_machine_is_planned_for_with_gpus_and_what_goes_with_them() {
    let draft = |sets: &[&str], world_size| draft_for(Machine::Imagined, "", sets, world_size);
    let ground = |sets: &[&str], world_size| {
        let plan = draft(sets, world_size).unwrap().without_data().unwrap();
        (plan.device, plan.backend, plan.model.compute_dtype)
    };
    assert_eq!(ground(&[], 2), (Device::Cuda, Backend::Nccl, Dtype::Bf16));
    assert_eq!(ground(&["model.device=cuda", "model.dtype=fp32"], 1), (Device::Cuda, Backend::Solo, Dtype::Fp32));
    assert_eq!(ground(&["comm.backend=nccl"], 1), (Device::Cuda, Backend::Nccl, Dtype::Bf16));
    let problems = |sets: &[&str]| draft(sets, 2).unwrap_err();
    let cpu = "model.device: the plan is for GPUs with --gpu-memory, and this job computes on CPUs";
    assert_eq!(problems(&["model.device=cpu"]), [cpu]);
    assert_eq!(problems(&["model.device=cpu", "comm.backend=nccl"]), [cpu]);
    assert_eq!(problems(&["comm.backend=shm"]), ["comm.backend: is for CPUs, and ranks compute on GPUs"]);
}

#[test]
fn a_default_without_effect_is_noted_when_written_down() {
    assert_eq!(draft("", 1).unwrap().notes(), Vec::<String>::new());
    let note =
        "--set validation.min_delta=0.1: validation.min_delta has no effect, validation.early_stopping_patience is 0";
    let sets = ["data.validation=v.jsonl", "validation.min_delta=0.1"];
    assert_eq!(draft_for(Machine::This { gpus: Ok(0) }, "", &sets, 1).unwrap().notes(), [note]);
}

#[test]
fn a_key_that_the_others_leave_without_effect_is_noted_where_it_was_set() {
    let check = |extra: &str, ranks: usize, expected: &[&str]| {
        assert_eq!(draft(extra, ranks).unwrap().notes(), expected, "{extra}");
    };
    let validation =
        "train.toml:6: validation.every_steps has no effect, there are no validation files (data.validation)";
    check("[validation]\nevery_steps = 10\n", 1, &[validation]);
    let ratio = "train.toml:7: schedule.min_lr_ratio has no effect, schedule.kind = \"constant\" never falls";
    check("[schedule]\nkind = \"constant\"\nmin_lr_ratio = 0.1\n", 1, &[ratio]);
    check("[schedule]\nkind = \"linear\"\nmin_lr_ratio = 0.1\n", 1, &[]);
    check("[schedule]\nkind = \"constant\"\n", 1, &[]);
    let schedule =
        "train.toml:6: parallel.pipeline_schedule has no effect, there is one pipeline stage (parallel.pipeline)";
    check("[parallel]\npipeline_schedule = \"zero_bubble\"\n", 2, &[schedule]);
    check("[parallel]\npipeline = 2\npipeline_schedule = \"zero_bubble\"\n", 2, &[]);
    let notes = |sets: &[&str]| draft_for(Machine::This { gpus: Ok(0) }, "", sets, 1).unwrap().notes();
    assert_eq!(notes(&["validation.every_steps=10", "data.validation=v.jsonl"]), Vec::<String>::new());
    let set = "--set validation.every_steps=10: validation.every_steps has no effect, there are no validation files \
               (data.validation)";
    assert_eq!(notes(&["validation.every_steps=10"]), [set]);
}

#[test]
fn prefetching_is_noted_where_nothing_is_gathered() {
    let check = |zero: &str, expected: &[&str]| {
        let draft = draft(&format!("[zero]\n{zero}\n"), 2).unwrap();
        assert_eq!(draft.notes_on(&draft.without_data().unwrap()), expected, "{zero}");
    };
    let at = |stage: u8| {
        format!(
            "train.toml:6: zero.prefetch_units has no effect, parameters are gathered at zero.stage 3 only, and this is \
             stage {stage}"
        )
    };
    check("prefetch_units = 2", &[&at(1)]);
    check("prefetch_units = 2\nstage = 2", &[&at(2)]);
    check("prefetch_units = 2\nstage = \"auto\"", &[&at(1)]);
    check("prefetch_units = 2\nstage = 3", &[]);
    check("prefetch_units = 2\noffload_optimizer = \"cpu\"", &[]);
    check("stage = 2", &[]);
    let off = "train.toml:6: zero.prefetch_units has no effect, zero.overlap_comm is false";
    check("prefetch_units = 2\nstage = 3\noverlap_comm = false", &[off]);
}

#[test]
fn a_warm_up_that_the_job_does_not_see_the_end_of_is_noted() {
    let data = PreparedData { path: "/d".into(), rows: 80, tokens: 800, longest_row: 64, classes: vec![] };
    let check = |extra: &str, notes: &[&str]| {
        let draft = draft(extra, 1).unwrap();
        let plan = draft.with_data(data.clone(), &[], Progress::default()).unwrap();
        assert_eq!(draft.notes_on(&plan), notes, "{extra}");
    };
    let note = |place: u32, warm_up: u64| {
        format!(
            "train.toml:{place}: schedule.warmup_steps = {warm_up} is longer than the job's 10 steps: the learning rate \
             never comes to its peak (optimizer.learning_rate)"
        )
    };
    check("[schedule]\nwarmup_steps = 11\n", &[&note(6, 11)]);
    check("[train]\nsteps = 10\n[schedule]\nwarmup_steps = 100\n", &[&note(8, 100)]);
    check("[schedule]\nwarmup_steps = 10\n", &[]);
    check("[train]\nepochs = 2\n[schedule]\nwarmup_steps = 11\n", &[]);
    let without_data = |extra: &str| {
        let draft = draft(extra, 1).unwrap();
        draft.notes_on(&draft.without_data().unwrap()).len()
    };
    assert_eq!(without_data("[schedule]\nwarmup_steps = 100\n"), 0, "nobody has counted the rows");
    assert_eq!(without_data("[train]\nsteps = 10\n[schedule]\nwarmup_steps = 100\n"), 1);
}

#[test]
fn what_overlaps_is_for_ranks_that_can_do_both_at_once() {
    let zero = |machine, sets: &[&str]| {
        let plan = draft_for(machine, "[zero]\nprefetch_units = 1\n", sets, 2).unwrap().without_data().unwrap();
        (plan.zero.prefetch_units, plan.zero.overlap_comm)
    };
    let with_gpus = || Machine::This { gpus: Ok(2) };
    assert_eq!(zero(with_gpus(), &[]), (1, true));
    assert_eq!(zero(with_gpus(), &["zero.overlap_comm=false"]), (0, false));
    assert_eq!(zero(Machine::This { gpus: Ok(0) }, &[]), (1, false));
}

#[test]
fn a_plan_of_streamed_data_knows_no_epochs() {
    let toml = "streaming = true\nshuffle_window = 64\n[train]\nsteps = 9\n";
    let data = PreparedData { path: "/d".into(), rows: 0, tokens: 0, longest_row: 4096, classes: vec![] };
    let plan = draft(toml, 2).unwrap().with_data(data, &[], Progress::default()).unwrap();
    assert_eq!(plan.data.stream, Some(StreamPlan { window: 64 }));
    assert!((1..10).all(|step| !plan.validates_after(step)));
    assert_eq!(serde_json::from_str::<Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(), plan);
}

#[test]
fn validation_falls_on_epoch_ends_and_on_the_last_step() {
    let steps = |extra: &str| {
        let plan = plan(&format!("[train]\nsteps = 10\nglobal_batch_size = 4\n{extra}"), 1, 10);
        (1..=plan.steps).filter(|&step| plan.validates_after(step)).collect::<Vec<_>>()
    };
    assert_eq!(steps(""), [3, 5, 8, 10]);
    assert_eq!(steps("[validation]\nevery_steps = 4\n"), [4, 8, 10]);
}

#[test]
fn heads_that_do_not_split_are_refused_with_the_next_best() {
    check_refused(
        "[parallel]\ntensor = 3\n",
        3,
        &[
            "parallel.tensor: the model's 4 attention heads and 4 key/value heads do not split over 3 ranks: every rank \
           needs equally many heads, and whole key/value heads or an equal share of one",
        ],
    );
    assert!(draft("[parallel]\ntensor = 4\n", 4).is_ok());
}

#[test]
fn a_pipeline_longer_than_the_model_is_refused() {
    check_refused(
        "[parallel]\npipeline = 5\n",
        5,
        &["parallel.pipeline: the model's 4 units (embedding, 2 blocks, head) do not fill 5 stages"],
    );
}

#[test]
fn every_unit_is_in_one_chunk_and_few_units_are_not_interleaved() {
    let chunks = |pipeline: usize, schedule: &str| {
        let extra = format!("[parallel]\npipeline = {pipeline}\npipeline_schedule = \"{schedule}\"\n");
        let draft = draft(&extra, pipeline).unwrap();
        let data = PreparedData { path: "/d".into(), rows: 8, tokens: 80, longest_row: 64, classes: vec![] };
        (draft.with_data(data, &[], Progress::default()).unwrap().pipeline.chunks.len(), draft.notes().len())
    };
    assert_eq!(chunks(2, "1f1b"), (2, 0));
    assert_eq!(chunks(2, "interleaved"), (4, 0));
    assert_eq!(chunks(4, "interleaved"), (4, 1));
    assert_eq!(chunks(1, "interleaved"), (1, 1));
}

#[test]
fn ranks_share_the_cores_unless_somebody_says_otherwise() {
    let check = |job: &str, omp_num_threads: Option<usize>, threads: usize, note: Option<&str>| {
        let mut draft = draft(job, 2).unwrap();
        draft.world.omp_num_threads = omp_num_threads;
        assert_eq!((draft.threads_per_rank(), draft.note_on_threads().as_deref()), (threads, note), "{job}");
    };
    check("", None, 2, None);
    check("", Some(2), 2, None);
    let fewer = "OMP_NUM_THREADS = 1: each rank has 1 of the 4 cores, and its share would be 2";
    check("", Some(1), 1, Some(fewer));
    let more = |of: &str| format!("{of} = 3: 2 ranks have 6 threads on 4 cores, and wait for each other");
    check("", Some(3), 3, Some(&more("OMP_NUM_THREADS")));
    check("[job]\nthreads_per_rank = 3\n", Some(1), 3, Some(&more("job.threads_per_rank")));
    check("[job]\nthreads_per_rank = 1\n", Some(3), 1, None);
}

#[test]
fn samples_of_classes_are_packed_within_batches() {
    let sampler = "[data.sampler]\nkind = \"class_balanced\"\nclass_key = \"topic\"\n";
    let plan = |toml: &str, packing: &str| {
        let sets = [&format!("data.packing={packing}"), "data.seq_len=64", "train.global_batch_size=40"];
        draft_for(Machine::This { gpus: Ok(0) }, toml, &sets, 1).unwrap().without_data().unwrap()
    };
    let packed = plan(sampler, "true");
    assert_eq!((packed.batch.packed_tokens, packed.batch.num_micro_batches), (Some(64), 40));
    assert_eq!(plan(sampler, "false").batch.packed_tokens, None);
    // Rows have several samples each.
    assert_eq!(plan("", "true").batch.packed_tokens, None);
    // All samples together are as long as one may be.
    let mut short = packed.clone();
    (short.data.longest_train_row, short.data.train_tokens) = (Some(8), 7 * short.data.train_rows);
    assert_eq!((short.max_micro_batch_tokens(), short.max_micro_batches(), short.mean_micro_batches()), (64, 11, 5));
    // Rows that are scored may be longer.
    (short.data.longest_row, short.data.longest_train_row) = (1, Some(1));
    assert_eq!((short.max_micro_batch_tokens(), short.max_micro_batches()), (40, 2));
    assert_eq!(
        (packed.max_micro_batch_tokens(), packed.max_micro_batches(), packed.mean_micro_batches()),
        (64, 40, 40)
    );
    // Few samples of a class that is drawn as often as another count as much.
    let class = |samples, tokens| ClassShare { name: String::new(), samples, tokens, positions: 50 };
    (short.data.sampling, short.data.classes) = (Sampling::Balanced, vec![class(90, 90), class(10, 310)]);
    (short.data.train_rows, short.data.train_tokens) = (100, 400);
    assert_eq!((short.data.mean_row_tokens(), short.mean_micro_batches()), (16.0, 10));
}
