//! Reads what a run has left: metrics, timeline, plan, settings, checkpoints. What is damaged is left out, and a note says so.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use proto::plan::Plan;
use proto::run_dir::RunDir;
use proto::sealed;
use serde::Deserialize;
use serde_json::Value;

use super::ReportError;
use super::series::Point;
use super::timeline::{Timeline, timeline};
use crate::output::sinks::catalogue::{METRICS, Metric, Of, Subject};
use crate::run_dir::checkpoints;
use crate::run_dir::identity::Identity;
use crate::run_dir::lock;

/// Numbers beyond this are no measurements, and no scale fits them.
const LARGEST: f64 = 1e300;

/// A run.
#[derive(Debug)]
pub struct Run {
    /// Its folder.
    pub dir: PathBuf,
    /// Its name.
    pub name: String,
    /// The plan of its latest launch.
    pub plan: Option<Plan>,
    /// The keys of train.toml that can change a result.
    pub settings: BTreeMap<String, Value>,
    /// All that was measured.
    pub curves: Vec<Curve>,
    /// What happened.
    pub timeline: Timeline,
    /// The checkpoints that are there.
    pub checkpoints: Vec<CheckpointFact>,
    /// What the model has written at validations, the latest last.
    pub samples: Vec<SampleFact>,
    /// What could not be read.
    pub notes: Vec<String>,
}

/// A text that the model has written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SampleFact {
    /// The steps it was written after.
    pub step: u64,
    /// What it goes on from.
    pub prompt: String,
    /// The text.
    pub text: String,
}

/// A metric over the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Of what.
    pub metric: &'static Metric,
    /// Of what.
    pub subject: Subject,
    /// The points, by step.
    pub points: Vec<Point>,
}

/// A checkpoint on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointFact {
    /// The steps it was made after.
    pub step: u64,
    /// Its folder's name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Whether all of it is there.
    pub is_complete: bool,
    /// Whether it has the lowest validation loss.
    pub is_best: bool,
}

impl Run {
    /// Reads the run in `dir`.
    pub fn read(dir: &Path) -> Result<Self, ReportError> {
        let run_dir = RunDir::new(dir);
        let mut notes = vec![];
        let metrics = bytes(&run_dir.metrics(), &mut notes);
        let events = bytes(&run_dir.events(), &mut notes);
        if metrics.is_none() && events.is_none() {
            return Err(ReportError::NoRun { dir: dir.to_owned() });
        }
        let (curves, damaged) = curves(&metrics.unwrap_or_default());
        notes.extend(left_out(&run_dir.metrics(), damaged));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let running_at = lock::holder(dir).map(|_| now);
        let (timeline, damaged) = timeline(&events.unwrap_or_default(), running_at);
        notes.extend(left_out(&run_dir.events(), damaged));
        let plan: Option<Plan> = match sealed::read(&run_dir.plan()) {
            Ok(plan) => Some(plan),
            Err(error) => {
                notes.push(format!("the plan is missing: {error}"));
                None
            }
        };
        let settings = match Identity::load(&run_dir) {
            Ok(identity) => identity.map(|identity| identity.settings).unwrap_or_default(),
            Err(error) => {
                notes.push(format!("the settings are missing: {error}"));
                BTreeMap::new()
            }
        };
        let checkpoints = checkpoint_facts(&run_dir).unwrap_or_else(|error| {
            notes.push(format!("{}: {error}", run_dir.checkpoints().display()));
            vec![]
        });
        let of_folder =
            || dir.canonicalize().unwrap_or(dir.to_owned()).file_name().map(|name| name.to_string_lossy().into_owned());
        let samples = match run_dir.samples().exists() {
            true => bytes(&run_dir.samples(), &mut notes).unwrap_or_default(),
            false => vec![],
        };
        let (samples, damaged) = sample_facts(&samples);
        notes.extend(left_out(&run_dir.samples(), damaged));
        let name = plan.as_ref().map(|plan| plan.name.clone()).or_else(of_folder).unwrap_or_else(|| "run".to_owned());
        Ok(Self { dir: dir.to_owned(), name, plan, settings, curves, timeline, checkpoints, samples, notes })
    }

    /// The curves of a metric: one, or one for each GPU or validation set.
    pub fn curves_of<'r>(&'r self, metric: &'static Metric) -> impl Iterator<Item = &'r Curve> {
        self.curves.iter().filter(move |curve| curve.metric == metric)
    }

    /// The latest number of a metric of the job, and its step.
    pub fn latest(&self, metric: &'static Metric) -> Option<(f64, f64)> {
        let curve = self.curves_of(metric).next()?;
        curve.points.iter().rev().find_map(|(step, value)| Some((*step, (*value)?)))
    }

    /// The lowest number of a metric of the job, and its step.
    pub fn lowest(&self, metric: &'static Metric) -> Option<(f64, f64)> {
        let numbers = self.curves_of(metric).next()?.points.iter();
        let numbers = numbers.filter_map(|(step, value)| Some((*step, (*value)?)));
        numbers.min_by(|one, other| one.1.total_cmp(&other.1))
    }
}

/// A file's bytes; `None` if it is not there, or cannot be read, which is noted.
fn bytes(path: &Path, notes: &mut Vec<String>) -> Option<Vec<u8>> {
    match fs::read(path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            notes.push(format!("{} is not there", path.display()));
            None
        }
        Err(error) => {
            notes.push(format!("{} cannot be read: {error}", path.display()));
            None
        }
    }
}

fn left_out(path: &Path, damaged: usize) -> Option<String> {
    let rows = if damaged == 1 { "1 row is" } else { &format!("{damaged} rows are") };
    (damaged > 0).then(|| format!("{}: {rows} damaged and left out", path.display()))
}

/// The samples of a samples.jsonl, and how many of its rows are damaged. Pure.
fn sample_facts(text: &[u8]) -> (Vec<SampleFact>, usize) {
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let (facts, damaged): (Vec<_>, Vec<_>) = lines.map(serde_json::from_slice).partition(Result::is_ok);
    (facts.into_iter().flatten().collect(), damaged.len())
}

/// The curves of a metrics.jsonl, and how many of its rows are damaged. Pure.
fn curves(text: &[u8]) -> (Vec<Curve>, usize) {
    let (mut curves, mut damaged) = (vec![], 0);
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let row: Value = serde_json::from_slice(line).unwrap_or_default();
        let Some(step) = row["step"].as_u64() else {
            damaged += 1;
            continue;
        };
        let gpus = row["gpus"].as_array().into_iter().flatten();
        let of_gpu = |sample: &Value| Some(Subject::Gpu(usize::try_from(sample["gpu"].as_u64()?).ok()?));
        let gpus = gpus.filter_map(|sample| Some((sample, of_gpu(sample)?)));
        let sets = row["sets"].as_array().into_iter().flatten();
        let sets = sets.filter_map(|set| Some((set, Subject::Set(set["set"].as_str()?.to_owned()))));
        for (part, subject) in [(&row, Subject::Job)].into_iter().chain(gpus).chain(sets) {
            for metric in METRICS.iter().filter(|metric| is_of(metric, &subject)) {
                if let Some(value) = part.get(metric.key) {
                    let value = value.as_f64().filter(|value| value.abs() < LARGEST);
                    add(&mut curves, metric, &subject, (step as f64, value));
                }
            }
        }
    }
    (curves, damaged)
}

/// Whether there are numbers of a metric of such a subject.
fn is_of(metric: &Metric, subject: &Subject) -> bool {
    matches!((metric.of, subject), (Of::Job, Subject::Job) | (Of::Gpu(_), Subject::Gpu(_)) | (Of::Set, Subject::Set(_)))
}

fn add(curves: &mut Vec<Curve>, metric: &'static Metric, subject: &Subject, point: Point) {
    let known = curves.iter().position(|curve| curve.metric == metric && curve.subject == *subject);
    let at = known.unwrap_or_else(|| {
        curves.push(Curve { metric, subject: subject.clone(), points: vec![] });
        curves.len() - 1
    });
    let points = &mut curves[at].points;
    // What training went back behind does not count.
    let kept = points.partition_point(|(step, _)| *step < point.0);
    points.truncate(kept);
    points.push(point);
}

fn checkpoint_facts(run_dir: &RunDir) -> io::Result<Vec<CheckpointFact>> {
    let entries = match fs::read_dir(run_dir.checkpoints()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let (mut facts, best) = (vec![], checkpoints::best(run_dir).map(|best| best.scored.step));
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(step) = RunDir::checkpoint_step(&name) {
            facts.push(CheckpointFact {
                step,
                name,
                bytes: bytes_in(&path)?,
                is_complete: checkpoints::is_complete(&path),
                is_best: best == Some(step),
            });
        }
    }
    facts.sort_by_key(|fact| fact.step);
    Ok(facts)
}

/// Bytes of all files in a folder and the folders in it.
fn bytes_in(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        bytes += if about.is_dir() { bytes_in(&entry.path())? } else { about.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::sinks::catalogue::{EVAL_LOSS, GPU_POWER, LOSS, SET_LOSS};

    fn points(curves: &[Curve], metric: &'static Metric, subject: Subject) -> Vec<Point> {
        let found = curves.iter().find(|curve| curve.metric == metric && curve.subject == subject);
        found.map_or(vec![], |curve| curve.points.clone())
    }

    #[test]
    fn samples_are_read_but_for_damaged_ones() {
        let text =
            b"{\"step\":2,\"prompt\":\"a\",\"text\":\"b\",\"token_ids\":[1]}\n{\"step\":4,\"prompt\":\"a\"}\n{\"st";
        let fact = SampleFact { step: 2, prompt: "a".into(), text: "b".into() };
        assert_eq!(sample_facts(text), (vec![fact], 2));
    }

    #[test]
    fn rows_become_curves_and_damaged_ones_are_counted() {
        let text = b"{\"step\":1,\"loss\":3.5,\"gpus\":[{\"gpu\":0,\"watts\":1.5},{\"gpu\":2,\"watts\":7}]}\n\
                     {\"step\":2,\"loss\":null}\n\xff\xfe\n{\"step\":2,\"eval_loss\":3.25,\"sets\":[{\"set\":\"a\",\"set_loss\":3.5}]}\n{\"loss\":1}\n\
                     {\"step\":3,\"loss\":2.0}\n{\"step\":3,\"loss\":1.0}\n{\"step\":4,\"lo";
        let (curves, damaged) = curves(text);
        assert_eq!(damaged, 3);
        assert_eq!(points(&curves, &LOSS, Subject::Job), [(1.0, Some(3.5)), (2.0, None), (3.0, Some(1.0))]);
        assert_eq!(points(&curves, &EVAL_LOSS, Subject::Job), [(2.0, Some(3.25))]);
        assert_eq!(points(&curves, &SET_LOSS, Subject::Set("a".into())), [(2.0, Some(3.5))]);
        assert_eq!(points(&curves, &GPU_POWER, Subject::Gpu(2)), [(1.0, Some(7.0))]);
    }

    #[test]
    fn a_run_is_read_as_far_as_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Run::read(dir.path()), Err(ReportError::NoRun { .. })));
        fs::write(dir.path().join("metrics.jsonl"), "{\"step\":1,\"loss\":3.5}\n{\"step\":5,\"loss\":2.5}\nx\n")
            .unwrap();
        fs::write(dir.path().join("plan.json"), "{\n  \"seal\": \"0000000000000000\"\n}").unwrap();
        let checkpoint = dir.path().join("checkpoints/step-00000005");
        fs::create_dir_all(&checkpoint).unwrap();
        fs::write(checkpoint.join("model.safetensors"), "1234").unwrap();
        let run = Run::read(dir.path()).unwrap();
        assert_eq!((run.latest(&LOSS), run.lowest(&LOSS)), (Some((5.0, 2.5)), Some((5.0, 2.5))));
        let name = "step-00000005".to_owned();
        assert_eq!(run.checkpoints, [CheckpointFact { step: 5, name, bytes: 4, is_complete: false, is_best: false }]);
        assert_eq!(run.notes.len(), 3, "{:?}", run.notes);
        assert!(
            run.notes[0].ends_with("events.jsonl is not there")
                && run.notes[1].ends_with("1 row is damaged and left out")
        );
        assert!(run.notes[2].starts_with("the plan is missing: "), "{:?}", run.notes);
    }
}
