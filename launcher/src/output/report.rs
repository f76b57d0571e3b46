//! Writes the report of a failed attempt and the summary of a job. Mostly pure: text from facts.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::layout::rank_layout;
use proto::memory::{PeakBytes, cuda_bytes};
use proto::plan::{Device, Plan};
use proto::progress::{Call, CallState, Place};
use proto::run_dir::RunDir;

use super::console::losses;
use super::timeline::{Goodput, Recovery};
use super::{Latest, early_stop, units};
use crate::run_dir::checkpoints::{self, Best};
use crate::supervise::hang::{Hang, ProcessState};
use crate::supervise::{Failure, Kind};

/// Lines of a rank's standard error that a report quotes.
const TAIL_LINES: usize = 50;
/// How much of the file is looked at for them.
const TAIL_BYTES: u64 = 64 * 1024;
/// Longest quoted line, in characters.
const LINE_CHARS: usize = 400;

/// The dynamic loader's message when a library is missing.
const LOADER_ERROR: &str = "error while loading shared libraries";

/// A failed attempt and the evidence.
#[derive(Debug)]
pub struct FailureReport<'a> {
    /// Which attempt.
    pub attempt: u32,
    /// The first real failure.
    pub cause: &'a Failure,
    /// The last work of that rank, if it is known.
    pub place: Option<String>,
    /// The other ranks', in order of arrival.
    pub follow_ons: &'a [Failure],
    /// Standard error of the rank that is the cause.
    pub log: PathBuf,
    /// Its last lines.
    pub tail: Vec<String>,
}

impl FailureReport<'_> {
    /// The report, several lines.
    pub fn text(&self) -> String {
        let Failure { rank, exit, message, .. } = self.cause;
        let mut text = format!("rank {rank} failed {} of attempt {}", at_step(self.cause.step), self.attempt);
        if let Some(place) = &self.place {
            text += &format!(", {place}");
        }
        match exit {
            Some(exit) => text += &format!(": {exit}"),
            None => text += ", and was stopped by dslaunch",
        }
        let mut line = |line: &str| {
            text.push('\n');
            text.push_str(line);
        };
        for message in message.iter().flat_map(|message| message.lines()) {
            line(&format!("  {message}"));
        }
        if let Some(hint) = exit.and_then(|exit| exit.hint()) {
            line(&format!("  {hint}"));
        }
        quote(&self.log, &self.tail).iter().for_each(|quoted| line(quoted));
        for failure in self.follow_ons {
            line(&format!("rank {} followed {}: {}", failure.rank, at_step(failure.step), failure.summary()));
        }
        text
    }
}

/// Quotes `tail`, the last lines of the file `log`.
pub fn quote(log: &Path, tail: &[String]) -> Vec<String> {
    let log = log.display();
    match tail {
        [] => vec![format!("  it wrote nothing to {log}")],
        tail => {
            let quoted = tail.iter().map(|line| format!("  | {line}"));
            std::iter::once(format!("  the end of {log}:")).chain(quoted).collect()
        }
    }
}

fn at_step(step: u64) -> String {
    if step == 0 { "before the first step".into() } else { format!("at step {step}") }
}

/// Puts the last work of `rank` into words: "backward pass of model.layers.3". `None` if it has not said anything yet.
pub fn place(plan: &Plan, rank: usize, place: Place) -> Option<String> {
    let unit = place.unit.and_then(|unit| rank_layout(plan, plan.mesh.coord(rank)).into_iter().nth(unit));
    match unit {
        _ if place == Place::START => None,
        Some(unit) => Some(format!("{} of {}", place.phase, unit.name)),
        None => Some(place.phase.to_string()),
    }
}

/// Describes a rank that hangs.
pub fn hang(hang: &Hang, place: Option<&str>) -> String {
    let (state, call, still) = (hang.state, hang.line.call, units::duration(hang.still));
    let is_stuck = matches!(state, ProcessState::Stopped | ProcessState::Blocked);
    let mut text = match call.state {
        CallState::Coming if !is_stuck => {
            format!("hangs inside {}, to which it has not come, for {still}", exchange(call))
        }
        CallState::Arrived if !is_stuck => {
            format!("waits inside {} for {still}: all ranks wait for each other, and it was the first", exchange(call))
        }
        CallState::Outside => format!("{state} for {still}"),
        CallState::Coming | CallState::Arrived => format!("{state} for {still}, inside {}", exchange(call)),
    };
    if let Some(place) = place {
        text += &format!(", in the {place}");
    }
    match &hang.waiting[..] {
        [] => {}
        [one] => text += &format!("\nrank {one} waits for it"),
        waiting => text += &format!("\nranks {} wait for it", units::list(waiting)),
    }
    text
}

/// The exchange by its kind and its number on the rank.
fn exchange(call: Call) -> String {
    format!("{} number {}", call.kind, call.number)
}

/// The last lines of the file at `path`, fit for a terminal.
pub fn tail(path: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = vec![];
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    let clean = |line: &&str| line.chars().filter(|c| !c.is_control() || *c == '\t').take(LINE_CHARS).collect();
    Ok(shown.iter().map(clean).collect())
}

/// A rank that could not even load its libraries tells of the machine, not of training: no restart helps it.
pub fn recognise_loader_failure(cause: &mut Failure, tail: &[String]) {
    if cause.kind == Kind::Died && tail.iter().any(|line| line.contains(LOADER_ERROR)) {
        cause.kind = Kind::Environment;
        cause.message = Some(
            "a library it needs was not found: install libtorch where dslaunch was built with it, or name its folder in \
             LD_LIBRARY_PATH"
                .into(),
        );
    }
}

/// How long a recovery took, and on what.
pub fn recovery(recovery: &Recovery) -> String {
    let Recovery { replayed_steps, total_ms, .. } = *recovery;
    let parts = [
        ("detect", recovery.detect_ms),
        ("stop", recovery.stop_ms),
        ("wait", recovery.wait_ms),
        ("spawn", recovery.spawn_ms),
        ("rendezvous", recovery.rendezvous_ms),
        ("load", recovery.load_ms),
        ("replay", recovery.replay_ms),
    ];
    let parts: Vec<_> = parts.iter().map(|(name, ms)| format!("{name} {ms:.0}")).collect();
    let again = units::plural(replayed_steps, "step");
    format!("recovered in {total_ms:.0} ms ({} ms), {again} made again", parts.join(", "))
}

/// Writes the summary of a training that is complete.
pub fn summary(plan: &Plan, run_dir: &RunDir, latest: &Latest, goodput: Goodput, restarts: u32) -> String {
    let elapsed = goodput.elapsed;
    let mut text = match plan.start.step {
        at if at >= plan.steps => {
            format!("{}: already at step {at} of {}, nothing left to train", plan.name, plan.steps)
        }
        at => match latest.early_stop {
            Some(stop) => {
                let (steps, reason) = (plan.steps, early_stop::reason(&stop, plan.early_stopping));
                let step = latest.step;
                let within = if step > at { format!(", in {}", units::duration(elapsed)) } else { String::new() };
                format!("{}: stopped early at step {step} of {steps}{within}: {reason}", plan.name)
            }
            None => {
                format!("{}: done, {} in {}", plan.name, units::plural(plan.steps, "step"), units::duration(elapsed))
            }
        },
    };
    if restarts > 0 {
        text += &format!(", {}", units::plural(restarts.into(), "restart"));
    }
    if let Some(loss) = latest.loss {
        text += &format!("\n  loss    {loss:.4} at the last step, {} label tokens", units::count(latest.tokens));
    }
    if let Some(eval) = &latest.eval {
        text += &format!("\n  eval    {}", losses(eval));
    }
    if let Some(best) = best_validation(run_dir, latest) {
        text += &format!("\n  best    {best}");
    }
    if plan.start.step < plan.steps {
        let recovering = match goodput.recovering {
            Duration::ZERO => String::new(),
            recovering => format!(", {} recovering from failures", units::duration(recovering)),
        };
        let (percent, steps) = (goodput.fraction() * 100.0, units::duration(goodput.steps));
        text += &format!("\n  goodput {percent:.1} %: {steps} on steps{recovering}");
    }
    if let Some((rank, peak)) = latest.gpu_memory.iter().max_by_key(|(_, peak)| **peak) {
        let predicted = PeakBytes::of(plan, plan.mesh.coord(*rank)).on_gpu(plan).total() - cuda_bytes(plan);
        let (peak, predicted) = (units::bytes(*peak), units::bytes(predicted));
        text += &format!("\n  gpu     {peak} at most, on rank {rank}; predicted {predicted}; CUDA itself beside");
    }
    let of_host = |plan: &Plan, peak: PeakBytes| match plan.device {
        Device::Cpu => peak,
        Device::Cuda => peak.beside_gpu(plan),
    };
    if let Some((rank, (peak, baseline))) = latest.memory.iter().max_by_key(|(_, memory)| memory.0) {
        let predicted = of_host(plan, PeakBytes::of(plan, plan.mesh.coord(*rank))).total() + baseline;
        let (peak, predicted) = (units::bytes(*peak), units::bytes(predicted));
        text += &format!("\n  memory  {peak} at most, on rank {rank}; predicted {predicted}");
    }
    text + &format!("\n  model   {}", run_dir.final_model().display())
}

/// The best validation, and the checkpoint that can be used for it.
fn best_validation(run_dir: &RunDir, latest: &Latest) -> Option<String> {
    let kept = checkpoints::best(run_dir).map(|Best { scored, .. }| (scored, run_dir.best().display().to_string()));
    match (kept, latest.best) {
        (Some((kept, link)), Some((step, loss))) if kept.step != step => Some(format!(
            "{loss:.4} after step {step}, of which there is no checkpoint; {:.4} after step {}, in {link}",
            kept.loss, kept.step
        )),
        (Some((kept, link)), _) => Some(format!("{:.4} after step {}, in {link}", kept.loss, kept.step)),
        (None, Some((step, loss))) => Some(format!("{loss:.4} after step {step}, of which no checkpoint is kept")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::exit::Exit;

    use proto::config::TrainConfig;
    use proto::manifest::Progress;
    use proto::memory::Room;
    use proto::model_config::ModelConfig;
    use proto::progress::{CallKind, Line};
    use proto::resolve::{Draft, Machine, PreparedData, World};

    fn failure(rank: usize, message: Option<&str>, exit: Option<Exit>) -> Failure {
        Failure { rank, kind: Kind::Died, step: 17, message: message.map(str::to_owned), exit }
    }

    fn lines_of(text: &[u8]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("err"), text).unwrap();
        tail(&dir.path().join("err")).unwrap()
    }

    #[test]
    fn a_report_has_the_cause_its_evidence_and_the_follow_ons() {
        let killed = failure(2, None, Some(Exit::Signal { number: libc::SIGKILL, core_dumped: false }));
        let follow_ons = [failure(0, Some("rank 2 is gone\ndetails"), Some(Exit::Code(1)))];
        let report = FailureReport {
            attempt: 1,
            cause: &killed,
            place: Some("backward pass of model.layers.3".into()),
            follow_ons: &follow_ons,
            log: "/run/rank-2.err".into(),
            tail: vec!["last words".into()],
        };
        let expected = "rank 2 failed at step 17 of attempt 1, backward pass of model.layers.3: killed by SIGKILL\n\
            \x20 if nobody sent it, the kernel's out-of-memory killer is the usual cause\n\
            \x20 the end of /run/rank-2.err:\n  | last words\n\
            rank 0 followed at step 17: rank 2 is gone";
        assert_eq!(report.text(), expected);
        let told = Failure { step: 0, ..failure(0, Some("bad row\nline 3"), Some(Exit::Code(1))) };
        let report = FailureReport { cause: &told, place: None, follow_ons: &[], tail: vec![], ..report };
        let expected = "rank 0 failed before the first step of attempt 1: exited with code 1\n\
            \x20 bad row\n  line 3\n  it wrote nothing to /run/rank-2.err";
        assert_eq!(report.text(), expected);
    }

    #[test]
    fn a_hang_is_told_with_the_exchange_and_those_that_wait() {
        let call = |state| Call { number: 12, kind: CallKind::AllReduce, state };
        let line = Line { call: call(CallState::Outside), ..Line::from_words([0; 5]) };
        let hang = |state, process| Hang {
            rank: 1,
            line: Line { call: call(state), ..line },
            still: Duration::from_secs(4),
            state: process,
            waiting: vec![0],
        };
        let place = Some("backward pass of model.layers.3");
        for (call, process, expected) in [
            (CallState::Outside, ProcessState::Running, "spins: it uses the processor and does not get on for 4.0s"),
            (
                CallState::Coming,
                ProcessState::Sleeping,
                "hangs inside all_reduce number 12, to which it has not come, for 4.0s",
            ),
            (
                CallState::Arrived,
                ProcessState::Sleeping,
                "waits inside all_reduce number 12 for 4.0s: all ranks wait for each other, and it was the first",
            ),
            (
                CallState::Arrived,
                ProcessState::Stopped,
                "is stopped, by a signal or a debugger for 4.0s, inside all_reduce number 12",
            ),
        ] {
            let told = super::hang(&hang(call, process), place);
            assert_eq!(told, format!("{expected}, in the backward pass of model.layers.3\nrank 0 waits for it"));
        }
        let two = Hang { waiting: vec![0, 2], ..hang(CallState::Coming, ProcessState::Sleeping) };
        assert!(super::hang(&two, None).ends_with("for 4.0s\nranks 0, 2 wait for it"));
    }

    #[test]
    fn the_tail_is_the_last_lines_without_control_characters() {
        assert_eq!(lines_of(b""), [""; 0]);
        assert_eq!(lines_of(b"a\x1b[31mb\xff\n\tc"), ["a[31mb\u{fffd}", "\tc"]);
        let long: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
        let lines = lines_of(long.as_bytes());
        assert_eq!((lines.len(), lines[0].as_str(), lines[49].as_str()), (50, "line 9950", "line 9999"));
        assert_eq!(lines_of(&[b'x'; 100_000])[0].len(), LINE_CHARS);
    }

    #[test]
    fn the_summary_does_not_claim_steps_that_nobody_trained() {
        let toml = "[job]\nname = \"sft\"\n[model]\npath = \"/m\"\n[data]\ntrain = \"a.jsonl\"\n[train]\nsteps = 10";
        let config = TrainConfig::parse(Path::new("sft.toml"), toml, &[]).unwrap();
        let model = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
                        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}"#;
        let model = ModelConfig::parse(Path::new("config.json"), model).unwrap();
        let world = World {
            world_size: 1,
            cores: 8,
            omp_num_threads: None,
            current_dir: "/here".into(),
            machine: Machine::This { gpus: Ok(0) },
            room: Room::default(),
        };
        let draft = Draft::new(&config, world, model).unwrap();
        for (step, first_line) in [
            (0, "sft: done, 10 steps in 2.0s"),
            (9, "sft: done, 10 steps in 2.0s"),
            (10, "sft: already at step 10 of 10, nothing left to train"),
            (12, "sft: already at step 12 of 10, nothing left to train"),
        ] {
            let data = PreparedData { path: "/d".into(), rows: 320, tokens: 1000, longest_row: 64, classes: vec![] };
            let start = Progress { step, ..Progress::default() };
            let plan = draft.with_data(data, &[], start).unwrap();
            let second = Duration::from_secs(1);
            let goodput = Goodput { steps: second, recovering: second / 2, elapsed: 2 * second };
            let text = summary(&plan, &RunDir::new("/run"), &Latest::default(), goodput, 0);
            let spent = if step < 10 { "\n  goodput 50.0 %: 1.0s on steps, 0.5s recovering from failures" } else { "" };
            assert_eq!(text, format!("{first_line}{spent}\n  model   /run/final"));
        }
    }

    #[test]
    fn a_missing_library_is_the_environments_fault() {
        let line =
            "dslaunch-rank: error while loading shared libraries: libtorch_cpu.so: cannot open shared object file";
        let mut cause = failure(0, None, Some(Exit::Code(127)));
        recognise_loader_failure(&mut cause, &["something else".into()]);
        assert_eq!(cause.kind, Kind::Died);
        recognise_loader_failure(&mut cause, &[line.into()]);
        assert_eq!(cause.kind, Kind::Environment);
    }
}
