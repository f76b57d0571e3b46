//! All file sinks together, as a job has them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use proto::config::TrainConfig;
use proto::manifest::Progress;
use proto::memory::Room;
use proto::model_config::ModelConfig;
use proto::resolve::{Draft, Machine, PreparedData, World};

use super::catalogue::tests::{eval_row, full_row};
use super::*;

/// A tiny job.
pub fn facts() -> RunFacts {
    let toml = "[job]\nname = \"tiny\"\n[model]\npath = \"/m\"\n[data]\ntrain = \"a.jsonl\"\n[train]\nsteps = 10";
    let config = TrainConfig::parse(Path::new("tiny.toml"), toml, &[]).unwrap();
    let model = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
                    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}"#;
    let model = ModelConfig::parse(Path::new("config.json"), model).unwrap();
    let world = World {
        world_size: 1,
        cores: 8,
        omp_num_threads: None,
        current_dir: "/here".into(),
        machine: Machine::This { gpus: Ok(0) },
        room: Room::default(),
    };
    let draft = Draft::new(&config, world, model).unwrap();
    let data = PreparedData { path: "/d".into(), rows: 320, tokens: 1000, longest_row: 64, classes: vec![] };
    let plan = draft.with_data(data, &[], Progress::default()).unwrap();
    RunFacts { plan, config: serde_json::to_value(&config).unwrap() }
}

const ALL: [Sink; 5] = [Sink::Console, Sink::Jsonl, Sink::Tensorboard, Sink::Wandb, Sink::Prometheus];

fn started(dir: &Path) -> FileSinks {
    let mut sinks = FileSinks::start(&RunDir::new(dir), &ALL, WandbEnv::default());
    sinks.describe(&facts());
    sinks.rewind(0);
    sinks
}

#[tokio::test]
async fn a_job_leaves_files_of_all_sinks() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("metrics.jsonl"), "{\"step\":1,\"loss\":3.0}\n").unwrap();
    fs::create_dir(dir.path().join("final")).unwrap();
    let mut sinks = started(dir.path());
    sinks.row(&full_row(1));
    sinks.row(&eval_row(1));
    sinks.checkpoint();
    let ended = sinks.end(0).await.unwrap();
    assert_eq!(sinks.troubles(), Vec::<String>::new());
    assert!(ended.wandb.unwrap().starts_with(dir.path().join("wandb")));
    for path in ["tensorboard", "trainer_state.json", "final/trainer_state.json"] {
        assert!(dir.path().join(path).exists(), "{path}");
    }
}

#[tokio::test]
async fn snk_2_a_sink_that_fails_is_named_once_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tensorboard"), "in the way").unwrap();
    let mut sinks = started(dir.path());
    (1..=3).for_each(|step| sinks.row(&full_row(step)));
    let ended = sinks.end(0).await.unwrap();
    let troubles = sinks.troubles();
    let path = dir.path().join("tensorboard");
    assert_eq!(troubles.len(), 1, "{troubles:?}");
    let expected = format!("warning: tensorboard: cannot write {}: File exists", path.display());
    assert!(troubles[0].starts_with(&expected), "{}", troubles[0]);
    assert!(ended.wandb.is_some());
}

#[tokio::test]
async fn without_file_sinks_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut sinks = FileSinks::start(&RunDir::new(dir.path()), &[Sink::Console], WandbEnv::default());
    sinks.describe(&facts());
    sinks.row(&full_row(1));
    assert_eq!(sinks.end(0).await, Ok(Ended::default()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A step of the smallest real job takes more than 100 ms; 0.5 % of that is half a millisecond.
#[tokio::test]
async fn a_row_of_all_sinks_costs_far_less_than_a_step() {
    const ROWS: u64 = 1000;
    let dir = tempfile::tempdir().unwrap();
    let mut sinks = started(dir.path());
    let start = Instant::now();
    (1..=ROWS).for_each(|step| sinks.row(&full_row(step)));
    let handed_over = start.elapsed() / ROWS as u32;
    sinks.end(0).await.unwrap();
    let written = start.elapsed() / ROWS as u32;
    println!("a row: {handed_over:?} for the job, {written:?} until all its bytes are written");
    assert!(handed_over < Duration::from_micros(500), "{handed_over:?}");
    assert!(written < Duration::from_millis(5), "{written:?}");
}
