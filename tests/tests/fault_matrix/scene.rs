//! The job on which a fault is played: two ranks, the result of a quiet run, and the checks afterwards.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::panic;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Finished, Job};
use tests::run::RunDir;

use crate::cell::{Cell, Ending};

/// Longest that a cell may take, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(60);

/// The folder of all cells, and what a quiet run gives.
pub struct Scene {
    folder: TempDir,
    quiet: RunDir,
}

/// The outcome of a cell.
#[derive(Debug)]
pub struct Outcome {
    /// Which.
    pub name: String,
    /// Its kind of fault, for the table.
    pub kind: String,
    /// The problem that was found.
    pub problem: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

impl Outcome {
    /// Of a check that is no cell.
    pub fn special(name: &str, outcome: Result<(), String>) -> Self {
        Self { name: name.into(), kind: name.into(), problem: outcome.err(), seconds: 0.0 }
    }
}

impl Scene {
    /// Runs the job quietly once.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder");
        tiny_model(&folder.path().join("model"));
        token_rows(&folder.path().join("rows.jsonl"), 32, 24);
        let quiet = job_in(folder.path(), "quiet").succeed();
        assert_eq!(quiet.steps().len(), 12);
        Self { folder, quiet }
    }

    /// The job in a folder of its own.
    pub fn job(&self, name: &str) -> Job {
        job_in(self.folder.path(), name)
    }

    /// Runs the job with the cell's fault and checks what should become of it.
    pub fn play(&self, cell: &Cell) -> Outcome {
        let start = Instant::now();
        let problem = caught(|| self.check(cell)).err();
        let seconds = start.elapsed().as_secs_f64();
        Outcome { name: cell.to_string(), kind: cell.kind.word.into(), problem, seconds }
    }

    fn check(&self, cell: &Cell) {
        let job = self.job(&cell.folder());
        let finished = self.finish(&job.clone().env("DSLAUNCH_FAULT", &cell.fault()));
        let output = format!("{}{}", finished.stdout, finished.stderr);
        assert!(finished.run.path("events.jsonl").exists(), "{}: {output}", finished.status);
        let restarts = finished.run.events().iter().filter(|event| event["event"] == "restarted").count();
        match cell.kind.ending {
            Ending::Recovers => {
                assert_eq!((finished.status.code(), restarts), (Some(0), 1), "{output}");
                assert_culprit(cell, &finished, &output);
                self.assert_quiet_result(&finished);
            }
            Ending::Unharmed => {
                let struck = |rank: u64| {
                    let log = finished.run.path(&format!("logs/attempt-0/rank-{rank}.err"));
                    fs::read_to_string(log).is_ok_and(|log| log.contains("a fault strikes"))
                };
                let victims = cell.victim.rank().map_or(vec![0, 1], |rank| vec![rank]);
                assert!(victims.into_iter().all(struck), "nothing happened");
                assert_eq!((finished.status.code(), restarts), (Some(0), 0), "{output}");
                self.assert_quiet_result(&finished);
            }
            Ending::GivesUp => {
                assert_eq!((finished.status.code(), restarts), (Some(3), 0), "{output}");
                assert_culprit(cell, &finished, &output);
            }
            Ending::LauncherGone => {
                // The guardian lives to tell, or is the one that was killed.
                let guardian_is_gone = finished.status.signal() == Some(9);
                let expected = if cell.kind.word == "kill-guardian" { None } else { Some(137) };
                assert_eq!((finished.status.code(), guardian_is_gone), (expected, expected.is_none()), "{output}");
                self.assert_quiet_result(&self.finish(&job));
            }
        }
    }

    /// Runs `job` to its end, which comes in time and leaves nobody behind.
    pub fn finish(&self, job: &Job) -> Finished {
        let folder = job.run_dir().path("").display().to_string();
        let finished = job.start().wait_within(DEADLINE);
        let finished = finished.unwrap_or_else(|| panic!("it does not end within {DEADLINE:?}"));
        let gone_by = Instant::now() + Duration::from_secs(1);
        while let Some(pid) = process_of(&folder) {
            // Nobody tells a stranger that a process ended, so this asks.
            assert!(Instant::now() < gone_by, "process {pid} is left");
            std::thread::sleep(Duration::from_millis(5));
        }
        finished
    }

    /// ENG-3.
    pub fn assert_quiet_result(&self, finished: &Finished) {
        let output = format!("{}{}", finished.stdout, finished.stderr);
        assert!(finished.status.success(), "{output}");
        assert_eq!(finished.run.steps(), self.quiet.steps(), "{output}");
        assert!(finished.run.final_weights() == self.quiet.final_weights(), "final weights differ in bits: {output}");
    }
}

/// Limits are short, so that what hangs is found soon.
fn job_in(folder: &Path, name: &str) -> Job {
    let (model, data) = (folder.join("model"), folder.join("rows.jsonl"));
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nseq_len = 24\n\
         [train]\nsteps = 12\nmicro_batch_size = 2\nglobal_batch_size = 4\n[optimizer]\nlearning_rate = 1e-3\n\
         [checkpoint]\nevery_steps = 4\n[comm]\ntimeout_seconds = 15\n[restart]\nhang_timeout_seconds = 4\n\
         [log]\nevery_steps = 1\n"
    );
    Job::new(&folder.join(name), &toml).nproc(2)
}

/// A process that was started for the job in `folder`, if one is left.
fn process_of(folder: &str) -> Option<String> {
    let processes = fs::read_dir("/proc").expect("Linux lists processes");
    let is_of_job = |pid: &String| {
        // Ranks by their environment, dslaunch by its arguments. A zombie has neither any more.
        let [environment, arguments] = ["environ", "cmdline"].map(|name| {
            let text = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        });
        environment.contains(&format!("{folder}plan.json")) || arguments.contains(folder.trim_end_matches('/'))
    };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).find(is_of_job)
}

/// LCH-3: the failure is put down to the rank that it happened to.
fn assert_culprit(cell: &Cell, finished: &Finished, output: &str) {
    let stopped = finished.run.events().into_iter().find(|event| event["event"] == "stopped").expect("a failure");
    let cause = stopped["cause"].as_str().expect("a cause");
    assert!(cause.contains(cell.kind.cause), "{:?} is not in {cause:?}: {output}", cell.kind.cause);
    let Some(rank) = cell.victim.rank() else { return };
    assert_eq!(stopped["rank"].as_u64(), Some(rank), "{stopped}: {output}");
}

/// Turns a panic into an error with its message.
pub fn caught(check: impl FnOnce()) -> Result<(), String> {
    panic::catch_unwind(panic::AssertUnwindSafe(check)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}
