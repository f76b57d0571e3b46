//! A small job, from a layout of ranks to losses, norms and weights. Whatever it computes from is made up, and the same for
//! every layout.

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use comm::{ShmOptions, ShmWorld, World};
use nix::sys::memfd::{MFdFlags, memfd_create};
use proto::config::TrainConfig;
use proto::layout::ParamLayout;
use proto::manifest::Progress;
use proto::memory::{Room, arena_bytes};
use proto::model_config::ModelConfig;
use proto::plan::Plan;
use proto::progress::page_bytes;
use proto::resolve::{self, Draft, Machine, PreparedData};
use rank::control::Breaker;
use rank::engine::{Engine, Memory, MicroBatch};
use rank::fault::Faults;
use rank::model::{Labels, Samples};
use rank::progress::ProgressLine;
use rank::ranks::Ranks;
use rank::shake::Shake;
use tch::Tensor;

use crate::transport::Pace;
use crate::world::{DelayedWorld, Tally};

const STEPS: u64 = 3;
const VOCAB: u64 = 97;
/// Of each row.
const TOKENS: usize = 11;
const ROWS_PER_STEP: u64 = 4;
/// Longer than any scheduling delay of a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

const MODEL: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 44,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97}"#;

/// How ranks share the work.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub ranks: usize,
    pub zero_stage: u8,
    pub prefetch_units: usize,
    pub tensor: usize,
    pub pipeline: usize,
    /// Optimizer and parameters, where they are gathered.
    pub offloads: bool,
    /// Gradients leave while others are computed, and updated parameters come.
    pub overlaps: bool,
}

impl Layout {
    /// One rank that does all.
    pub const PLAIN: Self =
        Self { ranks: 1, zero_stage: 0, prefetch_units: 1, tensor: 1, pipeline: 1, offloads: false, overlaps: false };

    fn plan(self) -> Plan {
        let Self { ranks, zero_stage, prefetch_units, tensor, pipeline, offloads, overlaps } = self;
        let offload_optimizer = if offloads { "cpu" } else { "none" };
        let offload_params = if offloads && zero_stage == 3 { "cpu" } else { "none" };
        let toml = format!(
            r#"
            [job]
            name = "late"
            [model]
            path = "/m"
            dtype = "fp32"
            [data]
            train = "rows.jsonl"
            seq_len = 16
            packing = false
            [train]
            steps = {STEPS}
            micro_batch_size = 1
            global_batch_size = {ROWS_PER_STEP}
            [optimizer]
            learning_rate = 1e-3
            [parallel]
            tensor = {tensor}
            pipeline = {pipeline}
            [zero]
            stage = {zero_stage}
            prefetch_units = {prefetch_units}
            offload_params = "{offload_params}"
            offload_optimizer = "{offload_optimizer}"
            "#
        );
        let config = TrainConfig::parse(Path::new("late.toml"), &toml, &[]).expect("a good train.toml");
        let model = ModelConfig::parse(Path::new("config.json"), MODEL).expect("a good config.json");
        let machine = Machine::This { gpus: Ok(0) };
        let room = Room::default();
        let world = resolve::World {
            world_size: ranks,
            cores: 2,
            omp_num_threads: None,
            current_dir: "/here".into(),
            machine,
            room,
        };
        let draft = Draft::new(&config, world, model).expect("a good layout");
        let rows = STEPS * ROWS_PER_STEP;
        let longest_row = TOKENS as u64;
        let data = PreparedData { path: "/d".into(), rows, tokens: rows * longest_row, longest_row, classes: vec![] };
        let mut plan = draft.with_data(data, &[], Progress::default()).expect("it fits");
        // Over shared memory, which the plan is for, there is nothing that it could do beside.
        plan.zero.overlap_comm = overlaps;
        plan
    }
}

/// By what ranks talk to each other.
#[derive(Debug, Clone, Copy)]
pub enum Backend {
    /// As jobs of one machine do.
    SharedMemory,
    /// The same, but late.
    Delayed(Pace),
}

/// What the job computed.
pub struct Outcome {
    /// By step.
    pub losses: Vec<f64>,
    /// By step.
    pub norms: Vec<f64>,
    /// Of all ranks, in their order.
    pub parts: Vec<Part>,
    /// What ranks did, if somebody counted it.
    pub tallies: Vec<Tally>,
}

/// One rank's part of a parameter in the end.
pub struct Part {
    pub name: String,
    /// Along which dimension the parameter is cut, and where this part begins.
    pub dim: i64,
    pub start: i64,
    /// As files have it.
    pub values: Tensor,
}

/// What all ranks of a job are given.
struct Shared {
    plan: Plan,
    arena: OwnedFd,
    page: File,
    backend: Backend,
    shake: Option<u64>,
}

fn memfd(name: &str) -> OwnedFd {
    memfd_create(name, MFdFlags::MFD_CLOEXEC).expect("the kernel grants memory")
}

/// Runs the job. `shake`: as DSLAUNCH_SHAKE.
pub fn train(layout: Layout, backend: Backend, shake: Option<u64>) -> Outcome {
    let page = File::from(memfd("page"));
    page.set_len(page_bytes(layout.ranks) as u64).expect("the kernel grants memory");
    let shared = Shared { plan: layout.plan(), arena: memfd("arena"), page, backend, shake };
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let shared = &shared;
        let ranks: Vec<_> = (0..layout.ranks).map(|rank| scope.spawn(move || shared.run_rank(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("the rank trains")).collect()
    });
    for outcome in &outcomes[1..] {
        assert_eq!((&outcome.losses, &outcome.norms), (&outcomes[0].losses, &outcomes[0].norms), "ranks know the same");
    }
    let (losses, norms) = (outcomes[0].losses.clone(), outcomes[0].norms.clone());
    let tallies = outcomes.iter().flat_map(|outcome| outcome.tallies.clone()).collect();
    Outcome { losses, norms, tallies, parts: outcomes.into_iter().flat_map(|outcome| outcome.parts).collect() }
}

impl Shared {
    fn run_rank(&self, rank: usize) -> Outcome {
        tch::set_num_threads(1);
        let world_size = self.plan.mesh.world_size();
        let fd = self.arena.try_clone().expect("a descriptor");
        let arena_bytes = arena_bytes(&self.plan) as usize;
        let options = ShmOptions { rank, world_size, fd, arena_bytes, timeout: TIMEOUT };
        let (world, tally): (Rc<dyn World>, Option<_>) = match self.backend {
            Backend::SharedMemory => (Rc::new(ShmWorld::join(options).expect("all join")), None),
            Backend::Delayed(pace) => {
                let page = self.page.try_clone().expect("a descriptor");
                let world = DelayedWorld::join(options, pace, page).expect("all join");
                let tally = world.tally();
                (Rc::new(world), Some(tally))
            }
        };
        let line = ProgressLine::map(&self.page, rank, world_size, Faults::new(&[], rank, 0, Breaker::default()))
            .expect("a page");
        let ranks = Ranks::enter(&self.plan, world, &line, Shake::new(self.shake, rank)).expect("all enter");
        let outcome = run(Rc::new(self.plan.clone()), &ranks);
        Outcome { tallies: tally.iter().map(|tally| tally()).collect(), ..outcome }
    }
}

fn run(plan: Rc<Plan>, ranks: &Ranks) -> Outcome {
    let mut engine = Engine::new(plan.clone(), ranks).expect("the arena suffices");
    let memory = engine.memory().expect("nobody fails");
    for unit in 0..memory.num_units() {
        let filled: Result<(), Infallible> = memory.fill(unit, |param, mut to| {
            to.copy_(&part_of(param, &first_weights(param)));
            Ok(())
        });
        let Ok(()) = filled;
    }
    let dp = &ranks.groups.dp;
    let (mut losses, mut norms) = (vec![], vec![]);
    for step in 0..STEPS {
        ranks.line.begin_step(step + 1);
        let first_row = step * ROWS_PER_STEP;
        let row = |idx: usize| first_row + (idx * dp.size() + dp.rank()) as u64;
        let count = ROWS_PER_STEP as usize / dp.size();
        let scale = 1.0 / (ROWS_PER_STEP as usize * (TOKENS - 1)) as f64;
        let passes = engine.forward_backward(count, |idx| micro_batch(row(idx)), scale).expect("nobody fails");
        engine.reduce_gradients().expect("nobody fails");
        let sums = engine.step_sums(passes.loss).expect("nobody fails");
        engine.optimizer_step(step + 1, plan.schedule.at(step), &sums).expect("nobody fails");
        let (loss, norm) = sums.ask().read();
        losses.push(loss * scale);
        norms.push(norm);
    }
    assert!(losses[2] < losses[0], "it learns: {losses:?}");
    Outcome { losses, norms, parts: parts(engine.memory().expect("nobody fails")), tallies: vec![] }
}

fn parts(memory: &mut Memory) -> Vec<Part> {
    let mut parts = vec![];
    for unit in 0..memory.num_units() {
        memory.gather(unit).expect("nobody fails");
        for param in memory.layout(unit).params.clone() {
            let stored = memory.param_view(unit, &param).narrow(0, 0, param.rows.len() as i64);
            let values = if param.is_transposed { stored.tr() } else { stored }.copy();
            let (dim, start) = (param.disk_dim() as i64, param.rows.start as i64);
            parts.push(Part { name: param.name.clone(), dim, start, values });
        }
    }
    parts
}

/// A rank's part of a whole parameter.
fn part_of(param: &ParamLayout, whole: &Tensor) -> Tensor {
    whole.narrow(param.disk_dim() as i64, param.rows.start as i64, param.rows.len() as i64)
}

/// A number in [0, 1) that depends on both.
fn draw(of: u64, number: u64) -> f64 {
    let z = (of ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// The whole parameter before the first step, as files would have it.
fn first_weights(param: &ParamLayout) -> Tensor {
    let shape: Vec<i64> = param.disk_shape().iter().map(|&size| size as i64).collect();
    let of = param.name.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31) + u64::from(byte));
    let numel: i64 = shape.iter().product();
    let is_norm = param.name.ends_with("norm.weight");
    let value = |number| if is_norm { 1.0 } else { 0.2 * (draw(of, number) - 0.5) as f32 };
    let values: Vec<f32> = (0..numel as u64).map(value).collect();
    Tensor::from_slice(&values).view(shape.as_slice())
}

/// A row of one sample.
fn micro_batch(row: u64) -> MicroBatch {
    // Words that often follow each other, so that there is something to learn.
    let token = |number: u64| ((draw(row, number / 3) * 8.0) as u64 * 11 + number) % VOCAB;
    let tokens: Vec<i64> = (0..TOKENS as u64).map(|number| token(number) as i64).collect();
    let targets: Vec<i64> = tokens[1..].iter().copied().chain([-100]).collect();
    MicroBatch {
        tokens: Tensor::from_slice(&tokens),
        labels: Labels::new(&targets),
        samples: Rc::new(Samples::new(&[TOKENS as i64])),
        dropout: None,
    }
}
