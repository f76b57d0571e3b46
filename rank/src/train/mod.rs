//! Trains: takes a plan and a starting point, and ends with a trained model on disk.

mod beginning;
mod data;
mod error;
mod init;
mod metrics;
mod pace;
mod samples;
mod step;
mod validate;

use std::rc::Rc;
use std::time::Instant;

use comm::ReduceOp;
use proto::control::report_request::Event;
use proto::control::{CheckpointSaved, Finished, SkippedStep, Started};
use proto::env::{Beginning, WorkerEnv};
use proto::manifest::{Manifest, Progress};
use proto::plan::{Device, Init, Plan};
use proto::progress::Phase;
use proto::run_dir::RunDir;
use proto::weights_folder::pretrained_dtype;
use tch::{Kind, Tensor};

pub use error::TrainError;
use metrics::Metrics;
use pace::{SnapshotPace, StepClock};
use step::{StepOutcome, StepUnderWay};

use crate::checkpoint::{CheckpointError, Published, Saver};
use crate::control::Control;
use crate::data::{HeavyStep, TrainData, ValidationData};
use crate::device::Moment;
use crate::device::cuda::gpu;
use crate::engine::Engine;
use crate::kernels::DeviceSum;
use crate::process;
use crate::ranks::Ranks;
use crate::snapshot::Snapshots;

/// The state with which one rank trains.
pub struct Trainer {
    plan: Rc<Plan>,
    ranks: Ranks,
    /// The snapshots, if the launcher has memory for them. Dropped before the engine: what is copied meanwhile is the engine's.
    snapshots: Option<Snapshots>,
    engine: Engine,
    train: TrainData,
    /// The validation sets.
    validation: Vec<ValidationData>,
    saver: Saver,
    /// This attempt goes on from a snapshot.
    from_snapshot: bool,
    progress: Progress,
    /// The first step of this attempt.
    first_step: u64,
    /// The step being worked on, from 1; 0 before the first.
    current_step: u64,
    /// The newest step, if its outcome has not been read yet.
    unread: Option<StepUnderWay>,
    /// Steps in a row that were skipped because they were not finite, as far as they have been read.
    bad_steps: u64,
    /// The lowest validation loss of the checkpoints on the disk; infinite where none has one.
    best_on_disk: f64,
    /// The step of a checkpoint that no finite step has followed yet: until then none before it is removed.
    unproven_checkpoint: Option<u64>,
    /// The step of the newest checkpoint that this attempt has begun.
    saved_step: Option<u64>,
    is_first: bool,
    /// No attempt of this launch was before this one.
    is_first_attempt: bool,
    pace: SnapshotPace,
    /// How long steps take.
    clock: StepClock,
    /// How many times as long the newest snapshot took on this rank, as far as nothing was computed meanwhile.
    snapshot_cost: f64,
    /// The wait of the update for the newest snapshot, until it has been added to that.
    snapshot_wait: Option<[Moment; 2]>,
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
            // An adapter is no part of the model's files.
            _ if plan.model.trained.adapter().is_some() => plan.model.disk_dtype,
            Init::Pretrained => pretrained_dtype(&plan.model.path).map_err(CheckpointError::from)?,
            Init::Random => plan.model.disk_dtype,
        };
        let snapshots = env.snapshot_fd.map(|fd| Snapshots::new(process::inherited_fd(fd), &plan, &ranks));
        let progress = beginning::load(&env.beginning, &plan, snapshots.as_ref(), engine.memory()?)?;
        Ok(Self {
            train: TrainData::open(&plan, ranks.groups.coord.dp, progress)?,
            validation: ValidationData::open(&plan, ranks.groups.coord.dp)?,
            saver: Saver::new(plan.clone(), &ranks, disk_dtype)?,
            snapshots,
            from_snapshot: matches!(env.beginning, Beginning::Snapshot(_)),
            current_step: progress.step,
            first_step: progress.step + 1,
            unread: None,
            bad_steps: 0,
            best_on_disk: f64::INFINITY,
            unproven_checkpoint: None,
            saved_step: None,
            is_first: env.rank == 0,
            is_first_attempt: env.attempt == 0,
            pace: SnapshotPace::new(plan.snapshots, progress.step),
            clock: StepClock::default(),
            snapshot_cost: 0.0,
            snapshot_wait: None,
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
        if self.is_first_attempt {
            self.try_longest(control)?;
        }
        let mut metrics = Metrics::start();
        if self.is_first {
            control.report(Event::Started(Started { resumed_step: self.progress.step }));
        }
        if self.plan.steps == 0 {
            return self.evaluate(control);
        }
        self.validate_what_was_left_out(control)?;
        self.look_for_the_best()?;
        if self.from_snapshot && (self.lacks_checkpoint() || self.is_best()) {
            self.save_checkpoint(control)?;
        }
        while self.progress.step < self.plan.steps && !self.has_stopped_improving() {
            let step = self.progress.step + 1;
            self.current_step = step;
            self.ranks.line.begin_step(step);
            control.check()?;
            if !self.await_data(step, control)? {
                return self.stop_without_data(&mut metrics, control);
            }
            control.heartbeat(step, "train");
            let StepEnd { under_way, checkpoint_is_settled, is_asked_to_stop } = self.train_step(step, control)?;
            if checkpoint_is_settled {
                self.ranks.line.enter(Phase::Checkpoint);
                self.publish(control)?;
            }
            if let Some(before) = self.unread.replace(under_way) {
                self.conclude(before, &mut metrics, control)?;
            }
            let stops = is_asked_to_stop && step < self.plan.steps;
            if !self.ranks.reads_late() || stops || self.has_to_know_after(step) {
                self.conclude_unread(&mut metrics, control)?;
            }
            // After a bad step the weights themselves may be the reason: they must not replace sound ones.
            let may_save = self.bad_steps == 0;
            if stops && may_save {
                return self.stop_early(control);
            }
            if self.plan.validates_after(step) {
                self.validate(step, control)?;
                self.clock.pauses();
            }
            let is_last = step == self.plan.steps || self.has_stopped_improving();
            // The last step has a row, and only now it is known to be that.
            if is_last && self.is_first && !self.plan.logs(step) {
                control.report(Event::Step(metrics.row(true)));
            }
            let is_due = self.plan.saves_after(step) || is_last || self.is_best();
            // After the last step there is nothing sounder to wait for, and no other checkpoint is removed for it.
            if is_due && (may_save || is_last) {
                self.save_checkpoint(control)?;
                self.clock.pauses();
            }
            if self.pace.is_due_after(step) && may_save {
                self.keep_snapshot(control)?;
            }
        }
        control.heartbeat(self.progress.step, "save");
        self.finish_snapshot(control)?;
        self.ranks.line.enter(Phase::Save);
        self.publish(control)?;
        self.saver.save_final(self.engine.memory()?)?;
        if self.bad_steps == 0 {
            self.prune(u64::MAX)?;
        }
        self.finish(End::Done, control)
    }

    /// Tries a step with the longest micro-batch that is to come, unless the next step needs as much memory: a job that has too little for
    /// it ends now, not hours later. It is a step whose gradients are no numbers, so that nothing is updated.
    fn try_longest(&mut self, control: &Control) -> Result<(), TrainError> {
        let step = self.progress.step;
        let heaviest = self.train.heaviest_to_come(step..self.plan.steps);
        let Some(HeavyStep { longest, micro_batches }) = heaviest else { return Ok(()) };
        control.heartbeat(step, "try the longest micro-batch");
        let micro_batch = |_| self.train.micro_batch(&longest).on(self.ranks.device);
        self.engine.forward_backward(micro_batches, micro_batch, f64::NAN)?;
        self.train.check(&longest)?;
        self.engine.reduce_gradients()?;
        // Where none of its tokens has a label, gradients are zero and not NaN.
        let loss = Tensor::full([] as [i64; 0], f64::NAN, (Kind::Double, self.ranks.device.of_tensors()));
        let sums = self.engine.step_sums(DeviceSum::from(loss))?;
        self.engine.optimizer_step(step + 1, 0.0, &sums)?;
        self.ranks.line.enter(Phase::Wait);
        let sums = sums.ask();
        self.ranks.await_device(|| sums.read())?;
        self.ranks.line.enter(Phase::Load);
        Ok(())
    }

    /// Has the rows of `step` at hand, from 1; false: there are none.
    fn await_data(&mut self, step: u64, control: &Control) -> Result<bool, TrainError> {
        let line = self.ranks.line.clone();
        let supply = data::OfLauncher { control, line: &line, ranks: &self.ranks };
        let is_there = self.train.await_rows(step - 1, &supply)?;
        if line.phase() == Phase::Data {
            line.enter(Phase::Between);
            self.clock.pauses();
        }
        Ok(is_there)
    }

    /// There is no data for the next step: what was trained is saved. All ranks come here after the same step.
    fn stop_without_data(&mut self, metrics: &mut Metrics, control: &Control) -> Result<(), TrainError> {
        self.conclude_unread(metrics, control)?;
        let step = self.progress.step;
        let is_saved = self.saved_step == Some(step) || step < self.first_step && !self.from_snapshot;
        if !is_saved && self.bad_steps == 0 {
            self.save_checkpoint(control)?;
        }
        self.ranks.line.enter(Phase::Checkpoint);
        self.publish(control)?;
        self.finish(End::NoData, control)
    }

    /// The job is to stop before its end. A validation that belongs to the step is made when the job goes on: there may be no time.
    fn stop_early(&mut self, control: &Control) -> Result<(), TrainError> {
        self.save_checkpoint(control)?;
        self.publish(control)?;
        self.finish(End::Early, control)
    }

    /// The last that the launcher hears.
    fn finish(&self, end: End, control: &Control) -> Result<(), TrainError> {
        self.ranks.line.enter(Phase::End);
        control.report(Event::Finished(Finished {
            step: self.progress.step,
            peak_memory_bytes: process::peak_memory_bytes(),
            baseline_memory_bytes: self.baseline_memory_bytes,
            stopped_early: end == End::Early,
            lacks_data: end == End::NoData,
            gpu_peak_bytes: gpu::peak_bytes(),
            early_stop: (end == End::Done && self.progress.step < self.plan.steps).then(|| self.shown_by_validations()),
        }));
        Ok(())
    }

    /// Whether what comes after step `step` depends on its outcome, or is to be told after it.
    fn has_to_know_after(&self, step: u64) -> bool {
        let plan = &self.plan;
        let is_kept = self.pace.is_due_after(step);
        plan.validates_after(step) || plan.saves_after(step) || is_kept
    }

    /// Reads the outcome of the newest step, if that was not done yet.
    fn conclude_unread(&mut self, metrics: &mut Metrics, control: &Control) -> Result<(), TrainError> {
        self.unread.take().map_or(Ok(()), |under_way| self.conclude(under_way, metrics, control))
    }

    /// Reads the outcome of a step and reports it.
    fn conclude(
        &mut self,
        under_way: StepUnderWay,
        metrics: &mut Metrics,
        control: &Control,
    ) -> Result<(), TrainError> {
        self.ranks.line.enter(Phase::Wait);
        let outcome = self.ranks.await_device(|| under_way.read())?;
        self.clock.step_ends(Instant::now());
        if let Some([passes_end, goes_on]) = self.snapshot_wait.take() {
            self.snapshot_cost += goes_on.milliseconds_since(&passes_end) / 1e3 / self.clock.step_seconds();
        }
        if outcome.is_finite() {
            self.bad_steps = 0;
            self.prune(outcome.step)?;
        } else {
            self.bad_steps += 1;
            self.report_skipped(&outcome, control)?;
        }
        self.ranks.line.enter(Phase::Between);
        let logs = self.plan.logs(outcome.step);
        metrics.count(outcome);
        if self.is_first {
            control.report(Event::Step(metrics.row(logs)));
        }
        Ok(())
    }

    /// One optimizer step. `step` counts from 1. Where loss or gradient norm is not finite, nothing is updated.
    fn train_step(&mut self, step: u64, control: &Control) -> Result<StepEnd, TrainError> {
        self.ranks.groups.stalls.begin_step(step - self.first_step + 1);
        let num_labels = self.train.num_labels(step - 1);
        let scale = 1.0 / num_labels.max(1) as f64;
        let batches = self.train.micro_batches(step - 1);
        let micro_batch = |idx: usize| self.train.micro_batch(&batches[idx]).on(self.ranks.device);
        let passes = self.engine.forward_backward(batches.len(), micro_batch, scale)?;
        // Afterwards: damage that came while the rows were read is found too, and nothing of this step is applied.
        batches.iter().try_for_each(|batch| self.train.check(batch))?;
        let all = &self.ranks.groups.all;
        let busy_seconds = passes.seconds - passes.waited_seconds;
        let flag = |flag: bool| f64::from(u8::from(flag));
        // Ranks tell each other what all have to do after the same step.
        let (is_settled, is_asked_to_stop) = (self.saver.is_settled(), self.ranks.line.is_asked_to_stop());
        let mut sums = [busy_seconds, flag(is_settled), flag(is_asked_to_stop), self.snapshot_cost];
        all.all_reduce_scalars(&mut sums, ReduceOp::Sum)?;
        let [busy_seconds, settled, asked_to_stop, snapshot_cost] = sums;
        self.pace.costs(snapshot_cost / all.size() as f64);
        let checkpoint_is_settled = settled == all.size() as f64;
        let pipeline_bubble = self.pipeline_bubble(busy_seconds, passes.seconds)?;
        self.engine.reduce_gradients()?;
        // SNP-2: before the ranks meet, so that none begins its next while another has not sealed this one.
        self.finish_snapshot(control)?;
        let sums = self.engine.step_sums(passes.loss)?;
        let learning_rate = self.plan.schedule.at(step - 1);
        self.engine.optimizer_step(step, learning_rate, &sums)?;
        let (stalled, sums) = (self.ranks.groups.stalls.end_step(), sums.ask());
        self.progress = Progress {
            step,
            rows: self.progress.rows + self.plan.batch.global_batch_size,
            label_tokens: self.progress.label_tokens + num_labels,
            validations: self.progress.validations,
        };
        let (num_tokens, label_tokens) = (self.train.num_tokens(step - 1), self.progress.label_tokens);
        let under_way =
            StepUnderWay { step, sums, scale, learning_rate, num_tokens, label_tokens, pipeline_bubble, stalled };
        Ok(StepEnd { under_way, checkpoint_is_settled, is_asked_to_stop: asked_to_stop > 0.0 })
    }

    /// The part of the stages' time, until the last of them is done, in which they waited for each other. `busy_seconds`: of
    /// all ranks together; `seconds`: how long this rank's passes took.
    fn pipeline_bubble(&self, busy_seconds: f64, seconds: f64) -> Result<Option<f64>, TrainError> {
        let all = &self.ranks.groups.all;
        // A GPU waits for other stages beside this thread.
        if self.plan.mesh.pp == 1 || self.plan.device == Device::Cuda {
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

    /// Removes old checkpoints if `finite_step`, or the end, has followed the newest.
    fn prune(&mut self, finite_step: u64) -> Result<(), TrainError> {
        if self.unproven_checkpoint.take_if(|step| *step < finite_step).is_some() && self.is_first {
            self.ranks.line.enter(Phase::Checkpoint);
            self.saver.prune(self.progress.step)?;
        }
        Ok(())
    }

    fn save_checkpoint(&mut self, control: &Control) -> Result<(), TrainError> {
        self.saved_step = Some(self.progress.step);
        control.heartbeat(self.progress.step, "checkpoint");
        self.ranks.line.enter(Phase::Checkpoint);
        self.publish(control)?;
        // A run that goes on from this checkpoint does not report the steps before it again.
        control.flush()?;
        self.saver.begin_checkpoint(self.engine.memory()?, self.progress)?;
        if let Some(scored) = self.progress.validations.at(self.progress.step) {
            self.best_on_disk = self.best_on_disk.min(scored.loss);
        }
        Ok(())
    }

    /// Begins to keep the state in the launcher's memory; finishes, unless that is done while the next step computes.
    fn keep_snapshot(&mut self, control: &Control) -> Result<(), TrainError> {
        let Some(snapshots) = &mut self.snapshots else { return Ok(()) };
        let began = Instant::now();
        snapshots.begin(self.engine.memory()?, self.progress)?;
        let is_beside_steps = snapshots.are_beside_steps();
        self.pace.taken(self.progress.step);
        self.clock.pauses();
        self.snapshot_cost = began.elapsed().as_secs_f64() / self.clock.step_seconds();
        if is_beside_steps { Ok(()) } else { self.finish_snapshot(control) }
    }

    /// Finishes the snapshot that was begun, if there is one, before anything that it is made of changes. It counts once the launcher
    /// has heard of all that its step did: an attempt that goes on from there does not report that again.
    fn finish_snapshot(&mut self, control: &Control) -> Result<(), TrainError> {
        let Some(snapshots) = &mut self.snapshots else { return Ok(()) };
        // The device may still compute while this thread waits: it lacks work from the end of that to the end of the wait.
        let passes_end = Moment::now();
        let Some(copied) = snapshots.finish()? else { return Ok(()) };
        self.snapshot_wait = Some([passes_end, Moment::now()]);
        if self.is_first {
            self.ranks.line.call_launcher(|| control.flush())?;
        }
        Ok(copied.seal()?)
    }

    /// Whether the newest checkpoint that this launch should have made is not there, nor one made up for it: a failure came
    /// before it was on the disk, and the snapshot is newer. The last step's, where training stops early, is one too. Every rank sees
    /// the same, for none can make one alone.
    fn lacks_checkpoint(&self) -> bool {
        let step = self.progress.step;
        let due = step - step % self.plan.checkpoint.every_steps;
        let run_dir = RunDir::new(self.plan.output_dir.clone());
        let is_there = |step: u64| run_dir.checkpoint(step).join(Manifest::FILE).exists();
        let lacks_last = self.has_stopped_improving() && !is_there(step);
        lacks_last || due > self.plan.start.step && !(due..=step).any(is_there)
    }

    /// Makes a pending checkpoint visible. Every rank calls it after the same step.
    fn publish(&mut self, control: &Control) -> Result<(), TrainError> {
        let Some(Published { step, path, seconds }) = self.saver.publish()? else { return Ok(()) };
        self.unproven_checkpoint = Some(step);
        if self.is_first {
            self.saver.link_to_best(step)?;
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
    /// The launcher wished it so.
    Early,
    /// There are no rows for the next step.
    NoData,
}

/// What every rank knows at the end of a step, the same on all.
struct StepEnd {
    under_way: StepUnderWay,
    /// A checkpoint is pending and on the disk.
    checkpoint_is_settled: bool,
    /// The launcher wishes that the job stops.
    is_asked_to_stop: bool,
}
