//! trainer_state.json as Hugging Face's Trainer writes it, made of metrics.jsonl: what notebooks and plotters read. Pure but for
//! the files' reading and writing.

use std::fs;
use std::io;
use std::path::PathBuf;

use proto::plan::Plan;
use proto::run_dir::RunDir;
use proto::validation::{EarlyStopping, Validations};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::files::write_atomically;
use crate::run_dir::checkpoints;

/// The fields of transformers' `TrainerState` that a run of ours has; in the order in which it writes them.
#[derive(Debug, PartialEq, Serialize)]
struct TrainerState {
    best_global_step: Option<u64>,
    best_metric: Option<f64>,
    best_model_checkpoint: Option<PathBuf>,
    epoch: f64,
    eval_steps: u64,
    global_step: u64,
    is_hyper_param_search: bool,
    is_local_process_zero: bool,
    is_world_process_zero: bool,
    log_history: Vec<Value>,
    logging_steps: u64,
    max_steps: u64,
    num_input_tokens_seen: u64,
    num_train_epochs: u64,
    save_steps: u64,
    stateful_callbacks: Map<String, Value>,
    total_flos: f64,
    train_batch_size: u64,
    trial_name: Option<String>,
    trial_params: Option<Value>,
}

/// When it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Training goes on.
    Checkpoint,
    /// The model is there.
    Done,
    /// Nothing was trained: the job was done before. What is there stays.
    WasDone,
}

/// Writes it into the run directory and, at the end, beside the trained model.
pub fn write(run_dir: &RunDir, plan: &Plan, moment: Moment) -> Result<(), (PathBuf, io::Error)> {
    let metrics = run_dir.metrics();
    let rows = match fs::read(&metrics) {
        Ok(rows) => rows,
        Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
        Err(error) => return Err((metrics, error)),
    };
    let text = serde_json::to_string_pretty(&state(plan, &rows, checkpoints::best(run_dir).map(|best| best.path)))
        .map_err(io::Error::other);
    let text = text.map_err(|error| (run_dir.trainer_state(), error))? + "\n";
    let beside_model = moment != Moment::Checkpoint && run_dir.final_model().is_dir();
    let paths = [Some(run_dir.trainer_state()), beside_model.then(|| run_dir.final_trainer_state())];
    for path in paths.into_iter().flatten().filter(|path| moment != Moment::WasDone || !path.exists()) {
        write_atomically(&path, text.as_bytes()).map_err(|error| (path.clone(), error))?;
    }
    Ok(())
}

/// What the rows of metrics.jsonl come to. A torn row is passed over. `best_checkpoint`: the folder of the best one.
fn state(plan: &Plan, metrics: &[u8], best_checkpoint: Option<PathBuf>) -> TrainerState {
    let rows = metrics.split(|&byte| byte == b'\n').filter_map(|row| serde_json::from_slice::<Value>(row).ok());
    let history: Vec<Value> = rows.filter_map(|row| logged(plan, &row)).collect();
    let global_step = history.iter().filter_map(|row| row["step"].as_u64()).max().unwrap_or(plan.start.step);
    let evals = history.iter().filter_map(|row| Some((row["eval_loss"].as_f64()?, row["step"].as_u64()?)));
    let best = evals.min_by(|(one, _), (other, _)| one.total_cmp(other));
    let callbacks = callbacks(plan, &history);
    TrainerState {
        best_global_step: best.map(|(_, step)| step),
        best_metric: best.map(|(loss, _)| loss),
        best_model_checkpoint: best_checkpoint,
        epoch: epoch(plan, global_step),
        eval_steps: plan.validation_every_steps,
        global_step,
        is_hyper_param_search: false,
        is_local_process_zero: true,
        is_world_process_zero: true,
        log_history: history,
        logging_steps: plan.log_every_steps,
        max_steps: plan.steps,
        // Label tokens are counted here, and the Trainer's are others.
        num_input_tokens_seen: 0,
        num_train_epochs: epoch(plan, plan.steps).ceil() as u64,
        save_steps: plan.checkpoint.every_steps,
        stateful_callbacks: callbacks,
        total_flos: 0.0,
        train_batch_size: plan.batch.micro_batch_size,
        trial_name: None,
        trial_params: None,
    }
}

/// A row as the Trainer logs it: its numbers by their names, with the epoch. `None`: it is no row.
fn logged(plan: &Plan, row: &Value) -> Option<Value> {
    let step = row["step"].as_u64()?;
    let keys = ["loss", "grad_norm", "learning_rate", "eval_loss", "stopped_early"];
    let numbers = keys.into_iter().filter_map(|key| Some((key.to_owned(), row.get(key)?.clone())));
    let mut logged: Map<String, Value> = numbers.collect();
    for set in row["sets"].as_array().into_iter().flatten() {
        if let (Some(name), Some(loss)) = (set["set"].as_str(), set.get("set_loss")) {
            logged.insert(format!("eval_{name}_loss"), loss.clone());
        }
    }
    logged.insert("epoch".to_owned(), epoch(plan, step).into());
    logged.insert("step".to_owned(), step.into());
    Some(Value::Object(logged))
}

/// What the Trainer's own early stopping leaves behind; nothing where that is off.
fn callbacks(plan: &Plan, history: &[Value]) -> Map<String, Value> {
    let EarlyStopping { patience, min_delta } = plan.early_stopping;
    if !plan.early_stopping.is_on() {
        return Map::new();
    }
    let evals = history.iter().filter_map(|row| Some((row["step"].as_u64()?, row.get("eval_loss")?)));
    let validations = evals.fold(Validations::default(), |so_far, (step, loss)| {
        so_far.and(step, loss.as_f64().unwrap_or(f64::NAN), plan.early_stopping)
    });
    let stopping = json!({
        "args": {"early_stopping_patience": patience, "early_stopping_threshold": min_delta},
        "attributes": {"early_stopping_patience_counter": validations.without_improvement},
    });
    let control = json!({
        "args": {
            "should_epoch_stop": false,
            "should_evaluate": false,
            "should_log": false,
            "should_save": true,
            "should_training_stop": history.iter().any(|row| row.get("stopped_early").is_some()),
        },
        "attributes": {},
    });
    [("EarlyStoppingCallback".to_owned(), stopping), ("TrainerControl".to_owned(), control)].into_iter().collect()
}

/// Passes over the data after `step` steps.
fn epoch(plan: &Plan, step: u64) -> f64 {
    let since_start = (step as f64 - plan.start.step as f64) * plan.batch.global_batch_size as f64;
    let rows = plan.start.rows as f64 + since_start;
    if plan.data.train_rows == 0 { 0.0 } else { (rows / plan.data.train_rows as f64).max(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::sinks::tests::facts;

    #[test]
    fn rows_become_the_trainers_history() {
        let mut plan = facts().plan;
        (plan.steps, plan.batch.global_batch_size, plan.data.train_rows) = (40, 4, 80);
        let metrics = "{\"step\":1,\"loss\":3.5,\"grad_norm\":null,\"learning_rate\":0.1,\"tokens\":5}\n\
                       {\"step\":20,\"eval_loss\":2.5,\"label_tokens\":9,\"sets\":[{\"set\":\"a\",\"set_loss\":2.0}]}\nnonsense\n{\"step\":40,\"eval_loss\":2.75}\n{\"st";
        let state = state(&plan, metrics.as_bytes(), None);
        let history: Vec<String> = state.log_history.iter().map(Value::to_string).collect();
        assert_eq!(
            history,
            [
                r#"{"epoch":0.05,"grad_norm":null,"learning_rate":0.1,"loss":3.5,"step":1}"#,
                r#"{"epoch":1.0,"eval_a_loss":2.0,"eval_loss":2.5,"step":20}"#,
                r#"{"epoch":2.0,"eval_loss":2.75,"step":40}"#,
            ]
        );
        assert_eq!((state.best_metric, state.best_global_step), (Some(2.5), Some(20)));
        assert_eq!((state.epoch, state.global_step, state.max_steps, state.num_train_epochs), (2.0, 40, 40, 2));
    }

    #[test]
    fn early_stopping_is_told_as_the_trainer_does() {
        let mut plan = facts().plan;
        plan.early_stopping = EarlyStopping { patience: 2, min_delta: 0.5 };
        let metrics = "{\"step\":1,\"eval_loss\":3.0}\n{\"step\":2,\"eval_loss\":2.75}\n\
                       {\"step\":3,\"eval_loss\":null,\"stopped_early\":\"no better\"}\n";
        let state = state(&plan, metrics.as_bytes(), Some("/best".into()));
        assert_eq!(state.log_history[2]["stopped_early"], "no better");
        let callbacks = &state.stateful_callbacks;
        let early = &callbacks["EarlyStoppingCallback"];
        assert_eq!(
            (&early["args"]["early_stopping_patience"], &early["args"]["early_stopping_threshold"]),
            (&2.into(), &0.5.into())
        );
        assert_eq!(early["attributes"]["early_stopping_patience_counter"], 2);
        assert_eq!(callbacks["TrainerControl"]["args"]["should_training_stop"], true);
        assert_eq!((state.best_global_step, state.best_model_checkpoint), (Some(2), Some("/best".into())));
    }

    #[test]
    fn it_lies_in_the_run_directory_and_beside_the_model_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        fs::create_dir(run_dir.final_model()).unwrap();
        let write = |moment| write(&run_dir, &facts().plan, moment).unwrap();
        write(Moment::Checkpoint);
        assert!(run_dir.trainer_state().is_file() && !run_dir.final_trainer_state().exists());
        write(Moment::Done);
        assert_eq!(fs::read(run_dir.trainer_state()).unwrap(), fs::read(run_dir.final_trainer_state()).unwrap());
        fs::write(run_dir.trainer_state(), "the user's").unwrap();
        fs::remove_file(run_dir.final_trainer_state()).unwrap();
        write(Moment::WasDone);
        assert_eq!(fs::read(run_dir.trainer_state()).unwrap(), b"the user's");
        assert!(run_dir.final_trainer_state().is_file());
    }
}
