//! Validation: the mean cross-entropy over all label tokens of the validation sets, whatever the number of ranks, and what follows
//! from it.

use std::slice;
use std::time::Instant;

use comm::ReduceOp;
use proto::control::report_request::Event;
use proto::control::{EarlyStop, EvalMetrics, EvalSet};
use proto::progress::Phase;

use super::{End, TrainError, Trainer};
use crate::control::Control;
use crate::data::ValidationData;
use crate::kernels::DeviceSum;

impl Trainer {
    /// Scores the validation sets, of which there are some, and reports it, and what the model writes then. Every rank calls it.
    pub(super) fn validate(&mut self, step: u64, control: &Control) -> Result<(), TrainError> {
        control.heartbeat(step, "validate");
        self.ranks.line.enter(Phase::Validate);
        let began = Instant::now();
        let mut losses = Vec::new();
        for set in &self.validation {
            let mut loss = DeviceSum::default();
            for batch in set.micro_batches() {
                let batch = batch.map(|batch| batch.on(self.ranks.device));
                loss.add(self.engine.loss(batch.as_ref())?);
            }
            losses.push(loss.read());
            set.check()?;
        }
        for loss in &mut losses {
            self.ranks.groups.all.all_reduce_scalars(slice::from_mut(loss), ReduceOp::Sum)?;
        }
        let label_tokens: u64 = self.validation.iter().map(|set| set.num_labels()).sum();
        let eval_loss = losses.iter().sum::<f64>() / label_tokens as f64;
        // All ranks have the same sums.
        self.progress.validations = self.progress.validations.and(step, eval_loss, self.plan.early_stopping);
        if self.is_first {
            let of_set = |(set, loss): (&ValidationData, &f64)| EvalSet {
                name: set.name().to_owned(),
                eval_loss: loss / set.num_labels() as f64,
                label_tokens: set.num_labels(),
            };
            let EarlyStop { without_improvement, best_step, best_loss } = self.shown_by_validations();
            control.report(Event::Eval(EvalMetrics {
                step,
                eval_loss,
                label_tokens,
                sets: self.validation.iter().zip(&losses).map(of_set).collect(),
                tokens: self.validation.iter().map(|set| set.num_tokens()).sum(),
                seconds: began.elapsed().as_secs_f64(),
                without_improvement,
                best_step,
                best_loss,
                stops: step < self.plan.steps && self.has_stopped_improving(),
            }));
        }
        self.write_samples(step, control)
    }

    /// All that a plan without steps asks for: scores the sets once, and saves nothing.
    pub(super) fn evaluate(&mut self, control: &Control) -> Result<(), TrainError> {
        self.validate(self.progress.step, control)?;
        self.finish(End::Done, control)
    }

    /// Makes up for a validation that was left out because the job was to stop, and adds it to the checkpoint of its step. Every
    /// rank calls it, before the first step.
    pub(super) fn validate_what_was_left_out(&mut self, control: &Control) -> Result<(), TrainError> {
        let step = self.progress.step;
        if step == 0 || self.progress.validations.step == step || !self.plan.validates_after(step) {
            return Ok(());
        }
        self.validate(step, control)?;
        if self.is_first { Ok(self.saver.amend(self.progress)?) } else { Ok(()) }
    }

    /// Whether training ends for want of improvement.
    pub(super) fn has_stopped_improving(&self) -> bool {
        self.plan.early_stopping.stops(&self.progress.validations)
    }

    /// Why it does.
    pub(super) fn shown_by_validations(&self) -> EarlyStop {
        let validations = self.progress.validations;
        EarlyStop {
            without_improvement: validations.without_improvement,
            best_step: validations.best.map_or(0, |best| best.step),
            best_loss: validations.best.map_or(f64::NAN, |best| best.loss),
        }
    }

    /// Whether the validation of this step, if there was one, is better than all checkpoints on the disk.
    pub(super) fn is_best(&self) -> bool {
        let scored = self.progress.validations.at(self.progress.step);
        self.plan.checkpoint.keep_best > 0 && scored.is_some_and(|scored| scored.loss < self.best_on_disk)
    }

    /// Reads which loss the best checkpoint on the disk has. Every rank calls it: rank 0 looks, for all.
    pub(super) fn look_for_the_best(&mut self) -> Result<(), TrainError> {
        let mut best = [0.0];
        let found = if self.is_first { self.saver.link_to_best(self.progress.step) } else { Ok(None) };
        if self.is_first {
            best = [found.as_ref().ok().copied().flatten().unwrap_or(f64::INFINITY)];
        }
        self.ranks.groups.all.all_reduce_scalars(&mut best, ReduceOp::Sum)?;
        found?;
        self.best_on_disk = best[0];
        Ok(())
    }
}
