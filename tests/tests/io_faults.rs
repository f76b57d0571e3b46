//! Whatever the operating system refuses, and wherever: a job ends in a clear error or in success, in time, without a panic;
//! nothing that was announced is lost, nothing is left behind, and the job started again gives the result of a quiet run.
//! CKP-1, LCH-1; `scripts/io_faults.sh` plays every place.
//!
//! A quiet run of each [`Scene`] records the places that ask (`tests/io_faults`); then each of them is refused once.

#![allow(clippy::print_stdout, reason = "tests tell how they go")]
#![allow(clippy::disallowed_methods, reason = "tests start dslaunch as a user does")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tests::fixtures::{tiny_model, token_rows};
use tests::job::{Job, send};
use tests::program;
use tests::run::{RunDir, names_in};
use tests::sites::Site;
use tests::trials::{Draw, Trials};

/// Longest that a job may take, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(60);
/// Until nothing of a job that has ended may be left.
const GONE: Duration = Duration::from_secs(2);

/// What is done when a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scene {
    /// Two ranks train in a fresh run directory.
    Train,
    /// One rank, which computes with several threads.
    Alone,
    /// A run that has a checkpoint, old logs and a checkpoint half-written goes on.
    GoOn,
    /// A rank is killed, and all go on from a snapshot.
    Restart,
    /// `dslaunch run`: two workers, one of which fails in the first attempt.
    Run,
}

const SCENES: [Scene; 5] = [Scene::Train, Scene::Alone, Scene::GoOn, Scene::Restart, Scene::Run];

/// What a worker of [`Scene::Run`] does.
const WORKER: &str = "echo \"out of $RANK in $TORCHELASTIC_RESTART_COUNT\"; echo \"err of $RANK\" >&2; \
                      [ $RANK$TORCHELASTIC_RESTART_COUNT != 10 ]";

/// The folder of all trials, and quiet runs.
struct Stage {
    folder: TempDir,
    quiet: RunDir,
    quiet_alone: RunDir,
}

/// How a job ended.
struct End {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    /// Its process.
    pid: u32,
    /// Control groups that were there before: process ids come again.
    groups: BTreeSet<PathBuf>,
}

impl End {
    fn output(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// What it says first about the error, else whatever it says first.
    fn first_error(&self, error: &str) -> &str {
        let of = |wanted: &dyn Fn(&str) -> bool| self.stderr.lines().find(|line| wanted(line));
        of(&|line| line.contains(error)).or(of(&|line| line.contains("error"))).or(of(&|_| true)).unwrap_or("")
    }
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder");
        tiny_model(&folder.path().join("model"));
        token_rows(&folder.path().join("rows.jsonl"), 32, 24);
        let quiet = |name: &str, nproc: usize| train(folder.path(), &folder.path().join(name)).nproc(nproc).succeed();
        let (quiet, quiet_alone) = (quiet("quiet", 2), quiet("quiet-alone", 1));
        Self { folder, quiet, quiet_alone }
    }

    /// A scene's quiet run of training.
    fn quiet(&self, scene: Scene) -> &RunDir {
        if scene == Scene::Alone { &self.quiet_alone } else { &self.quiet }
    }

    /// A scene's job in `folder`.
    fn job(&self, scene: Scene, folder: &Path) -> Job {
        train(self.folder.path(), folder).nproc(if scene == Scene::Alone { 1 } else { 2 })
    }

    /// The command of a trial in `folder`, which is made ready for it.
    fn command(&self, scene: Scene, folder: &Path) -> Command {
        let job = self.job(scene, folder);
        match scene {
            Scene::Train | Scene::Alone => job.command(),
            Scene::GoOn => {
                copy_folder(&self.quiet(scene).path(""), &job.run_dir().path(""));
                fs::remove_dir_all(job.run_dir().path("final")).unwrap();
                let half = job.run_dir().path("checkpoints/.step-00000009.tmp");
                fs::create_dir(&half).unwrap();
                fs::write(half.join("config.json"), "{").unwrap();
                job.command()
            }
            Scene::Restart => job.env("DSLAUNCH_FAULT", "kill rank=1 phase=update step=6").command(),
            Scene::Run => {
                let mut command = Command::new(program("dslaunch"));
                command.args(["run", "--nproc-per-node", "2", "--max-restarts", "2", "--tee", "3"]);
                command.args(["--log-dir", "run", "--", "sh", "-c", WORKER]).current_dir(folder);
                command
            }
        }
    }

    /// The sites of a quiet run.
    fn record(&self, scene: Scene) -> Vec<Site> {
        let folder = self.folder.path().join(format!("record-{scene:?}"));
        let mut command = self.command(scene, &folder);
        preload(&mut command).env("IO_FAULTS_RECORD", folder.join("sites"));
        let end = run(command, &folder).expect("a quiet run ends in time");
        assert_eq!(end.code, Some(0), "{}", end.output());
        Site::read(&folder.join("sites"))
    }

    /// Has the call at `site` fail. The promises that were broken, a line each; `None` where it was not made this time.
    fn play(&self, scene: Scene, site: &Site) -> (Vec<String>, Option<Site>, String) {
        let folder = self.folder.path().join(format!("{scene:?}-{}", site.id));
        let struck = folder.join("struck");
        let mut command = self.command(scene, &folder);
        preload(&mut command).env("IO_FAULTS_STRIKE", &site.id).env("IO_FAULTS_STRUCK", &struck);
        let mut broken = vec![];
        let Some(end) = run(command, &folder) else {
            return (vec![format!("it does not end within {DEADLINE:?}")], Some(site.clone()), "hang".into());
        };
        let site = Site::read(&struck).pop();
        let error = site.as_ref().map(Site::error).unwrap_or_default();
        if !matches!(end.code, Some(0 | 1 | 3)) || site.is_none() && end.code != Some(0) {
            broken.push("another exit code was promised".into());
        }
        let is_mute = site.as_ref().is_some_and(Site::is_speech);
        if end.code != Some(0) && !is_mute && !says(&end.stderr, site.as_ref()) {
            broken.push(format!("it does not say {error:?}"));
        }
        broken.extend(leftovers(&folder, &end));
        broken.extend(panics(&folder, &end));
        let run_dir = RunDir::new(folder.join("run"));
        if scene == Scene::Run {
            broken.extend(self.check_workers(&folder, &end, &run_dir));
        } else {
            broken.extend(self.check_training(scene, &folder, &end));
        }
        let said = format!("exit {:?}, {:?}", end.code, end.first_error(&error));
        if broken.is_empty() {
            let _ = fs::remove_dir_all(&folder);
        }
        (broken, site, said)
    }

    /// What was announced is there; started again, it gives what a quiet run gives, and what the fault left is gone.
    fn check_training(&self, scene: Scene, folder: &Path, end: &End) -> Vec<String> {
        let (job, quiet) = (self.job(scene, folder), self.quiet(scene));
        let (run_dir, mut broken) = (job.run_dir(), vec![]);
        let announced = end.stdout.lines().filter(|line| line.contains(": checkpoint in "));
        let step = |line: &str| line.strip_prefix("step ")?.split(':').next()?.parse::<u64>().ok();
        let announced: Vec<String> = announced.filter_map(step).map(|step| format!("step-{step:08}")).collect();
        let visible = run_dir.checkpoints().into_iter().filter(|name| !name.starts_with('.')).collect::<Vec<_>>();
        broken.extend(announced.iter().filter(|name| !visible.contains(name)).map(|name| format!("{name} is lost")));
        for name in visible {
            let path = run_dir.path("checkpoints").join(&name);
            let verified = job.dslaunch(&["checkpoint", "verify", path.to_str().expect("UTF-8")]);
            if !verified.status.success() {
                broken.push(format!("{name}: {}", String::from_utf8_lossy(&verified.stderr).trim()));
            }
        }
        if end.code == Some(0) {
            broken.extend(differences(quiet, &run_dir, end).map(|text| format!("it ends with success, and {text}")));
        }
        let again = run(job.command(), folder);
        let Some(again) = again else {
            broken.push("started again, it does not end".into());
            return broken;
        };
        if again.code != Some(0) {
            broken.push(format!("started again: exit {:?}, {:?}", again.code, again.first_error("error")));
        }
        broken.extend(differences(quiet, &run_dir, end).map(|text| format!("started again, {text}")));
        // Logs of earlier starts are kept, and a restart writes checkpoints of its own.
        let is_free =
            |path: &PathBuf| ["logs", "checkpoints/step-"].iter().any(|of| path.to_string_lossy().starts_with(of));
        let [is, should] = [&run_dir, quiet]
            .map(|run| paths_below(&run.path("")).into_iter().filter(|path| !is_free(path)).collect::<BTreeSet<_>>());
        broken.extend(is.difference(&should).map(|path| format!("{} is left", path.display())));
        broken.extend(should.difference(&is).map(|path| format!("{} lacks", path.display())));
        broken
    }

    /// What the workers of the last attempt have said is in their logs, and in those of another start.
    fn check_workers(&self, folder: &Path, end: &End, logs: &RunDir) -> Vec<String> {
        let lacking = |when: &str| {
            let last = names_in(&logs.path("")).into_iter().filter(|name| name.starts_with("attempt-")).max();
            let last = last.unwrap_or_else(|| "attempt-?".into());
            let lacks = |rank: usize, stream: &str, text: String| {
                let log = logs.path(&last).join(rank.to_string()).join(stream);
                !fs::read_to_string(log).is_ok_and(|said| said == text)
            };
            let attempt = last.trim_start_matches("attempt-");
            let rank = |rank: usize| {
                lacks(rank, "stdout.log", format!("out of {rank} in {attempt}\n"))
                    || lacks(rank, "stderr.log", format!("err of {rank}\n"))
            };
            (0..2)
                .filter(|&number| rank(number))
                .map(|rank| format!("{when} a log of rank {rank} is not whole"))
                .collect()
        };
        let mut broken: Vec<String> = if end.code == Some(0) { lacking("with success,") } else { vec![] };
        let again = run(self.command(Scene::Run, folder), folder);
        match again {
            Some(again) if again.code == Some(0) => broken.extend(lacking("started again,")),
            Some(again) => {
                broken.push(format!("started again: exit {:?}, {:?}", again.code, again.first_error("error")))
            }
            None => broken.push("started again, it does not end".into()),
        }
        broken
    }
}

/// What is not as in the quiet run, bit for bit. One row of metrics may lack if it was said that rows are lost.
fn differences(quiet: &RunDir, run_dir: &RunDir, end: &End) -> Option<String> {
    if let Some(name) = ["metrics.jsonl", "final"].into_iter().find(|name| !run_dir.path(name).exists()) {
        return Some(format!("there is no {name}"));
    }
    if run_dir.final_weights() != quiet.final_weights() {
        return Some("final weights differ in bits".into());
    }
    let (steps, losses) = (quiet.steps(), quiet.eval_losses());
    let (is_steps, is_losses) = (run_dir.steps(), run_dir.eval_losses());
    let known = is_steps.iter().all(|step| steps.contains(step)) && is_losses.iter().all(|loss| losses.contains(loss));
    let num_lost = (steps.len() + losses.len()).abs_diff(is_steps.len() + is_losses.len());
    let may_be_lost = usize::from(end.stderr.contains("rows are lost"));
    (!known || num_lost > may_be_lost).then(|| format!("{num_lost} rows of metrics lack, others differ: {}", !known))
}

/// Whether a text says what the system was made to say, in words or by name.
fn says(text: &str, site: Option<&Site>) -> bool {
    site.is_none_or(|site| text.contains(&site.error()) || text.contains(&format!("{:?}", Errno::from_raw(site.errno))))
}

/// A job on the tiny model: ten steps, two checkpoints. Limits are short, so that what hangs is found soon.
fn train(stage: &Path, folder: &Path) -> Job {
    let (model, data) = (stage.join("model"), stage.join("rows.jsonl"));
    let toml = format!(
        "[model]\npath = {model:?}\ninit = \"random\"\n[data]\ntrain = {data:?}\nvalidation = {data:?}\nseq_len = 24\n\
         [train]\nsteps = 10\nmicro_batch_size = 2\nglobal_batch_size = 4\n[optimizer]\nlearning_rate = 1e-3\n\
         [validation]\nevery_steps = 5\n[checkpoint]\nevery_steps = 4\nkeep_last = 9\n[comm]\ntimeout_seconds = 15\n\
         [restart]\nhang_timeout_seconds = 4\n[log]\nevery_steps = 1\n"
    );
    Job::new(folder, &toml)
}

fn preload(command: &mut Command) -> &mut Command {
    command.env("LD_PRELOAD", program("libio_faults.so"))
}

/// Runs the command to its end, its output in files, so that nobody who holds them on can stop this; temporary files go to a
/// folder of its own. `None`: it did not end in time, and was killed.
fn run(mut command: Command, folder: &Path) -> Option<End> {
    let [stdout, stderr] = ["stdout", "stderr"].map(|name| folder.join(name));
    let file = |path: &PathBuf| File::create(path).expect("a scratch file");
    fs::create_dir_all(folder.join("tmp")).expect("a scratch folder");
    command.env("TMPDIR", folder.join("tmp")).stdin(Stdio::null()).stdout(file(&stdout)).stderr(file(&stderr));
    let groups = control_groups();
    let (mut child, start) = (command.spawn().expect("dslaunch starts"), Instant::now());
    let pid = child.id();
    let code = loop {
        match child.try_wait().expect("a child of ours") {
            Some(status) => break Some(status.code()),
            None if start.elapsed() > DEADLINE => break None,
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    if code.is_none() {
        processes_of(folder).into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
        let _ = child.wait();
    }
    let text = |path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    code.map(|code| End { code, stdout: text(&stdout), stderr: text(&stderr), pid, groups })
}

/// Processes that know of the trial's folder by their environment. A zombie has none any more.
fn processes_of(folder: &Path) -> Vec<u32> {
    let folder = format!("TMPDIR={}/tmp", folder.display());
    let pids = names_in(Path::new("/proc")).into_iter().filter_map(|name| name.parse::<u32>().ok());
    let knows = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == folder.as_bytes())
    };
    pids.filter(knows).collect()
}

/// What is left of a job that has ended.
fn leftovers(folder: &Path, end: &End) -> Vec<String> {
    let start = Instant::now();
    let left = loop {
        let left = processes_of(folder);
        if left.is_empty() || start.elapsed() > GONE {
            break left;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    let mut found: Vec<String> = left.iter().map(|pid| format!("process {pid} ({}) is left", name(pid))).collect();
    found.extend(names_in(&folder.join("tmp")).into_iter().map(|name| format!("temporary file {name} is left")));
    let group = format!("/dslaunch-{}-", end.pid);
    let groups = control_groups().into_iter().filter(|path| path.to_string_lossy().contains(&group));
    let new = groups.filter(|path| !end.groups.contains(path));
    found.extend(new.map(|path| format!("control group {} is left", path.display())));
    found
}

/// Folders of control groups that dslaunch has made, wherever this test may make them.
fn control_groups() -> BTreeSet<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let roots = mounts.lines().filter(|line| line.contains(" cgroup2 ")).filter_map(|line| line.split(' ').nth(1));
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let named = |folder: PathBuf| names_in(&folder).into_iter().map(move |name| folder.join(name));
    let all = roots.flat_map(|root| named(Path::new(root).join(own)));
    all.filter(|path| path.to_string_lossy().contains("/dslaunch-")).collect()
}

/// Lines that tell of a panic, in what was said and in every log.
fn panics(folder: &Path, end: &End) -> Vec<String> {
    let files = paths_below(&folder.join("run")).into_iter().map(|path| folder.join("run").join(path));
    let logs = files.filter_map(|path| fs::read_to_string(path).ok());
    let texts: Vec<String> = logs.chain([end.output()]).collect();
    let lines = texts.iter().flat_map(|text| text.lines()).filter(|line| line.contains("panicked at"));
    lines.map(|line| format!("a panic: {line}")).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Paths of files and folders below `root`, relative to it.
fn paths_below(root: &Path) -> BTreeSet<PathBuf> {
    let mut paths = BTreeSet::new();
    for name in names_in(root) {
        let below = paths_below(&root.join(&name));
        paths.extend(below.into_iter().map(|path| Path::new(&name).join(path)));
        paths.insert(name.into());
    }
    paths
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names_in(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else if from.is_file() {
            fs::copy(from, to).unwrap();
        }
    }
}

/// The sites of all scenes, each in the first scene that comes there, in the order that `seed` draws.
fn sites(stage: &Stage, seed: u64) -> Vec<(Scene, Site)> {
    let mut known = BTreeMap::new();
    for scene in SCENES {
        for site in stage.record(scene) {
            known.entry((scene == Scene::Run, site.id.clone())).or_insert((scene, site));
        }
    }
    let (mut sites, mut draw) = (known.into_values().collect::<Vec<_>>(), Draw::from_seed(seed));
    for last in (1..sites.len()).rev() {
        sites.swap(last, draw.below(last + 1));
    }
    sites
}

#[test]
fn whatever_the_system_refuses_once_costs_no_more_than_a_start() {
    let (trials, stage) = (Trials::or_else(60), Stage::new());
    let sites = sites(&stage, trials.seed);
    let (num_sites, start) = (sites.len(), Instant::now());
    let (next, failed) = (Mutex::new(sites.into_iter().take(trials.count)), Mutex::new(vec![]));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZeroUsize::get) {
            scope.spawn(|| {
                loop {
                    let Some((scene, site)) = next.lock().expect("no panic while it is held").next() else { return };
                    let begun = Instant::now();
                    let (broken, struck, said) = stage.play(scene, &site);
                    let not_met = if struck.is_none() { "not met: " } else { "" };
                    let site = struck.unwrap_or(site);
                    let seconds = begun.elapsed().as_secs_f64();
                    let verdict =
                        if broken.is_empty() { "ok".into() } else { format!("FAILED: {}", broken.join("; ")) };
                    let line = format!("{not_met}{scene:?}, {site}: {said}: {verdict} ({seconds:.1} s)");
                    println!("{line}");
                    if !broken.is_empty() {
                        failed.lock().expect("no panic while it is held").push(line);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("all threads have ended");
    println!("{} of {num_sites} sites in {:.0} s", trials.count.min(num_sites), start.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}
