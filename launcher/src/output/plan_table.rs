//! Prints the plan for people, as a table (`dslaunch plan`). Pure.

use std::ops::Range;

use proto::config::Quantize;
use proto::layout::{TensorSplit, model_layout, model_layout_with};
use proto::memory::{self, Need, Room, Side};
use proto::mesh::Mesh;
use proto::model_config::ModelConfig;
use proto::pipeline::{PassCosts, bubble_fraction};
use proto::plan::{Backend, Plan, Trained};
use proto::sampler::{ClassShare, Sampling};
use proto::validation::EarlyStopping;

use super::units::{bytes, count, plural};

/// The plan as a table of a name and a sentence each. `room`: the memory that ranks have.
pub fn plan_table(plan: &Plan, room: Room) -> String {
    let of_run =
        [("batch", batch(plan)), ("steps", steps(plan)), ("optimizer", optimizer(plan)), ("schedule", schedule(plan))];
    table(
        [("job", format!("{}, seed {}", plan.name, plan.seed)), ("output", plan.output_dir.display().to_string())]
            .into_iter()
            .chain(of_layout(plan))
            .chain([("data", data(plan))])
            .chain(classes(plan).into_iter().map(|class| ("", class)))
            .chain(of_run)
            .chain(memory(plan, room))
            .chain(validation(plan).map(|text| ("validated", text)))
            .chain([("saving", saving(plan))]),
    )
}

/// The rows that need no look at the machine: a name and a sentence each.
pub fn plan_rows(plan: &Plan) -> Vec<(&'static str, String)> {
    let rest = [
        ("data", data(plan)),
        ("batch", batch(plan)),
        ("steps", steps(plan)),
        ("optimizer", optimizer(plan)),
        ("schedule", schedule(plan)),
    ];
    let last = validation(plan).map(|text| ("validated", text)).into_iter().chain([("saving", saving(plan))]);
    of_layout(plan).into_iter().chain(rest).chain(last).collect()
}

/// As [`plan_table`], without what only the data knows.
pub fn plan_table_without_data(plan: &Plan, room: Room) -> String {
    let rows = format!("not looked at; rows are taken as {} tokens long", plan.data.seq_len);
    let rest = [("data", rows), ("batch", batch(plan)), ("optimizer", optimizer(plan))];
    table(of_layout(plan).into_iter().chain(rest).chain(memory(plan, room)))
}

fn table(rows: impl Iterator<Item = (&'static str, String)>) -> String {
    rows.map(|(name, text)| format!("{name:<10}{text}")).collect::<Vec<_>>().join("\n")
}

/// The rows on the model and its layout.
fn of_layout(plan: &Plan) -> Vec<(&'static str, String)> {
    let mut rows = vec![("model", model(plan)), ("ranks", ranks(plan)), ("device", device(plan))];
    if plan.mesh.pp > 1 {
        rows.push(("pipeline", pipeline(plan)));
    }
    rows
}

fn model(plan: &Plan) -> String {
    let config = &plan.model.config;
    let trained = match plan.model.trained {
        Trained::All => String::new(),
        Trained::Containing(_) => format!(", {} of them trained", count(num_trained(plan))),
        Trained::Adapter(ref adapter) => {
            let bits = match adapter.quantize {
                Quantize::None => String::new(),
                quantize => format!(", frozen projections in {quantize}"),
            };
            format!(" and {} of adapters (rank {}), which are trained{bits}", count(num_trained(plan)), adapter.rank)
        }
    };
    format!(
        "{}: {} parameters{trained} ({}, hidden size {}, vocabulary {}), {} weights, computes in {}",
        plan.model.path.display(),
        count(num_parameters(config)),
        plural(config.num_hidden_layers as u64, "layer"),
        config.hidden_size,
        config.vocab_size,
        plan.model.init,
        plan.model.compute_dtype,
    )
}

fn ranks(plan: &Plan) -> String {
    let mesh = plan.mesh;
    let threads = plural(plan.threads_per_rank as u64, "thread");
    let sequence = if plan.sequence_parallel { " (with sequence parallelism)" } else { "" };
    let Mesh { pp, dp, tp } = mesh;
    format!("{} = pipeline {pp} * data {dp} * tensor {tp}{sequence}, {threads} each", mesh.world_size())
}

fn device(plan: &Plan) -> String {
    match plan.backend {
        Backend::Solo => format!("{}, one rank that talks to nobody", plan.device),
        backend => format!("{}, ranks talk over {backend}", plan.device),
    }
}

/// Which stage holds what, and how long stages wait for each other if all chunks take equally long.
fn pipeline(plan: &Plan) -> String {
    let units: Vec<String> =
        model_layout(&plan.model.config, TensorSplit::WHOLE).into_iter().map(|unit| unit.name).collect();
    let chunk = |chunk: Range<usize>| match &units[chunk] {
        [only] => only.clone(),
        [first, .., last] => format!("{first} to {last}"),
        [] => unreachable!("no chunk is empty"),
    };
    let stage = |stage| plan.pipeline.chunks_of(stage, plan.mesh.pp).map(chunk).collect::<Vec<_>>().join(" and ");
    let stages: Vec<String> = (0..plan.mesh.pp).map(stage).collect();
    let passes = PassCosts { forward: 1.0, backward_input: 1.0, backward_weight: 1.0 };
    let micro_batches = plan.mean_micro_batches() as usize;
    let bubble = bubble_fraction(&plan.stage_actions(micro_batches), plan.pipeline_shape(micro_batches), passes);
    format!("{}, stages {}; they wait {:.0} % of the time", plan.pipeline.schedule, stages.join(" | "), 100.0 * bubble)
}

fn data(plan: &Plan) -> String {
    let order = match (plan.data.sampling, plan.data.shuffle) {
        (Sampling::Uniform, true) => "shuffled",
        (Sampling::Uniform, false) => "in file order",
        (Sampling::Balanced, true) => "classes take turns, shuffled",
        (Sampling::Balanced, false) => "classes take turns, each in file order",
        (Sampling::Shares, true) => "classes by shares, shuffled",
        (Sampling::Shares, false) => "classes by shares, each in file order",
    };
    let validation = match plan.data.validation_sets.len() {
        0 => "no validation".to_owned(),
        1 => "with validation".to_owned(),
        sets => format!("{sets} validation sets"),
    };
    if let Some(stream) = plan.data.stream {
        let order = if plan.data.shuffle { "each shuffled" } else { order };
        let (window, seq_len) = (plural(stream.window, "row"), plan.data.seq_len);
        return format!("streamed, windows of {window} of at most {seq_len} tokens, {order}; {validation}");
    }
    format!(
        "{} of at most {} tokens, {} tokens in all, {order}; {validation}",
        plural(plan.data.train_rows, "row"),
        plan.data.seq_len,
        count(plan.data.train_tokens),
    )
}

/// A line for each class, the largest first, with how much of what is trained it is.
fn classes(plan: &Plan) -> Vec<String> {
    /// More classes than these are counted.
    const SHOWN: usize = 8;
    /// More characters of a name are cut.
    const NAME_CHARS: usize = 40;
    let mut classes: Vec<&ClassShare> = plan.data.classes.iter().collect();
    classes.sort_by_key(|class| (std::cmp::Reverse(class.positions), std::cmp::Reverse(class.samples)));
    let all: u64 = classes.iter().map(|class| class.positions).sum();
    let line = |class: &&ClassShare| {
        let ClassShare { name, samples, positions, .. } = class;
        let cut = if name.chars().count() > NAME_CHARS { "…" } else { "" };
        let name: String = name.chars().take(NAME_CHARS).collect();
        let share = 100.0 * *positions as f64 / all as f64;
        let often = match plan.data.sampling {
            Sampling::Uniform => String::new(),
            _ => format!(", each {:.2} times an epoch", *positions as f64 / *samples as f64),
        };
        format!("{:?}: {}, {share:.1} %{often}", name + cut, plural(*samples, "sample"))
    };
    let mut lines: Vec<String> = classes.iter().take(SHOWN).map(line).collect();
    if classes.len() > SHOWN {
        let (more, samples) = (classes.len() - SHOWN, classes[SHOWN..].iter().map(|class| class.samples).sum());
        lines.push(format!("and {more} more classes, {}", plural(samples, "sample")));
    }
    lines
}

fn batch(plan: &Plan) -> String {
    let batch = plan.batch;
    if let Some(most) = batch.packed_tokens {
        return format!(
            "{}, packed into some {} micro-batches of at most {} * data {}",
            plural(batch.global_batch_size, "sample"),
            plan.mean_micro_batches(),
            plural(most, "token"),
            plan.mesh.dp,
        );
    }
    format!(
        "{} = micro batch {} * accumulation {} * data {}",
        plural(batch.global_batch_size, "row"),
        batch.micro_batch_size,
        batch.num_micro_batches,
        plan.mesh.dp,
    )
}

fn steps(plan: &Plan) -> String {
    let start = plan.start;
    let left = plan.steps.saturating_sub(start.step);
    let rows = start.rows as f64 + left as f64 * plan.batch.global_batch_size as f64;
    let epochs = rows / plan.data.train_rows as f64;
    let tokens = count((epochs * plan.data.train_tokens as f64) as u64);
    let begins = match (start.step, left) {
        (0, _) => String::new(),
        (at, 0) => format!("; already at step {at}, nothing left to train"),
        (at, _) => format!("; goes on from step {at}"),
    };
    if plan.data.stream.is_some() {
        return format!("{}, {rows:.0} rows{begins}", plan.steps);
    }
    format!("{}, {epochs:.2} epochs, about {tokens} tokens{begins}", plan.steps)
}

fn optimizer(plan: &Plan) -> String {
    let optimizer = &plan.optimizer;
    let [beta1, beta2] = optimizer.betas;
    let clip = match plan.max_grad_norm {
        0.0 => "no clipping".to_owned(),
        norm => format!("gradients clipped to norm {norm}"),
    };
    format!("adamw, betas {beta1} {beta2}, eps {:e}, weight decay {}, {clip}", optimizer.eps, optimizer.weight_decay)
}

fn schedule(plan: &Plan) -> String {
    let schedule = &plan.schedule;
    format!(
        "{}, peak {:e} after {} of warm-up, down to {} of it",
        schedule.kind,
        schedule.learning_rate,
        plural(schedule.warmup_steps, "step"),
        schedule.min_lr_ratio,
    )
}

/// Rows on each memory that is needed: that of the device first.
fn memory(plan: &Plan, room: Room) -> Vec<(&'static str, String)> {
    let mut needs = memory::needs(plan).into_iter();
    let device = needs.next().expect("ranks compute in a memory");
    let host = needs.next();
    let snapshots = match host.map_or(device.snapshots, |host| host.snapshots) {
        0 => String::new(),
        kept => format!("; snapshots {} of the host's", bytes(kept)),
    };
    let zero = plan.zero.stage.number();
    let recomputed = plan.activation_checkpointing;
    let Need { rank, peak, .. } = device;
    let of = needed_of(device, room);
    let device = format!("{of} (ZeRO {zero}, computed again: {recomputed}); rank {rank}: {peak}{snapshots}");
    let mut rows = vec![("memory", device)];
    rows.extend(host.map(|need| ("host", beside_gpus(need, room))));
    rows
}

fn needed_of(need: Need, room: Room) -> String {
    let needed = bytes(need.bytes);
    match (need.side, room) {
        (Side::Gpu, Room { gpu: Some(there), .. }) => format!("{needed} of {} on each GPU at most", bytes(there)),
        (Side::Gpu, Room { gpu: None, .. }) => format!("{needed} on each GPU at most"),
        (Side::Host, Room { host: Some(there), .. }) => format!("{needed} of {} for all ranks together", bytes(there)),
        (Side::Host, Room { host: None, .. }) => format!("{needed} for all ranks together"),
    }
}

/// What ranks on GPUs need of their host.
fn beside_gpus(need: Need, room: Room) -> String {
    let Need { peak, snapshots, rank, .. } = need;
    let parts = [
        ("offloaded parameters", peak.parameters),
        ("offloaded gradients", peak.gradients),
        ("offloaded optimizer", peak.optimizer),
        ("runtime", peak.runtime),
    ];
    let parts: Vec<String> =
        parts.into_iter().filter(|part| part.1 > 0).map(|(name, size)| format!("{name} {}", bytes(size))).collect();
    let needed = needed_of(need, room);
    format!("{needed}, snapshots {} of it; rank {rank}: {}", bytes(snapshots), parts.join(", "))
}

fn saving(plan: &Plan) -> String {
    let checkpoint = plan.checkpoint;
    let best = match checkpoint.keep_best {
        _ if plan.data.validation_sets.is_empty() => String::new(),
        0 => String::new(),
        1 => ", and after each validation that is the best so far; the best one kept".to_owned(),
        kept => format!(", and after each validation that is the best so far; the best {kept} kept"),
    };
    format!("every {}, the newest {} kept{best}", plural(checkpoint.every_steps, "step"), checkpoint.keep_last)
}

/// When it is validated, and what may come of it.
fn validation(plan: &Plan) -> Option<String> {
    if plan.data.validation_sets.is_empty() {
        return None;
    }
    let when = match plan.validation_every_steps {
        0 => "at the end of each epoch".to_owned(),
        steps => format!("every {}", plural(steps, "step")),
    };
    let EarlyStopping { patience, min_delta } = plan.early_stopping;
    if !plan.early_stopping.is_on() {
        return Some(when);
    }
    let by = if min_delta > 0.0 { format!(" by more than {min_delta}") } else { String::new() };
    let times = plural(patience, "validation");
    Some(format!("{when}; training stops early after {times} in a row without improvement{by}"))
}

/// Parameters of the whole model.
fn num_parameters(config: &ModelConfig) -> u64 {
    model_layout(config, TensorSplit::WHOLE).iter().map(|unit| unit.numel() as u64).sum()
}

/// Those of them that are trained.
fn num_trained(plan: &Plan) -> u64 {
    let units = model_layout_with(&plan.model.config, TensorSplit::WHOLE, &plan.model.trained);
    units.iter().map(|unit| unit.trained_numel() as u64).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;

    use proto::config::TrainConfig;
    use proto::manifest::Progress;
    use proto::memory::Shortage;
    use proto::resolve::{Draft, Machine, PreparedData, World};

    const DEEPSEEK: &str = r#"{
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 30, "num_attention_heads": 32, "vocab_size": 102400,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "eos_token_id": 100001}"#;

    /// The plan of a job on GPUs that need not be there.
    pub fn imagined(world_size: usize, toml: &str) -> Plan {
        draft(world_size, toml, Room::default()).without_data().unwrap()
    }

    fn draft(world_size: usize, toml: &str, room: Room) -> Draft {
        let text = format!("[model]\npath = \"/m\"\n[data]\ntrain = \"a.jsonl\"\n{toml}");
        let config = TrainConfig::parse(Path::new("sft.toml"), &text, &[]).unwrap();
        let model = ModelConfig::parse(Path::new("config.json"), DEEPSEEK).unwrap();
        let world = World {
            world_size,
            cores: 8,
            omp_num_threads: None,
            current_dir: "/here".into(),
            machine: Machine::Imagined,
            room,
        };
        Draft::new(&config, world, model).unwrap()
    }

    fn plan(toml: &str, world_size: usize) -> Plan {
        plan_from(Progress::default(), toml, world_size)
    }

    fn plan_from(start: Progress, toml: &str, world_size: usize) -> Plan {
        let text = format!("[model]\npath = \"/m\"\n[data]\ntrain = \"a.jsonl\"\n{toml}");
        let config = TrainConfig::parse(Path::new("sft.toml"), &text, &[]).unwrap();
        let model = ModelConfig::parse(Path::new("config.json"), DEEPSEEK).unwrap();
        let world = World {
            world_size,
            cores: 8,
            omp_num_threads: None,
            current_dir: "/here".into(),
            machine: Machine::This { gpus: Ok(0) },
            room: Room::default(),
        };
        let draft = Draft::new(&config, world, model).unwrap();
        draft
            .with_data(
                PreparedData { path: "/d".into(), rows: 320, tokens: 1_000_000, longest_row: 64, classes: vec![] },
                &[],
                start,
            )
            .unwrap()
    }

    #[test]
    fn the_table_answers_what_will_be_done() {
        let table = plan_table(&plan("", 4), Room::default());
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 12);
        assert_eq!(lines[1], "output    /here/runs/sft");
        assert_eq!(lines[3], "ranks     4 = pipeline 1 * data 4 * tensor 1, 2 threads each");
        assert_eq!(lines[4], "device    cpu, ranks talk over shm");
        assert_eq!(lines[6], "batch     32 rows = micro batch 1 * accumulation 8 * data 4");
        assert_eq!(lines[7], "steps     10, 1.00 epochs, about 1.0 M tokens");
    }

    #[test]
    fn of_streamed_data_nobody_knows_epochs() {
        let table =
            plan_table(&plan("streaming = true\nshuffle_window = 64\n[train]\nsteps = 10\n", 4), Room::default());
        let line = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        let data = "data      streamed, windows of 64 rows of at most 4096 tokens, each shuffled; no validation";
        assert_eq!((line("data"), line("steps")), (data.to_owned(), "steps     10, 320 rows".to_owned()));
    }

    #[test]
    fn the_table_has_a_line_for_each_class() {
        let share = |name: &str, samples, positions| ClassShare { name: name.into(), samples, tokens: 0, positions };
        let mut plan = plan("", 1);
        plan.data.classes = vec![share("law", 300, 80), share("maths", 20, 240)];
        plan.data.sampling = Sampling::Shares;
        let lines = |plan: &Plan| -> Vec<String> {
            let table = plan_table(plan, Room::default());
            table
                .lines()
                .skip_while(|line| !line.starts_with("data "))
                .take_while(|line| !line.starts_with("batch "))
                .map(str::to_owned)
                .collect()
        };
        let found = lines(&plan);
        assert!(found[0].contains("classes by shares, shuffled"), "{found:?}");
        assert_eq!(
            found[1..],
            [
                "          \"maths\": 20 samples, 75.0 %, each 12.00 times an epoch",
                "          \"law\": 300 samples, 25.0 %, each 0.27 times an epoch",
            ]
        );
        plan.data.sampling = Sampling::Uniform;
        plan.data.classes = (1..=11).map(|size| share(&"x".repeat(size * 5), size as u64, size as u64)).collect();
        let found = lines(&plan);
        assert_eq!(found[1], format!("          \"{}…\": 11 samples, 16.7 %", "x".repeat(40)));
        assert_eq!((found.len(), found[9].as_str()), (10, "          and 3 more classes, 6 samples"));
    }

    #[test]
    fn the_table_says_which_stage_holds_what() {
        let toml = "[parallel]\npipeline = 4\ntensor = 2\n[train]\ngradient_accumulation_steps = 13\n";
        let table = plan_table(&plan(toml, 8), Room::default());
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[3], "ranks     8 = pipeline 4 * data 1 * tensor 2 (with sequence parallelism), 1 thread each");
        let stages = "embed_tokens to layers.7 | layers.8 to layers.15 | layers.16 to layers.23 | layers.24 to head";
        assert_eq!(lines[5], format!("pipeline  1f1b, stages {stages}; they wait 19 % of the time"));
    }

    #[test]
    fn a_plan_for_gpus_says_what_their_host_needs_and_checks_it_where_its_memory_is_known() {
        let row = |world_size, toml: &str, host: Option<u64>| {
            let room = Room { gpu: Some(80 << 30), host };
            let draft = draft(world_size, toml, room);
            let plan = draft.without_data().unwrap();
            let shortages = draft.check_memory(&plan).err().unwrap_or_default();
            let missing: Vec<u64> = shortages.iter().map(Shortage::missing).collect();
            let table = plan_table_without_data(&plan, room);
            let row = |name| table.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
            (row("device"), row("host"), missing)
        };
        let (device, host, missing) = row(4, "[zero]\nstage = 3\n", None);
        assert_eq!(device, "device    cuda, ranks talk over nccl");
        let needed =
            "host      167.99 GiB for all ranks together, snapshots 154.46 GiB of it; rank 0: runtime 3.38 GiB";
        assert_eq!((host.as_str(), missing), (needed, vec![]));
        let (_, host, missing) = row(4, "[zero]\nstage = 3\n", Some(1 << 40));
        assert_eq!((host, missing), (needed.replace("GiB for", "GiB of 1024.00 GiB for"), vec![]));
        let (_, host, missing) = row(4, "[zero]\nstage = 3\n", Some(16 << 30));
        assert!(host.contains("GiB of 16.00 GiB for all ranks together, snapshots 0 B of it"), "{host}");
        assert!(missing.is_empty(), "{missing:?}");
        let insists = "[zero]\nstage = 3\n[restart]\nsnapshot_every_steps = 1\n";
        let (_, _, missing) = row(4, insists, Some(16 << 30));
        assert_eq!(missing.iter().map(|bytes| bytes >> 30).collect::<Vec<_>>(), [151]);
        let offloads = "[zero]\nstage = 0\noffload_optimizer = \"cpu\"\n[restart]\nsnapshot_every_steps = 0\n";
        let (device, host, _) = row(1, offloads, None);
        assert_eq!(device, "device    cuda, one rank that talks to nobody");
        assert!(
            host.ends_with("rank 0: offloaded parameters 12.87 GiB, offloaded gradients 25.74 GiB, offloaded optimizer 77.23 GiB, runtime 3.39 GiB"),
            "{host}"
        );
    }

    #[test]
    fn the_table_says_where_the_run_goes_on() {
        let steps = |start, toml| {
            let table = plan_table(&plan_from(start, toml, 4), Room::default());
            table.lines().nth(7).unwrap().to_owned()
        };
        // 288 of 320 rows in larger steps than now.
        let start = Progress { step: 4, rows: 288, ..Progress::default() };
        assert_eq!(steps(start, ""), "steps     5, 1.00 epochs, about 1.0 M tokens; goes on from step 4");
        let start = Progress { step: 20, rows: 640, ..Progress::default() };
        let there = "steps     10, 2.00 epochs, about 2.0 M tokens; already at step 20, nothing left to train";
        assert_eq!(steps(start, "[train]\nsteps = 10\n"), there);
    }
}
