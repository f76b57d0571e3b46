//! `dslaunch evaluate`: the loss of a model on data, told apart from any training. It is a job without steps
//! ([`job::evaluation`](crate::job::evaluation)): this file turns a model, data and flags into its train.toml, and its numbers into text.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use proto::adapter_folder::{self, AdapterFile};
use proto::config::TrainConfig;
use proto::control::EvalMetrics;
use proto::model_config::ModelConfigFile;
use serde_json::{Value, json};

use crate::error::LaunchError;
use crate::job::args::JobArgs;
use crate::job::evaluation::{Evaluated, Progress, TemporaryFolder, evaluate};
use crate::output::terminal::{Item, Stream, Terminal};
use crate::output::units;

/// Longest row where nobody says and the model has more positions.
const SEQ_LEN_MAX: usize = 4096;
/// Longest name of a set, and what may be in one, is `[[validation.source]]`'s rule.
const NAME_BYTES: usize = 64;

/// Score a model on data: loss and perplexity of the tokens that training would learn
///
/// The loss is the mean cross-entropy over all label tokens, the same for every number of ranks and every batch size, and the same as a
/// job's validation. Exit codes: 0 done; 1 a rank failed; 2 the model or the data is none that can be scored; 3 it does not fit this
/// machine; 130, 143 stopped.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct EvaluateArgs {
    /// A Hugging Face folder, a checkpoint, or an adapter's folder
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Data in any format and container that training takes: files or globs. Each has a loss of its own, too
    #[arg(value_name = "DATA", required = true)]
    data: Vec<String>,
    /// The model that an adapter was trained beside, if it is not where the adapter says
    #[arg(long, value_name = "MODEL_DIR")]
    base: Option<PathBuf>,
    /// data.format: what a sample is [default: told from the first one]
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// data.chat_template: a built-in name or a file [default: the model's own]
    #[arg(long, value_name = "TEMPLATE")]
    chat_template: Option<String>,
    /// data.train_on: the turns that are scored: assistant, last or all [default: assistant]
    #[arg(long, value_name = "TURNS")]
    train_on: Option<String>,
    /// data.seq_len: tokens of the longest row [default: the model's positions, 4096 at most]
    #[arg(long, value_name = "N")]
    seq_len: Option<u64>,
    /// train.micro_batch_size: rows that a rank scores at a time [default: 1]
    #[arg(long, value_name = "N")]
    batch: Option<u64>,
    /// model.dtype: bf16 or fp32 [default: bf16 on a GPU, fp32 on a CPU]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// model.device: cuda or cpu [default: cuda where there is a GPU]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Number of ranks, which share the rows [default: the number of GPUs, or 1 without one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    nproc: Option<u16>,
    /// Let several ranks share a GPU
    #[arg(long)]
    share_gpu: bool,
    /// Set any other key of train.toml, such as parallel.tensor; may be repeated
    #[arg(long = "set", value_name = "section.key=value")]
    sets: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is missing, without which nothing can be scored.
#[derive(Debug, thiserror::Error)]
enum EvaluateError {
    #[error("{}: there is no such folder", path.display())]
    Folder { path: PathBuf },
    #[error("--base is for adapters, and {} has no {}", path.display(), adapter_folder::CONFIG)]
    Adapter { path: PathBuf },
}

impl From<EvaluateError> for LaunchError {
    fn from(error: EvaluateError) -> Self {
        Self::refused(error, 2)
    }
}

/// `dslaunch evaluate`. Returns the exit code. `start` is when the launcher started.
pub fn run(args: &EvaluateArgs, terminal: &Terminal, start: Instant) -> Result<u8, LaunchError> {
    let (model, adapter) = folders(args)?;
    let ModelConfigFile { config, .. } = ModelConfigFile::load(&model.join("config.json"))?;
    let seq_len = args.seq_len.unwrap_or(config.max_position_embeddings.clamp(1, SEQ_LEN_MAX) as u64);
    let folder = TemporaryFolder::create()?;
    let names = set_names(&args.data);
    let sets = keys(args, &names, [&model, folder.path()], adapter.as_deref(), seq_len);
    let config = TrainConfig::parse(Path::new("evaluate"), "", &sets)?;
    let job = JobArgs { nproc: args.nproc, share_gpu: args.share_gpu, sets: vec![], train_toml: "evaluate".into() };
    let progress = if args.json { Progress::Quiet } else { Progress::Shown };
    match evaluate(config, &job, progress, terminal, start)? {
        Evaluated::Ended(code) => Ok(code),
        Evaluated::Scored(eval) => {
            let text = if args.json { as_json(args, &eval) } else { as_text(&args.data, &eval) };
            terminal.show(Item::Text(Stream::Out, text));
            Ok(0)
        }
    }
}

/// The folders of the model and, if it is an adapter beside one, of that.
fn folders(args: &EvaluateArgs) -> Result<(PathBuf, Option<PathBuf>), LaunchError> {
    let path = args.model.clone();
    if !path.is_dir() {
        return Err(EvaluateError::Folder { path }.into());
    }
    if fs::symlink_metadata(path.join(adapter_folder::CONFIG)).is_err() {
        return match args.base {
            Some(_) => Err(EvaluateError::Adapter { path }.into()),
            None => Ok((path, None)),
        };
    }
    let base = AdapterFile::load(&path)?.base_folder(&path, args.base.as_deref())?;
    Ok((base, Some(path)))
}

/// The job's keys of train.toml. Later ones win, so a user's `--set` does, but for where the job writes.
fn keys(
    args: &EvaluateArgs,
    names: &[String],
    [model, output_dir]: [&Path; 2],
    adapter: Option<&Path>,
    seq_len: u64,
) -> Vec<String> {
    let quoted = |text: &str| Value::from(text).to_string();
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let files = |data: &[String]| format!("[{}]", data.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", "));
    let mut keys = vec![
        format!("job.name={}", quoted("evaluate")),
        format!("model.path={}", path(model)),
        // Required, and never read: there are no steps.
        format!("data.train={}", files(&args.data)),
        format!("data.seq_len={seq_len}"),
        "train.gradient_accumulation_steps=1".to_owned(),
        "train.activation_checkpointing=\"full\"".to_owned(),
        "restart.max_restarts=0".to_owned(),
        "restart.snapshot_every_steps=0".to_owned(),
        "log.sinks=[]".to_owned(),
    ];
    match (names, &args.data[..]) {
        ([_], data) => keys.push(format!("data.validation={}", files(data))),
        (names, data) => {
            let set =
                |(name, data): (&String, &String)| format!("{{name = {}, path = {}}}", quoted(name), quoted(data));
            let sets: Vec<String> = names.iter().zip(data).map(set).collect();
            keys.push(format!("validation.source=[{}]", sets.join(", ")));
        }
    }
    keys.push(match adapter {
        Some(adapter) => format!("lora.from={}", path(adapter)),
        // Of what is trained there are gradients and moments beside the weights: of next to nothing.
        None => "model.trained=[\"model.norm.weight\"]".to_owned(),
    });
    let given = [
        ("data.format", &args.format),
        ("data.chat_template", &args.chat_template),
        ("data.train_on", &args.train_on),
        ("model.dtype", &args.dtype),
        ("model.device", &args.device),
    ];
    keys.extend(given.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", quoted(value.as_ref()?)))));
    keys.extend(args.batch.map(|batch| format!("train.micro_batch_size={batch}")));
    keys.extend(args.sets.iter().cloned());
    // Nothing of another job is touched, whatever a user sets.
    keys.push(format!("job.output_dir={}", path(output_dir)));
    keys
}

/// A name for each of the data: its file's, as far as a set may have it, and no other's.
fn set_names(data: &[String]) -> Vec<String> {
    let mut names: Vec<String> = vec![];
    for path in data {
        let stem = Path::new(path).file_stem().map_or_else(|| path.into(), |stem| stem.to_string_lossy());
        let good = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' };
        let stem: String = stem.chars().take(NAME_BYTES - 4).map(good).collect();
        let numbered = (1..).map(|number| if number == 1 { stem.clone() } else { format!("{stem}-{number}") });
        let name = numbered.into_iter().find(|name| !names.contains(name)).expect("numbers do not end");
        names.push(name);
    }
    names
}

fn tokens_per_second(eval: &EvalMetrics) -> f64 {
    if eval.seconds > 0.0 { eval.tokens as f64 / eval.seconds } else { 0.0 }
}

/// One object; what is not finite is null.
fn as_json(args: &EvaluateArgs, eval: &EvalMetrics) -> String {
    let set = |(data, set): (&String, &proto::control::EvalSet)| {
        json!({
            "data": data, "loss": set.eval_loss, "perplexity": set.eval_loss.exp(), "label_tokens": set.label_tokens,
        })
    };
    let sets: Vec<Value> = args.data.iter().zip(&eval.sets).map(set).collect();
    let object = json!({
        "model": args.model.display().to_string(),
        "loss": eval.eval_loss,
        "perplexity": eval.eval_loss.exp(),
        "label_tokens": eval.label_tokens,
        "tokens": eval.tokens,
        "seconds": eval.seconds,
        "tokens_per_second": tokens_per_second(eval),
        "sets": sets,
    });
    serde_json::to_string_pretty(&object).expect("plain data")
}

/// Lines for people.
fn as_text(data: &[String], eval: &EvalMetrics) -> String {
    let time = Duration::try_from_secs_f64(eval.seconds).unwrap_or_default();
    let mut lines = vec![
        format!("loss        {:.6}", eval.eval_loss),
        format!("perplexity  {:.4}", eval.eval_loss.exp()),
        format!("tokens      {}, {} of them scored", eval.tokens, eval.label_tokens),
        format!("speed       {:.0} tokens/s, {} in all", tokens_per_second(eval), units::duration(time)),
    ];
    if eval.sets.len() > 1 {
        let of_set = data.iter().zip(&eval.sets).map(|(data, set)| {
            let (loss, tokens) = (set.eval_loss, set.label_tokens);
            let data = units::printable(data);
            format!("{data}: loss {loss:.6}, perplexity {:.4}, {tokens} tokens scored", loss.exp())
        });
        lines.extend(of_set);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use proto::control::EvalSet;

    use super::*;
    use crate::cli::tests::parse;
    use crate::commands::Task;

    fn args(line: &str) -> EvaluateArgs {
        match parse(line) {
            Ok(Task::Evaluate(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    fn config(args: &EvaluateArgs, adapter: Option<&str>) -> TrainConfig {
        let names = set_names(&args.data);
        let folders = [Path::new("m \"1\""), Path::new("/tmp/x")];
        let keys = keys(args, &names, folders, adapter.map(Path::new), 64);
        TrainConfig::parse(Path::new("evaluate"), "", &keys).unwrap_or_else(|errors| panic!("{errors}"))
    }

    #[test]
    fn flags_are_keys_of_a_job_without_steps() {
        let plain = config(&args("evaluate m data.jsonl"), None);
        let sets = plain.validation_sets();
        assert_eq!(
            (sets.len(), sets[0].name.as_str(), sets[0].path.as_slice()),
            (1, "validation", &["data.jsonl".to_owned()][..])
        );
        assert_eq!((plain.model.path.as_path(), plain.data.seq_len), (Path::new("m \"1\""), 64));
        let all = args(
            "evaluate m a.jsonl b/a.csv --format text --chat-template chatml --train-on all --batch 3 --dtype bf16 --device cpu \
             --nproc 2 --set parallel.tensor=2 --set data.packing=false --json",
        );
        assert!(all.json && all.nproc == Some(2));
        let config_of_all = config(&all, None);
        let names: Vec<String> = config_of_all.validation_sets().into_iter().map(|set| set.name).collect();
        assert_eq!(names, ["a", "a-2"]);
        assert_eq!((config_of_all.train.micro_batch_size, config_of_all.parallel.tensor), (3, 2));
        assert!(!config_of_all.data.packing && config_of_all.data.chat_template == "chatml");
        assert_eq!(config(&all, Some("adapter")).lora.from.as_deref(), Some(Path::new("adapter")));
    }

    #[test]
    fn numbers_are_told_of_all_and_of_each() {
        let set = |eval_loss, label_tokens| EvalSet { name: String::new(), eval_loss, label_tokens };
        let eval = EvalMetrics {
            eval_loss: 2.0,
            label_tokens: 30,
            tokens: 40,
            seconds: 4.0,
            sets: vec![set(1.5, 10), set(f64::NAN, 20)],
            ..EvalMetrics::default()
        };
        let args = args("evaluate m a.jsonl b.jsonl --json");
        let text = "loss        2.000000\nperplexity  7.3891\ntokens      40, 30 of them scored\nspeed       10 tokens/s, 4.0s in all\n\
                    a.jsonl: loss 1.500000, perplexity 4.4817, 10 tokens scored\nb.jsonl: loss NaN, perplexity NaN, 20 tokens scored";
        assert_eq!(as_text(&args.data, &eval), text);
        let json: Value = serde_json::from_str(&as_json(&args, &eval)).unwrap();
        assert_eq!((json["loss"].as_f64(), json["tokens_per_second"].as_f64()), (Some(2.0), Some(10.0)));
        assert_eq!((json["sets"][0]["data"].as_str(), json["sets"][1]["loss"].is_null()), (Some("a.jsonl"), true));
    }

    #[test]
    fn a_model_that_is_none_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let at = |line: &str| folders(&args(&line.replace("DIR", &dir.path().display().to_string())));
        assert!(at("evaluate DIR/none d").unwrap_err().to_string().ends_with("none: there is no such folder"));
        assert!(at("evaluate DIR d --base DIR").unwrap_err().to_string().contains("--base is for adapters"));
        assert_eq!(at("evaluate DIR d").unwrap(), (dir.path().to_owned(), None));
    }
}
