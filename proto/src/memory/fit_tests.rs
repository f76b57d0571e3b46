use super::*;
use crate::config::TrainConfig;
use crate::model_config::ModelConfig;
use crate::plan::SamplesPlan;
use crate::resolve::{Draft, Machine, World};

const GIB: u64 = 1 << 30;

/// DeepSeek-LLM-7B with rows of 4096 tokens.
fn plan(extra: &str, world_size: usize, machine: Machine, room: Room) -> Plan {
    let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
                   "num_hidden_layers": 30, "num_attention_heads": 32, "vocab_size": 102400}"#;
    let model = ModelConfig::parse("config.json".as_ref(), text).unwrap();
    let toml = format!("[model]\npath = \"m\"\n[data]\ntrain = \"d\"\n{extra}");
    let config = TrainConfig::parse("train.toml".as_ref(), &toml, &[]).unwrap();
    let world = World { world_size, cores: 8, omp_num_threads: None, current_dir: "/".into(), machine, room };
    Draft::new(&config, world, model).unwrap().without_data().unwrap()
}

fn gpu(gib: u64) -> Room {
    Room { gpu: Some(gib * GIB), host: None }
}

/// On GPUs of this size.
fn on_gpus(extra: &str, world_size: usize, gib: u64) -> Plan {
    plan(extra, world_size, Machine::Imagined, gpu(gib))
}

fn on_cpus(extra: &str, world_size: usize) -> Plan {
    plan(extra, world_size, Machine::This { gpus: Ok(0) }, Room::default())
}

fn need(plan: &Plan, side: Side) -> Need {
    needs(plan).into_iter().find(|need| need.side == side).unwrap()
}

#[test]
fn a_7b_model_fits_where_its_16_to_18_bytes_a_parameter_do() {
    let fits = |extra: &str, world_size, gib| check(&on_gpus(extra, world_size, gib), gpu(gib)).is_ok();
    assert!(!fits("[zero]\nstage = 0\n", 1, 80) && fits("[zero]\nstage = 0\n", 1, 141));
    assert!(fits("[zero]\nstage = 0\noffload_optimizer = \"cpu\"\n", 1, 80));
    assert!(fits("[zero]\nstage = 3\n", 4, 80) && !fits("[zero]\nstage = 0\n", 4, 80));
    assert!(fits("[parallel]\ntensor = 4\n", 4, 80));
}

#[test]
fn auto_takes_the_least_sharding_that_fits() {
    let stage = |world_size, gib| on_gpus("[zero]\nstage = \"auto\"\n", world_size, gib).zero.stage;
    assert_eq!((stage(8, 200), stage(8, 80)), (ZeroStage::Stage0, ZeroStage::Stage1));
    assert_eq!(stage(8, 50), ZeroStage::Stage2);
    assert_eq!(stage(8, 40), ZeroStage::Stage3);
}

#[test]
fn a_shortage_names_the_rank_the_parts_and_the_keys() {
    let shortages = check(&on_gpus("[zero]\nstage = 0\n", 2, 80), gpu(80)).unwrap_err();
    assert_eq!(shortages.len(), 1);
    let text = shortages[0].to_string();
    assert!(text.starts_with("rank 0 needs 1") && text.contains("a GPU has 80.0 GiB: "), "{text}");
    assert!(text.contains("optimizer 77.23 GiB") && text.contains("a higher zero.stage"), "{text}");
}

#[test]
fn a_plan_fits_into_what_it_needs_and_not_into_a_byte_less() {
    let offloads = "[zero]\nstage = 2\noffload_optimizer = \"cpu\"\n";
    for plan in [on_cpus("", 1), on_cpus(offloads, 4), on_gpus("", 4, 80), on_gpus(offloads, 4, 80)] {
        for Need { side, bytes, .. } in needs(&plan) {
            let room = |bytes| match side {
                Side::Gpu => Room { gpu: Some(bytes), host: None },
                Side::Host => Room { gpu: None, host: Some(bytes) },
            };
            assert_eq!(check(&plan, room(bytes)), Ok(()), "{side:?}");
            let shortages = check(&plan, room(bytes - 1)).unwrap_err();
            let [Shortage { need, available, .. }] = &shortages[..] else { panic!("{shortages:?}") };
            assert_eq!((need.side, *available, shortages[0].missing()), (side, bytes - 1, 1));
        }
    }
}

#[test]
fn both_memories_can_be_short_and_an_unknown_one_is_not() {
    let plan = on_gpus("[zero]\noffload_optimizer = \"cpu\"\n", 2, 80);
    let sides = |room| match check(&plan, room) {
        Ok(()) => vec![],
        Err(shortages) => shortages.iter().map(|shortage| shortage.need.side).collect(),
    };
    assert_eq!(sides(Room { gpu: Some(GIB), host: Some(GIB) }), [Side::Gpu, Side::Host]);
    assert_eq!(sides(Room { gpu: Some(GIB), host: None }), [Side::Gpu]);
    assert_eq!(sides(Room { gpu: None, host: Some(GIB) }), [Side::Host]);
    assert_eq!(sides(Room::default()), []);
}

#[test]
fn the_host_of_gpus_holds_what_is_offloaded_and_the_snapshots() {
    let parameters = 6_910_365_696u64;
    // The embedding in fp32 and bf16.
    let loading = 102_400 * 4096 * 6;
    // In bf16, with both operands of a product, and a mebibyte for each further thread of eight.
    let libraries = |ranks: u64| ranks * (CUDA_HOST_BYTES + loading + (77 << 19) + (1 << 20) * (8 / ranks - 1));
    let host = |extra: &str, world_size| need(&on_gpus(extra, world_size, 80), Side::Host).bytes;
    // Padding to cache lines and pages is below a mebibyte.
    let close = |got: u64, expected: u64| assert!(got.abs_diff(expected) < 1 << 20, "{got} {expected}");
    let without = "[restart]\nsnapshot_every_steps = 0\n";
    close(host(without, 1), libraries(1));
    close(host("", 1), libraries(1) + 24 * parameters);
    let offloads = |stage: usize| format!("{without}[zero]\nstage = {stage}\noffload_optimizer = \"cpu\"\n");
    // Gradients leave for where they are used, and rounded parameters come from there.
    close(host(&offloads(0), 1), libraries(1) + 18 * parameters);
    close(host(&offloads(0), 2), libraries(2) + 2 * 18 * parameters);
    close(host(&offloads(1), 2), libraries(2) + 18 * parameters);
    close(host(&offloads(2), 2), libraries(2) + 18 * parameters);
    let parks = format!("{}offload_params = \"cpu\"\n", offloads(3));
    close(host(&parks, 1), libraries(1) + 18 * parameters);
    close(host(&parks, 2), libraries(2) + 18 * parameters);
    // A pipeline goes by micro-batches: whole gradients stay on the GPU.
    let pipeline = format!("{}[parallel]\npipeline = 2\n", offloads(0));
    close(host(&pipeline, 2), libraries(2) + 12 * parameters);
}

#[test]
fn a_7b_model_trains_in_28_gb_of_a_gpu_and_128_gib_of_its_host() {
    let room = Room { gpu: Some(26 * GIB), host: Some(128 * GIB) };
    let offloads = "[zero]\nstage = 3\noffload_params = \"cpu\"\noffload_optimizer = \"cpu\"\n";
    let eight = format!("[train]\nmicro_batch_size = 1\ngradient_accumulation_steps = 8\n{offloads}");
    let plan = plan(&eight, 1, Machine::Imagined, room);
    assert_eq!(check(&plan, room), Ok(()));
    let peak = need(&plan, Side::Gpu).peak;
    let (block, ends, element) = (202_383_360u64, 102_400 * 4096u64, 2);
    let close = |got: u64, expected: u64| assert!(got.abs_diff(expected) < 1 << 20, "{got} {expected}");
    close(peak.parameters, element * (2 * block + 2 * ends));
    close(peak.gradients, 4 * (2 * block + 2 * ends));
    assert_eq!(peak.optimizer, 0);
}

#[test]
fn what_is_written_at_a_validation_has_room_where_activations_were() {
    let mut plan =
        on_gpus("[train]\nactivation_checkpointing = \"full\"\n[lora]\nrank = 16\nquantize = \"nf4\"\n", 1, 24);
    let trains = need(&plan, Side::Gpu).peak;
    let mut peak = |prompt: usize, new_tokens_max| {
        let tokens = vec![vec![7; prompt / 2], vec![7; prompt]];
        let prompts = vec![String::new(); 2];
        plan.samples = Some(SamplesPlan { prompts, tokens, new_tokens_max, end_tokens: vec![] });
        need(&plan, Side::Gpu).peak
    };
    assert_eq!(peak(20, 256), trains);
    // 30 blocks with 2 * 4096 numbers of 2 bytes a token, and half a block more.
    let written = peak(1000, 16_000);
    assert_eq!(written.activations + written.workspace, 17_000 * 2 * 4096 * 2 * 61 / 2);
    assert_eq!((written.parameters, written.optimizer), (trains.parameters, trains.optimizer));
}

#[test]
fn what_helps_the_host_of_gpus_is_what_it_holds() {
    let keys = |extra: &str| {
        let plan = on_gpus(extra, 2, 80);
        helpful_keys(&plan, Side::Host, &need(&plan, Side::Host).peak)
    };
    assert_eq!(keys(""), ["restart.snapshot_every_steps = 0"]);
    let offloads = "[restart]\nsnapshot_every_steps = 0\n[zero]\nstage = 0\noffload_optimizer = \"cpu\"\n";
    assert_eq!(keys(offloads), ["zero.offload_optimizer = \"none\"", "zero.stage = 1"]);
}

#[test]
fn a_host_binds_where_its_memory_is_known() {
    let plan_for = |host| {
        let room = Room { gpu: Some(80 * GIB), host };
        let plan = plan("[zero]\nstage = \"auto\"\n", 8, Machine::Imagined, room);
        assert_eq!((plan.device, plan.model.compute_dtype), (Device::Cuda, Dtype::Bf16));
        (plan.zero.stage, check(&plan, room).is_ok())
    };
    assert_eq!(plan_for(None), (ZeroStage::Stage1, true));
    assert_eq!(plan_for(Some(1024 * GIB)), (ZeroStage::Stage1, true));
    assert_eq!(plan_for(Some(GIB)), (ZeroStage::Stage3, false), "nothing fits, and that is what needs the least");
}

/// 22 GiB are less than 24 GB.
#[test]
fn adapters_of_a_7b_model_train_on_a_card_of_24_gb_in_four_bits() {
    let plan = |quantize: &str| {
        let lora = format!("[lora]\nrank = 16\nquantize = {quantize:?}\n");
        on_gpus(&format!("[train]\nmicro_batch_size = 1\nactivation_checkpointing = \"full\"\n{lora}"), 1, 22)
    };
    let [whole, eight, four] = ["none", "int8", "nf4"].map(plan);
    assert_eq!(four.data.longest_row, 4096);
    assert_eq!(check(&four, gpu(22)), Ok(()));
    let [whole, eight, four] = [whole, eight, four].map(|plan| need(&plan, Side::Gpu));
    assert!(
        four.bytes < 12 * GIB && four.bytes < eight.bytes && eight.bytes < whole.bytes,
        "{four:?} {eight:?} {whole:?}"
    );
}
