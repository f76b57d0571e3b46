//! Starts jobs in the background: `dslaunch --detach train.toml` starts itself again and ends when the job has begun.
//!
//! The job begins as any other does, its standard output and standard error a pipe to the command that the user typed:
//! what it says, and what it fails with, is seen there. Once its plan is on disk it says so with a zero byte, its guardian
//! takes a session of its own, and it a file for its output, and the command ends. Until then Ctrl-C stops both, for the
//! command and the guardian are one process group; afterwards no terminal reaches the job.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::error::LaunchError;
use crate::job::args::JobArgs;
use crate::job::background::BEGUN;
use crate::job::setup::Setup;
use crate::output::console::Console;
use crate::output::terminal::Terminal;
use crate::process::spawn;

/// `dslaunch --detach train.toml`: returns 0 once the job has begun, or the exit code of the job that has not.
pub fn run(args: &JobArgs, terminal: &Terminal) -> Result<u8, LaunchError> {
    let run_dir = Setup::load(args, None)?.run_dir();
    let mut console = Console::new(terminal.clone(), true);
    let (output, sink) = io::pipe().map_err(LaunchError::io("make a pipe"))?;
    let mut job =
        spawn::start_again(words_in_background(args), sink).map_err(LaunchError::io("start dslaunch again"))?;
    if relay(output, |line| console.warn(line)).map_err(LaunchError::io("read what the job says"))? {
        let dir = run_dir.root().display();
        console.say(&format!(
            "{dir}: runs in the background, process {}\n  follow   dslaunch attach {dir}\n  stop     dslaunch stop {dir}\n  \
             console  {}",
            job.id(),
            run_dir.console_log().display()
        ));
        return Ok(0);
    }
    // Both of its streams are closed without the word: it has ended, or is about to.
    let status = job.wait().map_err(LaunchError::io("wait for the job"))?;
    Ok(code(status))
}

/// The command line of this job in the background.
fn words_in_background(args: &JobArgs) -> Vec<OsString> {
    let mut words = vec!["--in-background".into()];
    words.extend(args.words());
    words
}

/// Shows what the job says until it says no more. Returns whether it has begun.
fn relay(output: impl io::Read, mut show: impl FnMut(&str)) -> io::Result<bool> {
    let mut begun = false;
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line?;
        let before = line.len();
        line.retain(|&byte| byte != BEGUN);
        begun |= line.len() < before;
        if !(begun && line.is_empty()) {
            show(&String::from_utf8_lossy(&line));
        }
    }
    Ok(begun)
}

fn code(status: ExitStatus) -> u8 {
    let signalled = || status.signal().map(|signal| 128 + signal);
    status.code().or_else(signalled).and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use crate::cli::tests::parse;
    use crate::commands::Task;

    #[test]
    fn a_job_in_the_background_is_the_same_job() {
        assert_eq!(parse("--detach --nproc 4 train.toml"), Ok(Task::Detach(JobArgs::example(Some(4), &[]))));
        for args in [
            JobArgs::example(None, &[]),
            JobArgs { share_gpu: true, ..JobArgs::example(Some(2), &[]) },
            JobArgs::example(Some(4), &["train.steps=3", "job.name=a=b", "job.name=\"-x y\""]),
        ] {
            for train_toml in ["train.toml", "-x", "plan", "train", "--detach"] {
                let args = JobArgs { train_toml: train_toml.into(), ..args.clone() };
                let words: Vec<_> = std::iter::once("dslaunch".into()).chain(words_in_background(&args)).collect();
                assert_eq!(Cli::parse_task(&words).unwrap(), Task::TrainInBackground(args));
            }
        }
    }

    fn relayed(bytes: &[u8]) -> (bool, Vec<String>) {
        let mut lines = vec![];
        let begun = relay(bytes, |line| lines.push(line.to_owned())).unwrap();
        (begun, lines)
    }

    #[test]
    fn what_the_job_says_is_shown_and_its_word_is_heard() {
        let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        assert_eq!(relayed(b""), (false, vec![]));
        assert_eq!(relayed(b"error: x\n  y\n"), (false, lines(&["error: x", "  y"])));
        assert_eq!(relayed(b"note: x\n\0"), (true, lines(&["note: x"])));
        assert_eq!(relayed(b"a\n\nhalf a \0line\n"), (true, lines(&["a", "", "half a line"])));
    }

    #[test]
    fn a_signal_is_a_code() {
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(9)), 137);
    }
}
