//! Brings a rank to the start of an attempt: weights from files or drawn, a checkpoint, or a snapshot in memory.

use comm::ReduceOp;
use proto::env::Beginning;
use proto::layout::ParamLayout;
use proto::manifest::Progress;
use proto::plan::{Adapter, Init, ModelPlan, Plan, Trained};
use proto::quantized::{NotFinite, PackedMatrix, Quantizer};
use tch::Tensor;

use super::error::TrainError;
use super::init;
use crate::checkpoint::{self, Pretrained};
use crate::device::host;
use crate::engine::Memory;
use crate::engine::row_chunks::{norms, row_chunks, take};
use crate::process;
use crate::snapshot::{SnapshotError, Snapshots};

/// Fills parameters, masters and moments, and says where the run stands. Every rank of the job calls it.
pub(super) fn load(
    beginning: &Beginning,
    plan: &Plan,
    snapshots: Option<&Snapshots>,
    memory: &mut Memory,
) -> Result<Progress, TrainError> {
    let progress = fill(beginning, plan, snapshots, memory)?;
    process::give_back_free_memory();
    if let Some(snapshots) = snapshots {
        snapshots.forget_after(progress.step)?;
    }
    Ok(progress)
}

fn fill(
    beginning: &Beginning,
    plan: &Plan,
    snapshots: Option<&Snapshots>,
    memory: &mut Memory,
) -> Result<Progress, TrainError> {
    // Whatever is kept of a run holds only what was trained: the frozen rest is what it was at the start.
    if *beginning == Beginning::Start || plan.model.trained != Trained::All {
        fill_first_weights(beginning, plan, memory)?;
    }
    match beginning {
        Beginning::Start => Ok(Progress::default()),
        Beginning::Checkpoint(path) => {
            checkpoint::resume(path, &plan.data.validation_data(), memory).map_err(TrainError::Resume)
        }
        Beginning::Snapshot(step) => {
            let snapshots = snapshots.expect("the launcher names a snapshot only where it has some");
            from_snapshot(*step, snapshots, memory)
        }
    }
}

/// What the model's files and, at the start, the adapter's hold, and of the rest what is drawn.
fn fill_first_weights(beginning: &Beginning, plan: &Plan, memory: &mut Memory) -> Result<(), TrainError> {
    let ModelPlan { path, config, trained, .. } = &plan.model;
    let model = match plan.model.init {
        Init::Pretrained => Some(Pretrained::model(path, config)?),
        Init::Random => None,
    };
    let begun = plan.model.adapter.as_ref().zip(trained.adapter()).filter(|_| *beginning == Beginning::Start);
    let adapter = begun.map(|(folder, adapter)| Pretrained::adapter(folder, config, adapter)).transpose()?;
    let by = init::Draw { seed: plan.seed, std: config.initializer_range };
    let show = |param: &ParamLayout, take: &mut dyn FnMut(&[f32]) -> Result<(), NotFinite>| match &model {
        Some(model) => model.show(param, take),
        None => {
            init::draw_by_rows(param, by, |_, rows| {
                take(host::slice(rows)).expect("numbers that are drawn are finite");
            });
            Ok(())
        }
    };
    for unit in 0..memory.num_units() {
        memory.fill_packed(unit, show)?;
        let layout = memory.layout(unit).clone();
        memory.fill(unit, |param, to| {
            // `B` is zero: the magnitudes are the weight's own.
            let decomposed = param.name.strip_suffix(Adapter::MAGNITUDE).map(|module| layout.param(&weight_of(module)));
            match (&adapter, &model, decomposed) {
                (Some(adapter), ..) if trained.includes(&param.name) => adapter.fill(param, &to),
                (_, _, Some(weight @ ParamLayout { packed: Some(matrix), .. })) => {
                    few_bits_norms(matrix, param, &to, |take| show(weight, take))
                }
                (_, Some(model), Some(weight)) => model.fill_norms(&weight.name, param, &to),
                (_, Some(model), None) if !Adapter::has(&param.name) => model.fill(param, &to),
                (_, None, Some(weight)) => {
                    init::draw_norms(weight, param, &to, by);
                    Ok(())
                }
                _ => {
                    init::draw(param, to, by);
                    Ok(())
                }
            }
        })?;
    }
    Ok(())
}

/// Fills `to`, this rank's part of the magnitudes of a weight's rows, with their lengths as they are in few bits. `show` shows all of the
/// weight's rows, in order.
fn few_bits_norms<E>(
    matrix: &PackedMatrix,
    magnitudes: &ParamLayout,
    to: &Tensor,
    show: impl FnOnce(&mut dyn FnMut(&[f32]) -> Result<(), NotFinite>) -> Result<(), E>,
) -> Result<(), E> {
    let [num_rows, columns] = matrix.whole;
    let whole = PackedMatrix { rows: 0..num_rows, columns: 0..columns, start: 0, ..matrix.clone() };
    let mut bytes = vec![0; whole.bytes()];
    let mut quantizer = Quantizer::new(&whole, &mut bytes);
    show(&mut |rows| quantizer.take(rows))?;
    quantizer.finish();
    for rows in row_chunks(0..num_rows, columns) {
        let mut values = vec![0.0f32; rows.len() * columns];
        whole.dequantize(&bytes, rows.clone(), &mut values);
        let values = Tensor::from_slice(&values).view([rows.len() as i64, columns as i64]);
        take(magnitudes, to, rows, &norms(&values));
    }
    Ok(())
}

fn weight_of(module: &str) -> String {
    format!("{module}.weight")
}

/// Each rank checks what it has kept itself; all go on if all can.
fn from_snapshot(step: u64, snapshots: &Snapshots, memory: &mut Memory) -> Result<Progress, TrainError> {
    let checked = snapshots.check(step, memory);
    let mut damaged = [f64::from(u8::from(checked.is_err()))];
    let agreed = memory.groups().all.all_reduce_scalars(&mut damaged, ReduceOp::Sum);
    let progress = checked?;
    agreed?;
    if damaged[0] > 0.0 {
        return Err(SnapshotError::Peer { step }.into());
    }
    snapshots.load(step, memory)?;
    Ok(progress)
}
