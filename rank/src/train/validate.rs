//! Validation: the mean cross-entropy over all label tokens of the validation set, whatever the number of ranks.

use comm::ReduceOp;
use proto::control::EvalMetrics;
use proto::control::report_request::Event;
use proto::progress::Phase;

use super::{TrainError, Trainer};
use crate::control::Control;
use crate::kernels::DeviceSum;

impl Trainer {
    /// Scores the validation set, if there is one, and reports it, and what the model writes then. Every rank calls it.
    pub(super) fn validate(&mut self, step: u64, control: &Control) -> Result<(), TrainError> {
        let Some(validation) = &self.validation else { return Ok(()) };
        control.heartbeat(step, "validate");
        self.ranks.line.enter(Phase::Validate);
        let mut loss = DeviceSum::default();
        for batch in validation.micro_batches() {
            let batch = batch.map(|batch| batch.on(self.ranks.device));
            loss.add(self.engine.loss(batch.as_ref())?);
        }
        let mut loss = [loss.read()];
        validation.check()?;
        self.ranks.groups.all.all_reduce_scalars(&mut loss, ReduceOp::Sum)?;
        let label_tokens = validation.num_labels();
        if self.is_first {
            let eval_loss = loss[0] / label_tokens as f64;
            control.report(Event::Eval(EvalMetrics { step, eval_loss, label_tokens }));
        }
        self.write_samples(step, control)
    }
}
