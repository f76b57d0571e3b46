//! Whether a job may go on with what lies in its run directory, and what it has to tell about it: other settings than
//! before, or that all is done already. The decision itself is [`identity::compare`].

use proto::config::{Length, Trained};
use proto::plan::Plan;
use proto::run_dir::RunDir;
use proto::sealed::SealedError;

use crate::error::LaunchError;
use crate::job::identify;
use crate::job::resume::{ResumeError, Wish};
use crate::job::setup::Setup;
use crate::output::console::Console;
use crate::run_dir::checkpoints::{self, Checkpoint};
use crate::run_dir::identity::{self, Difference, Identity, Verdict};

/// A job's claim to its run directory.
#[derive(Debug)]
pub struct Ownership {
    run_dir: RunDir,
    identity: Identity,
    /// Settings in which it differs from the job that it goes on with.
    changed: Vec<Difference>,
    /// The steps of that job, if it is finished.
    finished_steps: Option<u64>,
    length: Length,
}

impl Ownership {
    /// Refuses a job of another model than the one whose checkpoints or final model lie in the run directory, unless it
    /// goes on with none of them; one with frozen parameters also where nothing says what that model was. The caller holds the
    /// lock; nothing is changed.
    pub fn check(wish: &Wish, setup: &Setup, console: &mut Console) -> Result<Self, LaunchError> {
        let run_dir = setup.run_dir();
        let length = setup.config.train.length;
        let identity = identify::identity(setup);
        let mut owned = Self { run_dir, identity, changed: vec![], finished_steps: None, length };
        if !matches!(wish, Wish::Newest) {
            return Ok(owned);
        }
        let earlier = owned.earlier(console)?;
        if earlier.is_none() && setup.config.trained() != Trained::All && owned.has_results()? {
            return Err(ResumeError::UnknownFrozen { run_dir: owned.run_dir.root().to_owned() }.into());
        }
        if let Some(was) = earlier {
            match identity::compare(&was, &owned.identity) {
                Verdict::Refused(difference) if owned.has_results()? => {
                    return Err(ResumeError::OtherJob { run_dir: owned.run_dir.root().to_owned(), difference }.into());
                }
                // Nothing came of it.
                Verdict::Refused(_) => return Ok(owned),
                Verdict::Changed(changed) => owned.changed = changed,
                Verdict::Same => {}
            }
            owned.finished_steps = was.finished_steps.filter(|_| owned.run_dir.final_model().is_dir());
        }
        Ok(owned)
    }

    /// What the run directory says of whose it is.
    fn earlier(&self, console: &mut Console) -> Result<Option<Identity>, LaunchError> {
        match Identity::load(&self.run_dir) {
            Ok(identity) => Ok(identity),
            Err(error @ SealedError::Damaged { .. }) => {
                console.warn(&format!("warning: {error}: what lies there is taken to be of this job"));
                Ok(None)
            }
            Err(SealedError::Read { path, source }) => Err(LaunchError::io(format!("read {}", path.display()))(source)),
        }
    }

    fn has_results(&self) -> Result<bool, LaunchError> {
        let failed = LaunchError::io(format!("list the checkpoints in {}", self.run_dir.checkpoints().display()));
        let checkpoint = checkpoints::newest_complete(&self.run_dir).map_err(failed)?;
        Ok(checkpoint.is_some() || self.run_dir.final_model().exists())
    }

    /// One line about settings that are others than before `from`.
    pub fn note(&self, from: Option<&Checkpoint>) -> Option<String> {
        let step = from?.step();
        (!self.changed.is_empty()).then(|| format!("since step {step}: {}", listed(&self.changed)))
    }

    /// What to tell instead of training a job that is finished; `from` is where it would go on.
    pub fn finished(&self, plan: &Plan, from: Option<&Checkpoint>) -> Option<(u64, String)> {
        let steps = self.finished_steps.filter(|&steps| steps >= plan.steps || stopped_early(plan, from, steps))?;
        let longer = match self.length {
            _ if steps < plan.steps => {
                let patience = plan.early_stopping.patience;
                format!("a validation.early_stopping_patience above {patience}, or 0,")
            }
            Length::Steps(steps) => format!("a train.steps above {steps}"),
            Length::Epochs(epochs) => format!("a train.epochs above {epochs}"),
        };
        let done = if steps < plan.steps {
            format!("it has stopped early at step {steps} of {}", plan.steps)
        } else {
            format!("{steps} steps are done")
        };
        let begins = match from {
            Some(checkpoint) => format!("goes on from {}", checkpoint.path.display()),
            None => "begins at step 1 again, for there is no checkpoint".to_owned(),
        };
        let mut text = format!(
            "{}: this job is finished: {done}, and the model is in {}. Nothing was changed.\n  \
             to train longer  {longer} {begins}\n  \
             to train anew    another job.output_dir, or checkpoint.resume = \"never\" to replace this one",
            self.run_dir.root().display(),
            self.run_dir.final_model().display(),
        );
        if !self.changed.is_empty() {
            text += &format!("\n  not applied      {}", listed(&self.changed));
        }
        Some((steps, text))
    }

    /// From now on the run directory is this job's. What is of another has been moved away.
    pub fn take(&self) -> Result<(), LaunchError> {
        self.store(None)
    }

    /// The job has made its final model.
    pub fn finish(&self, steps: u64) -> Result<(), LaunchError> {
        self.store(Some(steps))
    }

    fn store(&self, finished_steps: Option<u64>) -> Result<(), LaunchError> {
        let failed = LaunchError::io(format!("write {}", self.run_dir.identity().display()));
        Identity { finished_steps, ..self.identity.clone() }.store(&self.run_dir).map_err(failed)
    }
}

/// Whether the job has stopped early after `steps` steps, and would again.
fn stopped_early(plan: &Plan, from: Option<&Checkpoint>, steps: u64) -> bool {
    let progress = from.map(|from| from.manifest.progress_on(&plan.data.validation_data()));
    progress.is_some_and(|progress| progress.step == steps && plan.early_stopping.stops(&progress.validations))
}

/// `optimizer.learning_rate 0.0003 -> 0.0001, data.seq_len 256 -> 512`.
fn listed(changed: &[Difference]) -> String {
    let one = |Difference { key, was, is }: &Difference| format!("{key} {was} -> {is}");
    changed.iter().map(one).collect::<Vec<_>>().join(", ")
}
