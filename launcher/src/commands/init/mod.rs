//! `dslaunch init`: writes a train.toml for a model and data, with a layout that fits this machine. It asks nothing: of the layouts
//! in `layouts` the first that the plan's arithmetic takes is written.
//!
//! - INI-1 What is written has passed the checks of `dslaunch plan`, but for the rows of the data, of which the first of each file
//!   was read. What does not pass is its error, and nothing is written.

mod layouts;
mod text;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use proto::config::TrainConfig;
use proto::memory::Room;

use crate::data::{self, has_chat_template};
use crate::error::LaunchError;
use crate::files::write_atomically;
use crate::job::args::JobArgs;
use crate::job::setup::Setup;
use crate::output::plan_table::plan_table_without_data;
use crate::output::terminal::{Item, Stream, Terminal};
use crate::output::units::printable;
use layouts::Layout;
use text::Job;

/// Write a train.toml for a model and data, with a layout that fits this machine
///
/// Asks nothing. The formats of the data are told from the files' first samples, and the job is checked as `dslaunch plan` does,
/// but for the data's other samples, before it is written. Exit codes: 0; 2 the model or the data is none that can be trained; 3 the
/// job does not fit this machine in any way that is known.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct InitArgs {
    /// A Hugging Face folder: config.json, *.safetensors, tokenizer.json
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,
    /// Training data: files or globs
    #[arg(value_name = "DATA_FILE", required = true)]
    data: Vec<String>,
    /// Validation data: a file or a glob; may be repeated
    #[arg(long, value_name = "DATA_FILE")]
    validation: Vec<String>,
    /// Write to this file [default: standard output]
    #[arg(short = 'o', long = "output", value_name = "train.toml")]
    output: Option<PathBuf>,
    /// With -o: replace a file that is there
    #[arg(long, requires = "output")]
    force: bool,
    /// Number of ranks [default: the number of GPUs, or 1 without one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    nproc: Option<u16>,
}

/// The output is there already.
#[derive(Debug, thiserror::Error)]
#[error("{}: is there already; --force replaces it", path.display())]
pub struct Exists {
    path: PathBuf,
}

impl From<Exists> for LaunchError {
    fn from(error: Exists) -> Self {
        Self::refused(error, 2)
    }
}

/// A train.toml, and what is said of it.
#[derive(Debug)]
struct Made {
    text: String,
    said: Vec<String>,
}

/// Writes it, and prints on standard error what it comes to. Returns the exit code.
pub fn run(args: &InitArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let Made { text, said } = make(args, None)?;
    match &args.output {
        Some(output) => {
            write_atomically(output, text.as_bytes()).map_err(LaunchError::io(format!("write {}", output.display())))?
        }
        None => terminal.show(Item::Text(Stream::Out, text.trim_end().to_owned())),
    }
    for line in said {
        terminal.show(Item::Text(Stream::Err, line));
    }
    Ok(0)
}

/// Makes it, for this machine or for one with GPUs that is imagined. Writes nothing.
fn make(args: &InitArgs, imagined: Option<Room>) -> Result<Made, LaunchError> {
    if let Some(output) = args.output.as_ref().filter(|output| !args.force && fs::symlink_metadata(output).is_ok()) {
        return Err(Exists { path: output.clone() }.into());
    }
    let plainest = Job {
        model: args.model.display().to_string(),
        train: args.data.clone(),
        validation: args.validation.clone(),
        ..Job::default()
    };
    // The model first: its mistakes cost milliseconds.
    let setup = check(&plainest, args, imagined)?;
    let formats = data::formats(&args.data)?;
    let of_validation = if args.validation.is_empty() { vec![] } else { data::formats(&args.validation)? };
    let mut said: Vec<String> =
        formats.iter().chain(&of_validation).map(|(name, format)| printable(&format!("{name}: {format}"))).collect();
    let job = Job {
        formats: formats.into_iter().map(|(_, format)| format).collect(),
        has_template: has_chat_template(&args.model),
        most_positions: setup.model().max_position_embeddings as u64,
        world_size: setup.world_size() as u64,
        ..plainest
    };
    let on_gpus = imagined.is_some() || !setup.gpus_of_ranks().is_empty();
    let (text, setup) = fitting(&job, args, on_gpus, imagined)?;
    let plan = setup.plan_without_data()?;
    said.extend(setup.notes.iter().map(|note| format!("note: {note}")));
    said.push(plan_table_without_data(&plan, setup.room()));
    Ok(Made { text, said })
}

/// The train.toml with the first layout that fits. If none does, the shortage of the last one.
fn fitting(job: &Job, args: &InitArgs, on_gpus: bool, imagined: Option<Room>) -> Result<(String, Setup), LaunchError> {
    let mut shortage = None;
    for layout in layouts::in_order(on_gpus, job) {
        let job = Job { layout, ..job.clone() };
        let setup = check(&job, args, imagined)?;
        match setup.plan_without_data() {
            Ok(_) => return Ok((job.text(), setup)),
            Err(error @ LaunchError::Memory(_)) => shortage = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(shortage.expect("there is a layout"))
}

/// Checks a job as a plan does before it looks at data.
fn check(job: &Job, args: &InitArgs, imagined: Option<Room>) -> Result<Setup, LaunchError> {
    let path = args.output.clone().unwrap_or_else(|| "train.toml".into());
    let config = TrainConfig::parse(Path::new(&path), &job.text(), &[])?;
    let args = JobArgs { nproc: args.nproc, share_gpu: false, sets: vec![], train_toml: path };
    Setup::of(config, &args, imagined)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::parse;
    use crate::commands::Task;

    const MODEL: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 64, "eos_token_id": 2,
        "tie_word_embeddings": false}"#;

    /// A folder with a tiny model, whose weights are zeros, and a file of data.
    fn folder(data: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("data.jsonl"), data).unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        fs::write(dir.path().join("model/config.json"), MODEL).unwrap();
        let of_layer = [
            ("input_layernorm", vec![8]),
            ("post_attention_layernorm", vec![8]),
            ("self_attn.q_proj", vec![8, 8]),
            ("self_attn.k_proj", vec![8, 8]),
            ("self_attn.v_proj", vec![8, 8]),
            ("self_attn.o_proj", vec![8, 8]),
            ("mlp.gate_proj", vec![12, 8]),
            ("mlp.up_proj", vec![12, 8]),
            ("mlp.down_proj", vec![8, 12]),
        ];
        let of_layer = of_layer.map(|(name, shape)| (format!("model.layers.0.{name}.weight"), shape));
        let others = [("model.embed_tokens", vec![16, 8]), ("model.norm", vec![8]), ("lm_head", vec![16, 8])];
        let others = others.map(|(name, shape)| (format!("{name}.weight"), shape));
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (name, shape) in of_layer.into_iter().chain(others) {
            let bytes = shape.iter().product::<usize>() * 4;
            let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [end, end + bytes]});
            header.insert(name, entry);
            end += bytes;
        }
        let header = serde_json::to_vec(&header).unwrap();
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; end]].concat();
        fs::write(dir.path().join("model/model.safetensors"), file).unwrap();
        dir
    }

    fn args(dir: &Path) -> InitArgs {
        InitArgs {
            model: dir.join("model"),
            data: vec![dir.join("data.jsonl").display().to_string()],
            validation: vec![],
            output: Some(dir.join("train.toml")),
            force: false,
            nproc: Some(1),
        }
    }

    #[test]
    fn a_model_and_data_make_a_job_that_fits() {
        let dir = folder("{\"messages\": []}\n");
        let Made { text, said } =
            make(&args(dir.path()), None).unwrap_or_else(|error| panic!("{}", error.explanation()));
        let config = TrainConfig::parse(Path::new("train.toml"), &text, &[]).unwrap();
        assert_eq!((config.data.seq_len, config.data.chat_template.as_str()), (64, "deepseek"), "{text}");
        assert!(said[0].ends_with("data.jsonl: messages"), "{said:?}");
        assert!(said.last().unwrap().contains("memory"), "{said:?}");
        assert!(!dir.path().join("train.toml").exists(), "that is the caller's to write");
    }

    #[test]
    fn init_is_a_command_and_needs_both() {
        let args = InitArgs {
            model: "m".into(),
            data: vec!["a.jsonl".into(), "b.jsonl".into()],
            validation: vec![],
            output: Some("train.toml".into()),
            force: false,
            nproc: None,
        };
        assert_eq!(parse("init m a.jsonl b.jsonl -o train.toml"), Ok(Task::Init(args)));
        for line in ["init", "init m", "init m a.jsonl --force"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    /// DeepSeek-LLM-7B on GPUs that are imagined: what costs nothing is taken as long as it fits.
    #[test]
    fn a_large_model_gets_the_first_layout_that_fits() {
        let dir = folder("{\"input_ids\": [1, 2]}\n");
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/deepseek-llm-7b/model");
        let made = |nproc: u16, gpu_gib: u64| {
            let args = InitArgs { model: model.clone(), nproc: Some(nproc), ..args(dir.path()) };
            make(&args, Some(Room { gpu: Some(gpu_gib << 30), host: Some(1 << 40) })).map(|made| made.text)
        };
        let check = |nproc: u16, gpu_gib: u64, has: &[&str], has_not: &[&str]| {
            let text = made(nproc, gpu_gib).unwrap_or_else(|error| panic!("{}", error.explanation()));
            assert!(has.iter().all(|part| text.contains(part)), "{nproc} * {gpu_gib} GiB: {text}");
            assert!(!has_not.iter().any(|part| text.contains(part)), "{nproc} * {gpu_gib} GiB: {text}");
        };
        check(8, 80, &["gradient_accumulation_steps = 4"], &["[zero]", "state ="]);
        check(4, 40, &["stage = 3"], &["seq_len = 2048"]);
        check(1, 80, &["offload_optimizer = \"cpu\""], &["stage ="]);
        let error = made(1, 4).unwrap_err();
        assert!(matches!(error, LaunchError::Memory(_)), "{}", error.explanation());
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn what_is_wrong_is_said_as_plan_says_it_and_nothing_is_written() {
        let check = |args: &InitArgs, parts: &[&str]| {
            let error = make(args, None).unwrap_err();
            let text = error.explanation();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
            assert_eq!(error.exit_code(), 2, "{text}");
        };
        let dir = folder("{\"x\": 1}\n");
        let right = args(dir.path());
        check(&right, &["data.jsonl:1", "cannot tell the format"]);
        check(&InitArgs { model: dir.path().join("none"), ..right.clone() }, &["model.path", "no such folder"]);
        check(&InitArgs { data: vec!["none.jsonl".into()], ..right.clone() }, &["none.jsonl: no such file"]);
        fs::write(dir.path().join("train.toml"), "mine").unwrap();
        check(&right, &["is there already", "--force"]);
        fs::write(dir.path().join("data.jsonl"), "").unwrap();
        check(&InitArgs { force: true, ..right }, &["the file is empty"]);
    }
}
