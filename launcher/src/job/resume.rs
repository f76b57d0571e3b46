//! Finds the starting point of a job: interprets `checkpoint.resume` and checks that the checkpoint fits the job.

use std::error::Error;
use std::path::{Path, PathBuf};

use proto::config::{Init, Resume, Trained};
use proto::layout::frozen_ranges;
use proto::manifest::{Manifest, ManifestError, Progress};
use proto::model_config::ModelConfig;
use proto::plan::Plan;
use proto::run_dir::RunDir;
use proto::sampler::Sampling;
use proto::sealed;

use crate::error::LaunchError;
use crate::job::setup::Setup;
use crate::output::console::Console;
use crate::ranks::snapshots::SnapshotMemory;
use crate::run_dir::checkpoints::{self, Checkpoint, Found};
use crate::run_dir::identity::Difference;
use crate::run_dir::starting_point::StartingPoint;

/// A learning rate that differs by less than this part is no jump.
const LEAST_JUMP: f64 = 0.01;

/// The starting point that the user asks for.
#[derive(Debug)]
pub enum Wish {
    /// At the newest checkpoint of the run, if it has one.
    Newest,
    /// At step 0.
    Beginning,
    /// Here.
    From(Box<Checkpoint>),
}

/// There is no checkpoint that the job could go on from as the user wants it.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The checkpoint that `checkpoint.resume` names is not there, or not complete.
    #[error("checkpoint.resume = {path:?}: there is no complete checkpoint (a folder with {})", Manifest::FILE)]
    Incomplete {
        /// The path that was named.
        path: PathBuf,
    },
    /// The checkpoint that `checkpoint.resume` names is damaged.
    #[error("checkpoint.resume = {path:?}: this checkpoint cannot be used")]
    Damaged {
        /// The path that was named.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// There are checkpoints, and none is whole. To begin anew is for the user to decide.
    #[error("{}: no checkpoint in it can be used; checkpoint.resume = \"never\" begins anew", folder.display())]
    AllDamaged {
        /// Their folder.
        folder: PathBuf,
        /// The fault of the newest.
        source: ManifestError,
    },
    /// Ranks have found the checkpoint damaged, and there is none to take instead.
    #[error("{}: this checkpoint is damaged, and there is none to go on from instead", path.display())]
    NoneLeft {
        /// Its folder.
        path: PathBuf,
    },
    /// What lies in the run directory is of a job with another model.
    #[error(
        "{} is the run directory of another job: its {} was {}, and is {} here; choose another job.output_dir, or \
         checkpoint.resume = \"never\" to begin anew in this one",
        run_dir.display(),
        difference.key,
        difference.was,
        difference.is
    )]
    OtherJob {
        /// The run directory.
        run_dir: PathBuf,
        /// The difference.
        difference: Difference,
    },
    /// It is a checkpoint of a model that computes something else.
    #[error(
        "{}: its model has another {key} than {}; checkpoint.resume = \"never\" begins anew",
        manifest.display(),
        config.display()
    )]
    OtherModel {
        /// The checkpoint's manifest.
        manifest: PathBuf,
        /// The job's config.json.
        config: PathBuf,
        /// The key that differs.
        key: &'static str,
    },
    /// It has the state of other parameters than those that the job trains.
    #[error(
        "{}: is of a job with another model.trained or [lora]; checkpoint.resume = \"never\" begins anew",
        manifest.display()
    )]
    OtherTrained {
        /// The checkpoint's manifest.
        manifest: PathBuf,
    },
    /// Its frozen parameters were drawn otherwise than the job would draw them again.
    #[error(
        "{}: its frozen parameters were drawn with {key} {was}, and {key} is {is} here; checkpoint.resume = \"never\" begins anew",
        manifest.display()
    )]
    OtherDraw {
        /// The checkpoint's manifest.
        manifest: PathBuf,
        /// What the draw depends on.
        key: &'static str,
        /// In the checkpoint.
        was: String,
        /// In the job.
        is: String,
    },
    /// Nothing says what its frozen parameters are.
    #[error(
        "{}: job.json is missing or damaged, so nothing says which weights the frozen parameters (model.trained, [lora]) of its \
         checkpoints are; checkpoint.resume = \"never\" begins anew",
        run_dir.display()
    )]
    UnknownFrozen {
        /// The run directory.
        run_dir: PathBuf,
    },
    /// It may be of another run, and only its run knows what its frozen parameters began as.
    #[error(
        "{}: with frozen parameters (model.trained, [lora]) a job goes on only with checkpoint.resume = \"auto\", in its own \
         job.output_dir; to begin anew from the checkpoint's model, name the folder in model.path",
        path.display()
    )]
    Frozen {
        /// As the user wrote it, absolute.
        path: PathBuf,
    },
}

impl From<ResumeError> for LaunchError {
    fn from(error: ResumeError) -> Self {
        Self::refused(error, 2)
    }
}

impl Wish {
    /// Reads the wish from the job's train.toml. A path is checked here; nothing is changed.
    pub fn of(setup: &Setup) -> Result<Self, ResumeError> {
        Ok(match &setup.config.checkpoint.resume {
            Resume::Auto => Self::Newest,
            Resume::Never => Self::Beginning,
            Resume::Path(path) => {
                let path = setup.absolute(path);
                let checkpoint = named(&path)?;
                check_model(&checkpoint, setup.model(), &setup.model_config())?;
                if setup.config.trained() != Trained::All || !checkpoint.manifest.frozen.is_empty() {
                    return Err(ResumeError::Frozen { path });
                }
                Self::From(Box::new(checkpoint))
            }
        })
    }

    /// The checkpoint that the first attempt goes on from. Warns of damaged ones; changes nothing.
    pub fn checkpoint(&self, setup: &Setup, console: &mut Console) -> Result<Option<Checkpoint>, LaunchError> {
        match self {
            Self::Beginning => Ok(None),
            Self::From(checkpoint) => Ok(Some(checkpoint.as_ref().clone())),
            Self::Newest => {
                let run_dir = setup.run_dir();
                let Found { newest, mut damaged } = find(&run_dir, None)?;
                if newest.is_none() && !damaged.is_empty() {
                    let source = damaged.swap_remove(0);
                    return Err(ResumeError::AllDamaged { folder: run_dir.checkpoints(), source }.into());
                }
                warn_of(&damaged, console);
                if let Some(checkpoint) = &newest {
                    check_model(checkpoint, setup.model(), &setup.model_config())?;
                    check_trained(checkpoint, setup.model(), &setup.config.trained())?;
                    if setup.config.model.init == Init::Random {
                        check_draw(checkpoint, setup.model(), setup.config.job.seed)?;
                    }
                }
                Ok(newest)
            }
        }
    }

    /// Returns the checkpoint to begin from instead of `damaged`, which ranks have found damaged: the one before it, if
    /// the user has not named it.
    pub fn instead_of(
        &self,
        damaged: &Checkpoint,
        setup: &Setup,
        console: &mut Console,
    ) -> Result<Checkpoint, LaunchError> {
        let none_left = || ResumeError::NoneLeft { path: damaged.path.clone() };
        if !matches!(self, Self::Newest) {
            return Err(none_left().into());
        }
        set_aside_damaged(&setup.run_dir(), damaged, console)?;
        Ok(self.checkpoint(setup, console)?.ok_or_else(none_left)?)
    }

    /// Once it is certain that the job begins where the user wants: moves the checkpoints away that are no longer part
    /// of the run's history.
    pub fn leave_others_behind(&self, run_dir: &RunDir, console: &mut Console) -> Result<(), LaunchError> {
        let beginning = match self {
            Self::Newest => return Ok(()),
            Self::Beginning => None,
            Self::From(checkpoint) => Some(checkpoint.as_ref()),
        };
        let (from, to) = (run_dir.checkpoints(), checkpoints::set_aside_folder(run_dir));
        let failed = LaunchError::io(format!("move old checkpoints from {} to {}", from.display(), to.display()));
        if let Some(folder) = checkpoints::set_aside(run_dir, beginning).map_err(failed)? {
            console.warn(&format!("note: checkpoints of an earlier run are now in {}", folder.display()));
        }
        Ok(())
    }
}

/// Moves a checkpoint of the run away that ranks have found damaged: no restart and no launch comes to it again.
pub fn set_aside_damaged(run_dir: &RunDir, checkpoint: &Checkpoint, console: &mut Console) -> Result<(), LaunchError> {
    let path = checkpoint.path.display();
    let to = checkpoints::set_aside_one(run_dir, &checkpoint.path);
    let to = to.map_err(LaunchError::io(format!("move {path}, which is damaged, out of the way")))?;
    console.warn(&format!("warning: a damaged checkpoint is passed over, and is now {}", to.display()));
    Ok(())
}

/// Finds the starting point of a restart: the newest of the snapshots in memory, the run's checkpoints, and the
/// checkpoint that the run began from.
pub fn after_failure(
    run_dir: &RunDir,
    snapshots: Option<&SnapshotMemory>,
    beginning: Option<&Checkpoint>,
    console: &mut Console,
) -> Result<StartingPoint, LaunchError> {
    let Found { newest, damaged } = find(run_dir, beginning)?;
    warn_of(&damaged, console);
    let from_disk = StartingPoint::from(newest);
    let snapshot = snapshots.map_or(Ok(None), SnapshotMemory::newest);
    let snapshot = snapshot.map_err(LaunchError::io("read the snapshots in memory"))?;
    // A snapshot of the same step is as good, and nearer.
    let is_newer = |snapshot: &Progress| snapshot.step >= from_disk.progress().step;
    Ok(snapshot.filter(is_newer).map_or(from_disk, StartingPoint::Snapshot))
}

/// Lists the differences from a run without the interruption, one note each. `before`: the plan that the checkpoint was made by, if
/// it is still there.
pub fn notes(from: &Checkpoint, before: Option<&Plan>, plan: &Plan) -> Vec<String> {
    let Manifest { seed, data, .. } = &from.manifest;
    let manifest = from.path.join(Manifest::FILE);
    let (manifest, mut notes) = (manifest.display(), vec![]);
    if *seed != plan.seed {
        notes.push(format!(
            "job.seed = {}, but {manifest} has seed {seed}: from here on rows come in another order",
            plan.seed
        ));
    }
    let train = plan.data.train.file_name().unwrap_or_default().to_string_lossy();
    if *data != train {
        notes.push(format!(
            "the training data is {train}, but {manifest} has {data}: from here on rows are other ones than before"
        ));
    }
    notes.extend(before.and_then(|before| other_sampler(from, before, plan)));
    notes.extend(before.and_then(|before| schedule_jump(from.step(), before, plan)));
    notes
}

/// The plan of the run in whose folder `from` lies.
pub fn plan_before(from: &Checkpoint) -> Option<Plan> {
    sealed::read(&RunDir::new(from.path.parent()?.parent()?).plan()).ok()
}

/// Says that what follows are other samples than the run before would have taken, though the data is the same.
fn other_sampler(from: &Checkpoint, before: &Plan, plan: &Plan) -> Option<String> {
    // What is counted of the classes' tokens chooses no sample.
    let what = |plan: &Plan| {
        let classes = plan.data.classes.iter().map(|class| (class.name.clone(), class.samples, class.positions));
        (plan.data.sampling, classes.collect::<Vec<_>>())
    };
    if plan.data.sampling == Sampling::Uniform && before.data.sampling == Sampling::Uniform {
        return None;
    }
    let batches = [before.batch.global_batch_size, plan.batch.global_batch_size];
    let why = match batches {
        _ if what(before) != what(plan) => "the sampler (data.sampler) is another one than before".to_owned(),
        [was, is] if was != is && plan.data.sampling == Sampling::Shares => {
            format!("the global batch was {was} samples and is {is}, to which shares of classes are fitted")
        }
        _ => return None,
    };
    Some(format!("{why}: after step {} other samples follow than would have", from.step()))
}

/// A jump of the learning rate after `step`: the same schedule over more steps is another one.
fn schedule_jump(step: u64, before: &Plan, plan: &Plan) -> Option<String> {
    let (was, is) = (before.schedule.at(step), plan.schedule.at(step));
    let jumps = (was - is).abs() > LEAST_JUMP * was.max(is);
    let why = match (before.steps, plan.steps) {
        (was, is) if was == is => String::new(),
        (was, is) => format!(": the schedule was over {was} steps, and is over {is} now"),
    };
    let next = step + 1;
    jumps.then(|| {
        format!("the learning rate jumps at step {next}: it is {is:.2e}, and would have been {was:.2e} before{why}")
    })
}

fn find(run_dir: &RunDir, beginning: Option<&Checkpoint>) -> Result<Found, LaunchError> {
    let failed = LaunchError::io(format!("list the checkpoints in {}", run_dir.checkpoints().display()));
    checkpoints::newest(run_dir, beginning).map_err(failed)
}

fn warn_of(damaged: &[ManifestError], console: &mut Console) {
    for error in damaged {
        let why = error.source().map_or(String::new(), |source| format!(": {source}"));
        console.warn(&format!("warning: a checkpoint is passed over: {error}{why}"));
    }
}

/// The checkpoint at `path`, which the user named.
fn named(path: &Path) -> Result<Checkpoint, ResumeError> {
    // Behind links like `latest`, which may point elsewhere tomorrow.
    match path.canonicalize() {
        Ok(real) if checkpoints::is_complete(&real) => {
            Checkpoint::load(real).map_err(|source| ResumeError::Damaged { path: path.to_owned(), source })
        }
        _ => Err(ResumeError::Incomplete { path: path.to_owned() }),
    }
}

/// `config`: the file that `model` was read from.
fn check_model(checkpoint: &Checkpoint, model: &ModelConfig, config: &Path) -> Result<(), ResumeError> {
    match checkpoint.manifest.model.difference(model) {
        None => Ok(()),
        Some(key) => {
            let manifest = checkpoint.path.join(Manifest::FILE);
            Err(ResumeError::OtherModel { manifest, config: config.to_owned(), key })
        }
    }
}

/// Two jobs that train the same parameters have the same frozen ones.
fn check_trained(checkpoint: &Checkpoint, model: &ModelConfig, trained: &Trained) -> Result<(), ResumeError> {
    if checkpoint.manifest.frozen == frozen_ranges(model, trained) {
        return Ok(());
    }
    Err(ResumeError::OtherTrained { manifest: checkpoint.path.join(Manifest::FILE) })
}

/// Frozen parameters of a model that begins from random weights are drawn again: the same ones.
fn check_draw(checkpoint: &Checkpoint, model: &ModelConfig, seed: u64) -> Result<(), ResumeError> {
    let manifest = &checkpoint.manifest;
    let drawn = [
        ("job.seed", manifest.seed.to_string(), seed.to_string()),
        (
            "initializer_range of the model's config.json",
            manifest.model.initializer_range.to_string(),
            model.initializer_range.to_string(),
        ),
    ];
    match drawn.into_iter().find(|(_, was, is)| was != is) {
        Some((key, was, is)) if !manifest.frozen.is_empty() => {
            Err(ResumeError::OtherDraw { manifest: checkpoint.path.join(Manifest::FILE), key, was, is })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::plan_table::tests::imagined;
    use crate::run_dir::checkpoints::tests::write;
    use proto::sampler::ClassShare;
    use std::fs;

    #[test]
    fn the_named_checkpoint_has_to_be_complete_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().canonicalize().unwrap().join("mine"), dir.path().join("latest"));
        assert!(matches!(named(&path), Err(ResumeError::Incomplete { .. })));
        fs::create_dir(&path).unwrap();
        assert!(matches!(named(&path), Err(ResumeError::Incomplete { .. })));
        write(&path, 500);
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let found = named(&link).unwrap();
        assert_eq!((found.step(), found.path), (500, path.clone()));
        fs::write(path.join("weights"), "").unwrap();
        let error = named(&link).unwrap_err();
        assert!(error.source().unwrap().to_string().contains("weights: damaged: has 0 bytes"), "{error:?}");
    }

    #[test]
    fn another_sampler_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 500);
        let checkpoint = Checkpoint::load(dir.path().to_owned()).unwrap();
        let plan = |sampling, global_batch_size| {
            let mut plan = imagined(1, "");
            (plan.data.sampling, plan.batch.global_batch_size) = (sampling, global_batch_size);
            plan
        };
        let note = |before, now| other_sampler(&checkpoint, &before, &now);
        assert_eq!(note(plan(Sampling::Uniform, 8), plan(Sampling::Uniform, 16)), None);
        assert_eq!(note(plan(Sampling::Balanced, 8), plan(Sampling::Balanced, 16)), None);
        assert_eq!(note(plan(Sampling::Shares, 8), plan(Sampling::Shares, 8)), None);
        // A program that counted no tokens of classes drew the same samples.
        let counted = |tokens| {
            let mut plan = plan(Sampling::Shares, 8);
            plan.data.classes = vec![ClassShare { name: "law".into(), samples: 9, tokens, positions: 9 }];
            plan
        };
        assert_eq!(note(counted(0), counted(90)), None);
        let follow = "after step 500 other samples follow than would have";
        assert_eq!(
            note(plan(Sampling::Uniform, 8), plan(Sampling::Shares, 8)).unwrap(),
            format!("the sampler (data.sampler) is another one than before: {follow}")
        );
        assert_eq!(
            note(plan(Sampling::Shares, 8), plan(Sampling::Shares, 16)).unwrap(),
            format!("the global batch was 8 samples and is 16, to which shares of classes are fitted: {follow}")
        );
    }

    #[test]
    fn a_checkpoint_of_another_model_is_refused_by_key() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1);
        let checkpoint = Checkpoint::load(dir.path().to_owned()).unwrap();
        let mut model = checkpoint.manifest.model.clone();
        let config = Path::new("model/config.json");
        check_model(&checkpoint, &model, config).unwrap();
        model.rope_theta *= 2.0;
        let error = check_model(&checkpoint, &model, config).unwrap_err().to_string();
        assert!(error.contains("/manifest.json: its model has another rope_theta than model/config.json"), "{error}");
    }

    #[test]
    fn a_checkpoint_of_a_job_that_trains_other_parameters_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1);
        let mut checkpoint = Checkpoint::load(dir.path().to_owned()).unwrap();
        let model = checkpoint.manifest.model.clone();
        let trained = |part: &str| Trained::Containing(vec![part.into()]);
        check_trained(&checkpoint, &model, &Trained::All).unwrap();
        let error = check_trained(&checkpoint, &model, &trained("layers")).unwrap_err().to_string();
        assert!(error.contains("/manifest.json: is of a job with another model.trained or [lora]"), "{error}");
        checkpoint.manifest.frozen = frozen_ranges(&model, &trained("layers"));
        check_trained(&checkpoint, &model, &trained("layers.0.")).unwrap();
        assert!(check_trained(&checkpoint, &model, &Trained::All).is_err());
        assert!(check_trained(&checkpoint, &model, &trained("lm_head")).is_err());
    }

    #[test]
    fn frozen_parameters_that_would_be_drawn_otherwise_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1);
        let mut checkpoint = Checkpoint::load(dir.path().to_owned()).unwrap();
        let (mut model, seed) = (checkpoint.manifest.model.clone(), checkpoint.manifest.seed);
        check_draw(&checkpoint, &model, seed + 1).unwrap();
        checkpoint.manifest.frozen = frozen_ranges(&model, &Trained::Containing(vec!["layers".into()]));
        check_draw(&checkpoint, &model, seed).unwrap();
        let error = check_draw(&checkpoint, &model, seed + 1).unwrap_err().to_string();
        assert!(error.contains("were drawn with job.seed 42, and job.seed is 43 here"), "{error}");
        model.initializer_range *= 2.0;
        let error = check_draw(&checkpoint, &model, seed).unwrap_err().to_string();
        assert!(error.contains("initializer_range of the model's config.json 0.02"), "{error}");
    }
}
