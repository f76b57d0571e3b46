//! Weights & Biases: the files of an offline run, which `wandb sync` sends. Nothing here talks to a network.
//!
//! - WB-1 What is written is whole records, each row with one write.
//! - WB-2 When training goes on from step k within a launch, rows of later steps are taken back: the run has each step once. A
//!   later launch of the job is another run in the same group, whose steps go on.
//! - WB-3 Numbers have the text that they have in metrics.jsonl; what is not finite is NaN, Infinity or -Infinity.

pub mod log;
pub mod records;
pub mod sync;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::unistd::gethostname;
use prost::Message;
use proto::env::WandbEnv;
use serde_json::Value as Json;

use self::records::{
    Body, Exit, Header, History, Item, Items, Metric, MetricOptions, Record, Run, Stats, StatsItem, Step, Timestamp,
    VersionInfo,
};
use super::RunFacts;
use super::catalogue::{Of, Point, Subject, Value};
use super::whole_records::WholeRecords;
use crate::files::create_private_folder;
use crate::output::metrics::Row;
use crate::random::random_hex;

/// The project of whoever has named none.
const PROJECT: &str = "dslaunch";
/// The oldest wandb that reads what is written here.
const MIN_CONSUMER: &str = "0.70.0";
/// The metric that all others are drawn over: W&B's own counts rows, which are of other numbers in a second launch.
const STEP: &str = "train/step";

/// An offline run.
#[derive(Debug)]
pub struct OfflineRun {
    /// `<output_dir>/wandb`
    folder: PathBuf,
    env: WandbEnv,
    facts: Option<RunFacts>,
    start: Instant,
    log: Option<Log>,
    /// The latest values, by name.
    summary: Vec<(String, String)>,
}

/// Its transaction log.
#[derive(Debug)]
struct Log {
    /// The run's folder, for `wandb sync`.
    folder: PathBuf,
    file: WholeRecords,
    /// Number of the latest record.
    num: i64,
    /// Where each row begins: for rows that are taken back.
    rows: Vec<Mark>,
}

/// The state of the log before a row.
#[derive(Debug, Clone, Copy)]
struct Mark {
    step: u64,
    bytes: u64,
    num: i64,
}

impl OfflineRun {
    /// A run in `folder`, with what the user says of it in `env`; nothing is touched yet.
    pub fn new(folder: PathBuf, env: WandbEnv) -> Self {
        Self { folder, env, facts: None, start: Instant::now(), log: None, summary: vec![] }
    }

    /// What the run is. A second time: something has changed.
    pub fn describe(&mut self, facts: &RunFacts) -> io::Result<()> {
        self.facts = Some(facts.clone());
        match &mut self.log {
            Some(log) => log.append([Body::Config(config(facts))]),
            None => Ok(()),
        }
    }

    /// Training goes on from step `step` (WB-2). After an error the next row tries it again.
    pub fn rewind(&mut self, step: u64) -> io::Result<()> {
        self.open()?.rewind(step)
    }

    /// Adds a row.
    pub fn row(&mut self, row: &Row) -> io::Result<()> {
        let points = row.points();
        let runtime = self.start.elapsed().as_secs_f64();
        let log = self.open()?;
        let mark = Mark { step: row.step(), bytes: log.file.bytes(), num: log.num };
        let history = history(row.step(), &points, log.rows.len(), runtime);
        let stats = stats(&points);
        log.append([Some(Body::History(history)), stats].into_iter().flatten())?;
        log.rows.push(mark);
        self.remember(row.step(), &points);
        Ok(())
    }

    /// Returns once all rows are on the disk, with the latest values beside them.
    pub fn sync(&mut self) -> io::Result<()> {
        let summary = Body::Summary(items(&self.summary));
        let Some(log) = &mut self.log else { return Ok(()) };
        log.append([summary])?;
        log.file.sync()
    }

    /// The job has ended.
    pub fn end(&mut self, exit_code: u8) -> io::Result<()> {
        let runtime = i32::try_from(self.start.elapsed().as_secs()).unwrap_or(i32::MAX);
        let summary = Body::Summary(items(&self.summary));
        let Some(log) = &mut self.log else { return Ok(()) };
        log.append([summary, Body::Exit(Exit { exit_code: exit_code.into(), runtime })])?;
        log.file.sync()
    }

    /// The run's folder, if anything was written.
    pub fn run_folder(&self) -> Option<&Path> {
        self.log.as_ref().map(|log| log.folder.as_path())
    }

    /// Where the latest failure was.
    pub fn path(&self) -> &Path {
        self.log.as_ref().map_or(&self.folder, |log| log.file.path())
    }

    fn open(&mut self) -> io::Result<&mut Log> {
        let log = match self.log.take() {
            Some(log) => log,
            None => {
                let facts = self.facts.as_ref().ok_or_else(|| io::Error::other("the run was not described"))?;
                Log::create(&self.folder, &self.env, facts)?
            }
        };
        Ok(self.log.insert(log))
    }

    fn remember(&mut self, step: u64, points: &[Point]) {
        let of_job = points.iter().filter(|point| !matches!(point.subject, Subject::Gpu(_)));
        let named = of_job.map(|point| (point.tag(), json(point.value)));
        for (name, value) in named.chain([(STEP.to_owned(), step.to_string())]) {
            match self.summary.iter_mut().find(|(known, _)| *known == name) {
                Some((_, latest)) => *latest = value,
                None => self.summary.push((name, value)),
            }
        }
    }
}

impl Log {
    /// A new run's, with all that comes before its first row.
    fn create(folder: &Path, env: &WandbEnv, facts: &RunFacts) -> io::Result<Self> {
        let id = random_hex(4)?;
        let began = jiff::Zoned::now().strftime("%Y%m%d_%H%M%S").to_string();
        let folder = folder.join(format!("offline-run-{began}-{id}"));
        create_private_folder(&folder.join("files"))?;
        let mut file = WholeRecords::create(folder.join(format!("run-{id}.wandb")))?;
        let begun = file.append(&log::FILE_HEADER);
        let mut log = Self { folder, file, num: 0, rows: vec![] };
        let version_info =
            VersionInfo { producer: env!("CARGO_PKG_VERSION").to_owned(), min_consumer: MIN_CONSUMER.to_owned() };
        let header = Body::Header(Header { version_info: Some(version_info) });
        let records = [header, Body::Run(run(id, env, facts)), Body::Config(config(facts))];
        let begun = begun.and_then(|()| log.append(records.into_iter().chain(metrics().map(Body::Metric))));
        if let Err(error) = begun {
            // The next try makes another one.
            let _ = fs::remove_dir_all(&log.folder);
            return Err(error);
        }
        Ok(log)
    }

    /// Adds records with one write.
    fn append(&mut self, bodies: impl IntoIterator<Item = Body>) -> io::Result<()> {
        let (mut bytes, mut num) = (vec![], self.num);
        for body in bodies {
            num += 1;
            log::append(&mut bytes, self.file.bytes(), &Record { num, body: Some(body) }.encode_to_vec());
        }
        self.file.append(&bytes)?;
        self.num = num;
        Ok(())
    }

    /// Takes back rows of steps after `step`.
    fn rewind(&mut self, step: u64) -> io::Result<()> {
        let Some(first) = self.rows.iter().position(|row| row.step > step) else { return Ok(()) };
        let Mark { bytes, num, .. } = self.rows[first];
        self.file.cut(bytes)?;
        self.num = num;
        self.rows.truncate(first);
        Ok(())
    }
}

fn run(id: String, env: &WandbEnv, facts: &RunFacts) -> Run {
    let name = || facts.plan.name.clone();
    Run {
        run_id: id,
        entity: env.entity.clone().unwrap_or_default(),
        project: env.project.clone().unwrap_or_else(|| PROJECT.to_owned()),
        run_group: env.group.clone().unwrap_or_else(name),
        display_name: env.name.clone().unwrap_or_else(name),
        tags: env.tags.clone(),
        host: gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        start_time: Some(now()),
    }
}

/// train.toml with all defaults, and the plan.
fn config(facts: &RunFacts) -> Items {
    let sections = facts.config.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.to_string()));
    let plan = serde_json::to_value(&facts.plan).unwrap_or(Json::Null);
    let mut all: Vec<_> = sections.collect();
    all.push(("plan".to_owned(), plan.to_string()));
    items(&all)
}

fn metrics() -> impl Iterator<Item = Metric> {
    let options = Some(MetricOptions { step_sync: true, defined: true });
    let step = Metric { name: STEP.to_owned(), options: options.clone(), ..Metric::default() };
    let over_step = ["train/*", "validation/*"].map(|names| Metric {
        glob_name: names.to_owned(),
        step_metric: STEP.to_owned(),
        options: options.clone(),
        ..Metric::default()
    });
    std::iter::once(step).chain(over_step)
}

fn history(step: u64, points: &[Point], row: usize, runtime: f64) -> History {
    let number = i64::try_from(row).unwrap_or(i64::MAX);
    let own = [
        (STEP.to_owned(), step.to_string()),
        ("_step".to_owned(), number.to_string()),
        ("_runtime".to_owned(), json(Value::Real(runtime))),
        ("_timestamp".to_owned(), json(Value::Real(seconds_since_1970()))),
    ];
    // GPUs are the machine's: W&B shows those by themselves.
    let of_job = points.iter().filter(|point| !matches!(point.subject, Subject::Gpu(_)));
    let all = of_job.map(|point| (point.tag(), json(point.value))).chain(own);
    let item = all.map(|(key, value_json)| Item { nested_key: vec![key], value_json, ..Item::default() });
    History { item: item.collect(), step: Some(Step { num: number }) }
}

/// The GPUs' numbers, under the names that W&B draws; `None` without any.
fn stats(points: &[Point]) -> Option<Body> {
    let item = |point: &Point| {
        let (Subject::Gpu(gpu), Of::Gpu(name)) = (&point.subject, point.metric.of) else { return None };
        Some(StatsItem { key: format!("gpu.{gpu}.{name}"), value_json: json(point.value) })
    };
    let item: Vec<_> = points.iter().filter_map(item).collect();
    (!item.is_empty()).then(|| Body::Stats(Stats { timestamp: Some(now()), item }))
}

fn items(all: &[(String, String)]) -> Items {
    let item =
        |(key, value): &(String, String)| Item { key: key.clone(), value_json: value.clone(), ..Item::default() };
    Items { update: all.iter().map(item).collect() }
}

/// WB-3.
fn json(value: Value) -> String {
    let not_finite = || match value.as_f64() {
        infinite if infinite > 0.0 => "Infinity",
        infinite if infinite < 0.0 => "-Infinity",
        _ => "NaN",
    };
    value.text().unwrap_or_else(|| not_finite().to_owned())
}

fn seconds_since_1970() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs().cast_signed(), nanos: since.subsec_nanos().cast_signed() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::sinks::catalogue::tests::{eval_row, full_row};
    use crate::output::sinks::tests::facts;

    fn run_in(folder: &Path) -> OfflineRun {
        let env = WandbEnv { project: Some("llama".into()), tags: vec!["a".into()], ..WandbEnv::default() };
        let mut run = OfflineRun::new(folder.to_owned(), env);
        run.describe(&facts()).unwrap();
        run
    }

    fn records(run: &OfflineRun) -> Vec<Record> {
        let bytes = fs::read(run.path()).unwrap();
        let records: Vec<_> =
            log::tests::records(&bytes).iter().map(|bytes| Record::decode(&bytes[..]).unwrap()).collect();
        let nums: Vec<i64> = records.iter().map(|record| record.num).collect();
        assert_eq!(nums, (1..=records.len() as i64).collect::<Vec<_>>());
        records
    }

    fn history_of(records: &[Record], name: &str) -> Vec<String> {
        let value = |record: &Record| match &record.body {
            Some(Body::History(row)) => {
                let item = row.item.iter().find(|item| item.nested_key == [name])?;
                Some(item.value_json.clone())
            }
            _ => None,
        };
        records.iter().filter_map(value).collect()
    }

    #[test]
    fn wb_2_a_run_has_each_step_once_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = run_in(dir.path());
        run.rewind(0).unwrap();
        for step in 1..=400 {
            run.row(&full_row(step)).unwrap();
        }
        run.sync().unwrap();
        run.rewind(2).unwrap();
        run.row(&full_row(3)).unwrap();
        run.row(&eval_row(3)).unwrap();
        run.end(7).unwrap();
        let records = records(&run);
        assert!(matches!(&records[0].body, Some(Body::Header(_))));
        let Some(Body::Run(described)) = &records[1].body else { panic!("{:?}", records[1]) };
        assert_eq!((described.project.as_str(), described.run_group.as_str()), ("llama", "tiny"));
        assert_eq!(history_of(&records, STEP), ["1", "2", "3", "3"]);
        assert_eq!(history_of(&records, "_step"), ["0", "1", "2", "3"]);
        assert_eq!(history_of(&records, "train/loss"), ["3.0", "2.5", "2.3333333333333335"]);
        assert_eq!(history_of(&records, "validation/loss"), ["2.5"]);
        let Some(Body::Stats(stats)) = &records[7].body else { panic!("{:?}", records[7]) };
        assert!(stats.item.iter().any(|item| item.key == "gpu.3.powerWatts" && item.value_json == "612.25"));
        assert_eq!(records.last().unwrap().body, Some(Body::Exit(Exit { exit_code: 7, runtime: 0 })));
        let Some(Body::Summary(summary)) = &records[records.len() - 2].body else { panic!("no summary") };
        assert!(summary.update.iter().any(|item| item.key == "validation/loss" && item.value_json == "2.5"));
    }

    #[test]
    fn what_is_not_finite_is_what_python_writes() {
        let texts = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.1 + 0.2].map(|value| json(Value::Real(value)));
        assert_eq!(texts, ["NaN", "Infinity", "-Infinity", "0.30000000000000004"]);
        assert_eq!(json(Value::Whole(u64::MAX)), "18446744073709551615");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_tried_again_with_the_next_row() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("wandb");
        fs::write(&folder, "in the way").unwrap();
        let mut run = run_in(&folder);
        assert!(run.rewind(0).is_err() && run.row(&full_row(1)).is_err());
        assert_eq!(run.path(), folder);
        fs::remove_file(&folder).unwrap();
        run.row(&full_row(2)).unwrap();
        assert_eq!(history_of(&records(&run), STEP), ["2"]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
