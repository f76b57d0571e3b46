//! Reads and checks a job, from the command line to the plan, before any rank exists.
//!
//! - STP-1 What [`Setup::load`] refuses costs the user milliseconds and changes nothing on disk.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use proto::adapter_folder::{self, AdapterFile, AdapterFileError, check_adapter};
use proto::compute_capability::LEAST_FOR_FP8;
use proto::config::{AutoOr, ConfigErrors, Device, Init, Matmul, Problem, THREADS_MAX, TrainConfig};
use proto::env::variable;
use proto::manifest::Progress;
use proto::memory::Room;
use proto::model_config::{ModelConfig, ModelConfigFile};
use proto::plan::Plan;
use proto::resolve::{Draft, Machine, World, begin_with, default_world_size};
use proto::run_dir::RunDir;
use proto::weights_folder::{WeightFilesError, check_weights};

use crate::data::{Classes, DataJob, DataProgress, EndTokens, Split, Stream, StreamSettings};
use crate::error::LaunchError;
use crate::gpus::{Gpu, Gpus, Visible};
use crate::job::args::JobArgs;
use crate::job::prepare::{note_repeated, planned_sets};
use crate::job::training_data::{TrainingData, wait_for, wait_for_rows};
use crate::job::{model_folder, samples};
use crate::machine::{cores, memory};
use crate::output::console::Console;
use crate::process::signals::Signals;

/// A job that has been read and checked, but for its data.
#[derive(Debug)]
pub struct Setup {
    /// train.toml with the `--set` arguments applied.
    pub config: TrainConfig,
    /// Notes for the user before training starts.
    pub notes: Vec<String>,
    pub(super) model: ModelConfig,
    pub(super) end_tokens: EndTokens,
    draft: Draft,
    room: Room,
    /// The folder that relative paths start from.
    pub(super) current_dir: PathBuf,
    pub(super) cores: usize,
    /// Indices of the GPUs that ranks would train on: theirs in turn, where there are fewer.
    gpus: Vec<usize>,
}

/// What a job is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To be planned, and perhaps trained.
    Plan,
    /// For a look at its data.
    Data,
}

impl From<WeightFilesError> for LaunchError {
    fn from(error: WeightFilesError) -> Self {
        Self::refused(error, 2)
    }
}

impl From<AdapterFileError> for LaunchError {
    fn from(error: AdapterFileError) -> Self {
        Self::refused(error, 2)
    }
}

impl Setup {
    /// Reads and checks train.toml and the model's config.json. Starts and writes nothing.
    ///
    /// `imagined`: the memory of a machine with GPUs that need not be there, to plan for it.
    pub fn load(args: &JobArgs, imagined: Option<Room>) -> Result<Self, LaunchError> {
        Self::of(TrainConfig::load(&args.train_toml, &args.sets)?, args, imagined)
    }

    /// The same for a train.toml that has been read. Of `args` only the ranks count.
    pub fn of(config: TrainConfig, args: &JobArgs, imagined: Option<Room>) -> Result<Self, LaunchError> {
        Self::check_for(Purpose::Plan, config, args, imagined)
    }

    /// As [`Setup::load`] for nothing but the job's data: neither weights nor the GPUs that `model.device` names need to be here.
    pub fn load_for_data(args: &JobArgs) -> Result<Self, LaunchError> {
        Self::check_for(Purpose::Data, TrainConfig::load(&args.train_toml, &args.sets)?, args, None)
    }

    fn check_for(
        purpose: Purpose,
        mut config: TrainConfig,
        args: &JobArgs,
        imagined: Option<Room>,
    ) -> Result<Self, LaunchError> {
        let current_dir = env::current_dir().map_err(LaunchError::io("find the current folder"))?;
        let folder = current_dir.join(&config.model.path);
        if let Some(problem) = model_folder::problem(&config, &folder) {
            return Err(ConfigErrors::from(problem).into());
        }
        begin_with_adapter(&mut config, &current_dir)?;
        let ModelConfigFile { config: model, mut notes } = ModelConfigFile::load(&folder.join("config.json"))?;
        let cores = cores::available();
        // A job on the CPU does not wait for the driver.
        let asks_for_gpus = config.model.device != AutoOr::Given(Device::Cpu) && imagined.is_none();
        let gpus = if asks_for_gpus { Gpus::look() } else { Gpus::NoDriver };
        let visible = variable("CUDA_VISIBLE_DEVICES").map(|value| value.to_string_lossy().into_owned());
        let visible = Visible::of(&gpus, visible.as_deref());
        let count = visible.as_ref().map_or(0, Visible::count);
        let world_size = args.nproc.map_or_else(|| default_world_size(count), usize::from);
        let of_ranks = visible.as_ref().map_or_else(|_| vec![], |visible| visible.of_ranks(&gpus, world_size));
        let ranks_of_gpu = if args.share_gpu { world_size.div_ceil(of_ranks.len().max(1)) } else { 1 };
        let gpu_free = of_ranks.iter().map(|gpu| gpu.memory_free / ranks_of_gpu as u64).min();
        let gpus_of_ranks = of_ranks.iter().map(|gpu| gpu.index).collect();
        let room = imagined.unwrap_or_else(|| Room { gpu: gpu_free, host: memory::available() });
        let machine = match imagined {
            Some(_) => Machine::Imagined,
            None if purpose == Purpose::Data && config.model.device == AutoOr::Given(Device::Cuda) => Machine::Imagined,
            None => {
                let shared = if args.share_gpu && count > 0 { world_size } else { 0 };
                let gpus = visible.map(|visible| visible.count().max(shared));
                Machine::This { gpus: gpus.map_err(|unfit| unfit.to_string()) }
            }
        };
        let (omp_num_threads, note) = omp_num_threads(variable("OMP_NUM_THREADS"));
        notes.extend(note);
        let world = World { world_size, cores, omp_num_threads, current_dir: current_dir.clone(), machine, room };
        let draft = Draft::new(&config, world, model.clone())?;
        if let Some(problem) = too_old_for_fp8(&config, &of_ranks) {
            return Err(ConfigErrors::from(problem).into());
        }
        if config.model.init == Init::Pretrained && purpose == Purpose::Plan {
            match check_weights(&folder, &model) {
                // Of a machine that need not be there the weights need not be here.
                Err(WeightFilesError::None { .. }) if imagined.is_some() => {}
                checked => checked?,
            }
        }
        if let Some((from, adapter)) = config.lora.from.as_ref().zip(config.trained().adapter())
            && purpose == Purpose::Plan
        {
            check_adapter(&current_dir.join(from), &model, adapter)?;
        }
        let end_tokens = EndTokens::read(&folder, model.eos_token_id)?;
        notes.extend(draft.notes());
        Ok(Self { config, notes, model, end_tokens, draft, room, current_dir, cores, gpus: gpus_of_ranks })
    }

    /// Notes on the job's plan for the user.
    pub fn notes_on(&self, plan: &Plan) -> Vec<String> {
        self.draft.notes_on(plan)
    }

    /// Indices of the GPUs that ranks train on, if they do: rank r on the r-th, and the next on the first again where there are fewer.
    pub fn gpus_of_ranks(&self) -> &[usize] {
        &self.gpus
    }

    /// The run directory. Nothing in it is touched.
    pub fn run_dir(&self) -> RunDir {
        RunDir::new(self.current_dir.join(&self.config.job.output_dir))
    }

    /// `path`, which the user wrote, from the root.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        self.current_dir.join(path)
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.draft.mesh().world_size()
    }

    /// The job's model.
    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    /// The file that it was read from.
    pub fn model_config(&self) -> PathBuf {
        self.model_file("config.json")
    }

    /// Prepares the data, or as much of streamed data as ranks begin with, and completes the plan of a job that begins at `start`. The
    /// caller holds the run directory's lock.
    pub async fn plan(
        &self,
        start: Progress,
        signals: &mut Signals,
        console: &mut Console,
    ) -> Result<Planned, LaunchError> {
        let train = if self.config.data.streaming {
            TrainingData::Streamed(self.stream(start, signals, console).await?)
        } else {
            TrainingData::Whole(Box::new(self.prepare(&Split::Train, signals, console).await?))
        };
        let validation = self.prepare_validation(signals, console).await?;
        let of_train = if self.config.data.source.is_empty() { "data.train" } else { "data.source" };
        note_repeated(of_train, train.repeated(), console);
        for (split, prepared) in &validation {
            // What is held out is of the training files.
            if *split == Split::Validation && self.config.data.holds_out() {
                continue;
            }
            note_repeated(split.key(), prepared.repeated(), console);
            for name in prepared.also_in(train.sources()) {
                let what = "is training data too, so its loss says nothing of other texts";
                console.warn(&format!("note: {}: {name} {what}", split.key()));
            }
        }
        let has_validation = !validation.is_empty();
        let (train, stream) = train.planned(self.config.data.seq_len);
        let mut plan = self.draft.with_data(train, &planned_sets(validation), start)?;
        if has_validation {
            let folder = self.current_dir.join(&self.config.model.path);
            plan.samples = samples::planned(&self.config.validation, &folder, self.model.vocab_size)?;
        }
        self.check_memory(&plan)?;
        Ok(Planned { plan, stream })
    }

    /// Plans a job anew that begins elsewhere than in the plan `before`. `stream`: its data, where it is streamed.
    pub async fn plan_again(
        &self,
        before: &Plan,
        start: Progress,
        stream: Option<&Stream>,
        signals: &mut Signals,
        console: &mut Console,
    ) -> Result<Plan, LaunchError> {
        match stream {
            // A run by steps: no other number depends on where it begins.
            Some(stream) => {
                wait_for_rows(stream, start.rows, signals, console).await?;
                Ok(Plan { start, ..before.clone() })
            }
            None => Ok(self.plan(start, signals, console).await?.plan),
        }
    }

    /// Begins to stream the data from where a run begins at `start`, and waits for its first rows.
    pub(super) async fn stream(
        &self,
        start: Progress,
        signals: &mut Signals,
        console: &mut Console,
    ) -> Result<Stream, LaunchError> {
        let data = &self.config.data;
        // What computes on GPUs leaves the cores alone.
        let threads_beside = if self.gpus.is_empty() { 1 } else { (self.cores / 2).max(1) };
        let settings = StreamSettings {
            window: data.shuffle_window,
            ahead: data.windows_ahead,
            threads: self.cores,
            threads_beside,
        };
        let job = DataJob { classes: Classes::None, ..self.data_job(&Split::Train) };
        let open = move |_: &DataProgress| Stream::open(job, settings, start.rows);
        let stream = wait_for("looking for train data", open, signals, console).await??;
        wait_for_rows(&stream, start.rows, signals, console).await?;
        Ok(stream)
    }

    /// Prepares the validation data alone and completes a plan that scores it and trains nothing. The caller holds the run
    /// directory's lock.
    pub async fn plan_of_evaluation(&self, signals: &mut Signals, console: &mut Console) -> Result<Plan, LaunchError> {
        let validation = self.prepare_validation(signals, console).await?;
        for (split, prepared) in &validation {
            note_repeated(split.key(), prepared.repeated(), console);
        }
        let plan = self.draft.for_evaluation(&planned_sets(validation));
        self.check_memory(&plan)?;
        Ok(plan)
    }

    /// The plan as it is without a look at the data, for GPUs that need not be there.
    pub fn plan_without_data(&self) -> Result<Plan, LaunchError> {
        let plan = self.draft.without_data()?;
        self.check_memory(&plan)?;
        Ok(plan)
    }

    /// The memory that ranks have, where it is known: of this machine, or of the one that is imagined.
    pub fn room(&self) -> Room {
        self.room
    }

    fn check_memory(&self, plan: &Plan) -> Result<(), LaunchError> {
        self.draft.check_memory(plan).map_err(LaunchError::Memory)
    }

    pub(super) fn model_file(&self, name: &str) -> PathBuf {
        self.current_dir.join(&self.config.model.path).join(name)
    }
}

/// A plan, and the data that is streamed for it.
#[derive(Debug)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// `None`: all of the data is prepared.
    pub stream: Option<Stream>,
}

/// Reads the description of the adapter that training begins with, if there is one.
fn begin_with_adapter(config: &mut TrainConfig, current_dir: &Path) -> Result<(), LaunchError> {
    let Some(from) = &config.lora.from else { return Ok(()) };
    let folder = current_dir.join(from);
    if !folder.is_dir() {
        return Err(ConfigErrors::from(config.origins.problem("lora.from", "there is no such folder")).into());
    }
    let AdapterFile { adapter, .. } = AdapterFile::load(&folder)?;
    Ok(begin_with(config, &adapter, &folder.join(adapter_folder::CONFIG))?)
}

/// What keeps ranks from multiplying in fp8 on these GPUs, if they are to.
fn too_old_for_fp8(config: &TrainConfig, gpus: &[&Gpu]) -> Option<Problem> {
    let is_old = |gpu: &&&Gpu| gpu.compute.is_some_and(|compute| compute < LEAST_FOR_FP8);
    let gpu = gpus.iter().find(is_old).filter(|_| config.model.matmul == Matmul::Fp8)?;
    let ((major, minor), (least, of_least)) = (gpu.compute.unwrap_or_default(), LEAST_FOR_FP8);
    let Gpu { index, name, .. } = gpu;
    let rule = format!("fp8 needs compute capability {least}.{of_least}, and GPU {index} ({name}) has {major}.{minor}");
    Some(config.origins.problem("model.matmul", rule).suggest("bf16"))
}

/// The threads of each rank by the environment; OpenMP's list for nested teams begins with the outermost. A note on what is no
/// number.
fn omp_num_threads(value: Option<OsString>) -> (Option<usize>, Option<String>) {
    let Some(value) = value else { return (None, None) };
    let text = value.to_string_lossy();
    let outermost = text.split(',').next().and_then(|first| first.trim().parse::<usize>().ok());
    match outermost.filter(|&threads| (1..=THREADS_MAX).contains(&(threads as u64))) {
        Some(threads) => (Some(threads), None),
        None if text.is_empty() => (None, None),
        None => {
            let rule = format!("is passed over: it has to be a number from 1 to {THREADS_MAX}");
            (None, Some(format!("OMP_NUM_THREADS = {text:?} {rule}")))
        }
    }
}

/// The worker binary, which lies beside this one.
pub fn worker_binary() -> Result<PathBuf, LaunchError> {
    let launcher = env::current_exe().map_err(LaunchError::io("find out where dslaunch lies"))?;
    let path = launcher.with_file_name("dslaunch-rank");
    if path.is_file() { Ok(path) } else { Err(LaunchError::NoWorker { path }) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_mistake_is_found_without_writing_anything() {
        let dir = tempfile::tempdir().unwrap();
        let train_toml = dir.path().join("train.toml");
        let load = |toml: &str| {
            fs::write(&train_toml, toml).unwrap();
            Setup::load(&JobArgs { train_toml: train_toml.clone(), ..JobArgs::example(Some(2), &[]) }, None)
                .unwrap_err()
        };
        let no_model = format!("[model]\npath = {:?}\n[data]\ntrain = \"x.jsonl\"\n", dir.path());
        for (toml, key) in [("[train]\nstep = 3\n", "train.step"), (&no_model, "config.json")] {
            let error = load(toml);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(key), "{error}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_environment_may_say_how_many_threads_a_rank_has() {
        let threads = |value: &str| omp_num_threads(Some(value.into()));
        assert_eq!(omp_num_threads(None), (None, None));
        assert_eq!(threads(""), (None, None));
        assert_eq!(threads("3"), (Some(3), None));
        assert_eq!(threads(" 4,2"), (Some(4), None));
        for bad in ["0", "-1", "x", "5000"] {
            let note = format!("OMP_NUM_THREADS = {bad:?} is passed over: it has to be a number from 1 to 4096");
            assert_eq!(threads(bad), (None, Some(note)));
        }
    }
}
