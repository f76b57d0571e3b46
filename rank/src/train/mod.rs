//! Trains: takes a plan and a starting point, and ends with a trained model on disk.

mod beginning;
mod error;
mod init;
mod metrics;
mod validate;

use std::rc::Rc;

use comm::ReduceOp;
use proto::control::report_request::Event;
use proto::control::{CheckpointSaved, Finished, SkippedStep, Started};
use proto::env::{Beginning, WorkerEnv};
use proto::manifest::{Manifest, Progress};
use proto::plan::{Init, Plan};
use proto::progress::Phase;
use proto::run_dir::RunDir;

pub use error::TrainError;
use metrics::Metrics;

use crate::checkpoint::{self, Published, Saver};
use crate::control::Control;
use crate::data::{TrainData, ValidationData};
use crate::engine::{Engine, clip_scale};
use crate::process;
use crate::ranks::Ranks;
use crate::snapshot::Snapshots;

/// The state with which one rank trains.
pub struct Trainer {
    plan: Rc<Plan>,
    ranks: Ranks,
    engine: Engine,
    train: TrainData,
    validation: Option<ValidationData>,
    saver: Saver,
    /// The snapshots, if the launcher has memory for them.
    snapshots: Option<Snapshots>,
    /// This attempt goes on from a snapshot.
    from_snapshot: bool,
    progress: Progress,
    /// The step being worked on, from 1; 0 before the first.
    current_step: u64,
    /// Steps in a row that were skipped because they were not finite.
    bad_steps: u64,
    /// A checkpoint was made that no finite step has followed yet: until then none before it is removed.
    unproven_checkpoint: bool,
    is_first: bool,
    /// Resident memory before anything of the model was there.
    baseline_memory_bytes: u64,
}

impl Trainer {
    /// Opens the data, allocates every buffer and loads the weights, or the checkpoint that `env` names.
    pub fn new(plan: Plan, env: &WorkerEnv, ranks: Ranks) -> Result<Self, TrainError> {
        let baseline_memory_bytes = process::peak_memory_bytes();
        let plan = Rc::new(plan);
        let mut engine = Engine::new(plan.clone(), &ranks)?;
        let disk_dtype = match plan.model.init {
            Init::Pretrained => checkpoint::pretrained_dtype(&plan.model.path)?,
            Init::Random => plan.model.disk_dtype,
        };
        let snapshots = env.snapshot_fd.map(|fd| Snapshots::new(process::inherited_fd(fd), &plan, &ranks));
        let progress = beginning::load(&env.beginning, &plan, snapshots.as_ref(), engine.memory_mut())?;
        Ok(Self {
            train: TrainData::open(&plan, ranks.groups.coord.dp, progress)?,
            validation: ValidationData::open(&plan, ranks.groups.coord.dp)?,
            saver: Saver::new(plan.clone(), &ranks, disk_dtype)?,
            snapshots,
            from_snapshot: matches!(env.beginning, Beginning::Snapshot(_)),
            current_step: progress.step,
            bad_steps: 0,
            unproven_checkpoint: false,
            is_first: env.rank == 0,
            baseline_memory_bytes,
            engine,
            progress,
            plan,
            ranks,
        })
    }

    /// The step being worked on, from 1; 0 before the first.
    pub fn current_step(&self) -> u64 {
        self.current_step
    }

    /// Trains to the plan's last step and writes the final model. Every rank of the job calls it.
    pub fn run(&mut self, control: &Control) -> Result<(), TrainError> {
        let mut metrics = Metrics::start();
        if self.is_first {
            control.report(Event::Started(Started { resumed_step: self.progress.step }));
        }
        if self.from_snapshot && self.lacks_checkpoint() {
            self.save_checkpoint(control)?;
        }
        while self.progress.step < self.plan.steps {
            let step = self.progress.step + 1;
            self.current_step = step;
            self.ranks.line.begin_step(step);
            control.check()?;
            control.heartbeat(step, "train");
            let StepEnd { outcome, checkpoint_is_settled, is_asked_to_stop } = self.train_step(step)?;
            if checkpoint_is_settled {
                self.ranks.line.enter(Phase::Checkpoint);
                self.publish(control)?;
            }
            if outcome.is_finite() {
                self.prune()?;
            } else {
                self.report_skipped(&outcome, control)?;
            }
            self.ranks.line.enter(Phase::Between);
            metrics.count(outcome);
            if self.is_first {
                control.report(Event::Step(metrics.row(self.progress.label_tokens, self.plan.logs(step))));
            }
            // After a bad step the weights themselves may be the reason: they must not replace sound ones.
            let may_save = self.bad_steps == 0;
            if is_asked_to_stop && step < self.plan.steps && may_save {
                return self.stop_early(step, control);
            }
            if self.plan.validates_after(step) {
                self.validate(step, control)?;
            }
            if self.plan.saves_after(step) && may_save {
                self.save_checkpoint(control)?;
            }
            if self.plan.keeps_after(step) && may_save {
                self.keep_snapshot(control)?;
            }
        }
        control.heartbeat(self.progress.step, "save");
        self.ranks.line.enter(Phase::Save);
        self.publish(control)?;
        self.saver.save_final(self.engine.memory_mut())?;
        if self.bad_steps == 0 {
            self.prune()?;
        }
        self.finish(End::Done, control)
    }

    /// The machine is wanted back: first the checkpoint, then what else belongs to the step.
    fn stop_early(&mut self, step: u64, control: &Control) -> Result<(), TrainError> {
        self.save_checkpoint(control)?;
        self.publish(control)?;
        if self.plan.validates_after(step) {
            self.validate(step, control)?;
        }
        self.finish(End::Preempted, control)
    }

    /// The last that the launcher hears.
    fn finish(&self, end: End, control: &Control) -> Result<(), TrainError> {
        self.ranks.line.enter(Phase::End);
        control.report(Event::Finished(Finished {
            step: self.progress.step,
            peak_memory_bytes: process::peak_memory_bytes(),
            baseline_memory_bytes: self.baseline_memory_bytes,
            preempted: end == End::Preempted,
        }));
        Ok(())
    }

    /// One optimizer step. `step` counts from 1. Where loss or gradient norm is not finite, nothing is updated.
    fn train_step(&mut self, step: u64) -> Result<StepEnd, TrainError> {
        let num_labels = self.train.num_labels(step - 1);
        let scale = 1.0 / num_labels.max(1) as f64;
        let micro_batch = |idx| self.train.micro_batch(step - 1, idx);
        let passes = self.engine.forward_backward(micro_batch, scale)?;
        // Afterwards: damage that came while the rows were read is found too, and nothing of this step is applied.
        self.train.check(step - 1)?;
        let all = &self.ranks.groups.all;
        let busy_seconds = passes.seconds - passes.waited_seconds;
        let flag = |flag: bool| f64::from(u8::from(flag));
        // With the loss ranks tell each other what all have to do after the same step.
        let mut sums =
            [passes.loss, busy_seconds, flag(self.saver.is_settled()), flag(self.ranks.line.is_asked_to_stop())];
        all.all_reduce_scalars(&mut sums, ReduceOp::Sum)?;
        let [loss, busy_seconds, settled, asked_to_stop] = sums;
        let checkpoint_is_settled = settled == all.size() as f64;
        let pipeline_bubble = self.pipeline_bubble(busy_seconds, passes.seconds)?;
        self.engine.reduce_gradients()?;
        let grad_norm = self.engine.grad_norm()?;
        let outcome = StepOutcome {
            step,
            loss: loss * scale,
            grad_norm,
            learning_rate: self.plan.schedule.at(step - 1),
            num_tokens: self.train.num_tokens(step - 1),
            pipeline_bubble,
        };
        if outcome.is_finite() {
            let clip = clip_scale(self.plan.max_grad_norm, grad_norm);
            self.engine.optimizer_step(step, outcome.learning_rate, clip)?;
            self.bad_steps = 0;
        } else {
            self.engine.discard_gradients();
            self.bad_steps += 1;
        }
        self.progress = Progress {
            step,
            rows: self.progress.rows + self.plan.batch.global_batch_size,
            label_tokens: self.progress.label_tokens + num_labels,
        };
        Ok(StepEnd { outcome, checkpoint_is_settled, is_asked_to_stop: asked_to_stop > 0.0 })
    }

    /// The part of the stages' time, until the last of them is done, in which they waited for each other. `busy_seconds`: of
    /// all ranks together; `seconds`: how long this rank's passes took.
    fn pipeline_bubble(&self, busy_seconds: f64, seconds: f64) -> Result<Option<f64>, TrainError> {
        let all = &self.ranks.groups.all;
        if self.plan.mesh.pp == 1 {
            return Ok(None);
        }
        let mut longest = [seconds];
        all.all_reduce_scalars(&mut longest, ReduceOp::Max)?;
        Ok(Some(1.0 - busy_seconds / (longest[0] * all.size() as f64)))
    }

    /// Tells which samples a skipped step was made of; an error once there are too many such steps in a row.
    fn report_skipped(&self, outcome: &StepOutcome, control: &Control) -> Result<(), TrainError> {
        let &StepOutcome { step, loss, grad_norm, .. } = outcome;
        let in_a_row = self.bad_steps;
        if self.is_first {
            let samples = self.train.sample_origins(step - 1).take(REPORTED_SAMPLES_MAX).collect();
            control.report(Event::Skipped(SkippedStep { step, loss, grad_norm, in_a_row, samples }));
        }
        if in_a_row < self.plan.max_bad_steps {
            Ok(())
        } else {
            Err(TrainError::Diverged { step, loss, grad_norm, in_a_row })
        }
    }

    /// Removes old checkpoints, now that a finite step, or the end, has followed the newest.
    fn prune(&mut self) -> Result<(), TrainError> {
        if std::mem::take(&mut self.unproven_checkpoint) && self.is_first {
            self.ranks.line.enter(Phase::Checkpoint);
            self.saver.prune(self.progress.step)?;
        }
        Ok(())
    }

    fn save_checkpoint(&mut self, control: &Control) -> Result<(), TrainError> {
        control.heartbeat(self.progress.step, "checkpoint");
        self.ranks.line.enter(Phase::Checkpoint);
        self.publish(control)?;
        // A run that goes on from this checkpoint does not report the steps before it again.
        control.flush()?;
        self.saver.begin_checkpoint(self.engine.memory_mut(), self.progress)?;
        Ok(())
    }

    /// Keeps the state in the launcher's memory. It counts once the launcher has heard of all that this step did: an
    /// attempt that goes on from here does not report that again.
    fn keep_snapshot(&self, control: &Control) -> Result<(), TrainError> {
        let Some(snapshots) = &self.snapshots else { return Ok(()) };
        let copied = snapshots.copy(self.engine.memory(), self.progress)?;
        if self.is_first {
            self.ranks.line.call_launcher(|| control.flush())?;
        }
        Ok(copied.seal()?)
    }

    /// Whether the newest checkpoint that this launch should have made is not there, nor one made up for it: a failure came
    /// before it was on the disk, and the snapshot is newer. Every rank sees the same, for none can make one alone.
    fn lacks_checkpoint(&self) -> bool {
        let step = self.progress.step;
        let due = step - step % self.plan.checkpoint.every_steps;
        let run_dir = RunDir::new(self.plan.output_dir.clone());
        let is_there = |step: u64| run_dir.checkpoint(step).join(Manifest::FILE).exists();
        due > self.plan.start.step && !(due..=step).any(is_there)
    }

    /// Makes a pending checkpoint visible. Every rank calls it after the same step.
    fn publish(&mut self, control: &Control) -> Result<(), TrainError> {
        let Some(Published { step, path, seconds }) = self.saver.publish()? else { return Ok(()) };
        self.unproven_checkpoint = true;
        if self.is_first {
            let path = path.display().to_string();
            control.report(Event::Checkpoint(CheckpointSaved { step, path, seconds }));
        }
        Ok(())
    }
}

/// Samples that are named when a step is skipped.
const REPORTED_SAMPLES_MAX: usize = 1000;

/// The reason that a rank stops.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// All steps are done.
    Done,
    /// The machine is wanted back.
    Preempted,
}

/// The results of a step that every rank knows, the same on all.
struct StepEnd {
    outcome: StepOutcome,
    /// A checkpoint is pending and on the disk.
    checkpoint_is_settled: bool,
    /// The launcher wishes that the job stops.
    is_asked_to_stop: bool,
}

/// The outcome of one step.
struct StepOutcome {
    /// From 1.
    step: u64,
    /// Mean cross-entropy over the label tokens of the global batch.
    loss: f64,
    /// Global L2 norm before clipping.
    grad_norm: f64,
    learning_rate: f64,
    /// Tokens of the global batch, with or without labels.
    num_tokens: u64,
    /// See [`Trainer::pipeline_bubble`].
    pipeline_bubble: Option<f64>,
}

impl StepOutcome {
    /// Whether the update can be applied.
    fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}
