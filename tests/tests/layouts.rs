//! A checkpoint of any layout resumes on any other, optimizer included, and loads with `from_pretrained`. Each layout goes on
//! from three others here, and from all by `scripts/trials.sh layouts`.

use std::path::{Path, PathBuf};

use tests::fixtures::Scratch;
use tests::layout::Layout;
use tests::run::{RunDir, Step};
use tests::trials::are_all_played;

/// Relative; sums over ranks associate differently, and AdamW carries that on.
const TOLERANCE: f64 = 1e-5;

const FIRST_STEPS: usize = 4;
const ALL_STEPS: usize = 8;

const fn data(nproc: usize, zero_stage: u8) -> Layout {
    Layout { nproc, zero_stage, micro_batch_size: 2, ..Layout::ONE }
}

const fn cut(nproc: usize, zero_stage: u8, tensor: usize, pipeline: usize, schedule: &'static str) -> Layout {
    Layout { tensor, pipeline, schedule, ..data(nproc, zero_stage) }
}

/// The model has two key/value heads, so that four tensor-parallel ranks share them.
const LAYOUTS: [Layout; 11] = [
    data(1, 0),
    data(2, 1),
    data(2, 2),
    data(3, 3),
    data(4, 3),
    cut(2, 0, 2, 1, "1f1b"),
    cut(4, 0, 4, 1, "1f1b"),
    cut(2, 1, 1, 2, "zero_bubble"),
    cut(4, 3, 2, 1, "1f1b"),
    cut(4, 1, 1, 2, "interleaved"),
    cut(4, 0, 2, 2, "1f1b"),
];

/// 24 rows a step, whatever the layout.
fn train(scratch: &Scratch, name: &str, layout: Layout, steps: usize, resume: Option<&Path>) -> RunDir {
    let (model, data) = (&scratch.model, &scratch.data);
    let resume = resume.map_or(PathBuf::from("never"), Path::to_path_buf);
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n\
             [data]\ntrain = {data:?}\nvalidation = {data:?}\nseq_len = 32\n\
             [train]\nsteps = {steps}\nglobal_batch_size = 24\n\
             [optimizer]\nlearning_rate = 1e-3\nweight_decay = 0.1\n[schedule]\nkind = \"constant\"\n\
             [checkpoint]\nevery_steps = {FIRST_STEPS}\nresume = {resume:?}\n\
             [log]\nevery_steps = 1\n"
    );
    layout.job(&scratch.folder.path().join(name), &toml).succeed()
}

fn assert_close(what: &str, got: &[Step], expected: &[Step]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        let error = ((got.loss - expected.loss) / expected.loss).abs();
        assert!(got.step == expected.step && got.tokens == expected.tokens, "{what}: {got:?} {expected:?}");
        assert!(error <= TOLERANCE, "{what}: {error:e}: {got:?} {expected:?}");
    }
}

#[test]
fn every_layout_resumes_from_every_other() {
    let scratch = Scratch::new(50);
    let quiet = train(&scratch, "quiet", LAYOUTS[0], ALL_STEPS, None).steps();
    for (number, from) in LAYOUTS.into_iter().enumerate() {
        let first = train(&scratch, &format!("{from}"), from, FIRST_STEPS, None);
        assert_close(&format!("{from}"), &first.steps(), &quiet[..FIRST_STEPS]);
        let checkpoint = first.path(&format!("checkpoints/step-{FIRST_STEPS:08}"));
        tests::python("check_load.py", &[checkpoint.to_str().unwrap()]);
        let undisturbed = train(&scratch, &format!("{from} undisturbed"), from, ALL_STEPS, None);
        let others = LAYOUTS.into_iter().cycle().skip(number).take(LAYOUTS.len());
        for to in others.step_by(if are_all_played() { 1 } else { 3 }) {
            let what = format!("{from} to {to}");
            let second = train(&scratch, &what, to, ALL_STEPS, Some(&checkpoint));
            assert_close(&what, &second.steps(), &quiet[FIRST_STEPS..]);
            if from == to {
                // ENG-3
                assert_eq!(second.steps(), undisturbed.steps()[FIRST_STEPS..], "{what}");
                assert!(second.final_weights() == undisturbed.final_weights(), "{what}: weights differ in bits");
            }
        }
    }
}
