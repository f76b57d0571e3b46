//! Adapters beside a base in few bits train as PEFT trains them beside weights that have been in few bits, on every layout.

use std::path::PathBuf;

use serde_json::{Value, json};
use tests::job::Job;
use tests::layout::Layout;
use tests::run::{Step, steps};

use crate::adapters::{BF16_LOSS_TOLERANCE, BF16_NORM_TOLERANCE, PLAIN};
use crate::compare::{LOSS_TOLERANCE, NORM_TOLERANCE, check, oracle_eval_loss};
use crate::ground::{Ground, ROWS_PER_STEP};

const STEPS: u64 = 6;

/// Model, `lora.quantize`, and whether the adapter has magnitudes. Parts of the first have whole blocks; of the second not even rows have.
const CASES: [Case; 4] =
    [("blocks", "nf4", false), ("gqa", "nf4", false), ("blocks", "int8", false), ("blocks", "nf4", true)];

type Case = (&'static str, &'static str, bool);

fn layouts() -> Vec<Layout> {
    let one = Layout { micro_batch_size: 1, ..PLAIN };
    let data = |zero_stage| Layout { nproc: 2, zero_stage, ..one };
    let tensor = Layout { tensor: 2, nproc: 2, ..one };
    vec![
        PLAIN,
        tensor,
        Layout { checkpointing: "ffn", ..data(3) },
        data(1),
        Layout { pipeline: 2, nproc: 2, ..one },
        Layout { offload: "cpu", ..data(3) },
        data(2),
        Layout { nproc: 4, tensor: 2, ..data(3) },
    ]
}

struct Expected {
    steps: Vec<Step>,
    eval_loss: f64,
}

fn adapter(ground: &Ground, model: &str, dora: bool) -> PathBuf {
    let out = ground.path(&format!("{model}-{}", if dora { "dora" } else { "lora" }));
    if !out.exists() {
        let model = ground.model(model);
        let paths = [&model, &out].map(|path| path.to_str().expect("UTF-8"));
        tests::python("lora/make_adapter.py", &[&paths[..], if dora { &["--dora"] } else { &[] }].concat());
    }
    out
}

fn job(ground: &Ground, (model, quantize, dora): Case, layout: Layout, folder: &str) -> Job {
    let lora = format!("[lora]\nfrom = {:?}\nquantize = {quantize:?}", adapter(ground, model, dora));
    layout.job(&ground.path(folder), &ground.toml(model, &lora, STEPS))
}

/// What PEFT makes of each case, in one run of Python.
fn expected(ground: &Ground) -> Vec<Expected> {
    let out = |idx: usize| ground.path(&format!("expected-{idx}"));
    let jobs = CASES.iter().enumerate().map(|(idx, (model, quantize, dora))| {
        let data = ground.data(model);
        json!({
            "model": ground.model(model), "data": data, "validation": data, "out": out(idx), "steps": STEPS,
            "rows_per_step": ROWS_PER_STEP, "adapter": adapter(ground, model, *dora), "quantize": quantize,
        })
    });
    let list = ground.path("jobs.json");
    std::fs::write(&list, Value::from_iter(jobs).to_string()).expect("a scratch file");
    tests::python("hf_reference.py", &["--jobs", list.to_str().expect("UTF-8")]);
    let of = |idx| Expected { steps: steps(&out(idx).join("metrics.jsonl")), eval_loss: oracle_eval_loss(&out(idx)) };
    (0..CASES.len()).map(of).collect()
}

#[test]
fn a_base_in_few_bits_trains_like_peft() {
    let ground = Ground::new(&["blocks", "gqa"]);
    for (idx, Expected { steps, eval_loss }) in expected(&ground).iter().enumerate() {
        let case = CASES[idx];
        // All of the first; of the second two that cut no block.
        let layouts = layouts().into_iter().enumerate().filter(|(number, _)| match idx {
            0 => true,
            1 => [0, 2].contains(number),
            2 => [0, 1].contains(number),
            _ => [0, 1, 2, 4].contains(number),
        });
        for (number, layout) in layouts {
            let run = job(&ground, case, layout, &format!("{idx}-{number}")).succeed();
            check(&format!("{case:?} {layout}"), &run, steps, *eval_loss, LOSS_TOLERANCE, NORM_TOLERANCE);
        }
        let dtypes = [("fp32", LOSS_TOLERANCE, NORM_TOLERANCE), ("bf16", BF16_LOSS_TOLERANCE, BF16_NORM_TOLERANCE)];
        let [skipped, taken] = [[0, 2], [1, 1], [0, 1], [0, 1]][idx];
        for (dtype, tolerance, norm_tolerance) in dtypes.into_iter().skip(skipped).take(taken) {
            let job = job(&ground, case, Layout { dtype, ..PLAIN }, &format!("{idx}-gpu-{dtype}"));
            let what = format!("{case:?} on an emulated GPU, {dtype}");
            check(&what, &job.on_gpus(&json!([{}])).succeed(), steps, *eval_loss, tolerance, norm_tolerance);
        }
    }
    // Where a cut goes through a block, it is refused by name; and so is what is no number.
    let torn = job(&ground, CASES[1], layouts()[1], "torn").finish();
    assert_eq!(torn.status.code(), Some(2), "{}", torn.stderr);
    assert!(torn.stderr.contains("lora.quantize") && torn.stderr.contains("o_proj.weight"), "{}", torn.stderr);
}

/// With `B` zero an adapter changes nothing, if its magnitudes are the lengths of rows in few bits.
#[test]
fn magnitudes_begin_as_the_lengths_of_rows_in_few_bits() {
    let ground = Ground::new(&["blocks"]);
    for quantize in ["nf4", "int8"] {
        let first_loss = |dora: bool, layout: Layout| {
            let lora = format!("[lora]\nrank = 4\nquantize = {quantize:?}\ndora = {dora}");
            let name = format!("{quantize} {dora} {layout}");
            layout.job(&ground.path(&name), &ground.toml("blocks", &lora, 1)).succeed().steps()[0].loss
        };
        let plain = first_loss(false, PLAIN);
        for layout in [PLAIN, Layout { tensor: 2, nproc: 2, ..PLAIN }] {
            let decomposed = first_loss(true, layout);
            assert!((decomposed - plain).abs() < 1e-6 * plain, "{quantize} {layout}: {decomposed} and {plain}");
        }
    }
}

/// ENG-2, ENG-3: with delays and poisoned buffers, and after a stop, there are the same bits.
#[test]
fn a_base_in_few_bits_goes_on_and_changes_no_bit() {
    let ground = Ground::new(&["blocks"]);
    let layout = Layout { nproc: 2, zero_stage: 3, dtype: "bf16", micro_batch_size: 1, ..PLAIN };
    let job = |name: &str| job(&ground, CASES[0], layout, name).set("schedule.kind=\"constant\"");
    let whole = job("whole").succeed();
    job("stopped").set("train.steps=3").set("checkpoint.every_steps=3").succeed();
    let resumed = job("stopped").env("DSLAUNCH_SHAKE", "5").succeed();
    assert_eq!(resumed.steps(), whole.steps());
    assert!(resumed.final_weights() == whole.final_weights(), "final adapters differ in bits");
}
