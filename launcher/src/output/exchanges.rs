//! What ranks wait for each other, and what to do if that is much. Pure.

use proto::config::{Device, ZeroStage};
use proto::plan::Plan;

/// More of a step than this is much.
pub const MUCH: f64 = 1.0 / 3.0;

/// What to look at where exchanges take `share` of a step's time, if that is much: of ranks on GPUs.
pub fn advice(plan: &Plan, share: f64) -> Option<String> {
    let is_much = share > MUCH;
    if !is_much || plan.device != Device::Cuda {
        return None;
    }
    let mesh = plan.mesh;
    let mut looks =
        vec!["`dslaunch doctor` (how the GPUs are connected; NCCL_DEBUG=INFO says what NCCL made of it)".to_owned()];
    if mesh.tp > 1 {
        looks.push(format!(
            "parallel.tensor = {} (each layer waits for it twice; less of it, or GPUs with NVLink)",
            mesh.tp
        ));
    }
    if mesh.pp > 1 {
        let micro_batches = plan.mean_micro_batches();
        looks.push(format!(
            "{micro_batches} micro-batches for {} stages (more of them fill the pipeline: train.global_batch_size)",
            mesh.pp
        ));
    }
    if mesh.dp > 1 {
        let stage = plan.zero.stage;
        if stage == ZeroStage::Stage3 || stage == ZeroStage::Stage2 {
            looks.push(format!(
                "zero.stage = {} (every micro-batch is exchanged; stage 1 exchanges once a step)",
                stage.number()
            ));
        }
        if !plan.zero.overlap_comm {
            looks.push("zero.overlap_comm = false (true lets the GPUs compute meanwhile)".to_owned());
        } else if stage == ZeroStage::Stage3 && plan.zero.prefetch_units < 2 {
            looks.push(format!("zero.prefetch_units = {} (2 begin to gather earlier)", plan.zero.prefetch_units));
        }
        looks.push("train.global_batch_size, train.micro_batch_size (more to compute for each exchange)".to_owned());
    }
    let percent = (100.0 * share).round();
    Some(format!("the GPUs wait for exchanges in {percent:.0} % of a step; look at {}", looks.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::plan_table::tests::imagined;

    #[test]
    fn what_helps_depends_on_who_waits_for_whom() {
        let advised = |ranks, toml: &str| advice(&imagined(ranks, toml), 0.414).expect("it is much");
        let sharded = advised(4, "[zero]\nstage = 3\n");
        assert!(
            sharded.starts_with("the GPUs wait for exchanges in 41 % of a step; look at `dslaunch doctor`"),
            "{sharded}"
        );
        for key in ["zero.stage = 3", "zero.prefetch_units = 1", "train.global_batch_size"] {
            assert!(sharded.contains(key), "{key}: {sharded}");
        }
        let apart = advised(4, "[zero]\nstage = 3\noverlap_comm = false\n");
        assert!(apart.contains("zero.overlap_comm = false") && !apart.contains("prefetch"), "{apart}");
        let tensor = advised(2, "[parallel]\ntensor = 2\n");
        assert!(tensor.contains("parallel.tensor = 2") && !tensor.contains("zero."), "{tensor}");
        let pipeline = advised(2, "[parallel]\npipeline = 2\n");
        assert!(pipeline.contains("for 2 stages") && !pipeline.contains("parallel.tensor"), "{pipeline}");
        assert_eq!(advice(&imagined(4, ""), 0.3), None);
        assert_eq!(advice(&imagined(4, ""), f64::NAN), None, "what was not measured is no reason");
    }
}
